"""Attacks that stop for an example once its loss no longer rises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustcords.attacks.base import Attack
from robustcords.config.requirements import STEPS_BY_EXAMPLE, STEPS_TO_VARY
from robustcords.losses.context import Moment
from robustcords.methods.efforts.base import Effort, EffortConfig, Plan
from robustcords.rng import Noise


class Plateau(Effort):
    """Stops the attack on an example once its objective no longer rises.

    With f_k the objective at the point where step k would begin, an example stops there, for k >= 1, once
    ``f_k - f_{k-1} <= rise * |f_{k-1}|``. The value comes with the forward pass of the step's gradient; examples that
    stop leave the batch.

    Example:
        >>> effort = Plateau(rise=0.02)
    """

    class Config(EffortConfig):
        """Options of the plateau.

        Attributes:
            rise: relative increase of the loss that a step must achieve for another step to follow.
        """

        name: str = "plateau"
        rise: Annotated[float, Field(ge=0, le=1)] = 0.01

    config: Plateau.Config
    requires: ClassVar[frozenset[str]] = frozenset({STEPS_TO_VARY, STEPS_BY_EXAMPLE})

    def plan(self, attack: Attack, clean: Callable[[], Tensor], y: Tensor, moment: Moment, generator: Noise) -> Plan:
        """Returns the attack's own steps, and the criterion that ends them."""
        del clean, moment, generator
        return Plan(torch.full((len(y),), attack.num_gradient_steps), rise=self.config.rise)
