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
        total: the normaliser of the global batch's weighted losses: the sum of its weights, or what a strategy fixes.
        geometry: how the images were cropped and flipped, to move stored perturbations alike; None if the augmentation
            does anything else.
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
    """What a method reports of a step.

    Attributes:
        counts: number of examples of each of the effort's kinds in this process's share; the same kinds in all
            processes, and empty if the effort has none.
    """

    counts: dict[str, int] = field(default_factory=dict)


class Step(ABC):
    """The training loop's interface to a method for one batch: model, accumulation, processes and precision.

    Attributes:
        moment: where training is.
        model: in train mode, unwrapped; its parameters are trained.
        inference: the same model as attacks run it, in the precision of training.
    """

    moment: Moment
    model: nn.Module
    inference: Model

    @abstractmethod
    def attacking(self) -> AbstractContextManager[None]:
        """Context for attacks on `inference`, which runs folded in it."""

    @abstractmethod
    def without_statistics(self) -> AbstractContextManager[None]:
        """Context for passes that affect gradients only: neither the reported loss nor BatchNorm's statistics."""

    @abstractmethod
    def micro_batches(self, batch: Batch) -> Iterator[slice]:
        """Yields the rows of each micro-batch in turn, to pass to `losses` and `backward`."""

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
        """Clips the gradients, steps the optimizer and zeroes the gradients."""

    @abstractmethod
    def phase(self, name: str) -> None:
        """Counts the time from here on as ``"attack"`` or ``"update"``."""


class MethodConfig(ComponentConfig):
    """Options of every method: its name."""


class Method(Component, Stateful, ABC):
    """What one training step does with a batch. Subclasses implement `step`.

    Its state is its own only: effort, attack and a wrapped method have their own.

    Args:
        loss: what is minimised.
        attack: the training attack; a method may use it or not.
        effort: how hard each example is attacked; None for all alike.
        options: the fields of the method's ``Config``.

    Attributes:
        provides: both views of a batch by default. A method that attacks as ``effort`` plans provides
            `robustcords.config.requirements.STEPS_TO_VARY` too.
        requires: hard labels by default. A method that only passes labels on to the loss and the attack declares
            ``requires = frozenset()``, and works with CutMix and mixup.
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
            step: the loop's interface.
            batch: this process's share of a global batch.
        """

    def parts(self, name: str = "method") -> dict[str, Any]:
        """Returns its stateful parts, by their names in a checkpoint.

        Args:
            name: that of the method itself.
        """
        return {name: self, "effort": self.effort, "attack": self.attack}

    def prepare(self, train: Images, device: torch.device) -> None:
        """Called before training with the training set; passes it to the attack."""
        self.attack.prepare(train, device)
