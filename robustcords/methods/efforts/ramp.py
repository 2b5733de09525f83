"""A radius, and optionally a number of steps, that increases over the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustcords.attacks.base import Attack
from robustcords.config.requirements import STEPS_TO_VARY
from robustcords.config.schema import Share
from robustcords.errors import UserError
from robustcords.losses.context import Moment
from robustcords.methods.efforts.base import Effort, EffortConfig, Plan
from robustcords.rng import Noise


class Ramp(Effort):
    """The radius grows linearly, as in ACAT and DAJAT (Addepalli et al. 2022).

    In epoch e of E, counted from 1, all examples are attacked at the share ``start + (1 - start) * min(1, e / (until *
    E))`` of the radius, with the defaults at ``epsilon * e / E``. The attack's step size and all radii among its
    options are in proportion. Under l0 the radius is the nearest number of pixels. Losses and evaluation know the whole
    radius throughout.

    Example:
        >>> effort = Ramp(until=0.5)
    """

    class Config(EffortConfig):
        """Options of the ramp.

        Attributes:
            start: share of the radius at which the ramp starts; the first epoch has slightly more.
            until: share of the epochs after which the radius is the full one.
            steps: number of attack steps at the beginning, at most that of the attack, to which it rises over the share
                ``until`` of the run; left out, that of the attack throughout. Each number lasts equally many epochs,
                and the total step length is always that of the attack.
        """

        name: str = "ramp"
        start: Annotated[float, Field(ge=0, le=1)] = 0.0
        until: Share = 1.0
        steps: Annotated[int, Field(ge=1)] | None = None

    config: Ramp.Config
    requires: ClassVar[frozenset[str]] = frozenset({STEPS_TO_VARY})
    provides: ClassVar[frozenset[str]] = frozenset()

    def plan(self, attack: Attack, clean: Callable[[], Tensor], y: Tensor, moment: Moment, generator: Noise) -> Plan:
        """Returns this epoch's radius and steps, the same for all examples."""
        del clean, generator
        config, ramped = self.config, self.config.until * moment.epochs
        share = config.start + (1 - config.start) * min(1.0, (moment.passed + 1) / ramped)
        whole = attack.threat.epsilon
        epsilon = whole and attack.threat.nearest_radius(share * whole)  # under l0 a number of pixels
        steps, sizes = self._steps(attack, moment.passed / ramped), None
        if steps != attack.num_gradient_steps and attack.total_step_length is not None and whole:
            sizes = torch.full((len(y),), attack.total_step_length * epsilon / whole / steps, dtype=torch.float64)
        return Plan(torch.full((len(y),), steps), sizes, epsilon=epsilon)

    def attacks(self, attack: Attack) -> dict[str, Attack]:
        """Returns the attack at the end of the ramp.

        Raises:
            UserError: the beginning has more steps than the end.
        """
        if (self.config.steps or 0) > attack.num_gradient_steps:
            raise UserError(
                f"effort.steps = {self.config.steps}: more than the {attack.num_gradient_steps} of the attack"
            )
        return super().attacks(attack)

    def _steps(self, attack: Attack, passed: float) -> int:
        """Returns the number of steps.

        Args:
            attack: for the final number of steps.
            passed: share of the ramp's epochs that have passed.
        """
        first, last = self.config.steps or attack.num_gradient_steps, attack.num_gradient_steps
        return min(last, first + math.floor((last - first + 1) * passed + 1e-9))
