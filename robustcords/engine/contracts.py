"""What is expected of everything that a user can write, checked where it is called: one line that names the class.

A loss that returns a mean, or weights of shape (k, 1), would broadcast and train on something else without a word.
Shapes cost nothing to compare, so each call is looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustcords.errors import UserError, kind_of, one_line


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


def plan(effort: object, value: Any, count: int) -> Any:
    """Returns how hard an effort wants a batch's examples attacked, a `robustcords.methods.efforts.base.Plan`.

    Args:
        effort: what planned it.
        value: what it returned.
        count: B, of the batch.

    Raises:
        UserError: it has no whole numbers (B,) of steps, or step sizes or kinds that are none.
    """
    name = f"effort {title(effort)}"
    if not all(hasattr(value, part) for part in ("steps", "step_size", "kinds", "patience", "rise", "epsilon")):
        raise UserError(f"{name} planned {kind_of(value)}, expected a Plan")
    _whole(f"{name} planned steps", value.steps, count)
    if value.step_size is not None:
        sizes = numbers(f"{name}: step_size", value.step_size, torch.Size([count]))
        if not bool((sizes.isfinite() & (sizes >= 0)).all()):
            raise UserError(f"{name} planned step sizes that are negative or not finite")
    if value.patience is not None:
        _whole(f"{name} planned patience", value.patience, count)
    if value.kinds is not None:
        _whole(f"{name} planned kinds", value.kinds.index, count, len(value.kinds.names))
    return value


def in_range(attack: object, images: Tensor) -> None:
    """Checks that what an attack made (B, C, H, W) are images; it may write ``__call__`` itself, past the projection.

    Raises:
        UserError: a pixel is outside [0, 1].
    """
    # Numbers that are no numbers are for the loss to find: a float16 pass may overflow.
    if len(images) and bool((images.amin() < -1e-6) | (images.amax() > 1 + 1e-6)):
        pixels = f"pixels from {images.amin():g} to {images.amax():g}"
        raise UserError(f"attack {title(attack)} returned {pixels}, expected [0, 1]")


def chosen(source: str, rows: Any, weights: Any, budget: int | None, size: int) -> tuple[Tensor, Tensor]:
    """Returns what was selected, rows (k,) int64 and weights (k,), on the CPU.

    Args:
        source: what selected it.
        rows: indices, as numbers or a tensor.
        weights: theirs.
        budget: k; None where any number from 1 to N will do.
        size: N, of what was selected from.

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


def distinct(names: Sequence[str], taken: Collection[str]) -> None:
    """Checks that no two callbacks have the same name, in the metrics and in a checkpoint.

    Args:
        names: of the callbacks.
        taken: what else has a name there.

    Raises:
        UserError: two have the same name, or one has a name that is taken.
    """
    for row, name in enumerate(names):
        if name in taken or name in names[:row]:
            raise UserError(f"callback {name!r}: that name is taken; each callback has a name of its own")


def counts(source: str, value: Any) -> dict[str, int]:
    """Returns how many examples a method counted, by their kind.

    Raises:
        UserError: it is no dictionary of whole numbers.
    """
    if not isinstance(value, dict) or not all(isinstance(count, int) for count in value.values()):
        raise UserError(f"{source} counted {value!r}, expected a dictionary of whole numbers")
    return value


def instance(source: str, value: Any, kind: type[Any]) -> Any:
    """Returns a value that is an object of some class.

    Raises:
        UserError: it is of another.
    """
    if not isinstance(value, kind):
        raise UserError(f"{source} returned {kind_of(value)}, expected a {kind.__name__}")
    return value


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


def _whole(what: str, value: Any, count: int, below: int | None = None) -> None:
    """Checks that a value is a tensor of whole numbers (count,), from 0 on and smaller than ``below``.

    Raises:
        UserError: it is anything else.
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
    """Returns numbers, in whatever they came, as a tensor on the CPU."""
    return values.detach().cpu() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
