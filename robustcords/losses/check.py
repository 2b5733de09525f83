"""Checks of a loss: before a run, whether examples are independent; at every call, what it returns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from robustcords.config.requirements import HARD_LABELS
from robustcords.config.schema import Component
from robustcords.engine import contracts
from robustcords.engine.modes import evaluation_mode
from robustcords.errors import UserError, kind_of
from robustcords.losses.base import Loss, check_declared
from robustcords.losses.context import Moment
from robustcords.losses.objective import Objective, classes_of
from robustcords.rng import generator

EXAMPLES = 3
"""How many images a loss is tried on."""


def check_loss(loss: Loss, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Checks a loss's declarations, and its value and objective at the logits of three images.

    A copy of the loss is called, as it may have state, and the global random state is left alone.

    Args:
        loss: the training loss.
        model: as attacks run it.
        x: (B, C, H, W) images in [0, 1], where the model is; B is `EXAMPLES`.
        y: (B,) labels.

    Raises:
        UserError: an attribute, the value or the objective is invalid; or, in a loss that is not ``batchwise``, an
            example's value depends on another example's logits, as that of an expanded mean does.
    """
    check_declared(loss)
    contracts.instance(f"loss {contracts.title(loss)}: at", loss.at(Moment(0, 0, 0.0)), type(loss))
    device = x.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        with evaluation_mode(model), torch.no_grad():
            clean = model(x).float()
        tried = _copy(loss)
        # Away from each other and from points, such as logits that are all the same, where gradients happen to be 0.
        source = generator(0, "loss-check")
        attacked, *others = (
            (clean + torch.randn(clean.shape, generator=source).to(device)).requires_grad_()
            for _ in range(1 + len(loss.views))
        )
        with torch.enable_grad():
            value = loss_values(tried, dict(zip(loss.views, others, strict=True)), y)
            if not loss.batchwise:
                _refuse_mixed(f"loss {contracts.title(loss)}", value, others)
            if "adversarial" in loss.views:
                value = objective(tried, y, lambda: clean).value(attacked)
                if not loss.batchwise:
                    _refuse_mixed(f"the objective of loss {contracts.title(loss)}", value, [attacked])


def check_labels(kind: str, part: Component, y: Tensor) -> None:
    """Checks that a part that requires hard labels gets them; a recipe is refused earlier.

    Args:
        kind: of the part.
        part: has ``requires``.
        y: (B,) int64, or (B, classes) of two mixed images.

    Raises:
        UserError: it does not.
    """
    if y.is_floating_point() and HARD_LABELS in part.requires:
        raise UserError(
            f"{kind} {contracts.title(part)} requires hard labels, and the augmentation mixes images and their labels"
        )


def loss_values(loss: Loss, logits: Mapping[str, Tensor], y: Tensor) -> Tensor:
    """Returns a loss's value of every example (B,).

    Args:
        loss: what is called.
        logits: (B, classes) of each of its views, by its name.
        y: (B,) labels.

    Raises:
        UserError: the loss returns something else, or a constant.
    """
    value = contracts.numbers(f"loss {contracts.title(loss)}", loss.from_logits(logits, y), y.shape[:1])
    return contracts.differentiable(f"loss {contracts.title(loss)}", value, list(logits.values()))


def objective(loss: Loss, y: Tensor, clean: Callable[[], Tensor]) -> Objective:
    """Returns a loss's objective, whose values are checked at every call.

    Args:
        loss: the training loss.
        y: (B,) labels.
        clean: returns (B, classes) logits of the clean images.

    Raises:
        UserError: the loss returns something else, or contradicts its declarations; when the objective is called, its
            value is something other than (B,) numbers, or a constant.
    """
    source, declared = f"the objective of loss {contracts.title(loss)}", loss.objective(y, clean)
    if not isinstance(declared, Objective):
        raise UserError(f"{source} is {kind_of(declared)}, expected an Objective")
    if declared.relative_to_clean != loss.relative_to_clean:
        raise UserError(
            f"{source} says relative_to_clean = {declared.relative_to_clean}, and the loss says "
            f"{loss.relative_to_clean}; they have to agree"
        )

    def looked_at(logits: Tensor) -> Tensor:
        value = contracts.numbers(source, declared.value(logits), logits.shape[:1])
        return contracts.differentiable(source, value, [logits])

    return replace(declared, value=looked_at, labels=classes_of(y))


def _copy(loss: Loss) -> Loss:
    """Returns a copy of a loss, or the loss itself if it cannot be copied."""
    try:
        return copy.deepcopy(loss)
    except Exception:  # whatever custom attributes make of being copied
        return loss


def _refuse_mixed(source: str, value: Tensor, logits: list[Tensor]) -> None:
    """Checks that an example's value (B,) is a number and has no gradient in another example's logits (B, classes).

    Raises:
        UserError: it is none, or has one.
    """
    gradients = torch.autograd.grad(value[0], logits, materialize_grads=True)
    if not all(bool(z.isfinite().all()) for z in logits):  # the model's fault, which training reports
        return
    if not all(bool(part.isfinite().all()) for part in (value, *gradients)):
        raise UserError(f"{source} or its gradient is nan or infinite for logits that are finite")
    if any(bool(gradient[1:].any()) for gradient in gradients):
        raise UserError(
            f"{source} mixes examples: the value of one changes with another's logits, as that of a mean over the "
            "batch does; return each example's own, or equal shares of a term of the batch from a loss that declares "
            "batchwise = True"
        )
