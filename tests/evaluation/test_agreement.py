"""Our PGD and AutoAttack against torchattacks' PGD and pyautoattack called directly, example by example."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
import torchattacks
from pyautoattack import AutoAttack
from support.brief import shorten
from support.cases import cases
from torch import Tensor, nn

from robustcords.attacks.pgd import PGD
from robustcords.data.images import ImageSet
from robustcords.evaluation.attacks import autoattack
from robustcords.evaluation.config import EvaluationConfig
from robustcords.evaluation.evaluate import evaluate
from robustcords.evaluation.evaluator import classified
from robustcords.losses.objective import cross_entropy_of
from robustcords.models import source
from robustcords.rng import Noise, derive
from robustcords.threats.base import ThreatModel

COUNT = 24
EPSILON = {"linf": 0.06, "l2": 0.8}


@pytest.fixture(scope="module")
def problem() -> tuple[nn.Module, Tensor, Tensor]:
    """A float64 network, where rounding decides nothing, images, and labels that it mostly agrees with."""
    model = source("resnet8")(name="resnet8", width=4).build(3, 12, 10, [0.5] * 3, [0.25] * 3, seed=3).double()
    x = torch.rand((COUNT, 3, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        model(x)  # fills BatchNorm's statistics
        y = model.eval()(x).argmax(1)
    y[0] = (y[0] + 1) % 10
    return model, x, y


def theirs(model: nn.Module, norm: str, steps: int, start: Tensor | None) -> torchattacks.attack.Attack:
    """Returns torchattacks' PGD, which draws its random start from what is injected where it draws."""
    kind, epsilon = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm], EPSILON[norm]
    return kind(model, eps=epsilon, alpha=epsilon / 4, steps=steps, random_start=start is not None)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("steps", [1, 10, 40])
def test_pgd_without_a_random_start_is_torchattacks(problem, norm: str, steps: int):
    model, x, y = problem
    attack = PGD(
        ThreatModel(norm=norm, epsilon=EPSILON[norm]), steps=steps, step_size=EPSILON[norm] / 4, random_start="none"
    )
    ours = attack(model, x, cross_entropy_of(y), Noise(0, torch.arange(COUNT)))
    reference = theirs(model, norm, steps, None)(x, y)
    # For l2 they add 1e-10 to a gradient's length and we do not.
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-12 if norm == "linf" else 1e-6)
    assert torch.equal(classified(model, ours, y), classified(model, reference, y))
    assert not torch.equal(ours, x)


def test_pgd_from_the_same_random_start_is_torchattacks(problem, monkeypatch: pytest.MonkeyPatch):
    model, x, y = problem
    threat, noise = ThreatModel(epsilon=EPSILON["linf"]), Noise(derive(5, "evaluation"), torch.arange(COUNT))
    attack = PGD(threat, steps=10, step_size=EPSILON["linf"] / 4, random_start="uniform")
    ours = attack(model, x, cross_entropy_of(y), noise)
    drawn = ((noise.uniform(x.shape[1:]) * 2 - 1) * EPSILON["linf"]).to(x.dtype)
    monkeypatch.setattr(Tensor, "uniform_", lambda self, low, high: self.copy_(drawn))
    reference = theirs(model, "linf", 10, drawn)(x, y)
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-12)
    withstood = classified(model, ours, y)
    assert torch.equal(withstood, classified(model, reference, y))
    assert 0 < withstood.sum() < COUNT - 1, "the radius does not tell examples apart"


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_evaluation_under_autoattack_is_pyautoattacks_own(whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One chunk, so that both see the same batch; the standard version, nothing of it changed."""
    if not whole:
        shorten(monkeypatch)
    epsilon = 0.02
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(25, 32), nn.Tanh(), nn.Linear(32, 10)).eval()
    x = torch.rand((COUNT, 1, 5, 5), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 10
    settings = EvaluationConfig(pgd=None, autoattack={"epsilons": [epsilon]})
    report = evaluate(model, ImageSet(x, y, tuple("abcdefghij")), settings, ThreatModel(), seed=9, store=tmp_path)
    kept = [json.loads(path.read_text()) for path in tmp_path.iterdir()]
    (outcomes,) = [each["outcomes"] for each in kept if each["fingerprint"]["what"].startswith("AutoAttack")]
    assert report.autoattack_version == "standard"

    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    with torch.random.fork_rng(devices=[]):
        direct = AutoAttack(model, norm="Linf", eps=epsilon, seed=derive(9, "autoattack", 0))
        _, predicted = direct.run_standard_evaluation(x, y, batch_size=COUNT)
    robust = torch.tensor(outcomes) == len(report.autoattack_attacks)
    assert torch.equal(robust, predicted == y)
    assert list(report.autoattack.values()) == [robust.double().mean().item()]
    assert 0 < robust.sum() < COUNT - 1, "the radius does not tell examples apart"


@cases("version", ["standard", "plus", "rand"])
def test_autoattacks_attacks_have_their_own_settings(version: str):
    model = nn.Flatten()
    ours = autoattack._attacker(model, "Linf", 0.1, version, 5, torch.device("cpu"))
    theirs = AutoAttack(model, norm="Linf", eps=0.1, seed=5, version=version)
    assert ours.attacks_to_run == theirs.attacks_to_run
    for attack in ("apgd", "apgd_targeted", "fab", "square"):
        plain = [
            {name: value for name, value in vars(getattr(each, attack)).items() if isinstance(value, int | float)}
            for each in (ours, theirs)
        ]
        assert len(plain[0]) > 5
        assert plain[0] == plain[1]
