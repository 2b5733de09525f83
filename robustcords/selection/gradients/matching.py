"""The gradient matching error of a weighted subset."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from robustcords.rng import generator
from robustcords.selection.gradients.factors import LastLayerGradients


class Matching:
    """Accumulates, group by group, the gradients of all examples, of a subset and of a random subset of the same size.

    Training divides by the sum of the weights, so only the direction of a subset's sum matters: the error is that of
    the multiple of it that is nearest to the sum over all examples.

    Args:
        seed: of the random subset.

    Attributes:
        sums: (3, C, 1 + E) float64 the weighted sums of the three; None before the first group.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.sums: Tensor | None = None

    def add(self, gradients: LastLayerGradients, rows: Tensor, weights: Tensor, number: int) -> None:
        """Adds a group.

        Args:
            gradients: of its n examples.
            rows: (k,) the selected ones; may be empty.
            weights: (k,) of these; those of the random subset are n / k.
            number: of the group, which seeds its random subset.
        """
        count, size = len(gradients), len(rows)
        device = gradients.labels.device
        drawn = torch.randperm(count, generator=generator(self.seed, "random-match", number))[:size].to(device)
        subset = gradients.rows(rows.to(device)).sum(weights.to(device))
        sums = torch.stack([gradients.sum(), subset, gradients.rows(drawn).sum() * (count / max(1, size))]).cpu()
        self.sums = sums if self.sums is None else self.sums + sums

    def join(self, parts: Sequence[Tensor | None]) -> None:
        """Replaces the ``sums`` by those of all processes together."""
        found = [sums for sums in parts if sums is not None]
        self.sums = torch.stack(found).sum(dim=0) if found else None

    def errors(self) -> tuple[float, float] | None:
        """Returns the errors of the subset and of the random one, in [0, 1]; None if the target is 0."""
        if self.sums is None or not self.sums[0].any():
            return None
        target, *subsets = self.sums.flatten(1)
        errors = []
        for subset in subsets:
            cosine = torch.nn.functional.cosine_similarity(subset, target, dim=0).clamp(min=0)
            errors.append(float((target - cosine * target.norm() * subset / subset.norm().clamp(min=1e-300)).norm()))
        return errors[0] / float(target.norm()), errors[1] / float(target.norm())
