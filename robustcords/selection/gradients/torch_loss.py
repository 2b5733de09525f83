"""Losses of torch, which CORDS' code passes around, with the interface of this package's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from robustcords.engine.precision import full_precision
from robustcords.errors import UserError
from robustcords.losses.base import Loss


class TorchLoss(Loss):
    """A torch loss with ``reduction="none"`` at adversarial examples, which maximise that same loss.

    Args:
        function: logits (B, C) and labels (B,) to (B,).
    """

    passes = ("adversarial",)

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def __call__(self, logits: list[Tensor], y: Tensor) -> Tensor:
        """Returns the loss (B,).

        Raises:
            UserError: the function returns anything else.
        """
        value = self.function(full_precision(logits[0]), y)
        if value.shape != y.shape:
            name = getattr(self.function, "__name__", type(self.function).__name__)
            raise UserError(f"loss {name} gives {tuple(value.shape)} for {len(y)} examples: it needs reduction='none'")
        return value

    def objective(self, y: Tensor, clean: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """Returns the loss as a function of the logits."""
        del clean
        return lambda logits: self([logits], y)


class CleanTorchLoss(TorchLoss):
    """The same at the images as they are."""

    passes = ("clean",)


def as_loss(loss: Any, *, adversarial: bool) -> Loss:
    """Returns a loss of this package as it is, and a torch loss with the same interface.

    Args:
        loss: a `Loss`, or a torch loss with ``reduction="none"``.
        adversarial: whether a torch loss is taken at adversarial examples.
    """
    if isinstance(loss, Loss):
        return loss
    return TorchLoss(loss) if adversarial else CleanTorchLoss(loss)
