"""Greedy selection by the Taylor gain on a validation loss (Killamsetty et al. 2021, GLISTER, Alg. 2)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from robustcords.losses.base import Loss
from robustcords.strategies.gradients import Gradients, LastLayerGradients, logit_gradients

Method = Literal["RGreedy", "Stochastic", "Naive"]

_MISS = 0.01  # Stochastic: the share of the best that Mirzasoleiman et al. 2015 lose in expectation


class ValidationGradient:
    """The gradient of the mean validation loss after steps of the last layer.

    The step is exact: the validation examples' features do not depend on the last layer, so its change moves the logits
    by ``features @ change``. The examples themselves, and their perturbations, stay fixed.

    Args:
        validation: gradients of the validation examples, with their logits.
        loss: the validation loss.
    """

    def __init__(self, validation: LastLayerGradients, loss: Loss) -> None:
        self.validation = validation
        self.loss = loss

    def after(self, step: Tensor) -> Tensor:
        """Returns the gradient (C, 1 + E) once the layer has moved by ``-step``.

        Args:
            step: (C, 1 + E); the gradient of one output, if that is what the candidates are restricted to.
        """
        validation, output = self.validation, self.validation.output
        outputs = slice(None) if output is None else slice(output, output + 1)
        moved = []
        for z, h in zip(validation.logits, validation.features, strict=True):
            by = step.to(z.dtype)
            logits = z.clone()
            logits[:, outputs] -= h @ by[:, 1:].T + by[:, 0]
            moved.append(logits)
        deltas = logit_gradients(self.loss, moved, validation.labels)
        changed = replace(validation, deltas=tuple(delta[:, outputs] for delta in deltas))
        return changed.sum() / len(validation)


def taylor_greedy(
    gradients: Gradients,
    validation: ValidationGradient,
    budget: int,
    *,
    step_size: float,
    method: Method,
    rounds: int,
    generator: torch.Generator,
) -> Tensor:
    """Returns the rows (k,) that lower the validation loss most, one after the other, in the order they were taken.

    The gain of an example is ``<g_i, grad_V>``. After each round grad_V is that of the layer moved by ``-step_size``
    times the sum of all gradients chosen so far.

    Args:
        gradients: N candidates.
        validation: gives grad_V.
        budget: k, from 1 to N.
        step_size: of the one step that the subset takes.
        method: ``"RGreedy"`` takes ``k / rounds`` at a time, ``"Naive"`` one, ``"Stochastic"`` the best one of a random
            ``N / k * ln(100)`` (Mirzasoleiman et al. 2015).
        rounds: of RGreedy; no more than k are made, and they differ by one in size where k is no multiple.
        generator: of Stochastic.
    """
    taken: list[Tensor] = []
    total = torch.zeros_like(gradients.rows(slice(0, 1)).sum())
    free = torch.ones(len(gradients), dtype=torch.bool)
    sample = int(len(gradients) / budget * math.log(1 / _MISS)) if method == "Stochastic" else None
    for size in _sizes(budget, rounds if method == "RGreedy" else budget):
        direction = validation.after(step_size * total)
        candidates = free.nonzero().view(-1)
        if sample is not None:
            order = torch.randperm(len(candidates), generator=generator)
            candidates = candidates[order[: max(1, sample)]]
            gains = gradients.rows(candidates).inner(direction).cpu()
        else:
            gains = gradients.inner(direction).cpu()[candidates]
        best = candidates[gains.sort(descending=True, stable=True).indices[:size]]
        total += gradients.rows(best).sum()
        free[best] = False
        taken.append(best)
    return torch.cat(taken)


def _sizes(budget: int, rounds: int) -> Iterator[int]:
    """Yields how many are taken in each round."""
    rounds = min(rounds, budget)
    for number in range(rounds):
        yield budget // rounds + (number < budget % rounds)
