"""What looks at a model after every epoch, and notes something in the epoch's line of metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import nn

from robustcords.inference import Autocast


class Observer(ABC):
    """Looks at the model after every epoch; the trainer knows nothing else of it.

    Attributes:
        name: the key of what it notes in ``metrics.jsonl``, and of its state in a checkpoint.
    """

    name: ClassVar[str]

    @abstractmethod
    def look(self, model: nn.Module, epoch: int, *, seed: int, autocast: Autocast) -> dict[str, Any] | None:
        """Returns what is to be noted, as JSON values, or None. Called by all processes alike.

        Args:
            model: in training, not wrapped; left as it is.
            epoch: the one that has ended, from 0.
            seed: of the run.
            autocast: makes the precision that training runs in.

        Raises:
            RunError: the run must not go on.
        """

    def state_dict(self) -> dict[str, Any]:
        """Returns what later looks depend on."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 -- most have no state
        """Goes on from a `state_dict`."""
