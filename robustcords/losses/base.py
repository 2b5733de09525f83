"""What every loss shares: which passes it needs, its value per example, and what its attack maximises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from robustcords.config.schema import Component, ComponentConfig
from robustcords.engine.precision import full_precision
from robustcords.losses.check import check_declared
from robustcords.losses.context import LossContext

Pass = Literal["clean", "adversarial"]


class LossConfig(ComponentConfig):
    """Options that every loss has.

    Attributes:
        label_smoothing: the share of a label's probability that is spread over all classes, in [0, 1). It acts on the
            cross-entropy of the update, never on the attack's objective.
    """

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Loss(Component, ABC):
    """A training loss: logits of the passes it needs and labels in, one number per example out.

    Attributes:
        passes: the forward passes of an update, in this order: ``"clean"``, ``"adversarial"``, or both.
        start: the random start that its attack wants, see `robustcords.losses.objective.Objective`.
        anchored: whether `objective` compares with the clean logits, which are then computed once per batch in eval
            mode.

    Raises:
        UserError: for a value of these attributes that means nothing.
    """

    Config: ClassVar[type[LossConfig]] = LossConfig
    config: LossConfig
    passes: ClassVar[tuple[str, ...]] = ("clean", "adversarial")
    start: ClassVar[Literal["uniform", "gaussian"]] = "uniform"
    anchored: ClassVar[bool] = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        check_declared(self)

    @abstractmethod
    def __call__(self, logits: list[Tensor], y: Tensor) -> Tensor:
        """Returns the loss of every example (B,), in float32, differentiable in every pass's logits.

        Args:
            logits: one (B, classes) tensor for each of `passes`.
            y: (B,) int64 labels.
        """

    def forward(self, model: nn.Module, views: Mapping[str, Tensor], y: Tensor, context: LossContext) -> Tensor:
        """Returns the loss of every example (B,) in training: what the update differentiates.

        Here that is the loss of the model's logits of each pass. A loss that needs more of the model, such as gradients
        by the images or features, writes this as well; selection goes on with what ``__call__`` says.

        Args:
            model: images (B, C, H, W) in [0, 1] to logits, in train mode.
            views: the images of each of `passes`.
            y: (B,) int64 labels.
            context: the threat model, the moment, and noise that is keyed by example.
        """
        del context
        logits = [full_precision(model(views[name])) for name in self.passes]
        with torch.autocast(y.device.type, enabled=False):
            return self(logits, y)

    def objective(self, y: Tensor, clean: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """Returns what the attack maximises, as a function of logits (B, classes) that gives (B,): cross-entropy.

        Args:
            y: (B,) int64 labels.
            clean: (B, classes) eval-mode logits of the images as they are; needed where `anchored`.
        """
        del clean
        return lambda logits: F.cross_entropy(logits, y, reduction="none")

    def cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        """Returns (B,) cross-entropy in float32 with this loss's label smoothing."""
        smoothing = self.config.label_smoothing
        return F.cross_entropy(full_precision(logits), y, reduction="none", label_smoothing=smoothing)
