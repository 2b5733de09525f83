"""Bullet-Train: full attacks on boundary examples only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustcords.attacks.base import Attack, default_step_size
from robustcords.config.schema import Radius, Share, Table, with_defaults
from robustcords.losses.context import Moment
from robustcords.methods.efforts.base import Effort, EffortConfig, Kinds, Plan
from robustcords.rng import Noise
from robustcords.runtime import collectives
from robustcords.threats.base import ThreatModel

Steps = Annotated[int, Field(ge=0, le=10_000)]
KINDS = ("outlier", "boundary", "robust")


class BulletSteps(Table):
    """Attack steps of each kind of example.

    Attributes:
        outlier: steps for examples that are misclassified without an attack; with 0 the clean image is trained on.
        robust: steps for examples that are classified correctly with high confidence.
        boundary: steps for the examples in between.
    """

    outlier: Steps = 0
    robust: Steps = 2
    boundary: Steps = 10


class BulletStepSizes(Table):
    """Attack step sizes of each kind of example, in the threat's norm.

    With the steps of `BulletSteps` and a radius of 8/255, what follows is the paper's 6/255 for robust examples and
    2/255 for boundary ones.

    Attributes:
        outlier: step size for outliers, used only if they get steps; left out, 2.5 epsilon / steps (epsilon / 4 with no
            steps).
        robust: step size for robust examples; left out, 1.5 epsilon / steps, so that few steps cross the ball.
        boundary: step size for boundary examples; left out, 2.5 epsilon / steps.
    """

    outlier: Radius | None = None
    robust: Radius | None = None
    boundary: Radius | None = None


class Bullet(Effort):
    """Bullet-Train: sorts a batch into outlier, boundary and robust examples with steps of their own (Hua et al. 2021).

    A clean forward pass in eval mode gives every example the score ``s = std(softmax(z))``, negated if its prediction
    is wrong; TRADES' objective uses the same logits. Outliers have ``s < 0``; with ``threshold =
    max(0, quantile(s, 1 - reference))``, robust examples have ``s > threshold`` and boundary examples lie between. One
    more eval forward, of the examples that were attacked, gives the batch's robust accuracy, and then
    ``reference <- momentum * reference + (1 - momentum) * scale * robust accuracy``, from 0. The quantile and the
    accuracy are those of the global batch, over all processes.

    Attributes:
        reference: the running robust accuracy.

    Example:
        >>> method = AdversarialTraining(TRADES(), PGD(threat), Bullet())
    """

    class Config(EffortConfig):
        """Options of Bullet-Train; Hua et al. published no code, so each reading of their paper is an option.

        Attributes:
            steps: number of attack steps for each kind of example.
            step_size: length of these steps, in the threat's norm.
            momentum: how much of the running robust accuracy is kept from batch to batch.
            scale: factor of the batch's robust accuracy in the running one.
        """

        name: str = "bullet"
        steps: BulletSteps = BulletSteps()
        step_size: BulletStepSizes = BulletStepSizes()
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
        scale: Share = 0.8

    observes: ClassVar[bool] = True
    title: ClassVar[str | None] = "Bullet"
    legend: ClassVar[str] = (
        "as Bullet-Train sorted each batch while it trained on it, by confidence and not by an attack"
    )
    config: Bullet.Config

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.reference = 0.0

    @classmethod
    def resolved(cls, config: Bullet.Config, threat: ThreatModel) -> Bullet.Config:
        """Returns the options with step sizes; those left out follow from the radius."""
        if None not in dict(config.step_size).values():
            return config
        follows = {kind: _step(kind, getattr(config.steps, kind), threat) for kind in KINDS}
        return config.model_copy(update={"step_size": with_defaults(config.step_size, **follows)})

    def plan(self, attack: Attack, clean: Callable[[], Tensor], y: Tensor, moment: Moment, generator: Noise) -> Plan:
        """Returns each example's kind, steps and step size."""
        del moment, generator
        config, kind = self.resolved(self.config, attack.threat), self.classify(clean(), y).cpu()
        steps = torch.tensor([getattr(config.steps, name) for name in KINDS])
        sizes = torch.tensor([getattr(config.step_size, name) for name in KINDS], dtype=torch.float64)
        return Plan(steps[kind], sizes[kind], Kinds(KINDS, kind))

    def classify(self, clean: Tensor, y: Tensor) -> Tensor:
        """Returns the index in `KINDS` of every example (B,), int64.

        Args:
            clean: (B, classes) clean logits.
            y: (B,) int64 labels.
        """
        score = clean.softmax(dim=1).std(dim=1) * torch.where(clean.argmax(dim=1) == y, 1.0, -1.0)
        everyone = torch.cat(collectives.gather_rows(score))
        quantile = min(max(1 - self.reference, 0.0), 1.0)
        threshold = torch.quantile(everyone, quantile).clamp(min=0)
        outlier, robust = score < 0, score > threshold
        return torch.where(outlier, 0, torch.where(robust, 2, 1))

    def observe(self, correct: Tensor) -> None:
        """Updates the running robust accuracy."""
        hits, size = collectives.sum_over([int(correct.sum()), len(correct)], device=correct.device)
        keep = self.config.momentum
        self.reference = keep * self.reference + (1 - keep) * self.config.scale * hits / size

    def attacks(self, attack: Attack) -> dict[str, Attack]:
        """Returns the attack of each kind."""
        config = self.resolved(self.config, attack.threat)
        return {
            kind: attack.with_effort(getattr(config.steps, kind), getattr(config.step_size, kind)) for kind in KINDS
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns the running robust accuracy."""
        return {"reference": self.reference}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the running robust accuracy."""
        self.reference = float(state["reference"])


def _step(kind: str, steps: int, threat: ThreatModel) -> float:
    """Returns the default step size of a kind."""
    return default_step_size(threat, steps, 1.5) if kind == "robust" else default_step_size(threat, steps or 10)
