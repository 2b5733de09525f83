"""Attacks of a single step in training, against the papers' formulas in plain torch and float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support import small_problem
from support.cases import cases
from support.small_run import close, epoch_end, trainer, vector
from torch import Tensor, nn
from torch.nn import functional as F

from robustcords.attacks.base import Attack, CleanLogits
from robustcords.attacks.fgsm import FGSM
from robustcords.attacks.kim import Kim
from robustcords.attacks.n_fgsm import NFGSM
from robustcords.attacks.pgd import PGD
from robustcords.config.registry import find
from robustcords.errors import UserError
from robustcords.losses.objective import Objective, margin_of
from robustcords.losses.sat import SAT
from robustcords.losses.trades import TRADES
from robustcords.methods.efforts.bullet import Bullet
from robustcords.rng import Noise, derive
from robustcords.selection.gradients.attack_precision import AttackIn
from robustcords.selection.selector import everything
from robustcords.threats.base import ThreatModel
from robustcords.training.callbacks.overfitting import OverfittingProbe

EPSILON = 0.05
THREAT = ThreatModel(epsilon=EPSILON)
IMAGES = small_problem.images([14, 14, 13])
Objectives = Callable[[nn.Module, Tensor, Tensor], Callable[[Tensor], Tensor]]
ByHand = Callable[[nn.Module, Tensor, Tensor, Tensor, Callable[[Tensor], Tensor]], Tensor]


def step(model: nn.Module, x: Tensor, value: Callable[[Tensor], Tensor], size: float) -> Tensor:
    x = x.clone().requires_grad_()
    value(model(x)).sum().backward()
    assert x.grad is not None
    return x.detach() + size * x.grad.sign()


def fgsm_rs(model: nn.Module, x: Tensor, y: Tensor, u: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
    start = (x + (EPSILON * u).double()).clamp(0, 1)
    return (x + (step(model, start, value, 1.25 * EPSILON) - x).clamp(-EPSILON, EPSILON)).clamp(0, 1)


def n_fgsm(model: nn.Module, x: Tensor, y: Tensor, u: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
    return step(model, (x + (2 * EPSILON * u).double()).clamp(0, 1), value, EPSILON).clamp(0, 1)


def kim(model: nn.Module, x: Tensor, y: Tensor, u: Tensor, value: Callable[[Tensor], Tensor], start: bool) -> Tensor:
    """Example by example, every point on the way."""
    p = fgsm_rs(model, x, y, u, value) - x
    made = x.clone()
    with torch.no_grad():
        judged = (x + (EPSILON * u).double()).clamp(0, 1) if start else x
        for i, label in enumerate(y.tolist()):
            if model(judged[i : i + 1]).argmax() != label:
                continue
            wrong = [k for k in (1, 2) if model(x[i : i + 1] + k / 3 * p[i : i + 1]).argmax() != label]
            made[i] = x[i] + (wrong[0] / 3 if wrong else 1.0) * p[i]
    return made


CASES: dict[str, tuple[Attack, ByHand]] = {
    "fgsm-rs": (FGSM(THREAT), fgsm_rs),
    "n-fgsm": (NFGSM(THREAT), n_fgsm),
    "kim": (Kim(THREAT), lambda *batch: kim(*batch, start=False)),
    "kim-script": (Kim(THREAT, judged_at="start"), lambda *batch: kim(*batch, start=True)),
}


def losses_by_hand(name: str, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    if name == "sat":
        return F.cross_entropy(model(x_adv), y)
    clean, adversarial = model(x).log_softmax(1), model(x_adv).log_softmax(1)
    return F.nll_loss(clean, y) + 6 * (clean.exp() * (clean - adversarial)).sum(1).mean()


def trained_by_hand(made: ByHand, loss: str, ours: object) -> Tensor:
    """Returns the weights after the epochs of a trainer, whose batches are taken and nothing else."""
    model = small_problem.network(3)
    model[4] = nn.Identity()  # dropout
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(2):
        for positions in ours.loader.order(epoch, everything(len(IMAGES))):  # type: ignore[attr-defined]
            batch = ours.loader.load(positions, everything(len(IMAGES)), epoch)  # type: ignore[attr-defined]
            x, y, u = batch.x, batch.y, batch.noise.uniform(batch.x.shape[1:]) * 2 - 1
            model.eval()
            with torch.no_grad():
                clean = model(x).log_softmax(1)
            value: Callable[[Tensor], Tensor] = (
                (lambda z, y=y: F.cross_entropy(z, y, reduction="none"))
                if loss == "sat"
                else (lambda z, p=clean: (p.exp() * (p - z.log_softmax(1))).sum(1))
            )
            x_adv = made(model, x, y, u, value)
            model.train()
            optimizer.zero_grad()
            losses_by_hand(loss, model, x, x_adv, y).backward()
            optimizer.step()
    return vector(model)


@cases("loss", ["sat", "trades"])
@cases("case", CASES)
def test_training_is_the_papers_formula(case: str, loss: str) -> None:
    attack, by_hand = CASES[case]
    model = small_problem.network(3)
    model[4] = nn.Identity()
    ours = trainer(loss=loss, attack=attack, model=model, train=IMAGES)
    ours.fit()
    torch.testing.assert_close(vector(ours), trained_by_hand(by_hand, loss, ours), rtol=0, atol=1e-9)


def batch(count: int = 41) -> tuple[nn.Module, Tensor, Tensor, Noise]:
    x, y = IMAGES.batch(torch.arange(count))
    return small_problem.network(3).eval(), x, y, Noise(3, torch.arange(count))


def test_n_fgsm_leaves_the_ball_and_not_the_pixels() -> None:
    model, x, y, noise = batch()
    for attack in (NFGSM(THREAT), AttackIn(NFGSM(THREAT), "fp32")):
        x_adv = attack(model, x, attack.objective_for(SAT(), y, CleanLogits(model, x)), noise)
        assert EPSILON * 2.9 < (x_adv - x).abs().max() <= EPSILON * 3 + 1e-12
        assert (x_adv.min(), x_adv.max()) >= (0, 0)
        assert x_adv.max() <= 1


class Towards(nn.Module):
    """Says class 1 where the mean pixel has passed a threshold, of which the gradient is the same everywhere."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        distance = x.flatten(1).mean(1) - self.threshold
        return torch.stack([-distance, distance], 1)


