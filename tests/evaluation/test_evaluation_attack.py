"""Attacks of the evaluation that somebody else writes: what the base class sees to."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from robustcords.attacks.base import Attack
from robustcords.data.images import ImageSet
from robustcords.engine.modes import Model
from robustcords.errors import UserError
from robustcords.evaluation.attacks.base import EvaluationAttack, EvaluationAttackConfig, Radii
from robustcords.evaluation.config import EvaluationConfig
from robustcords.evaluation.evaluate import evaluate, robust_accuracy
from robustcords.evaluation.evaluator import Evaluator, withstands
from robustcords.evaluation.results import Evaluation, Measurement
from robustcords.losses.objective import Objective, cross_entropy_of
from robustcords.rng import Noise
from robustcords.threats.base import ThreatModel

THREAT = ThreatModel(epsilon=0.1)


class Edge(nn.Module):
    """Says class 0 of images whose mean is above 0.5, in float64; counts the images that it sees."""

    seen = 0

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        mean = (x.double() * self.weight).flatten(1).mean(1) - 0.5
        return torch.stack([mean, -mean], dim=1)


def images(count: int = 300) -> ImageSet:
    """Grey images whose means lie evenly in (0.3, 0.7), every seventh with the wrong label, in a mixed order."""
    level = (0.3 + 0.4 * (torch.arange(count) + 0.5) / count)[torch.arange(count) * 7919 % count]
    labels = (level < 0.5).long()
    labels[::7] = 1 - labels[::7]
    return ImageSet(level.view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous(), labels, ("light", "dark"))


class Shift(EvaluationAttack):
    """Moves all pixels towards the other class, further than is allowed."""

    class Config(EvaluationAttackConfig):
        epsilons: Radii | None = None
        limit: int = 0
        factor: float = 100.0

    @property
    def limit(self) -> int:
        return int(self.config.limit)

    def attack_batch(self, model: Model, x: Tensor, y: Tensor, noise: Noise, threat: ThreatModel) -> Tensor:
        sign = (2 * y.float() - 1).view(-1, 1, 1, 1)
        return x + sign * threat.epsilon * self.config.factor


class Distance(EvaluationAttack):
    """Measures how far each image is from the boundary, which has no radius."""

    def run(self, evaluator: Evaluator, clean: Tensor) -> list[Measurement]:
        def work(rows: Tensor) -> tuple[Tensor, list[str]]:
            x, _ = evaluator.batch(rows)
            return (clean[rows] & ((x.flatten(1).mean(1) - 0.5).abs() > 0.15)).long(), [f"{len(rows)} looked at"]

        measured = self.measure(evaluator, None, {"beyond": 0.15}, work)
        return [measured.model_copy(update={"extras": {"beyond": 0.15}})]


class Silent(EvaluationAttack):
    """Has nothing."""


class Flat(EvaluationAttack):
    """Returns images of another shape."""

    class Config(EvaluationAttackConfig):
        epsilons: Radii | None = None

    def attack_batch(self, model: Model, x: Tensor, y: Tensor, noise: Noise, threat: ThreatModel) -> Tensor:
        return x.flatten(1)


def found(*attacks: dict[str, Any], store: Path | None = None, **others: Any) -> tuple[Evaluation, Edge]:
    tables = [{**each, "name": f"{__name__}:{each['name']}"} for each in attacks]
    config = EvaluationConfig(**{"pgd": None, "autoattack": None, "attacks": tables, **others})
    model = Edge()
    return evaluate(model, images(), config, THREAT, seed=0, store=store), model


def expected(epsilon: float, count: int = 300) -> float:
    """The share of the images that are right and further from the boundary than the radius."""
    data = images()
    level = data.images[:, 0, 0, 0]
    right = ((level < 0.5).long() == data.labels) & ((level.double() - 0.5).abs() > epsilon)
    return right[:count].double().mean().item()


def test_images_are_projected_and_every_radius_is_reported():
    result, _ = found({"name": "Shift", "epsilons": [0.05, 0.1]})
    assert [(each.what, each.radius, each.accuracy) for each in result.attacks] == [
        ("Shift 0.05", "0.05", expected(0.05)),
        ("Shift 0.1", "0.1", expected(0.1)),
    ]
    assert 0 < expected(0.1) < expected(0.05) < (result.clean or 0) < 1


def test_radii_follow_from_the_threat_where_none_are_given():
    result, _ = found({"name": "Shift"})
    assert [(each.radius, each.accuracy) for each in result.attacks] == [("0.1", expected(0.1))]


def test_what_is_done_is_kept_and_another_option_is_another_attack(tmp_path: Path):
    first, model = found({"name": "Shift"}, store=tmp_path)
    assert model.seen > 0
    again, model = found({"name": "Shift"}, store=tmp_path)
    assert (again, model.seen) == (first, 0)
    weaker, model = found({"name": "Shift", "factor": 0.5}, store=tmp_path)
    assert model.seen > 0
    assert weaker.attacks[0].accuracy == expected(0.05)


def test_an_attack_on_a_part_has_the_others_on_it_too():
    pgd = {"steps": 2, "restarts": 1, "step_size": 0.1, "epsilons": [0.05]}
    result, _ = found({"name": "Shift", "limit": 120}, pgd=pgd)
    (measured,) = result.attacks
    assert (measured.examples, measured.sample, measured.accuracy) == (120, "first", expected(0.1, 120))
    assert measured.same_images == {"clean": expected(0, 120), "PGD 0.05": expected(0.05, 120)}
    assert result.same_images is None
    assert result.pgd == {"0.05": expected(0.05)}


def test_one_without_a_radius_writes_run():
    result, _ = found({"name": "Distance"})
    (measured,) = result.attacks
    assert (measured.what, measured.radius, measured.accuracy) == ("Distance", None, expected(0.15))
    assert measured.extras == {"beyond": 0.15}
    assert result.warnings[0] == ("Distance", "128 looked at")
    assert Evaluation.model_validate(result.to_json()) == result


def test_attacks_run_in_their_order_and_those_of_one_label_are_told_apart():
    result, _ = found({"name": "Shift"}, {"name": "Distance"}, {"name": "Shift", "factor": 0.5})
    told = [(each.label, each.what, each.accuracy) for each in result.attacks]
    assert told == [
        ("Shift", "Shift 0.1", expected(0.1)),
        ("Distance", "Distance", expected(0.15)),
        ("Shift (2)", "Shift (2) 0.1", expected(0.05)),
    ]


def test_what_an_attack_lacks_or_returns_is_one_line():
    with pytest.raises(UserError, match=r"attack .*:Flat returned .*expected .*4, 4"):
        found({"name": "Flat"})
    with pytest.raises(UserError, match=r"^attack .*:Silent writes neither attack_batch nor run"):
        Silent(THREAT)
    without = type("Without", (Flat,), {"Config": EvaluationAttackConfig})
    with pytest.raises(UserError, match=r"^attack .*:Without writes no run, and has no radii to report"):
        without(THREAT)


class NFGSM(Attack):
    """The noise of N-FGSM (de Jorge et al. 2022), which is not projected."""

    contained: ClassVar[bool] = False

    @property
    def num_gradient_steps(self) -> int:
        return 1

    def search(self, model: Model, x: Tensor, objective: Objective, noise: Noise) -> Tensor:
        return x + 3 * self.threat.epsilon * (2 * noise.uniform(x.shape[1:]) - 1)

    def with_effort(self, steps: int, step_size: float | None = None) -> Attack:
        return self


def test_training_may_leave_the_ball_and_evaluation_refuses_to():
    attack = NFGSM(ThreatModel(epsilon=0.3))
    x, y = images().batch(torch.arange(50))
    noise = Noise(0, torch.arange(50))
    x_adv = attack(Edge(), x, cross_entropy_of(y), noise)
    assert (x_adv - x).abs().max() > 0.6
    assert (x_adv.min(), x_adv.max()) == (0, 1)
    line = r"NFGSM may leave the ball \(contained = False\)"
    with pytest.raises(UserError, match=line):
        withstands(Edge(), x, y, noise, torch.ones(50, dtype=torch.bool), attack, 1)
    with pytest.raises(UserError, match=line):
        robust_accuracy(Edge(), images(), attack, seed=0)
    assert 0 < robust_accuracy(Edge(), images(), attack, seed=0, of_training=True)[1] < 1


def bent(bend: Any) -> type[EvaluationAttack]:
    """Returns an attack that does something with the model and the images of a batch, and returns what comes of it."""

    class Bent(EvaluationAttack):
        class Config(EvaluationAttackConfig):
            epsilons: Radii | None = None

        def attack_batch(self, model: Model, x: Tensor, y: Tensor, noise: Noise, threat: ThreatModel) -> Any:
            return bend(model, x)

    return Bent


def measured(monkeypatch: pytest.MonkeyPatch, kind: type[EvaluationAttack], model: nn.Module) -> Evaluation:
    monkeypatch.setitem(globals(), "Chosen", kind)
    config = EvaluationConfig(pgd=None, autoattack=None, attacks=[{"name": f"{__name__}:Chosen"}])
    return evaluate(model, images(), config, THREAT, seed=0)


def test_an_attack_leaves_the_model_and_the_images_as_they_are(monkeypatch: pytest.MonkeyPatch):
    def halve(model: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            next(model.parameters()).mul_(0.5)
        return x

    def train(model: Any, x: Tensor) -> Tensor:
        model.train()
        return x

    with pytest.raises(UserError, match=r"^attack .*Bent changed the model it was lent: 'weight'"):
        measured(monkeypatch, bent(halve), Edge())
    nothing = measured(monkeypatch, bent(lambda model, x: x), Edge())
    assert nothing.attacks[0].accuracy == nothing.clean
    # Over images that are written to, the ball would be that of other ones.
    zeroed = measured(monkeypatch, bent(lambda model, x: x.zero_()), Edge())
    assert zeroed.attacks[0].accuracy == measured(monkeypatch, bent(lambda model, x: x * 0), Edge()).attacks[0].accuracy
    dropout = nn.Sequential(nn.Dropout(0.9), Edge())
    assert measured(monkeypatch, bent(train), dropout).attacks[0].accuracy == nothing.clean


def test_what_an_attack_returns_is_looked_at(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="Bent returned pixels that are not finite"):
        measured(monkeypatch, bent(lambda model, x: x * torch.nan), Edge())

    class Number(EvaluationAttack):
        def run(self, evaluator: Evaluator, clean: Tensor) -> Any:
            return 0.5

    with pytest.raises(UserError, match="Number: run returned a float, expected a list of Measurement"):
        measured(monkeypatch, Number, Edge())

    class Narrow(Shift):
        def __init__(self) -> None:
            pass

    with pytest.raises(UserError, match=r"Narrow cannot be built: .*unexpected keyword argument"):
        measured(monkeypatch, Narrow, Edge())
