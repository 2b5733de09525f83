"""The base class of strategies that rank examples by a score and keep the top, bottom or middle."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from robustcords.selection.gradient_based import AdversarialConfig, AdversarialStrategy
from robustcords.selection.gradients.factors import Gradients, LastLayerGradients, MeanGradients

Keep = Literal["highest", "lowest", "middle"]


class ScoredConfig(AdversarialConfig):
    """Options of strategies that rank by a score.

    Attributes:
        keep: which part of the ranking is kept.
    """

    keep: Keep = "highest"


class BatchScores(MeanGradients):
    """Mean scores of whole batches (N, 1, 1), which stand where other strategies choose from mean gradients."""


class ScoredStrategy(AdversarialStrategy):
    """The base of strategies that rank examples by a score: subclasses write `scores`. Weights are 1.

    ``per_batch`` ranks whole batches by their mean score. A score has no part that belongs to one output, so
    ``per_gradient`` means ``per_class``. A score needs logits alone, but as the pass over the data is that of the
    strategies on gradients, the model must end in a linear layer here too.
    """

    Config = ScoredConfig

    @abstractmethod
    def scores(self, gradients: LastLayerGradients) -> Tensor:
        """Returns the score (N,) of every example.

        Args:
            gradients: of N examples, with their labels and the logits of each of the loss's views.
        """

    def batch_candidates(self, gradients: LastLayerGradients, sizes: list[int]) -> Gradients:
        """Returns the mean scores of consecutive batches."""
        parts = self.scores(gradients).double().split(sizes)
        return BatchScores(torch.stack([part.mean() for part in parts]).view(-1, 1, 1))

    def pick(self, gradients: Gradients, budget: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns the part of the ranking that is kept, with weight 1."""
        del generator
        if isinstance(gradients, BatchScores):
            scores = gradients.values.flatten()
        else:
            assert isinstance(gradients, LastLayerGradients)
            scores = self.scores(gradients)
        return ranked(scores, self.config.keep)[:budget], torch.ones(budget)


def ranked(scores: Tensor, keep: Keep) -> Tensor:
    """Returns all rows (N,) in the order in which they are kept; of equal scores the first comes first.

    Args:
        scores: (N,).
        keep: ``"middle"`` goes outwards from the median rank, so that the first k are the k ranks around it; of two
            ranks equally far from it the lower score is first.
    """
    order = scores.sort(stable=True, descending=keep == "highest").indices
    if keep != "middle":
        return order
    twice_the_distance = (2 * torch.arange(len(order), device=order.device) - (len(order) - 1)).abs()
    return order[twice_the_distance.sort(stable=True).indices]
