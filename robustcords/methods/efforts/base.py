"""The base class of efforts: how strongly each example of a batch is attacked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustcords.attacks.base import Attack
from robustcords.config.requirements import HARD_LABELS, ONE_RADIUS, STEPS_TO_VARY
from robustcords.config.schema import Component, ComponentConfig, Stateful
from robustcords.engine import contracts
from robustcords.errors import UserError
from robustcords.losses.context import Moment
from robustcords.rng import Noise


@dataclass(frozen=True)
class Kinds:
    """The kinds of examples that an effort distinguishes.

    Attributes:
        names: of all kinds, the same in every step. The metrics count examples by kind.
        index: (B,) int64, the kind of each example.
    """

    names: tuple[str, ...]
    index: Tensor

    def counts(self) -> dict[str, int]:
        """Returns the number of examples of each kind."""
        totals = self.index.bincount(minlength=len(self.names)).tolist()
        return dict(zip(self.names, totals, strict=True))


@dataclass(frozen=True)
class Plan:
    """How hard each example of a process's share of a batch is attacked.

    Its tensors may be on any device; on the CPU they need no synchronisation with an accelerator.

    Attributes:
        steps: (B,) int64, >= 0; 0 leaves the image as it is. The attack's own ``num_gradient_steps`` without a
            ``step_size`` are the attack as the recipe has it.
        step_size: (B,) floating point, >= 0, in the threat's norm; None for the attack's own, which may follow from the
            number of steps. In float64 it reaches the attack to the last bit.
        kinds: of the examples; None if they are not distinguished.
        patience: (B,) int64, >= 0: number of steps that may begin at misclassified points before an example stops; None
            for no early stopping. Needs an attack that provides `STEPS_BY_EXAMPLE`.
        rise: >= 0: an example stops once its objective has risen by no more than this share since the step before; None
            for no such criterion. Needs an attack that provides `STEPS_BY_EXAMPLE`.
        epsilon: the radius for all examples, in place of the threat model's; the attack's own step size, unless another
            is given, and radii are scaled alike.
    """

    steps: Tensor
    step_size: Tensor | None = None
    kinds: Kinds | None = None
    patience: Tensor | None = None
    rise: float | None = None
    epsilon: float | None = None

    def check(self, source: str, count: int) -> None:
        """Checks the values for a batch.

        Args:
            source: name of what planned, for messages.
            count: B, the batch size.

        Raises:
            UserError: steps are not whole numbers (B,), or step sizes or kinds are invalid.
        """
        contracts.whole(f"{source} planned steps", self.steps, count)
        if self.step_size is not None:
            sizes = contracts.numbers(f"{source}: step_size", self.step_size, torch.Size([count]))
            if not bool((sizes.isfinite() & (sizes >= 0)).all()):
                raise UserError(f"{source} planned step sizes that are negative or not finite")
        if self.patience is not None:
            contracts.whole(f"{source} planned patience", self.patience, count)
        if self.kinds is not None:
            contracts.whole(f"{source} planned kinds", self.kinds.index, count, len(self.kinds.names))


class EffortConfig(ComponentConfig):
    """Options of every effort: its name."""


class Effort(Component, Stateful, ABC):
    """Decides how hard each example of a batch is attacked. Subclasses implement `plan`.

    Each process plans for its share of a batch. For joint decisions they communicate with
    `robustcords.runtime.collectives`; `plan` and `observe` are called in every process, also if its share is empty.

    Attributes:
        requires: attack steps to vary, and hard labels, by default.
        provides: one radius in all epochs. One whose plans have an ``epsilon`` declares ``provides = frozenset()``.
        observes: whether `observe` is called, which costs a forward pass of the attacked examples.
        title: its name in reports, after loss and subset: ``""`` for none, None for its registered name.
        legend: how a report describes its counts of kinds.
    """

    Config: ClassVar[type[EffortConfig]] = EffortConfig
    requires: ClassVar[frozenset[str]] = frozenset({STEPS_TO_VARY, HARD_LABELS})
    provides: ClassVar[frozenset[str]] = frozenset({ONE_RADIUS})
    observes: ClassVar[bool] = False
    title: ClassVar[str | None] = None
    legend: ClassVar[str] = "as the effort sorted each batch while it trained on it"

    @abstractmethod
    def plan(self, attack: Attack, clean: Callable[[], Tensor], y: Tensor, moment: Moment, generator: Noise) -> Plan:
        """Returns how hard each example is attacked now.

        Args:
            attack: whose steps are varied.
            clean: returns (B, classes) logits of the clean images in eval mode, computed at the first call; an effort
                that does not call it costs no pass.
            y: (B,) int64 labels.
            moment: where training is.
            generator: for random numbers, keyed by example; another in every step.
        """

    def observe(self, correct: Tensor) -> None:
        """Receives, if it `observes`, which examples (B,) bool the model classifies correctly after the attack.

        A mixed image is classified correctly as the class with the larger share.
        """

    def on_validation(self, result: Mapping[str, float]) -> None:
        """Receives a validation's accuracies ``clean`` and ``robust``, the same in all processes.

        The accuracy under the attack of `validation_attack`, if there is one, is ``planned``.
        """

    def validation_attack(self, attack: Attack) -> Attack | None:
        """Returns an additional attack for the next validation, whose accuracy `on_validation` receives; None for none.

        Args:
            attack: whose steps are varied.
        """
        del attack
        return None

    def attacks(self, attack: Attack) -> dict[str, Attack]:
        """Returns the attacks that it may use, by kind of example; by default one with an empty name.

        Warnings and the check for catastrophic overfitting are based on these.
        """
        return {"": attack}

    def strongest(self, attack: Attack) -> Attack:
        """Returns the attack with the most gradient steps."""
        return max(self.attacks(attack).values(), key=lambda each: each.num_gradient_steps)
