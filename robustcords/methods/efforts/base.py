"""The base class of efforts: how strongly each example of a batch is attacked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustcords.attacks.base import Attack
from robustcords.config.requirements import HARD_LABELS, ONE_RADIUS, STEPS_TO_VARY
from robustcords.config.schema import Component, ComponentConfig, Stateful
from robustcords.losses.context import Moment
from robustcords.rng import Noise


@dataclass(frozen=True)
class Kinds:
    """The kinds of examples that an effort tells apart.

    Attributes:
        names: of all of them, the same in every step. The metrics count examples by these.
        index: (B,) int64, which of them each example is.
    """

    names: tuple[str, ...]
    index: Tensor

    def counts(self) -> dict[str, int]:
        """Returns how many examples are of each kind."""
        found = self.index.bincount(minlength=len(self.names)).tolist()
        return dict(zip(self.names, found, strict=True))


@dataclass(frozen=True)
class Plan:
    """How hard each example of a process's share of a batch is attacked.

    Its tensors may be on any device. Where they are on the CPU, no accelerator has to be waited for.

    Attributes:
        steps: (B,) int64, >= 0; 0 leaves the image as it is. The attack's own ``num_gradient_steps`` without a
            ``step_size`` are the attack as the recipe has it.
        step_size: (B,) floating point, >= 0, in the threat's norm; None for the attack's own, which may follow from the
            number of steps. In float64 it reaches the attack to the last bit.
        kinds: of the examples; None where they are not distinguished.
        patience: (B,) int64, >= 0: how many steps of an example may begin at points at which it is misclassified,
            before it is left where it is; None for no such end. Takes an attack that provides `STEPS_BY_EXAMPLE`.
        rise: >= 0: an example is left where it is as soon as what is maximised is no more than this share above what it
            was a step before; None for no such end. Takes an attack that provides `STEPS_BY_EXAMPLE`.
        epsilon: the radius that all are attacked at, in place of the threat model's; the attack's own step size, where
            there is no other, and radii are then in proportion.
    """

    steps: Tensor
    step_size: Tensor | None = None
    kinds: Kinds | None = None
    patience: Tensor | None = None
    rise: float | None = None
    epsilon: float | None = None


class EffortConfig(ComponentConfig):
    """Options that every effort has: none but its name."""


class Effort(Component, Stateful, ABC):
    """Decides how hard each example of a batch is attacked. Subclasses write `plan`.

    Several processes each plan for their share of a batch. What they decide on together, they exchange with
    `robustcords.runtime.collectives`; `plan` and `observe` are called in all of them, also where a share is empty.

    Attributes:
        requires: attack steps to vary, and hard labels, where a subclass says nothing else.
        provides: one radius in all epochs. One whose plans have an ``epsilon`` says ``provides = frozenset()``.
        observes: whether `observe` is wanted, which costs a forward pass of the examples that were attacked.
        title: what a report calls a method with it, after its loss and subset: ``""`` for nothing, None for its name.
        legend: how a report describes the kinds that it counts.
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
            clean: returns (B, classes) logits of the images as they are, in eval mode. They are computed when they are
                first asked for; an effort that does not ask costs no pass.
            y: (B,) int64 labels.
            moment: where training is.
            generator: for whatever is drawn, keyed by example; another in every step.
        """

    def observe(self, correct: Tensor) -> None:
        """Receives, after the attack, which examples (B,) bool the model classifies correctly, where it `observes`.

        A mixed image is classified correctly as the class with the larger share.
        """

    def on_validation(self, result: Mapping[str, float]) -> None:
        """Receives what a validation measured, the same in all processes: accuracies ``clean`` and ``robust``.

        Where a recipe's run measures the attack of `validation_attack` too, its accuracy is ``planned``.
        """

    def validation_attack(self, attack: Attack) -> Attack | None:
        """Returns an attack that the next validation is to measure too, for `on_validation`; None for none.

        Args:
            attack: whose steps are varied.
        """
        del attack
        return None

    def attacks(self, attack: Attack) -> dict[str, Attack]:
        """Returns the attacks that it may use, by the kind of example; one without a name where there are no kinds.

        This is what a user is warned by, and what is watched for catastrophic overfitting.
        """
        return {"": attack}

    def strongest(self, attack: Attack) -> Attack:
        """Returns the attack of the examples that most effort is spent on."""
        return max(self.attacks(attack).values(), key=lambda each: each.num_gradient_steps)
