"""Whole runs of methods and losses: stopped and resumed, on two processes and on one, in bfloat16, with a selector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import training_steps
from support.cases import cases
from support.ranks import joined
from support.small_run import ATTACK, THREAT, After, chooser, fitted, made_up, trainer, vector
from torch import Tensor, nn
from torch.nn import functional as F

from robustcords import FGSM, PGD, SAT, TRADES, AdversarialTraining
from robustcords.errors import Interrupted
from robustcords.losses.grad_align import GradAlign
from robustcords.losses.nuat import NuAT
from robustcords.methods.awp import AWP
from robustcords.methods.base import Method
from robustcords.methods.efforts.bullet import Bullet
from robustcords.methods.fast_bat import FastBAT
from robustcords.methods.free import Free
from robustcords.training.config import AveragingConfig

METHODS: dict[str, Callable[[], Method]] = {
    "free": lambda: Free(SAT(), ATTACK, replays=2),
    "fast_bat": lambda: FastBAT(SAT(), ATTACK, step_size=0.3, lam=0.5),
    "awp": lambda: AWP(AdversarialTraining(TRADES(), ATTACK, Bullet()), gamma=0.05, warmup=1),
    "awp around free": lambda: AWP(Free(SAT(), ATTACK, replays=2), gamma=0.05),
    "grad_align": lambda: AdversarialTraining(GradAlign(lam=1.0), FGSM(THREAT, random_start="none")),
    "nuat": lambda: AdversarialTraining(NuAT(alternate=True), PGD(THREAT, steps=1, step_size=0.05)),
}
OF_EXAMPLES = [name for name in METHODS if name != "nuat"]
"""Those whose loss has no term of a whole batch, which processes cut into parts."""


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def network(*, norm: bool = False) -> nn.Sequential:
    """Smooth, and in float64, so that sums in another order make next to no difference."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        middle = [nn.BatchNorm1d(16)] if norm else []
        layers = (nn.Flatten(), nn.Linear(64, 16), *middle, nn.Softplus(), nn.Linear(16, 3))
        return nn.Sequential(Double(), *layers).double()


def options(name: str, folder: Path | None = None, *, norm: bool = False, **settings: Any) -> dict[str, Any]:
    averaging = AveragingConfig(decay=0.9, warmup=True, statistics="copied")
    given = {"accumulation": 2, "averaging": averaging, **settings}
    return {"method": METHODS[name](), "model": network(norm=norm), "run": folder, "settings": given}


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_is_stopped_ends_as_one_that_is_not(name: str, tmp_path: Path):
    whole = fitted(**options(name, norm=True))
    with pytest.raises(Interrupted):
        fitted(**options(name, tmp_path / "run", norm=True), interruption=After(6))
    resumed = trainer(**options(name, tmp_path / "run", norm=True))
    resumed.fit()
    assert torch.equal(vector(resumed), vector(whole))
    assert torch.equal(vector(resumed.model), vector(whole.model))


def part(_: int, folder: Path) -> None:
    """Begins the runs on two processes."""
    for name in OF_EXAMPLES:
        with pytest.raises(Interrupted):
            fitted(**options(name, folder / name), interruption=After(6))


def test_runs_that_two_processes_begin_and_one_ends_are_those_of_one(tmp_path: Path):
    joined(part, 2, tmp_path)
    for name in OF_EXAMPLES:
        whole, resumed = fitted(**options(name)), trainer(**options(name, tmp_path / name))
        resumed.fit()
        assert resumed.progress.steps == whole.progress.steps
        torch.testing.assert_close(vector(resumed), vector(whole), rtol=0, atol=1e-9, msg=lambda text, n=name: n + text)


@cases("name", METHODS)
def test_in_bfloat16_they_learn(name: str):
    images = made_up()
    x, y = images.batch(torch.arange(len(images)))
    model = nn.Sequential(*network(norm=True)[1:]).float()
    before = F.cross_entropy(model(x), y)
    fitted(**options(name, epochs=4, precision="bf16", averaging=None) | {"model": model})
    assert F.cross_entropy(model.eval()(x), y) < 0.7 * before


@cases("name", METHODS)
def test_they_go_with_a_selector(name: str):
    given, selector = options(name), chooser("adv-gradmatch", select_first=True)
    selector.loss = given["method"].loss
    selector.attack = given["method"].attack
    made = fitted(**given, selector=selector)
    assert made.selector.current.selected_at == 1
    assert len(made.selector.current.indices) == made.selector.budget


@cases("name", sorted(METHODS.keys() - {"awp"}))  # Bullet-Train asks what is classified correctly
def test_labels_may_be_shares_of_the_classes(name: str):
    hard, soft = training_steps.network(), training_steps.network()
    batches = training_steps.batches()
    training_steps.train(METHODS[name](), hard, batches)
    shares = [replace(batch, y=F.one_hot(batch.y, training_steps.CLASSES).double()) for batch in batches]
    training_steps.train(METHODS[name](), soft, shares)
    training_steps.same(hard, soft)
