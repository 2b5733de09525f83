"""Projected gradient descent."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from robustcords.attacks.base import default_step_size, first_gradient, input_gradient, logits_and_gradient
from robustcords.attacks.gradient import GradientAttack, GradientAttackConfig
from robustcords.attacks.pace import Objectives, Pace, Remaining
from robustcords.config.requirements import STEPS_BY_EXAMPLE
from robustcords.config.schema import Radius, filled_in, with_defaults
from robustcords.engine.modes import Model
from robustcords.losses.objective import Objective
from robustcords.rng import Noise
from robustcords.threats.base import ThreatModel


class PGD(GradientAttack):
    """Projected gradient descent (Madry et al. 2018; Li et al. 2023, Eq. 2): ``x <- Proj(x + step_size * sign(grad))``.

    Under l2 the step goes along the gradient divided by its length. The last iterate is returned, as in the training
    scripts of TRADES and MART.

    Example:
        >>> x_adv = PGD(threat, steps=10)(model, x, SAT().objective(y, CleanLogits(model, x)), noise)
    """

    class Config(GradientAttackConfig):
        """Options of PGD.

        Attributes:
            steps: number of gradient steps.
            step_size: length of a step in the threat's norm; left out, 2.5 epsilon / steps.
            random_start: where the attack starts: ``"auto"`` follows the objective (gaussian for TRADES and MART, signs
                for NuAT, uniform otherwise), ``"uniform"`` is a random point of the ball, ``"gaussian"`` is ``x + 0.001
                N(0, 1)``, ``"signs"`` is ``x + epsilon / 2`` times random signs, and ``"none"`` is the image itself.
        """

        name: str = "pgd"
        steps: Annotated[int, Field(ge=0, le=10_000)] = 10
        step_size: Radius | None = None
        random_start: Literal["auto", "uniform", "gaussian", "signs", "none"] = "auto"

    config: PGD.Config
    provides: ClassVar[frozenset[str]] = frozenset({STEPS_BY_EXAMPLE})

    @classmethod
    def resolved(cls, config: PGD.Config, threat: ThreatModel) -> PGD.Config:
        """Returns the options with a step size."""
        return with_defaults(config, step_size=default_step_size(threat, config.steps))

    @property
    def step_size(self) -> float:
        """Length of a step in the threat's norm, in pixel space."""
        return filled_in(self.config.step_size)

    @property
    def total_step_length(self) -> float:
        """Number of steps times step size."""
        return self.config.steps * self.step_size

    @property
    def num_gradient_steps(self) -> int:
        """The number of steps."""
        return self.config.steps

    def search(self, model: Model, x: Tensor, objective: Objective, noise: Noise) -> Tensor:
        """Returns the last iterate."""
        x_adv = self._start(x, objective, noise)
        for step in range(self.config.steps):
            gradient = first_gradient(model, objective, x_adv) if step == 0 else input_gradient(model, objective, x_adv)
            x_adv = self.threat.project(self.threat.ascend(x_adv, gradient, self.step_size), x)
        return x_adv

    def search_each(self, model: Model, x: Tensor, objectives: Objectives, noise: Noise, pace: Pace) -> Tensor:
        """Returns the last iterate of each example; finished examples leave the batch."""
        remaining = Remaining(x, objectives, pace)
        remaining.x_adv = self._start(x, remaining.objective, noise)
        for step in range(int(pace.steps.max())):
            remaining.begin(step)
            if not len(remaining):
                break
            logits, gradient = logits_and_gradient(model, remaining.objective, remaining.x_adv, first=step == 0)
            gradient = remaining.stop(logits, gradient)
            ascended = self.threat.ascend(remaining.x_adv, gradient, remaining.step_size)
            remaining.x_adv = self.threat.project(ascended, remaining.x)
        return remaining.end()

    def with_effort(self, steps: int, step_size: float | None = None) -> PGD:
        """Returns PGD with this number of steps."""
        return type(self)(self.threat, **{**dict(self.config), "steps": steps, "step_size": step_size})

    def _start(self, x: Tensor, objective: Objective, noise: Noise) -> Tensor:
        """Returns the starting point (B, C, H, W)."""
        kind = objective.start if self.config.random_start == "auto" else self.config.random_start
        return self.threat.random_start(kind, x, noise)
