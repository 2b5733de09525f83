"""Per-example gradients of the last layer, in factored form.

With h the input of the final linear layer and delta = dloss/dlogits, an example's gradient of that layer's bias and
weight is a sum of outer products, ``sum_t delta_t (x) [1, h_t]``: one term for a loss of one view, two for TRADES and
MART. Products of gradients follow from products of factors, ``<g_i, g_j> = sum_{t,u} (delta_it . delta_ju)
(1 + h_it . h_ju)``, where the 1 is the bias, and 0 where the layer has none that is trained. Keeping the factors takes
``N (C + E)`` numbers a term instead of ``N C E``.

A *direction* is a tensor (C, 1 + E) in the space of these gradients: column 0 the bias (of zeros where there is none),
the others the weight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from robustcords.losses.base import Loss
from robustcords.losses.check import loss_values

_CHUNK = 8192  # rows that are turned into float64 at a time

Rows = Tensor | slice


class Gradients(ABC):
    """Gradients of the last layer, one per row: the candidates of a strategy."""

    @abstractmethod
    def __len__(self) -> int:
        """Returns N, the number of rows."""

    @abstractmethod
    def rows(self, rows: Rows) -> Self:
        """Returns some rows, in the order given.

        Args:
            rows: (n,) int64 or bool, or a slice.
        """

    @abstractmethod
    def double(self) -> Self:
        """Returns the same gradients in float64."""

    @abstractmethod
    def sum(self, weights: Tensor | None = None) -> Tensor:
        """Returns ``sum_i weights_i g_i`` (C, 1 + E), accumulated in float64.

        Args:
            weights: (N,); left out, all 1.
        """

    @abstractmethod
    def inner(self, direction: Tensor) -> Tensor:
        """Returns (N,) ``<g_i, direction>`` in the gradients' own precision.

        Args:
            direction: (C, 1 + E).
        """

    @abstractmethod
    def logit_changes(self, features: Tensor) -> Tensor:
        """Returns the change of the layer's outputs (C, M) for some inputs if all N gradients are added to it.

        Args:
            features: (E, M) inputs of the layer, one per column.
        """

    @abstractmethod
    def products(self, others: Self) -> Tensor:
        """Returns (N, M) ``<g_i, g_j>`` with the M rows of other gradients, in the gradients' own precision."""

    @abstractmethod
    def squared_norms(self) -> Tensor:
        """Returns (N,) ``<g_i, g_i>``."""

    @abstractmethod
    def dense(self) -> Tensor:
        """Returns dense gradients (N, C + C*E) in CORDS' column order: biases, then weights, output by output."""


