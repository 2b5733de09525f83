import numpy as np
import torch

from robustcords.rng import Noise, derive, generator

MASK = (1 << 64) - 1


def splitmix(z):
    """SplitMix64's finaliser in Python integers (Steele et al. 2014)."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_bits_are_splitmix64():
    noise = Noise(11, torch.tensor([0, 7, 50_000]), stream=2)
    start = derive(11, "noise", 2, 0)
    gamma = 0x9E3779B97F4A7C15
    for row, key in enumerate([0, 7, 50_000]):
        example = splitmix((key * gamma + start) & MASK)
        expected = [splitmix((example + position * gamma) & MASK) >> 40 for position in range(1, 6)]
        assert (noise.uniform((5,))[row].double() * 2**24).tolist() == expected


def test_known_splitmix64_value():
    """The first output of the reference implementation for seed 1234567."""
    assert splitmix((1234567 + 0x9E3779B97F4A7C15) & MASK) == 6457827717110365317


def test_distributions():
    noise = Noise(3, torch.arange(4000))
    uniform, normal = noise.uniform((3, 8, 8)).double().numpy(), noise.normal((3, 8, 8)).double().numpy()
    assert uniform.min() >= 0
    assert uniform.max() < 1
    np.testing.assert_allclose([uniform.mean(), uniform.var()], [0.5, 1 / 12], atol=1e-3)
    moments = [normal.mean(), normal.var(), (normal**3).mean(), (normal**4).mean()]
    np.testing.assert_allclose(moments, [0, 1, 0, 3], atol=2e-2)
    assert abs(np.corrcoef(uniform[:, 0, 0, 0], uniform[:, 0, 0, 1])[0, 1]) < 0.06
    assert abs(np.corrcoef(uniform[:-1].ravel(), uniform[1:].ravel())[0, 1]) < 0.01
    counts = torch.bincount(noise.integers(9).view(-1), minlength=9)
    assert counts.sum() == 4000
    assert (counts - 4000 / 9).abs().max() < 100


def test_streams_and_draws_differ():
    noise = Noise(3, torch.arange(10))
    draws = [
        noise.uniform((4,)),
        noise.uniform((4,), draw=1),
        noise.restart(1).uniform((4,)),
        Noise(4, torch.arange(10)).uniform((4,)),
    ]
    for first in range(4):
        for second in range(first):
            assert not torch.equal(draws[first], draws[second])


def test_an_example_keeps_its_noise_in_any_batch():
    whole = Noise(3, torch.arange(10)).normal((2, 3))
    rows = torch.tensor([7, 2])
    assert torch.equal(Noise(3, torch.arange(10))[rows].normal((2, 3)), whole[rows])


def test_seeds_depend_on_every_part():
    seeds = {
        derive(0, "a"),
        derive(1, "a"),
        derive(0, "b"),
        derive(0, "a", 0),
        derive(0, "a", 1),
        derive(0, "a", 0, 1),
        derive(0, "a", 1, 0),
    }
    assert len(seeds) == 7
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert torch.equal(torch.rand(3, generator=generator(5, "x", 1)), torch.rand(3, generator=generator(5, "x", 1)))
