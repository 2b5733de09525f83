"""The l0 ball with the box: its projection against all choices of pixels, its steps, its start, its radius."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from support.cases import cases
from torch import Tensor

from robustcords.attacks.pgd import PGD
from robustcords.losses.objective import Objective
from robustcords.rng import Noise
from robustcords.threats.base import ThreatModel
from robustcords.threats.l0 import L0

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def points(count: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Returns images, some of whose pixels are at 0 or 1, and points around them from very near to far outside."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((count, *shape), generator=generator, dtype=torch.float64)
    x[::3] = x[::3].round()
    scale = torch.logspace(-2, 1, count, dtype=torch.float64).view(-1, 1, 1, 1)
    return x.to(dtype), (x + scale * torch.randn(x.shape, generator=generator, dtype=torch.float64)).to(dtype)


def changed(z: Tensor, x: Tensor) -> Tensor:
    """Returns how many pixels of each image differ."""
    return (z != x).any(1).flatten(1).sum(1)


@cases("pixels", [1, 2, 5])
def test_no_choice_of_pixels_is_nearer(pixels: int):
    x, far = points(20, (3, 2, 3))
    z = L0(epsilon=pixels).project(far, x)
    distances = []
    for chosen in combinations(range(6), pixels):
        mask = torch.zeros(6, dtype=torch.bool)
        mask[list(chosen)] = True
        other = torch.where(mask.view(1, 1, 2, 3), far.clamp(0, 1), x)
        distances.append((far - other).flatten(1).norm(dim=1))
    torch.testing.assert_close((far - z).flatten(1).norm(dim=1), torch.stack(distances).amin(0))
    assert changed(z, x).max() == pixels


@cases("dtype", DTYPES)
def test_images_of_every_type_are_inside(dtype: torch.dtype):
    x, far = points(20, (3, 8, 8), dtype)
    noise = Noise(0, torch.arange(20))
    for pixels in (0, 1, 7, 64, 100):
        threat = L0(epsilon=pixels)
        for z in (threat.project(far, x), threat.uniform_start(x, noise), threat.gaussian_start(x, noise)):
            assert z.dtype == dtype
            assert changed(z, x).max() <= pixels
            assert 0 <= z.min() <= z.max() <= 1
        assert torch.equal(threat.project(threat.project(far, x), x), threat.project(far, x))


def test_a_step_takes_so_many_pixels_across_the_range():
    x = torch.full((1, 2, 1, 4), 0.5)
    gradient = torch.tensor([[[[4.0, 0.0, 1.0, 0.0]], [[-8.0, 2.0, 0.5, 0.0]]]]) * 1e-20
    for step_size, scale in ((0.4, 8e-20), (1.0, 8e-20), (1.2, 2e-20), (3.0, 1e-20)):
        torch.testing.assert_close(L0().ascend(x, gradient, step_size) - x, gradient / scale)
    sizes = torch.tensor([0.0, 0.4, 3.0], dtype=torch.float64).view(-1, 1, 1, 1)
    each = L0().ascend(x.repeat(3, 1, 1, 1), gradient.repeat(3, 1, 1, 1), sizes) - x
    torch.testing.assert_close(each, torch.cat([0 * gradient, gradient / 8e-20, gradient / 1e-20]))
    # A fourth pixel has no gradient; the others stay within numbers that can be compared.
    assert (L0().ascend(x, gradient, 4.0) - x).abs().max() == pytest.approx(1000)
    assert torch.equal(L0().ascend(x, torch.zeros_like(x), 3.0), x)


@cases(("steps", "step_size"), [(1, 3.0), (10, None), (40, 0.75)])
def test_pgd_finds_the_optimum_of_a_linear_model(steps: int, step_size: float | None):
    """On grey images halfway between black and white it is the pixels with the largest weights, black or white."""
    x, far = points(10, (1, 6, 6))
    x, weight = torch.full_like(x, 0.5), far - x
    attack = PGD(L0(epsilon=3), steps=steps, step_size=step_size, random_start="none")

    def score(images: Tensor) -> Tensor:
        return (weight * images).flatten(1).sum(1, keepdim=True)

    x_adv = attack(score, x, Objective(lambda value: value.squeeze(1)), Noise(0, torch.arange(10)))
    best = 0.5 * weight.flatten(1).abs().topk(3, dim=1).values.sum(1)
    torch.testing.assert_close((score(x_adv) - score(x)).squeeze(1), best)


def test_the_start_draws_pixels_and_colours_evenly():
    x = torch.full((3000, 2, 2, 4), 0.5)
    z = L0(epsilon=2).uniform_start(x, Noise(0, torch.arange(3000)))
    assert (changed(z, x) == 2).all()
    often = (z != x).any(1).double().mean(0)
    torch.testing.assert_close(often, torch.full_like(often, 2 / 8), atol=0.03, rtol=0)
    colours = z[z != x]
    assert colours.mean().item() == pytest.approx(0.5, abs=0.02)
    assert colours.std().item() == pytest.approx(12**-0.5, abs=0.01)


def test_a_radius_is_a_whole_number_of_pixels():
    threat = ThreatModel(norm="l0", epsilon=3)
    assert (threat.epsilon, threat.autoattack_norm, threat.diameter((3, 32, 32))) == (3.0, None, 1024.0)
    assert threat.with_epsilon(2.0).epsilon == 2
    assert [threat.nearest_radius(value) for value in (0.2, 1.5, 6.0, math.inf)] == [1.0, 2.0, 6.0, math.inf]
    for epsilon in ("8/255", 2.5):
        with pytest.raises(ValueError, match="an l0 radius is a whole number of pixels"):
            L0(epsilon=epsilon)
