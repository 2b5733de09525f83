"""Strategies that know at each selection what they have chosen at earlier ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustcords.selection.gradient_based import AdversarialStrategy
from robustcords.selection.gradient_based_config import AdversarialConfig
from robustcords.selection.gradients.factors import Gradients, LastLayerGradients


class LeastUsed(AdversarialStrategy):
    """Those that have been chosen least often, of these the ones with the highest running mean of gradient lengths.

    Everything is written over in place, and the count of picks is one for all classes.
    """

    class Config(AdversarialConfig):
        """Options of `LeastUsed`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.uses = torch.zeros(self.N_trn, dtype=torch.int64)
        self.lengths = torch.zeros(self.N_trn)
        self.history: dict[int, list[float]] = {0: [float("inf")]}
        self.picks = 0

    def pick(self, gradients: Gradients, budget: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns the rows, with weights that say how many picks there have been."""
        assert isinstance(gradients, LastLayerGradients) and gradients.numbers is not None
        numbers = gradients.numbers.cpu()
        self.picks += 1
        self.lengths[numbers] = 0.5 * self.lengths[numbers] + gradients.squared_norms().cpu()
        order = self.lengths[numbers].argsort(descending=True, stable=True)
        rows = order[self.uses[numbers][order].argsort(stable=True)][:budget]
        self.uses[numbers[rows]] += 1
        self.history.setdefault(self.picks, []).append(float(self.lengths.sum()))
        return rows, torch.full((budget,), 1.0 + self.picks)

    def state_dict(self) -> dict[str, Any]:
        """Returns all of it, as it is written over."""
        return {"uses": self.uses, "lengths": self.lengths, "history": self.history, "picks": self.picks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes it back."""
        self.__dict__.update(state)


class KeepsASet(LeastUsed):
    """What it keeps is nothing that a checkpoint can."""

    def state_dict(self) -> dict[str, Any]:
        """Returns a set."""
        return {"deep": [{"seen": {1}}]}


class Forgets(LeastUsed):
    """Does not take back what it keeps."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Looks for something else."""
        self.picks = state["number"]


class KeepsNumbers(LeastUsed):
    """Keeps NumPy's numbers, as values and as keys."""

    given: dict[str, Any]

    def state_dict(self) -> dict[str, Any]:
        """Returns one of each kind."""
        kept: dict[Any, Any] = {"count": np.int64(3), "share": np.float32(0.5), "on": np.bool_(True)}
        return {**kept, "rows": {np.int32(7): [np.float64(0.25)]}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remembers what it was given."""
        type(self).given = state


class OnlyWrites(AdversarialStrategy):
    """Would lose what it keeps."""

    pick = LeastUsed.pick
    state_dict = LeastUsed.state_dict


class OnlyReads(AdversarialStrategy):
    """Would never be given anything."""

    pick = LeastUsed.pick
    load_state_dict = LeastUsed.load_state_dict
