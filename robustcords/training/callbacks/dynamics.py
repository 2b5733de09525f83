"""How many examples are outliers, on the boundary, or robust, epoch by epoch (Li et al. 2023, Fig. 1)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

from robustcords.attacks.pgd import PGD
from robustcords.config.schema import Table
from robustcords.data.images import Images
from robustcords.engine.inference import Autocast
from robustcords.evaluation.evaluate import robust_accuracy
from robustcords.threats.base import ThreatModel
from robustcords.training.callbacks.base import Observer

STEPS = 5
"""The paper tracks with PGD-5-1: five steps, one restart."""


class DynamicsConfig(Table):
    """Options of tracking.

    Attributes:
        images: how many training images, drawn once for the run; 0 for all.
        every: epochs between looks; the first look is after so many epochs.
    """

    images: Annotated[int, Field(ge=0)] = 1000
    every: Annotated[int, Field(ge=1)] = 1


class Dynamics(Observer):
    """Counts, under PGD-5-1 at the training radius, how many training images are of each kind.

    An *outlier* is misclassified as it is, a *boundary* example only under the attack, a *robust* one not at all. The
    paper gives no step size: half the radius is used, with which five steps can cross the ball.

    Args:
        images: a part of the training split, as it is, not augmented.
        threat: norm and radius.
        config: how often.
    """

    name = "dynamics"

    def __init__(self, images: Images, threat: ThreatModel, config: DynamicsConfig) -> None:
        self.images, self.config = images, config
        self.attack = PGD(threat, steps=STEPS, step_size=threat.epsilon / 2, random_start="uniform")

    def look(self, model: nn.Module, epoch: int, *, seed: int, autocast: Autocast) -> dict[str, int] | None:
        """Returns the counts of ``outlier``, ``boundary`` and ``robust`` images, which add up to all that it has."""
        if (epoch + 1) % self.config.every:
            return None
        count = len(self.images)
        accuracies = robust_accuracy(model, self.images, self.attack, seed=seed, autocast=autocast)
        clean, robust = (round(share * count) for share in accuracies)
        return {"outlier": count - clean, "boundary": clean - robust, "robust": robust}