@dataclass(frozen=True)
class LastLayerGradients(Gradients):
    """Per-example gradients as T pairs of factors.

    Attributes:
        deltas: T tensors (N, C), the loss's gradient in the logits of each view, in the order of ``loss.views``.
        features: T tensors (N, E), the final linear layer's input of each view.
        labels: (N,) int64.
        logits: T tensors (N, classes) of the deltas, or none.
        output: the single class whose output the gradients are restricted to (then C is 1), or None for all.
        bias: whether the layer has a trained bias.
        numbers: (N,) int64, the examples' rows of the loader's data set, as `Strategy.select` returns them; None if
            unknown.
    """

    deltas: tuple[Tensor, ...]
    features: tuple[Tensor, ...]
    labels: Tensor
    logits: tuple[Tensor, ...] = ()
    output: int | None = None
    bias: bool = True
    numbers: Tensor | None = None

    def __len__(self) -> int:
        """Returns N."""
        return len(self.labels)

    def rows(self, rows: Rows) -> Self:
        """Returns some examples."""
        deltas, features, logits = (
            tuple(factor[rows] for factor in group) for group in (self.deltas, self.features, self.logits)
        )
        numbers = None if self.numbers is None else self.numbers[rows]
        return replace(self, deltas=deltas, features=features, labels=self.labels[rows], logits=logits, numbers=numbers)

    def double(self) -> Self:
        """Returns float64 factors."""
        deltas, features, logits = (
            tuple(factor.double() for factor in group) for group in (self.deltas, self.features, self.logits)
        )
        return replace(self, deltas=deltas, features=features, logits=logits)

    def sum(self, weights: Tensor | None = None) -> Tensor:
        """Returns the sum, at one product of factors per term."""
        width = 1 + self.features[0].shape[1]
        total = self.deltas[0].new_zeros((self.deltas[0].shape[1], width), dtype=torch.float64)
        for delta, h in zip(self.deltas, self.features, strict=True):
            for start in range(0, len(self), _CHUNK):
                chunk = slice(start, start + _CHUNK)
                left = delta[chunk].double()
                if weights is not None:
                    left = left * weights[chunk].to(left).unsqueeze(1)
                if self.bias:
                    total[:, 0] += left.sum(dim=0)
                total[:, 1:] += left.T @ h[chunk].double()
        return total

    def inner(self, direction: Tensor) -> Tensor:
        """Returns (N,), at the cost of one product (N, E) by (E, C) per term."""
        direction = direction.to(self.deltas[0].dtype)
        bias, weight = direction[:, 0] * self.bias, direction[:, 1:]
        pairs = zip(self.deltas, self.features, strict=True)
        return torch.stack([(delta * (h @ weight.T + bias)).sum(dim=1) for delta, h in pairs]).sum(dim=0)

    def logit_changes(self, features: Tensor) -> Tensor:
        """Returns (C, M), at the cost of ``N M (C + E)`` per term."""
        h, delta = torch.cat(self.features), torch.cat(self.deltas)
        return delta.T @ (h @ features).add_(int(self.bias))

    def products(self, others: Self) -> Tensor:
        """Returns (N, M), at the cost of ``N M (C + E)`` for each pair of terms."""
        total = self.deltas[0].new_zeros((len(self), len(others)))
        for delta, h in zip(self.deltas, self.features, strict=True):
            for other_delta, other_h in zip(others.deltas, others.features, strict=True):
                total += (h @ other_h.T).add_(int(self.bias)).mul_(delta @ other_delta.T)
        return total

    def squared_norms(self) -> Tensor:
        """Returns (N,), at the cost of ``N (C + E)`` for each pair of terms."""
        pairs = list(zip(self.deltas, self.features, strict=True))
        terms = [(d * e).sum(dim=1) * (self.bias + (h * k).sum(dim=1)) for d, h in pairs for e, k in pairs]
        return torch.stack(terms).sum(dim=0)

    def dense(self) -> Tensor:
        """Returns the dense outer products, for upstream code and small problems."""
        pairs = list(zip(self.deltas, self.features, strict=True))
        weight = torch.stack([delta.unsqueeze(2) * h.unsqueeze(1) for delta, h in pairs]).sum(dim=0)
        return torch.cat([torch.stack(self.deltas).sum(dim=0) * self.bias, weight.flatten(1)], dim=1)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Returns the concatenated gradients of several parts."""
        if len(parts) == 1:
            return parts[0]
        deltas, features, logits = (
            tuple(torch.cat(factors) for factors in zip(*groups, strict=True))
            for groups in zip(*((part.deltas, part.features, part.logits) for part in parts), strict=True)
        )
        labels = torch.cat([part.labels for part in parts])
        known = [part.numbers for part in parts if part.numbers is not None]
        numbers = torch.cat(known) if len(known) == len(parts) else None
        return replace(parts[0], deltas=deltas, features=features, logits=logits, labels=labels, numbers=numbers)

    def of_output(self, output: int) -> Self:
        """Returns only the gradients of one output's bias and weight row (CORDS' per-gradient form)."""
        deltas = tuple(delta[:, output : output + 1] for delta in self.deltas)
        return replace(self, deltas=deltas, output=output)

    def bias_only(self) -> Self:
        """Returns only the gradients of the bias (CORDS' ``linear_layer=False``, or a frozen weight); E becomes 0."""
        return replace(self, features=tuple(h[:, :0] for h in self.features))

    def means(self, sizes: Sequence[int]) -> MeanGradients:
        """Returns the mean gradients of consecutive batches, as in CORDS' per-batch form.

        Args:
            sizes: length of each batch; they add up to N.
        """
        starts = [0, *torch.tensor(sizes).cumsum(0).tolist()]
        batches = [self.rows(slice(start, start + size)) for start, size in zip(starts, sizes, strict=False)]
        means = torch.stack([batch.sum() / len(batch) for batch in batches])
        numbers = () if self.numbers is None else self.numbers.split(list(sizes))
        return MeanGradients(means.to(self.deltas[0].dtype), tuple(numbers))


@dataclass(frozen=True)
class MeanGradients(Gradients):
    """Dense gradients, such as means of whole batches, which are not a few outer products.

    Attributes:
        values: (N, C, 1 + E).
        numbers: N tensors, the examples of each row's mean, see `LastLayerGradients`; empty if unknown.
    """

    values: Tensor
    numbers: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        """Returns N."""
        return len(self.values)

    def rows(self, rows: Rows) -> Self:
        """Returns some rows."""
        values = self.values[rows]
        if not self.numbers:
            return replace(self, values=values)
        places = torch.arange(len(self), device=values.device)[rows].view(-1).tolist()
        return replace(self, values=values, numbers=tuple(self.numbers[place] for place in places))

    def double(self) -> Self:
        """Returns float64 values."""
        return replace(self, values=self.values.double())

    def sum(self, weights: Tensor | None = None) -> Tensor:
        """Returns the weighted sum."""
        if weights is None:
            return self.values.sum(dim=0, dtype=torch.float64)
        return (weights.to(self.values.device).double().view(-1, 1, 1) * self.values).sum(dim=0)

    def inner(self, direction: Tensor) -> Tensor:
        """Returns (N,)."""
        return self.values.flatten(1) @ direction.to(self.values.dtype).flatten()

    def logit_changes(self, features: Tensor) -> Tensor:
        """Returns (C, M)."""
        total = self.values.sum(dim=0)
        return total[:, 1:] @ features + total[:, :1]

    def products(self, others: Self) -> Tensor:
        """Returns (N, M)."""
        return self.values.flatten(1) @ others.values.flatten(1).T

    def squared_norms(self) -> Tensor:
        """Returns (N,)."""
        return self.values.flatten(1).square().sum(dim=1)

    def dense(self) -> Tensor:
        """Returns (N, C + C*E)."""
        return torch.cat([self.values[:, :, 0], self.values[:, :, 1:].flatten(1)], dim=1)


def logit_gradients(loss: Loss, logits: Sequence[Tensor], y: Tensor) -> tuple[Tensor, ...]:
    """Returns each view's dloss/dlogits (N, C), by automatic differentiation of the loss.

    Args:
        loss: any loss; a weight such as beta is part of it, so it enters exactly once.
        logits: one (N, C) tensor for each of ``loss.views``.
        y: (N,) int64 labels.
    """
    leaves = [z.detach().requires_grad_() for z in logits]
    with torch.enable_grad():
        total = loss_values(loss, by_view(loss, leaves), y).sum()
    return tuple(torch.autograd.grad(total, leaves, materialize_grads=True))


def by_view(loss: Loss, terms: Sequence[Tensor]) -> dict[str, Tensor]:
    """Returns a list with an entry per term, such as logits (N, C), by the names of the loss's views."""
    return dict(zip(loss.views, terms, strict=True))
