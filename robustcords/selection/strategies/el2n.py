"""EL2N."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from robustcords.selection.gradients.factors import LastLayerGradients, by_view
from robustcords.selection.strategies.scored import ScoredConfig, ScoredStrategy


class EL2NStrategy(ScoredStrategy):
    """Keeps examples by the norm of their error vector (Paul, Ganguli and Dziugaite 2021, Definition 2.3).

    The score is ``||softmax(z) - onehot(y)||_2``, from 0 to the square root of 2, at the adversarial example's logits
    where the loss has an adversarial view, else at the clean ones. The paper averages it over ten networks, some
    epochs into training; here it is that of the one network at the moment of the selection.
    """

    class Config(ScoredConfig):
        """Options of EL2N.

        Attributes:
            keep: which examples are kept, by rank of their score: ``"highest"``, as in the paper, or ``"middle"``,
                those around the median of their group.
        """

        name: str = "el2n"

    def scores(self, gradients: LastLayerGradients) -> Tensor:
        """Returns the norms of the errors (N,), in at least float32."""
        of = by_view(self.adversarial_loss, gradients.logits)
        logits = of["adversarial" if "adversarial" in of else "clean"]
        error = logits.softmax(dim=1) - F.one_hot(gradients.labels, logits.shape[1])
        length: Tensor = error.norm(dim=1)
        return length
