"""How well a weighted subset's gradients stand for those of all examples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from robustcords.rng import generator
from robustcords.strategies.gradients import LastLayerGradients


class Matching:
    """Adds up, group by group, the gradients of all examples, of a subset and of a random subset of the same size.

    Training divides by the sum of the weights, so both subsets' sums are brought to the number of all examples before
    they are compared: what is measured is the direction that an epoch descends in.

    Args:
        seed: of the random subset.

    Attributes:
        sums: (3, C, 1 + E) float64 the weighted sums of the three; None before the first group.
        counts: (3,) float64 the sums of their weights.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.sums: Tensor | None = None
        self.counts = torch.zeros(3, dtype=torch.float64)

    def add(self, gradients: LastLayerGradients, rows: Tensor, weights: Tensor, number: int) -> None:
        """Adds a group.

        Args:
            gradients: of its n examples.
            rows: (k,) those that were chosen.
            weights: (k,) theirs.
            number: of the group, which its random subset depends on.
        """
        count, size = len(gradients), len(rows)
        device = gradients.labels.device
        drawn = torch.randperm(count, generator=generator(self.seed, "random-match", number))[:size].to(device)
        subset = gradients.rows(rows.to(device)).sum(weights.to(device))
        sums = torch.stack([gradients.sum(), subset, gradients.rows(drawn).sum() * (count / size)]).cpu()
        self.sums = sums if self.sums is None else self.sums + sums
        self.counts = self.counts + torch.tensor([count, float(weights.double().sum()), count], dtype=torch.float64)

    def join(self, parts: Sequence[tuple[Tensor | None, Tensor]]) -> None:
        """Takes the ``sums`` and ``counts`` of all processes, this one's among them, in place of its own."""
        found = [sums for sums, _ in parts if sums is not None]
        self.sums = torch.stack(found).sum(dim=0) if found else None
        self.counts = torch.stack([counts for _, counts in parts]).sum(dim=0)

    def errors(self) -> tuple[float, float] | None:
        """Returns the relative errors of the subset and of the random one; None where there is nothing to compare."""
        if self.sums is None or self.counts[1] == 0 or not self.sums[0].any():
            return None
        scaled = self.sums * (self.counts[0] / self.counts)[:, None, None]
        errors = (scaled[1:] - scaled[0]).flatten(1).norm(dim=1) / scaled[0].norm()
        return float(errors[0]), float(errors[1])
