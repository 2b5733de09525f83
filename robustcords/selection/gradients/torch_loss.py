"""Torch losses, as used by CORDS' code, with this package's interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from robustcords.engine.precision import full_precision
from robustcords.errors import UserError
from robustcords.losses.base import Loss
from robustcords.losses.objective import Objective


class TorchLoss(Loss):
    """A torch loss with ``reduction="none"`` at adversarial examples, which maximise the same loss.

    Args:
        function: logits (B, C) and labels (B,) to (B,).
    """

    views = ("adversarial",)

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def from_logits(self, logits: Mapping[str, Tensor], y: Tensor) -> Tensor:
        """Returns the loss (B,).

        Raises:
            UserError: the function returns something else.
        """
        return self._values(logits[self.views[0]], y)

    def objective(self, y: Tensor, clean: Callable[[], Tensor]) -> Objective:
        """Returns the loss of the logits, from a uniform start."""
        del clean
        return Objective(lambda logits: self._values(logits, y))

    def _values(self, logits: Tensor, y: Tensor) -> Tensor:
        value = self.function(full_precision(logits), y)
        if value.shape != y.shape:
            name = getattr(self.function, "__name__", type(self.function).__name__)
            raise UserError(f"loss {name} gives {tuple(value.shape)} for {len(y)} examples: it needs reduction='none'")
        return value


class CleanTorchLoss(TorchLoss):
    """The same at clean images."""

    views = ("clean",)


def as_loss(loss: Any, *, adversarial: bool) -> Loss:
    """Returns a loss of this package unchanged, and wraps a torch loss.

    Args:
        loss: a `Loss`, or a torch loss with ``reduction="none"``.
        adversarial: whether a torch loss is evaluated at adversarial examples.
    """
    if isinstance(loss, Loss):
        return loss
    return TorchLoss(loss) if adversarial else CleanTorchLoss(loss)
