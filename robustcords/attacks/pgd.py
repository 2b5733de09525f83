"""Projected gradient descent."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from robustcords.attacks.base import Attack, Model, Objective, input_gradient
from robustcords.config import ComponentConfig, Radius
from robustcords.rng import Noise


class PGD(Attack):
    """Projected gradient descent (Madry et al. 2018; Li et al. 2023, Eq. 2): ``x <- Proj(x + step_size * sign(grad))``.

    Under l2 the step goes along the gradient divided by its length. The last iterate is returned, as in the training
    scripts of TRADES and MART.
    """

    class Config(ComponentConfig):
        """Options of PGD.

        Attributes:
            steps: number of gradient steps, 0 to 10,000.
            step_size: length of a step in the threat's norm.
            random_start: ``"auto"`` starts where the objective wants it (uniform in the ball, or ``x + 0.001 N(0, 1)``
                for TRADES and MART); ``"uniform"``, ``"gaussian"`` and ``"none"`` overrule it.
        """

        name: str = "pgd"
        steps: Annotated[int, Field(ge=0, le=10_000)] = 10
        step_size: Radius = 2 / 255
        random_start: Literal["auto", "uniform", "gaussian", "none"] = "auto"

    config: PGD.Config

    @property
    def passes(self) -> int:
        """One forward and backward pass a step."""
        return self.config.steps

    def search(self, model: Model, x: Tensor, objective: Objective, noise: Noise) -> Tensor:
        """Returns the last iterate."""
        x_adv = self._start(x, objective, noise)
        for _ in range(self.config.steps):
            gradient = input_gradient(model, objective, x_adv)
            x_adv = self.threat.project(self.threat.ascend(x_adv, gradient, self.config.step_size), x)
        return x_adv

    def with_effort(self, steps: int, step_size: float | None = None) -> PGD:
        """Returns PGD with these steps."""
        size = self.config.step_size if step_size is None else step_size
        return PGD(self.threat, **{**dict(self.config), "steps": steps, "step_size": size})

    def _start(self, x: Tensor, objective: Objective, noise: Noise) -> Tensor:
        """Returns the point (B, C, H, W) that the first gradient is taken at."""
        where = objective.start if self.config.random_start == "auto" else self.config.random_start
        if where == "uniform":
            return self.threat.uniform_start(x, noise)
        return self.threat.gaussian_start(x, noise) if where == "gaussian" else x
