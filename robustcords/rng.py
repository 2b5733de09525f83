"""Random numbers keyed by their purpose, independent of how the work is distributed.

Two tools, both pure functions of explicit keys:

* `generator` gives a `torch.Generator` for draws over a whole data set or batch (shuffles, splits, subsets);
* `Noise` gives numbers keyed by example, so that an example meets the same noise whatever batch, sub-batch, process or
  accumulation step it lands in. It is a counter-based generator: SplitMix64 (Steele et al. 2014), evaluated at
  (seed, example, draw, position).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# SplitMix64's increment and the two multipliers of its finaliser, as signed 64-bit integers.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def derive(seed: int, purpose: str, *counters: int) -> int:
    """Returns a 63-bit seed for one purpose at one place, such as ``derive(seed, "shuffle", epoch)``.

    Args:
        seed: the run's seed.
        purpose: what the numbers are for; different purposes give unrelated streams.
        counters: where, for example epoch and step.
    """
    text = "\0".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """Returns a CPU generator seeded with `derive`."""
    return torch.Generator().manual_seed(derive(seed, purpose, *counters))


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser, on int64 tensors; the masks make the arithmetic shifts logical."""
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * _MIX_1
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * _MIX_2
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


@dataclass(frozen=True)
class Noise:
    """Noise for a batch, keyed by example.

    Attributes:
        seed: from `derive`, so it names purpose, epoch and step.
        keys: (B,) int64, which example each row is: its number in the data set.
        stream: tells apart several draws for the same example (restarts, for instance).
    """

    seed: int
    keys: Tensor
    stream: int = 0

    def __getitem__(self, rows: Tensor | slice) -> Noise:
        """Returns the noise of some rows; each row's numbers stay what they were in the whole batch."""
        return Noise(self.seed, self.keys[rows], self.stream)

    def restart(self, number: int) -> Noise:
        """Returns unrelated noise for the same rows."""
        return Noise(self.seed, self.keys, number)

    def _bits(self, count: int, draw: int) -> Tensor:
        start = derive(self.seed, "noise", self.stream, draw)
        example = _mix(self.keys * _GAMMA + start)
        position = torch.arange(1, count + 1, device=self.keys.device) * _GAMMA
        return _mix(example.unsqueeze(1) + position)

    def uniform(self, shape: Sequence[int], draw: int = 0) -> Tensor:
        """Returns (B, *shape) float32, uniform in [0, 1) with 24 bits."""
        bits = self._bits(math.prod(shape), draw)
        return ((bits >> 40) & 0xFFFFFF).to(torch.float32).mul_(2.0**-24).view(-1, *shape)

    def normal(self, shape: Sequence[int], draw: int = 0) -> Tensor:
        """Returns (B, *shape) float32, standard normal (Box and Muller 1958)."""
        bits = self._bits(math.prod(shape), draw)
        radius = (((bits >> 40) & 0xFFFFFF).to(torch.float32) + 1).mul_(2.0**-24).log_().mul_(-2).sqrt_()
        angle = ((bits >> 16) & 0xFFFFFF).to(torch.float32).mul_(2 * math.pi * 2.0**-24)
        return (radius * angle.cos_()).view(-1, *shape)

    def seeds(self, draw: int = 0) -> Tensor:
        """Returns (B,) int64, uniform in [0, 2^63), for generators that have to be seeded."""
        return self._bits(1, draw).view(-1) & 0x7FFFFFFFFFFFFFFF

    def integers(self, high: int, shape: Sequence[int] = (), draw: int = 0) -> Tensor:
        """Returns (B, *shape) int64, uniform in [0, high)."""
        return (self.uniform(shape or (1,), draw) * high).long().clamp_(max=high - 1).view(-1, *shape)
