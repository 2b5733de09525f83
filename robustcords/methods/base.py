"""The base class of methods: the interface between the training loop and what a step does with a batch."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustcords.attacks.base import Attack
from robustcords.config.requirements import ADVERSARIAL_VIEW, CLEAN_VIEW, HARD_LABELS
from robustcords.config.schema import Component, ComponentConfig, Stateful
from robustcords.data.augmentations.geometry import Geometry
from robustcords.data.images import Images
from robustcords.engine.modes import Model
from robustcords.losses.base import Loss
from robustcords.losses.context import Moment
from robustcords.methods.efforts.base import Effort
from robustcords.methods.efforts.uniform import Uniform
from robustcords.rng import Noise


@dataclass(frozen=True)
class Batch:
    """One process's share of a global batch.

    Attributes:
        x: (b, C, H, W) augmented images in [0, 1].
        y: (b,) int64 labels; (b, classes) shares of the classes where the augmentation mixes images.
        weights: (b,) of the loss.
        noise: for the attack, keyed by example; its keys are the examples' numbers in the full training set.
        total: what the global batch's weighted losses are divided by: the sum of its weights, or what a strategy fixes.
        geometry: how the images were cropped and flipped, to move what belongs to their pixels alike; None where the
            augmentation does anything else.
    """

    x: Tensor
    y: Tensor
    weights: Tensor
    noise: Noise
    total: float
    geometry: Geometry | None = None

    def parts(self, count: int) -> Iterator[slice]:
        """Yields the rows of each of so many micro-batches."""
        edges = [round(len(self.y) * number / count) for number in range(count + 1)]
        yield from (slice(start, end) for start, end in itertools.pairwise(edges))


@dataclass(frozen=True)
class StepReport:
    """What a method says of a step.

    Attributes:
        counts: how many examples of this process's share were of each kind that the effort tells apart; the same kinds
            in all processes, and none where it tells none apart.
    """

    counts: dict[str, int] = field(default_factory=dict)


class Step(ABC):
    """What the loop lends a method for one batch: the model, and what accumulation, processes and precision ask for.

    Attributes:
        moment: where training is.
        model: in train mode, not wrapped; its parameters are what is trained.
        inference: the same model as attacks run it, in the precision of training.
    """

    moment: Moment
    model: nn.Module
    inference: Model

    @abstractmethod
    def attacking(self) -> AbstractContextManager[None]:
        """Returns a block for attacks on `inference`, in which it runs as fast as it can."""

    @abstractmethod
    def without_statistics(self) -> AbstractContextManager[None]:
        """Returns a block for passes that leave nothing but gradients.

        What is differentiated in it is no part of the reported loss, and BatchNorm's statistics are given back as they
        were.
        """

    @abstractmethod
    def micro_batches(self, batch: Batch) -> Iterator[slice]:
        """Yields the rows of each micro-batch in turn, which `losses` and `backward` are then for."""

    @abstractmethod
    def losses(self, views: Mapping[str, Tensor], batch: Batch, rows: slice) -> Tensor:
        """Returns the loss (b,) of some rows of a batch, in train mode, with a graph.

        Args:
            views: the images (B, C, H, W) of each view of the batch, such as ``"clean"`` and ``"adversarial"``.
            batch: the labels and noise.
            rows: of both.
        """

    @abstractmethod
    def backward(self, losses: Tensor, batch: Batch, rows: slice) -> None:
        """Adds the gradient of the weighted mean over the global batch to the parameters' ``.grad``."""

    @abstractmethod
    def optimizer_step(self) -> None:
        """Clips the gradients, takes a step along them and sets them to zero."""

    @abstractmethod
    def phase(self, name: str) -> None:
        """Counts the time from here on as ``"attack"`` or ``"update"``."""


class MethodConfig(ComponentConfig):
    """Options that every method has: none but its name."""


class Method(Component, Stateful, ABC):
    """What one training step does with a batch. Subclasses write `step`.

    Its state is its own alone: effort and attack, and a method that this one goes around, keep theirs themselves.

    Args:
        loss: what is minimised.
        attack: the training attack; a method may attack in a way of its own, with it or without.
        effort: how hard each example is attacked; None for all alike.
        options: the fields of the method's ``Config``.

    Attributes:
        provides: both views of a batch, where a subclass says nothing else. One that attacks as hard as ``effort``
            plans provides `robustcords.config.requirements.STEPS_TO_VARY` too.
        requires: hard labels, where a subclass says nothing else. One that hands labels on to the loss and the attack
            and does not look at them says ``requires = frozenset()``, and goes with CutMix and mixup.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    requires: ClassVar[frozenset[str]] = frozenset({HARD_LABELS})
    provides: ClassVar[frozenset[str]] = frozenset({CLEAN_VIEW, ADVERSARIAL_VIEW})

    def __init__(self, loss: Loss, attack: Attack, effort: Effort | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.loss, self.attack, self.effort = loss, attack, effort or Uniform()

    @abstractmethod
    def step(self, step: Step, batch: Batch) -> StepReport:
        """Trains on a batch.

        Args:
            step: what the loop lends.
            batch: this process's share of a global batch.
        """

    def parts(self, name: str = "method") -> dict[str, Any]:
        """Returns everything of it with a state of its own, by its name in a checkpoint.

        Args:
            name: that of the method itself.
        """
        return {name: self, "effort": self.effort, "attack": self.attack}

    def prepare(self, train: Images, device: torch.device) -> None:
        """Receives, before training, what is trained on, and where; passes it to the attack."""
        self.attack.prepare(train, device)
