"""What is expected of everything that a user can write, checked where it is called: one line that names the class.

A loss that returns a mean, or weights of shape (k, 1), would broadcast and train on something else without a word.
Shapes cost nothing to compare, so each call is looked at.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustcords.errors import UserError, is_own, kind_of, one_line


def title(part: object) -> str:
    """Returns what a recipe would call an object's class, ``"module:Class"``."""
    kind = part if isinstance(part, type) else type(part)
    return f"{kind.__module__}:{kind.__qualname__}"


def logits(name: str, value: Any, count: int, classes: int) -> Tensor:
    """Returns what a model gave, after looking at it.

    Args:
        name: of the model.
        value: what it returned.
        count: B, of the images that it was given.
        classes: of the data; a model may have more outputs.

    Raises:
        UserError: it is no floating-point tensor (B, classes).
    """
    shape = tuple(value.shape) if isinstance(value, Tensor) else ()
    fits = len(shape) == 2 and shape[0] == count and shape[1] >= classes
    return numbers(name, value, torch.Size(shape if fits else (count, classes)))


def candidates(attack: object, value: Any, x: Tensor) -> Tensor:
    """Returns what an attack's search found for images (B, C, H, W).

    Raises:
        UserError: its shape or type is not that of the images.
    """
    return numbers(f"attack {title(attack)}", value, x.shape, x.dtype)


def adversarial_batch(adversary: object, made: Any, x: Tensor, *, values: bool) -> None:
    """Looks at what an adversary made of images (B, C, H, W).

    Args:
        adversary: what made it.
        made: what it returned.
        x: the images.
        values: look at the pixels too, for which an accelerator has to be waited for.

    Raises:
        UserError: its images are not of the same shape and type, or outside [0, 1]; or its counts are no counts.
    """
    # An attack may write `__call__` itself, past the projection; the adversary around it only hands on what it returns.
    attack = getattr(adversary, "attack", None)
    hands_on = is_own(type(adversary).__module__) and attack is not None and not is_own(type(attack).__module__)
    name = f"attack {title(attack)}" if hands_on else f"adversary {title(adversary)}"
    if not hasattr(made, "images") or not isinstance(getattr(made, "counts", None), dict):
        raise UserError(f"{name} returned {kind_of(made)}, expected an AdversarialBatch")
    images = numbers(name, made.images, x.shape, x.dtype)
    # Numbers that are no numbers are for the loss to find: a float16 pass may overflow.
    if values and len(images) and bool((images.amin() < -1e-6) | (images.amax() > 1 + 1e-6)):
        raise UserError(f"{name} returned pixels from {images.amin():g} to {images.amax():g}, expected [0, 1]")
    wrong = {kind: count for kind, count in made.counts.items() if not isinstance(count, int) or count < 0}
    if wrong:
        raise UserError(f"{name} returned counts {wrong}, expected whole numbers >= 0")


def chosen(source: str, rows: Any, weights: Any, budget: int, size: int) -> tuple[Tensor, Tensor]:
    """Returns what was selected, rows (k,) int64 and weights (k,), on the CPU.

    Args:
        source: what selected it.
        rows: indices, as numbers or a tensor.
        weights: theirs.
        budget: k.
        size: N, of what was selected from.

    Raises:
        UserError: it is not exactly k unique rows in [0, N), with as many weights, finite and >= 0.
    """
    try:
        picked, given = _array(rows), _array(weights)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{source} returned no rows and weights: {one_line(error)}") from error
    problem = None
    if picked.shape != (budget,) or given.shape != (budget,):
        shapes = f"{tuple(picked.shape)} rows and {tuple(given.shape)} weights"
        problem = f"{shapes}, expected ({budget},) of both: exactly the budget"
    elif picked.is_floating_point() or picked.is_complex() or picked.dtype == torch.bool:
        problem = f"rows of type {picked.dtype}, expected whole numbers"
    elif len(picked.unique()) < budget or picked.min() < 0 or picked.max() >= size:
        problem = f"rows that are not unique and from 0 to {size - 1}"
    elif not given.isfinite().all() or given.min() < 0:
        problem = "weights that are negative or not finite"
    if problem:
        raise UserError(f"{source} returned {problem}")
    return picked.long(), given


def subset(strategy: object, value: Any, budget: int, size: int) -> tuple[Tensor, Tensor]:
    """Returns the rows and weights that a strategy's ``select`` gave; see `chosen`.

    Raises:
        UserError: they are not a subset of N examples, or all weights are 0.
    """
    source = f"strategy {title(strategy)}"
    rows, weights = chosen(source, *pair(source, value), budget, size)
    if not weights.any():
        raise UserError(f"{source} returned weights that are all 0")
    return rows, weights


def pair(source: str, value: Any) -> tuple[Any, Any]:
    """Returns the rows and the weights that a strategy returned.

    Raises:
        UserError: it returned anything but two things.
    """
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise UserError(f"{source} returned {kind_of(value)}, expected (rows, weights)")
    rows, weights = value
    return rows, weights


def noted(callback: object, value: Any) -> dict[str, Any] | None:
    """Returns what a callback notes in the metrics.

    Raises:
        UserError: it is neither None nor a dictionary that JSON can hold.
    """
    if value is None:
        return None
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"callback {title(callback)} noted what JSON cannot hold: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"callback {title(callback)} noted {kind_of(value)}, expected a dictionary or None")
    return value


def distinct(names: Sequence[str], taken: Sequence[str]) -> None:
    """Checks that callbacks can be told apart, in the metrics and in a checkpoint.

    Args:
        names: of the callbacks.
        taken: names of other parts.

    Raises:
        UserError: two have the same name, or one has that of another part.
    """
    for row, name in enumerate(names):
        if name in taken or name in names[:row]:
            raise UserError(f"callback {name!r}: that name is taken; each callback has a name of its own")


def numbers(source: str, value: Any, shape: torch.Size, dtype: torch.dtype | None = None) -> Tensor:
    """Returns a tensor of floating-point numbers of this shape and type.

    Raises:
        UserError: it is anything else.
    """
    if not isinstance(value, Tensor):
        raise UserError(f"{source} returned {kind_of(value)}, expected a tensor of shape {tuple(shape)}")
    if value.shape != shape:
        raise UserError(f"{source} returned shape {tuple(value.shape)}, expected {tuple(shape)}")
    if not value.is_floating_point() or dtype not in {None, value.dtype}:
        raise UserError(f"{source} returned {value.dtype}, expected {dtype or 'floating-point numbers'}")
    return value


def differentiable(source: str, value: Tensor, logits: Sequence[Tensor]) -> Tensor:
    """Returns a value, where gradients are asked for after looking whether it has any.

    Raises:
        UserError: it is a constant.
    """
    if torch.is_grad_enabled() and any(z.requires_grad for z in logits) and not value.requires_grad:
        raise UserError(f"{source} returned a constant: no gradient leads from it to the logits")
    return value


def _array(values: Any) -> Tensor:
    """Returns numbers, in whatever they came, as a tensor on the CPU."""
    return values.detach().cpu() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
