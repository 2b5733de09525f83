"""Selection by adversarial loss."""

from __future__ import annotations

import torch
from torch import Tensor

from robustcords.losses.check import loss_values
from robustcords.selection.gradients.factors import LastLayerGradients, by_view
from robustcords.selection.strategies.scored import ScoredConfig, ScoredStrategy


class LossStrategy(ScoredStrategy):
    """Keeps the examples whose training loss at adversarial examples is highest, lowest, or nearest the median.

    Highest: Jiang et al. 2019 (Selective-Backprop) and Katharopoulos and Fleuret 2018, who draw by importance where
    this takes the top. Lowest: Kumar, Packer and Koller 2010 (self-paced learning). Middle: Xia et al. 2023 (moderate
    coreset), who take the middle of another score.
    """

    class Config(ScoredConfig):
        """Options of the selection by loss.

        Attributes:
            keep: which examples are kept, by rank of their loss; ``"middle"`` keeps those around the median of their
                group.
        """

        name: str = "loss"

    def scores(self, gradients: LastLayerGradients) -> Tensor:
        """Returns the training loss (N,), all its terms, as it is defined for the update."""
        with torch.no_grad():
            logits = by_view(self.adversarial_loss, gradients.logits)
            return loss_values(self.adversarial_loss, logits, gradients.labels)
