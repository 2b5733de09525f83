"""Free adversarial training against a loop that is written out, and what its perturbation goes through."""

from __future__ import annotations

import pytest
import torch
from support.cases import cases
from support.small_run import After, trainer, vector
from support.training_steps import batches, network, optimizer, same, train, weighted
from torch import nn
from torch.nn import functional as F

from robustcords import PGD, SAT, AdversarialTraining, Standard, ThreatModel
from robustcords.errors import Interrupted
from robustcords.methods.free import Free

EPSILON = 0.05
ATTACK = PGD(ThreatModel(epsilon=EPSILON))
SIZES = (6, 5, 7, 6)


def written_out(model: nn.Module, replays: int, epsilon: float = EPSILON) -> torch.Tensor:
    """Shafahi et al., Alg. 1, with images kept in [0, 1]; returns the perturbation."""
    sgd, delta = optimizer(model), torch.zeros(max(SIZES), 2, 4, 4, dtype=torch.float64)
    for batch in batches(sizes=SIZES):
        size = len(batch.y)
        for _ in range(replays):
            x = (batch.x + delta[:size]).clamp(0, 1).requires_grad_()
            sgd.zero_grad()
            weighted(F.cross_entropy(model(x), batch.y, reduction="none"), batch).backward()
            far = (x.detach() - batch.x + epsilon * x.grad.sign()).clamp(-epsilon, epsilon)
            delta[:size] = (batch.x + far).clamp(0, 1) - batch.x
            sgd.step()
    return delta


@cases("accumulation", [1, 2])
@cases("replays", [1, 3])
def test_weights_are_those_of_the_loop_written_out(replays: int, accumulation: int):
    model, other = network(), network()
    method = Free(SAT(), ATTACK, replays=replays)
    train(method, model, batches(sizes=SIZES), accumulation=accumulation)
    delta = written_out(other, replays)
    same(other, model)
    torch.testing.assert_close(method.delta, delta, rtol=0, atol=1e-12)


def test_without_a_radius_it_is_standard_training_on_every_batch_several_times():
    model, other = network(norm=True), network(norm=True)
    train(Free(SAT(), PGD(ThreatModel(epsilon=0.0)), replays=3), model)
    train(AdversarialTraining(Standard(), ATTACK), other, [batch for batch in batches() for _ in range(3)])
    same(other, model)


@pytest.mark.parametrize("looks", [3, 4])
def test_a_run_that_is_stopped_ends_as_one_that_is_not(tmp_path, looks: int):
    def made(folder: str, interruption: After | None = None):
        return trainer(
            method=Free(SAT(), ATTACK, replays=2),
            run=tmp_path / folder,
            model=network_of_runs(),
            interruption=interruption,
        )

    whole = made("whole")
    whole.fit()
    with pytest.raises(Interrupted):
        made("parts", After(looks)).fit()
    resumed = made("parts")
    resumed.fit()
    assert torch.equal(vector(whole), vector(resumed))
    assert torch.equal(whole.method.delta, resumed.method.delta)


def network_of_runs() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def test_a_gradient_that_has_overflown_moves_nothing():
    class Overflowing(SAT):
        def forward(self, model, views, y, context):
            x = views["adversarial"]
            return super().forward(model, {"adversarial": torch.where(x > 0.5, x * torch.inf, x)}, y, context)

    method = Free(Overflowing(), ATTACK, replays=1)
    train(method, network(), batches(1))
    assert method.delta.isfinite().all()
