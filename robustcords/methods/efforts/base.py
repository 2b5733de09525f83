"""From a training batch to its adversarial examples: the loss's objective, the attack, and each example's effort."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from robustcords.attacks.base import Attack, CleanLogits
from robustcords.engine.modes import Model
from robustcords.losses.base import Loss
from robustcords.losses.check import objective
from robustcords.losses.objective import Objective
from robustcords.rng import Noise


@dataclass(frozen=True)
class AdversarialBatch:
    """Adversarial examples and what was learnt about them on the way.

    Attributes:
        images: (B, C, H, W) in [0, 1], inside the threat model.
        counts: how many examples of this process's share were ``outlier``, ``boundary`` and ``robust``; empty where the
            adversary does not tell them apart.
    """

    images: Tensor
    counts: dict[str, int]


class Adversary:
    """Attacks every example of a batch with the same effort.

    Args:
        attack: the attack.
        loss: says what the attack maximises.

    Attributes:
        attacks: what each kind of example is attacked with; one kind without a name where they are not told apart.
    """

    def __init__(self, attack: Attack, loss: Loss) -> None:
        self.attack = attack
        self.loss = loss
        self.attacks: dict[str, Attack] = {"": attack}

    @property
    def strongest(self) -> Attack:
        """The attack of the examples that most effort is spent on."""
        return max(self.attacks.values(), key=lambda attack: attack.passes)

    def __call__(self, model: Model, x: Tensor, y: Tensor, noise: Noise) -> AdversarialBatch:
        """Returns adversarial examples for a process's share of a global batch.

        Args:
            model: maps images to logits; run in eval mode and given back in the mode it had.
            x: (B, C, H, W) in [0, 1].
            y: (B,) int64 labels.
            noise: keyed by example.
        """
        objective = self.objective(y, self.clean_logits(model, x))
        return AdversarialBatch(self.attack(model, x, objective, noise), {})

    def objective(self, y: Tensor, clean: Callable[[], Tensor]) -> Objective:
        """Returns the loss's objective for these labels and, where the loss asks for them, clean logits."""
        return objective(self.loss, y, clean)

    def clean_logits(self, model: Model, x: Tensor) -> CleanLogits:
        """Returns what `objective` takes: the images' own logits, once they are asked for."""
        return CleanLogits(model, x, exact=self.loss.anchored)

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint has to keep."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
