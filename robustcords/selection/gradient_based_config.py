"""Options of strategies that attack the data."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator

from robustcords.attacks.base import Attack, default_step_size
from robustcords.config.schema import Radius
from robustcords.engine.precision import Precision, require
from robustcords.selection.base import StrategyConfig
from robustcords.selection.gradients.attack_precision import AttackIn

FEW = 3
"""Steps of the attack while selecting; they go 2.5 epsilons together."""


class AttackConfig(StrategyConfig):
    """Options of strategies that compute gradients at adversarial examples.

    Attributes:
        attack_steps: number of attack steps in a selection; left out, three, or those of ``[attack]`` if it has no
            more.
        attack_step_size: length of these steps, in the threat's norm; left out, 2.5 epsilon / attack_steps.
        attack_precision: precision of the attack's forward and backward passes in a selection; left out, that of
            training. The gradients or logits that are compared are computed as in training.
        model_mode: mode of the model while gradients are computed: ``"train"`` is that of CORDS, in which BatchNorm
            uses the statistics of each batch and dropout is active. Attacks always run in eval mode.
        augment: select from images that are augmented as in training, as CORDS does, instead of the images as they are.
    """

    attack_steps: Annotated[int, Field(ge=0, le=10_000)] | None = None
    attack_step_size: Radius | None = None
    attack_precision: Precision | None = None
    model_mode: Literal["eval", "train"] = "eval"
    augment: bool = False

    @model_validator(mode="after")
    def _step_size_needs_steps(self) -> Self:
        if self.attack_step_size is not None and self.attack_steps is None:
            raise ValueError("attack_step_size has no effect without attack_steps")
        return self

    def resolved(self, training: Attack, usual: float | None = None) -> Self:
        """Returns the options with default steps and step size filled in.

        Args:
            training: the training attack, which is used as it is if it has no more steps.
            usual: default step size of given steps; None for 2.5 epsilon / steps.
        """
        if self.attack_step_size is not None or (self.attack_steps is None and training.num_gradient_steps <= FEW):
            return self
        steps = FEW if self.attack_steps is None else self.attack_steps
        given = usual if self.attack_steps is not None else None
        size = default_step_size(training.threat, steps) if given is None else given
        return self.model_copy(update={"attack_steps": steps, "attack_step_size": size})

    def effort(self, training: Attack) -> Attack:
        """Returns the training attack with these options' steps."""
        chosen = self.resolved(training)
        if chosen.attack_steps is None:
            return training
        return training.with_effort(chosen.attack_steps, chosen.attack_step_size)

    def attack(self, training: Attack, device: torch.device) -> Attack:
        """Returns the training attack with these options' steps and precision.

        Raises:
            UserError: the device cannot compute in the precision.
        """
        attack = self.effort(training)
        if self.attack_precision is not None:
            require(self.attack_precision, device, "selector.attack_precision")
            attack = AttackIn(attack, self.attack_precision)
        return attack


class AdversarialConfig(AttackConfig):
    """Options of this package's strategies on adversarial gradients.

    Attributes:
        hard_tail: share of the candidates, those with the highest loss, that is excluded before choosing: of each class
            if classes are chosen from one by one, otherwise of all examples or batches.
    """

    hard_tail: Annotated[float, Field(ge=0, lt=1)] = 0.0
