"""The l1 ball with the box: its projection against the inequality that characterises it, its steps, its start."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import linprog
from support.cases import cases
from torch import Tensor

from robustcords.attacks.fgsm import FGSM
from robustcords.attacks.pgd import PGD
from robustcords.losses.objective import Objective
from robustcords.rng import Noise
from robustcords.threats.base import ThreatModel
from robustcords.threats.l1 import L1

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def highest(weight: Tensor, x: Tensor, epsilon: float) -> Tensor:
    """Returns (B,): the most that ``<weight, z - x>`` can be in the ball and the box.

    The entries with the largest weights go as far as the box lets them, one after the other, while the radius lasts
    (Croce and Hein 2021, Prop. 2.2).
    """
    steepness, order = weight.flatten(1).abs().sort(1, descending=True)
    room = torch.where(weight > 0, 1 - x, x).flatten(1).gather(1, order)
    spent = room.cumsum(1) - room
    return ((epsilon - spent).clamp(min=0).minimum(room) * steepness).sum(1)


def points(seed: int, count: int = 40, shape: tuple[int, ...] = (2, 3, 3)) -> tuple[Tensor, Tensor]:
    """Returns images, some of whose pixels are at 0 or 1, and points around them from very near to far outside."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand((count, *shape), generator=generator, dtype=torch.float64)
    x[::3] = x[::3].round()
    scale = torch.logspace(-3, 2, count, dtype=torch.float64).view(-1, 1, 1, 1)
    return x, x + scale * torch.randn(x.shape, generator=generator, dtype=torch.float64)


def test_the_optimum_of_a_linear_function_is_that_of_linear_programming():
    x, far = points(0, count=4)
    weight = far - x
    for row in range(4):
        w, here = weight[row].flatten().numpy(), x[row].flatten().numpy()
        size = len(w)
        found = linprog(  # delta = p - q
            [*-w, *w],
            [[1.0] * (2 * size)],
            [1.3],
            bounds=[(0, 1 - each) for each in here] + [(0, each) for each in here],
        )
        assert -found.fun == pytest.approx(highest(weight, x, 1.3)[row].item(), rel=1e-9)


@cases("epsilon", [0.01, 0.3, 2.0, 8.0])
def test_nothing_in_the_ball_and_the_box_is_nearer(epsilon: float):
    """z is u projected onto a convex set where ``<u - z, v - z> <= 0`` for all v in it, so for the worst one."""
    for seed in range(5):
        x, far = points(seed)
        z = L1(epsilon=epsilon).project(far, x)
        assert (z - x).abs().flatten(1).sum(1).max() <= epsilon
        assert 0 <= z.min() <= z.max() <= 1
        away = far - z
        worst = highest(away, x, epsilon) - (away * (z - x)).flatten(1).sum(1)
        assert (worst <= 1e-10 * away.flatten(1).norm(dim=1) * epsilon + 1e-13).all()


def test_what_is_inside_stays_and_all_of_the_box_is_inside_a_large_ball():
    x, far = points(1)
    for dtype in DTYPES:
        here, there = x.to(dtype), far.to(dtype)
        z = L1(epsilon=0.7).project(there, here)
        assert torch.equal(L1(epsilon=0.7).project(z, here), z)
        assert torch.equal(L1(epsilon=18.0).project(there, here), there.clamp(0, 1))
    assert torch.equal(L1(epsilon=0.0).project(far, x), x)


@cases("dtype", DTYPES)
def test_images_of_every_type_are_inside_to_the_last_bit(dtype: torch.dtype):
    x, far = (each.to(dtype) for each in points(2, shape=(3, 8, 8)))
    for epsilon in (0.05, 3.0, 12.0):
        threat = L1(epsilon=epsilon)
        noise = Noise(0, torch.arange(len(x)))
        for z in (threat.project(far, x), threat.uniform_start(x, noise), threat.gaussian_start(x, noise)):
            assert z.dtype == dtype
            # Differences of numbers of these types, and sums of so few, are exact in float64 up to its own rounding.
            assert (z.double() - x.double()).abs().flatten(1).sum(1).max() <= epsilon
            assert 0 <= z.min() <= z.max() <= 1


