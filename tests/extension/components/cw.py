"""PGD on the margin of Carlini and Wagner 2017, from outside the package: https://arxiv.org/abs/1608.04644."""

from torch import Tensor
from torch.nn.functional import one_hot

from robustcords import PGD, EvaluationAttack, EvaluationAttackConfig, Noise, Objective, Radii, ThreatModel


class CW(EvaluationAttack):
    """Ascends ``max_{k != y} z_k - z_y``, which does not saturate as cross-entropy does."""

    class Config(EvaluationAttackConfig):
        """Steps, and radii to report; left out, the threat's epsilon."""

        steps: int = 40
        epsilons: Radii | None = None

    @property
    def label(self) -> str:
        """What a report calls it."""
        return f"CW-{self.config.steps}"

    def attack_batch(self, model: object, x: Tensor, y: Tensor, noise: Noise, threat: ThreatModel) -> Tensor:
        """Returns the last iterate from a random start."""

        def margin(logits: Tensor) -> Tensor:
            own = one_hot(y, logits.shape[1]).bool()
            return logits.masked_fill(own, -1e9).amax(1) - logits[own]

        return PGD(threat, steps=self.config.steps, random_start="uniform")(model, x, Objective(margin), noise)
