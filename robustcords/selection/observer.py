"""Losses of the training steps between two selections, for strategies that learn from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from robustcords.config.schema import Stateful


class Observer(Stateful, ABC):
    """Receives the losses of every training step. A strategy declares its class as ``observer``.

    A strategy is built for each selection, while its observer lasts, and is in every checkpoint. All processes receive
    the same, in the order of the global batch.

    Args:
        size: N, the number of training examples.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    @abstractmethod
    def observe(self, rows: Tensor, losses: Tensor) -> None:
        """Receives the losses of one step.

        Args:
            rows: (n,) int64, unique, the batch's rows of the training split.
            losses: (n,) float32, their training losses, unweighted; all finite.
        """


class LastLosses(Observer):
    """Stores every example's most recent training loss.

    Args:
        size: N, the number of training examples.

    Attributes:
        losses: (N,) float32; NaN before an example's first step.

    Example:
        >>> seen = LastLosses(3)
        >>> seen.observe(torch.tensor([2]), torch.tensor([0.5]))
        >>> seen.losses
        tensor([   nan,    nan, 0.5000])
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.losses = torch.full((size,), torch.nan)

    def observe(self, rows: Tensor, losses: Tensor) -> None:
        """Overwrites the examples' losses."""
        self.losses[rows] = losses

    def state_dict(self) -> dict[str, Any]:
        """Returns the losses."""
        return {"losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned.

        Raises:
            ValueError: it is of another number of examples.
        """
        if len(state["losses"]) != self.size:
            raise ValueError(f"losses of {len(state['losses'])} examples, and there are {self.size}")
        self.losses = state["losses"].clone()