@cases(("share", "k"), [(-0.1, 0), (0.1, 1), (0.33, 1), (0.34, 2), (0.66, 2), (0.67, 3), (1.5, 3)])
def test_kim_goes_to_the_first_point_that_is_misclassified(share: float, k: int) -> None:
    x = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    attack = Kim(THREAT, random_start="none", step_size=EPSILON)
    y = torch.zeros(1, dtype=torch.int64)
    model = Towards(0.5 + share * EPSILON)
    x_adv = attack(model, x, attack.objective_for(SAT(), y, CleanLogits(model, x)), Noise(0, torch.arange(1)))
    torch.testing.assert_close(x_adv, x + k / 3 * EPSILON)


@cases("name", ["kim", "fgsm", "n_fgsm"])
def test_shares_that_are_all_of_one_class_are_that_label(name: str) -> None:
    model, x, y, noise = batch()
    attack = find("attack", name)(THREAT)
    made = [
        attack(model, x, attack.objective_for(SAT(), labels, CleanLogits(model, x)), noise)
        for labels in (y, F.one_hot(y, 3).double())
    ]
    torch.testing.assert_close(made[1], made[0], rtol=0, atol=1e-12)


def test_kim_needs_labels() -> None:
    model, x, _, noise = batch(2)
    with pytest.raises(UserError, match="Kim asks what is classified correctly: give Objective its labels"):
        Kim(THREAT)(model, x, Objective(lambda z: z.sum(1)), noise)


def test_margin_is_the_strongest_wrong_class_less_the_own() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.5], [0.5, -1.0, 0.0]])
    torch.testing.assert_close(margin_of(torch.tensor([1, 2])).value(logits), torch.tensor([-0.5, 0.5]))


@cases("attack", ["pgd", "fgsm", "n_fgsm", "kim"])
@cases("objective", ["ce", "margin"])
def test_the_objective_is_an_option_whatever_the_loss(attack: str, objective: str) -> None:
    y = batch()[2]
    chosen = find("attack", attack)(THREAT, objective=objective)
    for varied in (chosen, AttackIn(chosen, "fp32"), chosen.with_effort(2)):
        aim = varied.objective_for(TRADES(), y, lambda: pytest.fail("clean logits are not needed"))
        logits = torch.randn(41, 3, dtype=torch.float64)
        own = logits.gather(1, y[:, None])[:, 0]
        others = logits.masked_fill(F.one_hot(y, 3).bool(), -torch.inf).amax(1)
        expected = F.cross_entropy(logits, y, reduction="none") if objective == "ce" else others - own
        torch.testing.assert_close(aim.value(logits), expected)
        assert (aim.start, aim.relative_to_clean) == ("uniform", False)


def test_a_step_up_the_margin() -> None:
    model, x, y, noise = batch()
    attack = PGD(THREAT, objective="margin", steps=1, step_size=0.03, random_start="none")
    x_adv = attack(model, x, attack.objective_for(SAT(), y, CleanLogits(model, x)), noise)
    raised = step(model, x, margin_of(y).value, 0.03).clamp(0, 1)
    torch.testing.assert_close(x_adv, raised)


@pytest.mark.parametrize("attack", [NFGSM(THREAT), Kim(THREAT)], ids=["n-fgsm", "kim"])
def test_catastrophic_overfitting_is_watched_for(attack: Attack) -> None:
    """The probe attacks as training does, outside of the ball or up to where an example is misclassified."""
    x, y = IMAGES.batch(torch.arange(41))
    model, noise = small_problem.network(3).eval(), Noise(derive(5, "validation"), torch.arange(41))
    noted = OverfittingProbe(IMAGES, attack, PGD(THREAT)).after_epoch(epoch_end(model, seed=5))
    x_adv = attack(model, x, attack.objective_for(SAT(), y, CleanLogits(model, x)), noise)
    right = (model(x).argmax(1) == y) & (model(x_adv).argmax(1) == y)
    assert noted["training"] == int(right.sum()) / 41


@pytest.mark.parametrize("attack", [NFGSM(THREAT), Kim(THREAT)], ids=["n-fgsm", "kim"])
def test_bullet_leaves_outliers_as_they_are(attack: Attack) -> None:
    ours = trainer(loss="mart", attack=attack, effort=Bullet)
    ours.fit()
    assert ours.progress.counts == {}
    again = trainer(loss="mart", attack=attack, effort=Bullet, settings={"accumulation": 2})
    again.fit()
    assert close(ours, again)
