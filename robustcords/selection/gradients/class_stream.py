"""Gradients class by class, so that only one class is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcords.selection.gradients.factors import LastLayerGradients

Compute = Callable[[list[list[int]], int, int], LastLayerGradients]
"""Batches of places among all examples, the number of batches before them and of all batches, to their gradients."""


@dataclass(frozen=True)
class ClassGradients:
    """The examples of one class.

    Attributes:
        label: of the class.
        places: (n,) int64, ascending, rows of all examples.
        gradients: of these examples, in the same order.
    """

    label: int
    places: Tensor
    gradients: LastLayerGradients


def class_by_class(
    labels: Tensor, compute: Compute, *, batch_size: int, batches_at_once: int
) -> Iterator[list[ClassGradients]]:
    """Yields classes as they are completed.

    The examples are sorted by class and split into batches, which classes may share, so that many small classes cost no
    more than a few large ones. Batches do not depend on how many are computed at once.

    Args:
        labels: (N,) int64 on the CPU.
        compute: gradients of some batches, in order.
        batch_size: of all batches but the last.
        batches_at_once: batches computed at a time; besides those, the gradients of one class are in memory.
    """
    order = labels.argsort(stable=True)
    batches = order.split(batch_size)
    waiting: list[LastLayerGradients] = []
    first = 0  # place in the order of the first example that is waiting
    for start in range(0, len(batches), batches_at_once):
        now = batches[start : start + batches_at_once]
        waiting.append(compute([batch.tolist() for batch in now], start, len(batches)))
        end = min((start + len(now)) * batch_size, len(order))
        following = labels[order[end]] if end < len(order) else None
        sorted_labels = labels[order[first:end]]
        complete = len(sorted_labels) if following is None else int((sorted_labels != following).sum())
        if not complete:
            continue
        gradients = LastLayerGradients.joined(waiting)
        counts = sorted_labels[:complete].unique_consecutive(return_counts=True)[1].tolist()
        places = order[first : first + complete].split(counts)
        ends = torch.tensor(counts).cumsum(0).tolist()
        parts = [gradients.rows(slice(stop - count, stop)) for stop, count in zip(ends, counts, strict=True)]
        yield [ClassGradients(int(labels[place[0]]), place, part) for place, part in zip(places, parts, strict=True)]
        rest = torch.arange(complete, len(gradients), device=gradients.labels.device)
        waiting = [gradients.rows(rest)]  # copied, and the others let go, before more are asked for
        del gradients, parts
        first += complete
