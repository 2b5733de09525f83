"""The validation gradient that a greedy selection follows, as GLISTER does."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcords.losses.base import Loss
from robustcords.losses.sat import targets_of
from robustcords.selection.gradients.factors import Gradients, LastLayerGradients, logit_gradients


class ValidationGradient:
    """The gradient of the mean validation loss, followed as the last layer takes steps.

    The steps are exact: the validation examples' features do not depend on the last layer, so its change moves the
    logits by ``features @ change``. The examples themselves, and their perturbations, stay fixed.

    Features are stored as columns, (E, M), as a single step and a gradient both read them contiguously, which dominates
    the time of a greedy selection of single examples.

    Args:
        validation: gradients of the M validation examples, with their logits.
        loss: the validation loss.
    """

    def __init__(self, validation: LastLayerGradients, loss: Loss) -> None:
        self.validation = validation
        self.loss = loss
        self._features = [h.T.contiguous() for h in validation.features]
        self._logits = [z.T.clone(memory_format=torch.contiguous_format) for z in validation.logits]
        output = validation.output
        self._outputs = slice(None) if output is None else slice(output, output + 1)
        # Cross-entropy's gradient is known: to ask automatic differentiation for it takes five times as long.
        targets = targets_of(loss, validation.labels, len(self._logits[0]))
        self._targets = None if targets is None else targets.T.to(self._logits[0])

    def move(self, chosen: Gradients, size: float) -> None:
        """Steps the layer by ``-size`` times the sum of some gradients, at the cost of one pass over E x M numbers."""
        for z, h in zip(self._logits, self._features, strict=True):
            z[self._outputs] -= size * chosen.logit_changes(h).to(z.dtype)

    def now(self) -> Tensor:
        """Returns the gradient (C, 1 + E) at the current layer, in the factors' own precision."""
        return self._at(self._logits)

    def after(self, step: Tensor) -> Tensor:
        """Returns the gradient (C, 1 + E) at the initial layer moved by ``-step``.

        Args:
            step: (C, 1 + E); of a single output if the candidates are restricted to one.
        """
        moved = []
        for z, h in zip(self.validation.logits, self._features, strict=True):
            by = step.to(z.dtype)
            logits = z.T.clone()
            logits[self._outputs] -= by[:, 1:] @ h + by[:, :1]
            moved.append(logits)
        return self._at(moved)

    def _at(self, logits: list[Tensor]) -> Tensor:
        deltas = [delta[self._outputs] for delta in self._deltas(logits)]
        weight = sum(F.linear(delta, h) for delta, h in zip(deltas, self._features, strict=True))
        bias = sum(delta.sum(dim=1, keepdim=True) for delta in deltas) * int(self.validation.bias)
        return torch.cat([torch.as_tensor(bias), torch.as_tensor(weight)], dim=1) / len(self.validation)

    def _deltas(self, logits: list[Tensor]) -> list[Tensor]:
        """Returns the loss's gradients (classes, M) with respect to the logits."""
        if self._targets is not None:
            return [logits[0].softmax(dim=0).sub_(self._targets)]
        rows = logit_gradients(self.loss, [z.T for z in logits], self.validation.labels)
        return [delta.T for delta in rows]
