"""The same attack for every example."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from robustcords.attacks.base import Attack
from robustcords.losses.context import Moment
from robustcords.methods.efforts.base import Effort, EffortConfig, Plan
from robustcords.rng import Noise


class Uniform(Effort):
    """Every example gets the attack's own steps."""

    class Config(EffortConfig):
        """No options."""

        name: str = "uniform"

    requires: ClassVar[frozenset[str]] = frozenset()
    title: ClassVar[str | None] = ""

    def plan(self, attack: Attack, clean: Callable[[], Tensor], y: Tensor, moment: Moment, generator: Noise) -> Plan:
        """Returns the attack's own steps for all examples."""
        del clean, moment, generator
        return Plan(torch.full((len(y),), attack.num_gradient_steps))
