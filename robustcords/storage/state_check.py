"""Checks, before training, that a checkpoint can hold the state of every part of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustcords.errors import UserError, kind_of, one_line_from
from robustcords.storage.checkpoint import as_kept


def refuse_unsaved(source: str, model: nn.Module) -> None:
    """Checks before training that a model's state can be saved as weights, and loaded again.

    Args:
        source: the model's name in messages.
        model: loads its own state.

    Raises:
        UserError: its state has something other than dense tensors, or cannot be loaded.
    """
    state = model.state_dict()
    for name, value in state.items():
        hint = "; let get_extra_state return a tensor" if name.endswith("_extra_state") else ""
        if not isinstance(value, Tensor):
            raise UserError(f"{source}: {name!r} in its state_dict is {kind_of(value)}, and weights are tensors{hint}")
        if value.layout != torch.strided:
            kind = str(value.layout).removeprefix("torch.")
            raise UserError(f"{source}: {name!r} in its state_dict is {kind}, and weights are dense tensors")
    _kept(source, _hollow(state))
    _load(source, model, state)


def refuse_grown(parts: Mapping[str, Any]) -> None:
    """Checks that a checkpoint can hold the states as they have grown in training; copies no data.

    Args:
        parts: each with a ``state_dict``, by their names in messages.

    Raises:
        UserError: a state is not a dict, or cannot be saved.
    """
    for source, part in parts.items():
        _kept(source, _hollow(_state(source, part)))


def refuse_unkeepable(source: str, part: Any) -> None:
    """Checks before training that a part's state can be saved and loaded.

    Args:
        source: the part's name in messages.
        part: with ``state_dict`` and ``load_state_dict``; loads its own state.

    Raises:
        UserError: it implements only one of the two methods; its state is not a dict, or cannot be saved or loaded.
    """
    if hasattr(part, "half_written"):  # an optimizer has both methods
        refuse_half(source, type(part))
    give_back(source, part, state_of(source, part))


def refuse_half(source: str, kind: Any) -> None:
    """Checks that a class implements both ``state_dict`` and ``load_state_dict``, or neither.

    Args:
        source: its name in messages.
        kind: a subclass of `robustcords.config.schema.Stateful`.

    Raises:
        UserError: it implements only one of the two.
    """
    if half := kind.half_written():
        raise UserError(f"{source}: {half}; implement both, or neither")


def state_of(source: str, part: Any) -> dict[str, Any]:
    """Returns a part's state as after saving and loading.

    Raises:
        UserError: it is not a dict, or cannot be saved.
    """
    return _kept(source, _state(source, part))


def _state(source: str, part: Any) -> dict[str, Any]:
    with one_line_from(f"{source}: state_dict failed"):
        state = part.state_dict()
    if not isinstance(state, dict):
        raise UserError(f"{source}: state_dict returned {kind_of(state)}, not a dict")
    return state


def _kept(source: str, state: dict[str, Any]) -> dict[str, Any]:
    """Returns a state as after saving and loading; see `state_of`."""
    try:
        return dict(as_kept(state))
    except TypeError as error:
        raise UserError(
            f"{source}: state_dict: {error}; tensors, numbers, strings, None, lists and dicts can be kept"
        ) from error


def _hollow(state: Any) -> Any:
    """Returns a state with its dense tensors replaced by empty ones."""
    if isinstance(state, Tensor):
        return torch.empty(0, dtype=state.dtype) if state.layout == torch.strided else state
    if isinstance(state, dict):
        return {key: _hollow(value) for key, value in state.items()}
    return [_hollow(value) for value in state] if isinstance(state, list | tuple) else state


def give_back(source: str, part: Any, state: dict[str, Any]) -> None:
    """Loads a copy of a state into a part, which may write over it.

    Args:
        source: what to call the part in a message.
        part: is given the state.
        state: as `state_of` returned it.

    Raises:
        UserError: the part fails.
    """
    _load(source, part, dict(as_kept(state)))


def _load(source: str, part: Any, state: dict[str, Any]) -> None:
    with one_line_from(f"{source}: load_state_dict refuses what state_dict returned"):
        part.load_state_dict(state)
