"""What is found out of a loss before a run depends on it: what it declares, and whether examples keep to themselves."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor, nn

from robustcords.engine import contracts
from robustcords.engine.modes import evaluation_mode
from robustcords.errors import UserError, kind_of, nearest
from robustcords.losses.objective import Objective, Start
from robustcords.rng import generator

if TYPE_CHECKING:  # these modules use this one
    from robustcords.losses.base import Loss

EXAMPLES = 3
"""How many images a loss is tried on."""


def check_declared(loss: Loss) -> None:
    """Checks a loss's `passes`, `start` and `anchored`.

    Raises:
        UserError: one has a value that means nothing; the line has those that do.
    """
    from robustcords.losses.base import Pass

    source = f"loss {contracts.title(loss)}"
    passes, allowed = loss.passes, get_args(Pass)
    if not isinstance(passes, tuple | list) or not passes:
        raise UserError(f'{source}: passes = {passes!r}, expected ("clean",), ("adversarial",) or both')
    for name in passes:
        if name not in allowed:
            raise UserError(f"{source}: passes = {passes!r}: no pass is called {name!r}{nearest(str(name), allowed)}")
    if len(set(passes)) < len(passes):
        raise UserError(f"{source}: passes = {passes!r}: each at most once")
    if loss.start not in get_args(Start):
        raise UserError(
            f"{source}: start = {loss.start!r} is no random start{nearest(str(loss.start), get_args(Start))}"
        )
    if not isinstance(loss.anchored, bool):
        raise UserError(f"{source}: anchored = {loss.anchored!r}, expected True or False")


def check_loss(loss: Loss, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Checks what a loss declares, and its value and objective at the logits of three images.

    A copy of the loss is called, as it may have a state, and the global random state stays as it is.

    Args:
        loss: what is trained with.
        model: as attacks run it.
        x: (B, C, H, W) images in [0, 1], where the model is; B is `EXAMPLES`.
        y: (B,) labels.

    Raises:
        UserError: an attribute, the value or the objective is not what a loss's is, or an example's value depends on
            another example's logits, as that of a mean that was expanded does.
    """
    check_declared(loss)
    device = x.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        with evaluation_mode(model), torch.no_grad():
            clean = model(x).float()
        tried = _copy(loss)
        # Away from each other and from points, such as logits that are all the same, where gradients happen to be 0.
        source = generator(0, "loss-check")
        noises = [torch.randn(clean.shape, generator=source).to(device) for _ in range(1 + len(loss.passes))]
        logits = [(clean + noise).requires_grad_() for noise in noises]
        with torch.enable_grad():
            passes = logits[1:]
            _refuse_mixed(f"loss {contracts.title(loss)}", loss_values(tried, passes, y), passes)
            if "adversarial" in loss.passes:
                value = objective(tried, y, clean if loss.anchored else None).value(logits[0])
                _refuse_mixed(f"the objective of loss {contracts.title(loss)}", value, logits[:1])


def loss_values(loss: Loss, logits: Sequence[Tensor], y: Tensor) -> Tensor:
    """Returns a loss's value of every example (B,).

    Args:
        loss: what is called.
        logits: one (B, classes) tensor for each of its passes.
        y: (B,) labels.

    Raises:
        UserError: the loss returns anything else, or a constant.
    """
    value = contracts.numbers(f"loss {contracts.title(loss)}", loss(list(logits), y), y.shape)
    return contracts.differentiable(f"loss {contracts.title(loss)}", value, logits)


def objective(loss: Loss, y: Tensor, clean: Tensor | None) -> Objective:
    """Returns a loss's objective, whose values are looked at wherever it is called.

    Args:
        loss: what is asked for its objective.
        y: (B,) labels.
        clean: (B, classes) logits of the images as they are, or None.

    Raises:
        UserError: the objective is no function; where it is called, its value is anything but (B,) numbers, or a
            constant.
    """
    source, function = f"the objective of loss {contracts.title(loss)}", loss.objective(y, clean)
    if not callable(function):
        raise UserError(f"{source} is {kind_of(function)}, expected a function of the logits")

    def looked_at(logits: Tensor) -> Tensor:
        return contracts.differentiable(source, contracts.numbers(source, function(logits), logits.shape[:1]), [logits])

    return Objective(looked_at, loss.start, loss.anchored)


def _copy(loss: Loss) -> Loss:
    """Returns a copy of a loss, or the loss itself where that has something that cannot be copied."""
    try:
        return copy.deepcopy(loss)
    except Exception:  # whatever somebody's own attributes make of being copied
        return loss


def _refuse_mixed(source: str, value: Tensor, logits: list[Tensor]) -> None:
    """Checks that an example's value (B,) has no gradient in another example's logits (B, classes).

    Raises:
        UserError: it has one.
    """
    gradients = torch.autograd.grad(value[0], logits, materialize_grads=True)
    if any(bool(gradient[1:].any()) for gradient in gradients):
        raise UserError(
            f"{source} mixes examples: the value of one changes with another's logits, as that of a mean over the "
            "batch does; return each example's own"
        )
