"""Losses of the training steps between two selections, for strategies that learn from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from robustcords.config.schema import Stateful


class Observer(Stateful, ABC):
    """Receives the losses of every training step. A strategy names one as its ``observer``.

    Strategies are built anew for every selection; their observer stays, and is in every checkpoint. All processes are
    given the same, in the order of the global batch.

    Args:
        size: N, examples of the training split.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    @abstractmethod
    def observe(self, rows: Tensor, losses: Tensor) -> None:
        """Receives the losses of one step.

        Args:
            rows: (n,) int64, unique, the examples that were trained on, as rows of the training split.
            losses: (n,) float32, the training loss of each, before weights; all finite.
        """


class LastLosses(Observer):
    """Remembers every example's loss in the step that saw it last.

    Args:
        size: N, examples of the training split.

    Attributes:
        losses: (N,) float32; NaN for an example that no step has seen yet.

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
        """Writes the losses over earlier ones."""
        self.losses[rows] = losses

    def state_dict(self) -> dict[str, Any]:
        """Returns the losses."""
        return {"losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave.

        Raises:
            ValueError: it is of another number of examples.
        """
        if len(state["losses"]) != self.size:
            raise ValueError(f"losses of {len(state['losses'])} examples, and there are {self.size}")
        self.losses = state["losses"].clone()
