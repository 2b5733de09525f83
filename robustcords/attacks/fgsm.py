"""The fast gradient sign method, from the image itself or from a random start."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from robustcords.attacks.base import Attack, Model, Objective, input_gradient
from robustcords.attacks.pgd import PGD
from robustcords.config import ComponentConfig, Radius
from robustcords.rng import Noise


class FGSM(Attack):
    """One gradient step (Goodfellow et al. 2015), by default from a uniform random start as in Wong et al. 2020.

    From a random start Wong et al. step 1.25 epsilon and project; from the image itself the step is epsilon. Under l2
    the step goes along the gradient divided by its length.
    """

    class Config(ComponentConfig):
        """Options of FGSM.

        Attributes:
            random_start: ``"uniform"`` in the ball (FGSM-RS), or ``"none"``. From ``"none"`` the gradient of TRADES'
                objective is zero, and the attack does nothing.
            step_size: length of the step; left out, 1.25 epsilon from a random start and epsilon from none.
        """

        name: str = "fgsm"
        random_start: Literal["uniform", "none"] = "uniform"
        step_size: Radius | None = None

    config: FGSM.Config

    @property
    def passes(self) -> int:
        """One forward and backward pass."""
        return 1

    def search(self, model: Model, x: Tensor, objective: Objective, noise: Noise) -> Tensor:
        """Returns the one step's end."""
        random = self.config.random_start == "uniform"
        x_adv = self.threat.uniform_start(x, noise) if random else x
        size = self.config.step_size
        if size is None:
            size = (1.25 if random else 1.0) * self.threat.epsilon
        return self.threat.ascend(x_adv, input_gradient(model, objective, x_adv), size)

    def with_effort(self, steps: int, step_size: float | None = None) -> Attack:
        """Returns itself, or an attack of no steps where none is asked for: a single step cannot be divided."""
        return self if steps else PGD(self.threat, steps=0)
