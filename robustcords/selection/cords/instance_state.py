"""The state that a CORDS strategy keeps in its attributes between selections.

In CORDS' code a strategy is one object for the whole run, so whatever it leaves in an attribute is there next time.
Here it is built anew for every selection. Its state is the attributes that differ from those of an object that has just
been built: they are put into the next one.
"""

from __future__ import annotations

import random
import types
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustcords.storage.checkpoint import as_kept, pack

WORKED_WITH = frozenset(
    {
        *("grads_per_elem", "val_grads_per_elem", "trn_lbls", "val_lbls", "pctrainloader", "pcvalloader"),
        *("init_out", "init_l1", "y_val", "grads_val_curr", "N", "dist_mat", "const"),
        *("gradients", "validation_gradients", "_written_out", "_sizes"),
    }
)
"""Attributes that CORDS' classes and the hook fill anew in each selection; the largest take N C (E + 1) numbers."""

_FUNCTIONS = types.FunctionType | types.BuiltinFunctionType | types.MethodType
_STATELESS = _FUNCTIONS | type | types.ModuleType | torch.device | torch.dtype


def taken(instance: Any, given: Iterable[Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns what an object's attributes hold, as a checkpoint gives it back, and the names of those it cannot keep.

    Args:
        instance: the object.
        given: what it was built with, which is no state of its own.
    """
    own = {id(value) for value in given if value is not None and not isinstance(value, bool | int | float | str)}
    state, lost = {}, []
    for name, value in vars(instance).items():
        if name in WORKED_WITH or id(value) in own:
            continue
        try:
            state[name] = as_kept(_coded(value))
        except TypeError:
            if not isinstance(value, _STATELESS) and not (isinstance(value, nn.Module) and not value.state_dict()):
                lost.append(f"{name} ({type(value).__name__})")
    return state, lost


def changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Returns what is in ``after`` and not, or otherwise, in ``before``."""
    return {name: value for name, value in after.items() if name not in before or not _same(before[name], value)}


def put(instance: Any, state: dict[str, Any]) -> None:
    """Sets the attributes that `taken` has returned."""
    device = getattr(instance, "device", "cpu")
    for name, value in state.items():
        setattr(instance, name, _decoded(value, device))


def _with(made: Any, setter: str, *state: Any) -> Any:
    getattr(made, setter)(*state)
    return made


def _numpy_generator(state: dict[str, Any]) -> np.random.Generator:
    return np.random.Generator(_with(getattr(np.random, state["bit_generator"])(), "__setattr__", "state", state))


_Legacy = np.random.RandomState
_FORMS: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "array": (np.ndarray, lambda value: torch.from_numpy(value.copy()), lambda kept: kept.numpy()),
    "scalar": (np.generic, lambda value: torch.from_numpy(np.array(value)), lambda kept: kept.numpy()[()]),
    "dict": (dict, lambda value: list(map(list, value.items())), dict),
    "tuple": (tuple, list, tuple),
    "set": (set, lambda value: sorted(value, key=repr), set),
    "torch.Generator": (torch.Generator, torch.Generator.get_state, lambda kept: torch.Generator().set_state(kept)),
    "random.Random": (random.Random, random.Random.getstate, lambda kept: _with(random.Random(), "setstate", kept)),
    "numpy Generator": (np.random.Generator, lambda value: value.bit_generator.state, _numpy_generator),
    "numpy RandomState": (_Legacy, _Legacy.get_state, lambda kept: _with(_Legacy(), "set_state", kept)),
}
"""What checkpoints have no form for: its type, what it is made of, and what makes it of that again."""


def _coded(value: Any) -> Any:
    """Returns a value as checkpoints take it: what they have no form for as a dict that says what it is.

    Raises:
        TypeError: there is none for it.
    """
    kind = type(value)
    if kind in (bool, int, float, str) or value is None:
        return value
    if kind is list:
        return [_coded(each) for each in value]
    there = str(getattr(value, "device", "cpu")) != "cpu"
    if kind is Tensor and not value.requires_grad:
        return {"kind": "tensor on the device" if there else "tensor", "value": value}
    for name, (form, take, _) in _FORMS.items():
        if (kind is form or (form is np.generic and isinstance(value, form))) and not there:
            return {"kind": name, "value": _coded(take(value))}
    raise TypeError(f"no form for a {kind.__name__}")


def _decoded(value: Any, device: Any) -> Any:
    """Returns what `_coded` was given."""
    if isinstance(value, list):
        return [_decoded(each, device) for each in value]
    if not isinstance(value, dict):
        return value
    kind, inner = value["kind"], value["value"]
    if isinstance(inner, Tensor) and kind.startswith("tensor"):
        return inner if kind == "tensor" else inner.to(device)
    return _FORMS[kind][2](_decoded(inner, device))


def _same(left: Any, right: Any) -> bool:
    """Returns whether two kept values are the same."""
    ours: dict[str, Tensor] = {}
    theirs: dict[str, Tensor] = {}
    return repr(pack(left, ours)) == repr(pack(right, theirs)) and all(
        one.dtype == other.dtype and torch.equal(one, other)
        for one, other in zip(ours.values(), theirs.values(), strict=True)
    )
