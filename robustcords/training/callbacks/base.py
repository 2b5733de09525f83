"""What looks at a model after every epoch, and notes something in the epoch's line of metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from robustcords.engine import contracts
from robustcords.engine.inference import Autocast
from robustcords.engine.left_alone import left_alone
from robustcords.engine.modes import seeded
from robustcords.rng import derive


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


def notes(
    observers: Sequence[Observer], model: nn.Module, epoch: int, *, seed: int, autocast: Autocast
) -> dict[str, Any]:
    """Returns what observers note, by their names; the arguments are those of `Observer.look`.

    Raises:
        UserError: one changed the model, or noted what JSON cannot hold.
    """
    noted = {}
    for observer in observers:
        device = next((parameter.device for parameter in model.parameters()), None)
        drawn = seeded(derive(seed, f"observer {observer.name}", epoch), device)
        with left_alone(model, f"observer {contracts.title(observer)}"), drawn:
            look = observer.look(model, epoch, seed=seed, autocast=autocast)
        if (checked := contracts.noted(observer, look)) is not None:
            noted[observer.name] = checked
    return noted
