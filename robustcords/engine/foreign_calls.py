"""Calls of custom code, after which the model is as it was before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robustcords.engine.modes import modes_kept
from robustcords.errors import UserError


@contextmanager
def left_alone(model: nn.Module, source: str) -> Iterator[None]:
    """Context for custom code: restores the model's modes, ``.grad`` and ``requires_grad``, and checks its weights.

    Weights may be written to temporarily, as by a strategy that loads the model's own state dictionary. They are copied
    for the check, which costs nothing next to a pass over the data.

    Args:
        model: passed to custom code.
        source: name of that code, for messages.

    Raises:
        UserError: a parameter or a buffer was changed, added, removed or replaced.
    """
    before = {name: (tensor, tensor.detach().clone()) for name, tensor in _tensors(model).items()}
    trained = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    for parameter, _, _ in trained:
        parameter.grad = None  # else a backward pass would add to it
    try:
        with modes_kept(model):
            yield
    finally:
        for parameter, required, gradient in trained:
            parameter.requires_grad_(required)
            parameter.grad = gradient
    after = _tensors(model)
    changed = [
        name
        for name in before.keys() | after.keys()
        if name not in before
        or name not in after
        or after[name] is not before[name][0]
        or not _same(after[name], before[name][1])
    ]
    if changed:
        raise UserError(
            f"{source} changed the model it was lent: {min(changed)!r}"
            f"{f' and {len(changed) - 1} more' if len(changed) > 1 else ''}; work on a copy (copy.deepcopy)"
        )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns parameters and buffers by their names."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


@torch.no_grad()
def _same(now: Tensor, before: Tensor) -> bool:
    if now.shape != before.shape or now.dtype != before.dtype:
        return False
    return torch.equal(now, before) or bool(((now == before) | (now.isnan() & before.isnan())).all())
