"""The fast gradient sign method, from the image itself or from a random start."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from robustcords.attacks.base import default_step_size, first_gradient
from robustcords.attacks.gradient import GradientAttackConfig
from robustcords.attacks.single_step import SingleStepAttack
from robustcords.config.schema import Radius, filled_in, with_defaults
from robustcords.engine.modes import Model
from robustcords.losses.objective import Objective
from robustcords.rng import Noise
from robustcords.threats.base import ThreatModel


class FGSM(SingleStepAttack):
    """One gradient step (Goodfellow et al. 2015), by default from a uniform random start as in Wong et al. 2020.

    From a random start Wong et al. step 1.25 epsilon and project; from the image itself the step is epsilon. Under l2
    the step goes along the gradient divided by its length.

    Example:
        >>> method = AdversarialTraining(SAT(), FGSM(threat))
    """

    class Config(GradientAttackConfig):
        """Options of FGSM.

        Attributes:
            random_start: ``"uniform"`` in the ball (FGSM-RS), or ``"none"`` (plain FGSM). From ``"none"`` the gradient
                of TRADES' objective is zero, and the attack does nothing.
            step_size: length of the step in the threat's norm; left out, 1.25 epsilon from a random start and epsilon
                from none.
        """

        name: str = "fgsm"
        random_start: Literal["uniform", "none"] = "uniform"
        step_size: Radius | None = None

    config: FGSM.Config

    @classmethod
    def resolved(cls, config: FGSM.Config, threat: ThreatModel) -> FGSM.Config:
        """Returns the options with a step size."""
        radii = 1.25 if config.random_start == "uniform" else 1.0
        return with_defaults(config, step_size=default_step_size(threat, 1, radii))

    @property
    def total_step_length(self) -> float:
        """The step size."""
        return filled_in(self.config.step_size)

    def search(self, model: Model, x: Tensor, objective: Objective, noise: Noise) -> Tensor:
        """Returns the images after the one step."""
        x_adv = self.threat.random_start(self.config.random_start, x, noise)
        return self.threat.ascend(x_adv, first_gradient(model, objective, x_adv), self.total_step_length)
