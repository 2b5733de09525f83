"""Numbers of outlier, boundary and robust examples by epoch (Li et al. 2023, Fig. 1)."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field

from robustcords.attacks.pgd import PGD
from robustcords.config.schema import ComponentConfig
from robustcords.data.images import Images
from robustcords.evaluation.evaluate import robust_accuracy
from robustcords.threats.base import ThreatModel
from robustcords.training.callbacks.base import Callback, CallbackContext, EpochEnd

STEPS = 5
"""The paper tracks with PGD-5-1: five steps, one restart."""


class Dynamics(Callback):
    """Counts, under PGD-5-1 at the training radius, how many training images are of each kind.

    An *outlier* is misclassified as it is, a *boundary* example only under the attack, a *robust* one not at all. The
    paper gives no step size: half the radius is used, with which five steps can cross the ball.

    Args:
        images: a part of the training split, as it is, not augmented.
        threat: norm and radius.
        options: the fields of `Config`.
    """

    class Config(ComponentConfig):
        """Options of tracking.

        Attributes:
            images: number of training images to count, drawn once for the run; 0 for all.
            every: number of epochs between counts; the first is after this many epochs.
        """

        name: str = "dynamics"
        images: Annotated[int, Field(ge=0)] = 1000
        every: Annotated[int, Field(ge=1)] = 1

    name = "dynamics"
    measurable = True
    config: Dynamics.Config

    def __init__(self, images: Images, threat: ThreatModel, /, **options: Any) -> None:
        super().__init__(**options)
        self.images = images
        self.attack = PGD(threat, steps=STEPS, step_size=threat.epsilon / 2, random_start="uniform")

    @classmethod
    def from_context(cls, config: Any, context: CallbackContext) -> Self:
        """Returns the callback on as many images as the recipe says, drawn for the run."""
        return cls(
            context.drawn(config.images, "dynamics"), context.attack.threat, name=config.name, **config.options()
        )

    def due(self, epoch: int, *, last: bool) -> bool:
        """Returns whether it is time for a count."""
        del last
        return (epoch + 1) % self.config.every == 0

    def after_epoch(self, end: EpochEnd) -> dict[str, int]:
        """Returns the counts of ``outlier``, ``boundary`` and ``robust`` images, which add up to all that it has."""
        count = len(self.images)
        accuracies = robust_accuracy(end.model, self.images, self.attack, seed=end.seed, autocast=end.autocast)
        clean, robust = (round(share * count) for share in accuracies)
        return {"outlier": count - clean, "boundary": clean - robust, "robust": robust}
