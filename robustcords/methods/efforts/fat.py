"""Friendly adversarial training (FAT): attacks that stop shortly after they succeed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from robustcords.attacks.base import Attack
from robustcords.config.requirements import STEPS_BY_EXAMPLE, STEPS_TO_VARY
from robustcords.config.schema import Milestones, milestones_passed
from robustcords.losses.context import Moment
from robustcords.methods.efforts.base import Effort, EffortConfig, Plan
from robustcords.rng import Noise


class FAT(Effort):
    """Friendly adversarial training: early-stopped PGD (Zhang et al. 2020, Algorithm 1), arXiv 2002.11242.

    An example stops after ``tau`` steps that began at misclassified points; one that stays correct takes all of the
    attack's steps. The prediction comes from the forward pass of the step's gradient. ``tau`` rises over the run.

    Example:
        >>> effort = FAT(tau=[0, 1], milestones=[0.5])
    """

    class Config(EffortConfig):
        """Options of FAT; the defaults are those of the authors' script for standard adversarial training.

        Attributes:
            tau: number of steps from misclassified points before an example stops: one value for the beginning of the
                run, and one from each milestone on.
            milestones: shares of the run, in ascending order; tau changes at the first epoch that begins at or after
                ``milestone * epochs``.
        """

        name: str = "fat"
        tau: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)] = (0, 1, 2)
        milestones: Milestones = (50 / 120, 90 / 120)

        @model_validator(mode="after")
        def _one_more(self) -> Self:
            if len(self.tau) != len(self.milestones) + 1:
                raise ValueError(
                    f"{len(self.tau)} of tau for {len(self.milestones)} milestones; it takes one more than those"
                )
            return self

    config: FAT.Config
    requires: ClassVar[frozenset[str]] = frozenset({STEPS_TO_VARY, STEPS_BY_EXAMPLE})

    def plan(self, attack: Attack, clean: Callable[[], Tensor], y: Tensor, moment: Moment, generator: Noise) -> Plan:
        """Returns the attack's own steps, and this epoch's tau."""
        del clean, generator
        passed = milestones_passed(self.config.milestones, moment.passed, moment.epochs)
        patience = torch.full((len(y),), self.config.tau[passed])
        return Plan(torch.full((len(y),), attack.num_gradient_steps), patience=patience)