def test_a_step_moves_the_steepest_entries_alike_and_passes_over_those_that_are_stopped():
    x = torch.full((1, 1, 2, 5), 0.5)
    x[0, 0, 0, :2] = torch.tensor([1.0, 0.0])
    gradient = torch.tensor([[[[9.0, 8.0, -7.0, 3.0, 2.0], [1.0, 0.1, 0.0, 0.0, 0.0]]]])
    moved = L1(step_share=0.3).ascend(x, gradient, 0.6) - x
    # 9 would leave the box; of the rest the three steepest.
    expected = torch.zeros_like(x)
    expected[0, 0, 0, 1:4] = torch.tensor([0.2, -0.2, 0.2])
    torch.testing.assert_close(moved, expected)
    sizes = torch.tensor([0.6, 0.0]).view(-1, 1, 1, 1)
    each = L1(step_share=0.3).ascend(x.repeat(2, 1, 1, 1), gradient.repeat(2, 1, 1, 1), sizes)
    torch.testing.assert_close(each, torch.cat([x + expected, x]))
    assert torch.equal(L1().ascend(x, torch.zeros_like(x), 0.6), x)
    one = torch.zeros_like(x).index_fill_(3, torch.tensor(4), 1e-30)
    torch.testing.assert_close((L1(step_share=1.0).ascend(x, one, 0.6) - x).abs().sum(), torch.tensor(0.6))


def test_pgd_finds_the_optimum_of_a_linear_model():
    x, far = points(3, count=6, shape=(3, 16, 16))
    weight = far - x
    objective = Objective(lambda score: score.squeeze(1))
    rows = torch.arange(6)

    def score(images: Tensor) -> Tensor:
        return (weight * images).flatten(1).sum(1, keepdim=True)

    best = highest(weight, x, 6.0)
    for attack in (PGD(L1(epsilon=6.0)), PGD(L1(epsilon=6.0), steps=50, step_size=1.5)):
        reached = (score(attack(score, x, objective, Noise(0, rows))) - score(x)).squeeze(1)
        assert (reached <= best * (1 + 1e-12)).all()
        assert (reached >= 0.97 * best).all()
    # Where n entries cross all of their room and spend the radius, one step is the optimum.
    x = torch.full_like(x, 0.5)
    step = FGSM(L1(epsilon=4.0, step_share=8 / 768), random_start="none")
    reached = (score(step(score, x, objective, Noise(0, rows))) - score(x)).squeeze(1)
    torch.testing.assert_close(reached, highest(weight, x, 4.0))


def test_the_start_is_uniform_in_the_ball():
    x = torch.full((4000, 1, 1, 2), 0.5)
    delta = L1(epsilon=0.2).uniform_start(x, Noise(1, torch.arange(4000))) - x
    radius = delta.abs().flatten(1).sum(1)
    shares = torch.tensor([(radius <= 0.2 * t).double().mean() for t in (0.25, 0.5, 0.75, 1.0)])
    torch.testing.assert_close(shares, torch.tensor([0.0625, 0.25, 0.5625, 1.0]), atol=0.03, rtol=0, check_dtype=False)
    assert delta.mean(dim=(0, 1, 2)).abs().max() < 0.005


def test_options_and_what_others_ask():
    threat = ThreatModel(norm="l1")
    assert (threat.epsilon, threat.autoattack_norm, threat.diameter((3, 32, 32))) == (12.0, "L1", 3072.0)
    assert L1(step_share=0.2).with_epsilon(3.0) == L1(epsilon=3.0, step_share=0.2)
    assert threat.largest == math.inf
    with pytest.raises(ValueError, match="step_share"):
        L1(step_share=0.0)
