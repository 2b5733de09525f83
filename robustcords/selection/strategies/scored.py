"""The base class of strategies that rank examples by a score and keep the top, bottom or middle."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from robustcords.selection.gradient_based import AdversarialStrategy
from robustcords.selection.gradient_based_config import AdversarialConfig
from robustcords.selection.gradients.factors import Gradients, LastLayerGradients, MeanGradients

Keep = Literal["highest", "lowest", "middle"]


class ScoredConfig(AdversarialConfig):
    """Options of strategies that rank by a score.

    Attributes:
        keep: which examples are kept, by rank of their score; ``"middle"`` keeps those around the median of their
            group.
    """

    keep: Keep = "highest"


class BatchScores(MeanGradients):
    """Mean scores of whole batches (N, 1, 1), in place of mean gradients."""


class ScoredStrategy(AdversarialStrategy):
    """The base of strategies that rank examples by a score: subclasses implement `scores`. Weights are 1.

    ``per_batch`` ranks whole batches by their mean score. Scores are not per output, so ``per_gradient`` is the same as
    ``per_class``. Scores need logits only, but as the pass over the data is shared with the gradient-based strategies,
    the model must end in a linear layer.
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
        """Returns the kept part of the ranking, with weight 1."""
        del generator
        if isinstance(gradients, BatchScores):
            scores = gradients.values.flatten()
        else:
            assert isinstance(gradients, LastLayerGradients)
            scores = self.scores(gradients)
        return ranked(scores, self.config.keep)[:budget], torch.ones(budget)


def ranked(scores: Tensor, keep: Keep) -> Tensor:
    """Returns all rows (N,) in order of preference; ties go to the first.

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
