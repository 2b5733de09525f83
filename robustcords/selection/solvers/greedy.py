"""Greedy selection by the first-order gain in validation loss (Killamsetty et al. 2021, GLISTER, Alg. 2)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcords.data.split import apportion
from robustcords.losses.base import Loss
from robustcords.selection.gradients.factors import Gradients, LastLayerGradients
from robustcords.selection.gradients.validation_gradient import ValidationGradient

Greedy = Literal["RGreedy", "Stochastic", "Naive"]

_MISS = 0.01  # Stochastic: the share of the best that Mirzasoleiman et al. 2015 lose in expectation


@dataclass(frozen=True)
class TaylorGreedy:
    """GLISTER's solver: selects the examples whose gradients lower the validation loss most, with weight 1.

    Attributes:
        loss: the validation loss.
        eta: learning rate, >= 0, of the one step that the subset takes: on its mean gradient, or on its sum.
        method: see `taylor_greedy`.
        rounds: of RGreedy, >= 1.
        normalise: divide the sum of the chosen gradients by the budget; CORDS does not.
        class_shares: limit each class to its share of the budget; candidates must be examples.
    """

    loss: Loss
    eta: float
    method: Greedy = "RGreedy"
    rounds: int = 15
    normalise: bool = True
    class_shares: bool = False

    def pick(
        self, gradients: Gradients, validation: LastLayerGradients, budget: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Returns rows (k,), unique, in the order of selection, and their weights (k,).

        Args:
            gradients: N candidates.
            validation: of the validation examples, with their logits; not changed.
            budget: k, from 1 to N.
            generator: of Stochastic's samples.
        """
        classes = None
        if self.class_shares:
            assert isinstance(gradients, LastLayerGradients)  # mean gradients have no class
            classes = gradients.labels.cpu()
        rows = taylor_greedy(
            gradients,
            ValidationGradient(validation, self.loss),
            budget,
            step_size=self.eta / budget if self.normalise else self.eta,
            method=self.method,
            rounds=self.rounds,
            generator=generator,
            classes=classes,
        )
        return rows, torch.ones(budget)


def taylor_greedy(
    gradients: Gradients,
    validation: ValidationGradient,
    budget: int,
    *,
    step_size: float,
    method: Greedy,
    rounds: int,
    generator: torch.Generator,
    classes: Tensor | None = None,
) -> Tensor:
    """Returns the rows (k,) that greedily lower the validation loss most, in the order of selection.

    The gain of an example is ``<g_i, grad_V>``. After each round grad_V is that of the layer moved by ``-step_size``
    times the sum of all gradients chosen so far.

    Args:
        gradients: N candidates.
        validation: provides grad_V; it is left at the final layer.
        budget: k, from 1 to N.
        step_size: of the one step that the subset takes.
        method: ``"RGreedy"`` takes ``k / rounds`` at a time, ``"Naive"`` one, ``"Stochastic"`` the best one of a random
            ``N / k * ln(100)`` (Mirzasoleiman et al. 2015).
        rounds: of RGreedy; at most k, of sizes that differ by at most one.
        generator: of Stochastic.
        classes: (N,) int64; each gets its share of the budget, by largest remainder. None for no shares.
    """
    shares = _Shares(classes, budget)
    if method == "Stochastic":
        return _stochastic(gradients, validation, budget, step_size, generator, shares)
    taken: list[Tensor] = []
    free = torch.ones(len(gradients), dtype=torch.bool)
    for size in _sizes(budget, rounds if method == "RGreedy" else budget):
        candidates = free.nonzero().view(-1)
        gains = gradients.inner(validation.now()).cpu()[candidates]
        best = shares.within(candidates[gains.sort(descending=True, stable=True).indices])[:size]
        validation.move(gradients.rows(best), step_size)
        shares.take(best)
        free[best] = False
        taken.append(best)
    return torch.cat(taken)


def _stochastic(
    gradients: Gradients,
    validation: ValidationGradient,
    budget: int,
    step_size: float,
    generator: torch.Generator,
    shares: _Shares,
) -> Tensor:
    """Repeatedly selects the best of some random candidates."""
    count = max(1, int(len(gradients) / budget * math.log(1 / _MISS)))
    free = list(range(len(gradients)))
    taken = []
    for _ in range(budget):
        candidates = _drawn(free, count, generator)
        some = gradients.rows(torch.tensor(candidates))
        place = int(some.inner(validation.now()).argmax())
        validation.move(some.rows(slice(place, place + 1)), step_size)
        taken.append(candidates[place])
        free[len(free) - len(candidates) + place] = free[-1]
        free.pop()
        if shares.take(torch.tensor(taken[-1:])):
            free = shares.within(torch.tensor(free, dtype=torch.int64)).tolist()
    return torch.tensor(taken)


class _Shares:
    """The remaining budget of each class.

    Args:
        classes: (N,) of all candidates; None for a single class.
        budget: of all classes together.
    """

    def __init__(self, classes: Tensor | None, budget: int) -> None:
        self.classes = classes
        if classes is not None:
            self.left = torch.tensor(apportion(classes.bincount().tolist(), budget))

    def within(self, rows: Tensor) -> Tensor:
        """Returns the rows, in order, that fit the budgets if all before them are taken."""
        if self.classes is None:
            return rows
        same = F.one_hot(self.classes[rows], len(self.left))
        earlier = same.cumsum(dim=0).gather(1, self.classes[rows].unsqueeze(1)).squeeze(1)
        return rows[earlier <= self.left[self.classes[rows]]]

    def take(self, rows: Tensor) -> bool:
        """Takes some rows; returns whether that exhausts the budget of any of their classes."""
        if self.classes is None:
            return False
        self.left -= self.classes[rows].bincount(minlength=len(self.left))
        return not self.left[self.classes[rows]].all()


def _drawn(free: list[int], count: int, generator: torch.Generator) -> list[int]:
    """Returns a random sample of the items without repetition, moved to the end (Fisher and Yates)."""
    count = min(count, len(free))
    draws = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
    for number, draw in enumerate(draws, start=1):
        last = len(free) - number
        other = int(draw * (last + 1))
        free[last], free[other] = free[other], free[last]
    return free[len(free) - count :]


def _sizes(budget: int, rounds: int) -> Iterator[int]:
    """Yields the number of rows to take in each round."""
    rounds = min(rounds, budget)
    for number in range(rounds):
        yield budget // rounds + (number < budget % rounds)
