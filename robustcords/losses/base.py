"""The base class of losses: their views, their value for each example, and the objective of their attack."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from robustcords.config.requirements import HARD_LABELS
from robustcords.config.schema import Component, ComponentConfig
from robustcords.engine.precision import full_precision
from robustcords.losses.check import check_declared
from robustcords.losses.context import LossContext, Moment
from robustcords.losses.objective import Objective, cross_entropy_of

View = Literal["clean", "adversarial"]


class LossConfig(ComponentConfig):
    """Options that every loss has.

    Attributes:
        label_smoothing: the share of a label's probability that is spread over all classes, in [0, 1). It acts on the
            cross-entropy of the update, never on the attack's objective.
    """

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Loss(Component, ABC):
    """A training loss: logits of the views it needs and labels in, one number per example out.

    Attributes:
        views: the images that an update makes forward passes of: ``"clean"``, ``"adversarial"``, or both.
        relative_to_clean: whether the `Objective` that `objective` gives is. It is said here too, for what depends on
            it before there is a batch to ask for one: a recipe is refused whose attack would start at the image, where
            such an objective has no gradient, and an effort that asks for clean logits gets them in float32.
            `robustcords.losses.check.check_loss` refuses a loss that says one thing here and another there.
        batchwise: whether the value has a term of the whole batch, such as a norm of all its logits. It comes in equal
            shares: every example's value has the term divided by B. Accumulation and several processes cut a batch into
            smaller ones, each with its own term, so that such a loss depends on them; a selection differentiates it
            batch by batch.
        requires: hard labels, where a subclass says nothing else. One that takes (B, classes) shares of the classes for
            ``y`` too, as a cross-entropy does, says so with ``requires = frozenset()``, and goes with CutMix and mixup.

    Raises:
        UserError: for a value of these attributes that means nothing, or a member by which 0.1 asked for a loss.

    Example:
        >>> logits = {"clean": torch.zeros(1, 2), "adversarial": torch.zeros(1, 2)}
        >>> TRADES().from_logits(logits, torch.tensor([0]))
        tensor([0.6931])
    """

    Config: ClassVar[type[LossConfig]] = LossConfig
    requires: ClassVar[frozenset[str]] = frozenset({HARD_LABELS})
    config: LossConfig
    views: ClassVar[tuple[str, ...]] = ("clean", "adversarial")
    relative_to_clean: ClassVar[bool] = False
    batchwise: ClassVar[bool] = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        check_declared(self)

    def at(self, moment: Moment) -> Loss:
        """Returns the loss as it is at a moment of training: itself, where no weight of it changes.

        Attacks, updates and selections ask for this first. One whose weights change returns a copy that has those of
        the moment.
        """
        del moment
        return self

    @abstractmethod
    def from_logits(self, logits: Mapping[str, Tensor], y: Tensor) -> Tensor:
        """Returns the loss of every example (B,), in float32, differentiable in every view's logits.

        This is what selection differentiates, and `forward` as long as a loss does not write that itself.

        Args:
            logits: (B, classes) of each of `views`, by its name.
            y: (B,) int64 labels.
        """

    def forward(self, model: nn.Module, views: Mapping[str, Tensor], y: Tensor, context: LossContext) -> Tensor:
        """Returns the loss of every example (B,) in training: what the update differentiates.

        Here that is `from_logits` of the model's logits of each view. A loss that needs more of the model, such as
        gradients by the images or features, writes this as well; selection uses what `from_logits` says.

        Args:
            model: images (B, C, H, W) in [0, 1] to logits, in train mode.
            views: the images of each of `views`, by its name.
            y: (B,) int64 labels.
            context: the threat model, the moment, and noise that is keyed by example.
        """
        del context
        logits = {name: full_precision(model(views[name])) for name in self.views}
        with torch.autocast(y.device.type, enabled=False):
            return self.from_logits(logits, y)

    def objective(self, y: Tensor, clean: Callable[[], Tensor]) -> Objective:
        """Returns what the attack maximises: cross-entropy, from a uniform start.

        Args:
            y: (B,) int64 labels.
            clean: gives (B, classes) eval-mode logits of the images as they are, without a graph. They are computed
                when it is first called, and only then; see `robustcords.attacks.base.CleanLogits`.
        """
        del clean
        return cross_entropy_of(y)

    def cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        """Returns (B,) cross-entropy in float32 with this loss's label smoothing."""
        smoothing = self.config.label_smoothing
        return F.cross_entropy(full_precision(logits), y, reduction="none", label_smoothing=smoothing)
