"""What is found out of a loss before a run depends on it: what it declares, and whether examples keep to themselves."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor, nn

from robustcords import contracts
from robustcords.errors import UserError, nearest
from robustcords.rng import generator

if TYPE_CHECKING:  # these modules use this one
    from robustcords.data.base import ImageSet
    from robustcords.losses.base import Loss

_EXAMPLES = 3


def check_declared(loss: Loss) -> None:
    """Checks a loss's `passes`, `start` and `anchored`.

    Raises:
        UserError: one has a value that means nothing; the line has those that do.
    """
    from robustcords.attacks.base import Start
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


def check_loss(loss: Loss, model: nn.Module, images: ImageSet, device: torch.device) -> None:
    """Checks what a loss declares, and its value and objective at the logits of three images.

    A copy of the loss is called, as it may have a state, and the global random state stays as it is.

    Args:
        loss: what is trained with.
        model: as attacks run it.
        images: some of what it will see.
        device: where the model is.

    Raises:
        UserError: an attribute, the value or the objective is not what a loss's is, or an example's value depends on
            another example's logits, as that of a mean that was expanded does.
    """
    from robustcords.attacks.base import evaluation_mode

    check_declared(loss)
    x, y = images.batch(torch.arange(_EXAMPLES) % len(images), device)
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
            _refuse_mixed(f"loss {contracts.title(loss)}", contracts.losses(tried, passes, y), passes)
            if "adversarial" in loss.passes:
                value = contracts.objective(tried, y, clean if loss.anchored else None)(logits[0])
                _refuse_mixed(f"the objective of loss {contracts.title(loss)}", value, logits[:1])


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
