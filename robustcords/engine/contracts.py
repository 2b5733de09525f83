"""Checks of what custom components return, at every call: a one-line error names the class.

A loss that returns a mean, or weights of shape (k, 1), would broadcast and silently train on something else. Comparing
shapes costs nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustcords.errors import UserError, kind_of, one_line


def title(part: object) -> str:
    """Returns the name of an object's class in a recipe, ``"module:Class"``."""
    kind = part if isinstance(part, type) else type(part)
    return f"{kind.__module__}:{kind.__qualname__}"


def logits(name: str, value: Any, count: int, classes: int) -> Tensor:
    """Returns a model's output after checking it.

    Args:
        name: of the model.
        value: its output.
        count: B, the number of images.
        classes: of the data; a model may have more outputs.

    Raises:
        UserError: it is not a floating-point tensor (B, classes).
    """
    shape = tuple(value.shape) if isinstance(value, Tensor) else ()
    fits = len(shape) == 2 and shape[0] == count and shape[1] >= classes
    return numbers(name, value, torch.Size(shape if fits else (count, classes)))


def candidates(attack: object, value: Any, x: Tensor) -> Tensor:
    """Returns an attack's candidates for images (B, C, H, W) after checking them.

    Raises:
        UserError: its shape or type is not that of the images.
    """
    return numbers(f"attack {title(attack)}", value, x.shape, x.dtype)


def in_range(attack: object, images: Tensor) -> None:
    """Checks an attack's images (B, C, H, W), as an attack may override ``__call__`` and so bypass the projection.

    Raises:
        UserError: a pixel is outside [0, 1].
    """
    # Numbers that are no numbers are for the loss to find: a float16 pass may overflow.
    if len(images) and bool((images.amin() < -1e-6) | (images.amax() > 1 + 1e-6)):
        pixels = f"pixels from {images.amin():g} to {images.amax():g}"
        raise UserError(f"attack {title(attack)} returned {pixels}, expected [0, 1]")


def chosen(source: str, rows: Any, weights: Any, budget: int | None, size: int) -> tuple[Tensor, Tensor]:
    """Returns a selection after checking it: rows (k,) int64 and weights (k,), on the CPU.

    Args:
        source: name of what selected it, for messages.
        rows: indices, as numbers or a tensor.
        weights: of the rows.
        budget: k; None for any number from 1 to N.
        size: N, the number of candidates.

    Raises:
        UserError: it is not exactly k unique rows in [0, N), with as many weights, finite and >= 0.
    """
    try:
        picked, given = _array(rows), _array(weights)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{source} returned no rows and weights: {one_line(error)}") from error
    problem = None
    shapes = f"{tuple(picked.shape)} rows and {tuple(given.shape)} weights"
    if budget is None and (picked.dim() != 1 or picked.shape != given.shape or not len(picked)):
        problem = f"{shapes}, expected (k,) of both, from 1 to {size}"
    elif budget is not None and (picked.shape != (budget,) or given.shape != (budget,)):
        problem = f"{shapes}, expected ({budget},) of both: exactly the budget"
    elif picked.is_floating_point() or picked.is_complex() or picked.dtype == torch.bool:
        problem = f"rows of type {picked.dtype}, expected whole numbers"
    elif len(picked.unique()) < len(picked) or picked.min() < 0 or picked.max() >= size:
        problem = f"rows that are not unique and from 0 to {size - 1}"
    elif not given.isfinite().all() or given.min() < 0:
        problem = "weights that are negative or not finite"
    if problem:
        raise UserError(f"{source} returned {problem}")
    return picked.long(), given


def subset(strategy: object, value: Any, budget: int | None, size: int) -> tuple[Tensor, Tensor]:
    """Returns the rows and weights of a strategy's ``select`` after checking them; see `chosen`.

    Raises:
        UserError: they are not a subset of N examples, or all weights are 0.
    """
    source = f"strategy {title(strategy)}"
    rows, weights = chosen(source, *pair(source, value), budget, size)
    if not weights.any():
        raise UserError(f"{source} returned weights that are all 0")
    return rows, weights


def pair(source: str, value: Any) -> tuple[Any, Any]:
    """Returns the rows and weights that a strategy returned as a pair.

    Raises:
        UserError: it returned something other than a pair.
    """
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise UserError(f"{source} returned {kind_of(value)}, expected (rows, weights)")
    rows, weights = value
    return rows, weights


def distinct(names: Sequence[str], taken: Collection[str]) -> None:
    """Checks that callbacks have distinct names, which are keys of the metrics and of checkpoints.

    Args:
        names: of the callbacks.
        taken: names of other keys.

    Raises:
        UserError: two have the same name, or one has a name that is taken.
    """
    for row, name in enumerate(names):
        if name in taken or name in names[:row]:
            raise UserError(f"callback {name!r}: the name is taken; every callback needs a different one")


def counts(source: str, value: Any) -> dict[str, int]:
    """Returns a method's counts of examples by kind after checking them.

    Raises:
        UserError: it is not a dictionary of whole numbers.
    """
    if not isinstance(value, dict) or not all(isinstance(count, int) for count in value.values()):
        raise UserError(f"{source} counted {value!r}, expected a dictionary of whole numbers")
    return value


def instance(source: str, value: Any, kind: type[Any]) -> Any:
    """Returns a value after checking its class.

    Raises:
        UserError: it is of another class.
    """
    if not isinstance(value, kind):
        raise UserError(f"{source} returned {kind_of(value)}, expected a {kind.__name__}")
    return value


def numbers(source: str, value: Any, shape: torch.Size, dtype: torch.dtype | None = None) -> Tensor:
    """Returns a value after checking that it is a floating-point tensor of a shape.

    Raises:
        UserError: it is not.
    """
    if not isinstance(value, Tensor):
        raise UserError(f"{source} returned {kind_of(value)}, expected a tensor of shape {tuple(shape)}")
    if value.shape != shape:
        raise UserError(f"{source} returned shape {tuple(value.shape)}, expected {tuple(shape)}")
    if not value.is_floating_point() or dtype not in {None, value.dtype}:
        raise UserError(f"{source} returned {value.dtype}, expected {dtype or 'floating-point numbers'}")
    return value


def differentiable(source: str, value: Tensor, logits: Sequence[Tensor]) -> Tensor:
    """Returns a value; if gradients are enabled, after checking that it has any.

    Raises:
        UserError: it is a constant.
    """
    if torch.is_grad_enabled() and any(z.requires_grad for z in logits) and not value.requires_grad:
        raise UserError(f"{source} returned a constant: no gradient leads from it to the logits")
    return value


def whole(what: str, value: Any, count: int, below: int | None = None) -> None:
    """Checks that a value is a tensor of whole numbers (count,) in [0, below).

    Raises:
        UserError: it is not.
    """
    if not isinstance(value, Tensor):
        raise UserError(f"{what}: {kind_of(value)}, expected a tensor of shape ({count},)")
    if value.shape != (count,) or value.dtype != torch.int64:
        raise UserError(
            f"{what}: {value.dtype} of shape {tuple(value.shape)}, expected torch.int64 of shape ({count},)"
        )
    if count and (int(value.min()) < 0 or (below is not None and int(value.max()) >= below)):
        end = "" if below is None else f" and < {below}"
        raise UserError(f"{what} from {int(value.min())} to {int(value.max())}, expected whole numbers >= 0{end}")


def _array(values: Any) -> Tensor:
    """Returns numbers, from any container, as a tensor on the CPU."""
    return values.detach().cpu() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
