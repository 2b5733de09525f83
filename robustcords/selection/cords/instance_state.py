"""What a strategy of CORDS keeps in its attributes from one selection to the next.

In CORDS' code a strategy is one object for the whole run, so whatever it leaves in an attribute is there next time.
Here it is built anew for every selection. Its state is the attributes that differ from those of an object that has just
been built: they are put into the next one.
"""

from __future__ import annotations

import random
import types
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from robustcords.storage.checkpoint import as_kept

WORKED_WITH = frozenset(
    {
        *("grads_per_elem", "val_grads_per_elem", "trn_lbls", "val_lbls", "pctrainloader", "pcvalloader"),
        *("init_out", "init_l1", "y_val", "grads_val_curr"),
        *("N", "dist_mat", "const"),
        *("gradients", "validation_gradients", "_written_out", "_sizes"),
    }
)
"""Attributes that CORDS' classes and the hook fill anew in each selection; the largest take N C (E + 1) numbers."""

_KIND = "kind"
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType)
_STATELESS = (*_FUNCTIONS, type, types.ModuleType, torch.device, torch.dtype)


def taken(instance: Any, given: Iterable[Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns what an object's attributes hold, as a checkpoint gives it back, and the names of those it cannot keep.

    Tensors, arrays, numbers, strings, lists, tuples, dicts, sets and generators can be kept.

    Args:
        instance: the object.
        given: what it was built with, which is no state of its own.
    """
    own = {id(value) for value in given}
    state, left = {}, []
    for name, value in vars(instance).items():
        if name in WORKED_WITH or (id(value) in own and not _plain(value)):
            continue
        try:
            state[name] = as_kept(_coded(value))
        except TypeError:
            if not _without_state(value):
                left.append(f"{name} ({type(value).__name__})")
    return state, left


def changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Returns what is in ``after`` and not, or otherwise, in ``before``."""
    return {name: value for name, value in after.items() if name not in before or not _same(before[name], value)}


def put(instance: Any, state: dict[str, Any]) -> None:
    """Sets the attributes that `taken` has returned."""
    device = getattr(instance, "device", "cpu")
    for name, value in state.items():
        setattr(instance, name, _decoded(value, device))


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _without_state(value: Any) -> bool:
    return isinstance(value, _STATELESS) or (isinstance(value, nn.Module) and not value.state_dict())


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
    if kind is dict:
        return {_KIND: "dict", "value": [[_coded(key), _coded(each)] for key, each in value.items()]}
    if kind is Tensor and not value.requires_grad:
        return {_KIND: "tensor" if value.device.type == "cpu" else "tensor on the device", "value": value}
    for form in _FORMS:
        if kind is form.kind or (form.kind is np.generic and isinstance(value, np.generic)):
            return {_KIND: form.name, "value": form.take(value)}
    raise TypeError(f"no form for a {kind.__name__}")


def _decoded(value: Any, device: Any) -> Any:
    """Returns what `_coded` was given."""
    if isinstance(value, list):
        return [_decoded(each, device) for each in value]
    if not isinstance(value, dict):
        return value
    kind, inner = value[_KIND], value["value"]
    if kind == "dict":
        return {_decoded(key, device): _decoded(each, device) for key, each in inner}
    if kind.startswith("tensor"):
        return inner if kind == "tensor" else inner.to(device)
    return next(form for form in _FORMS if form.name == kind).make(_decoded(inner, device))


def _cpu_generator(value: torch.Generator) -> Any:
    if value.device.type != "cpu":
        raise TypeError("no form for a generator on a GPU")
    return _coded(value.get_state())


def _generator(state: Tensor) -> torch.Generator:
    made = torch.Generator()
    made.set_state(state)
    return made


def _python_generator(state: Any) -> random.Random:
    made = random.Random()
    made.setstate(state)
    return made


def _numpy_generator(state: Any) -> np.random.Generator:
    bits = getattr(np.random, state["bit_generator"])()
    bits.state = state
    return np.random.Generator(bits)


def _legacy_generator(state: Any) -> np.random.RandomState:
    made = np.random.RandomState()
    made.set_state(state)
    return made


class _Form(NamedTuple):
    """How one kind of value is kept."""

    name: str
    kind: type
    take: Callable[[Any], Any]
    make: Callable[[Any], Any]


_FORMS = (
    _Form("array", np.ndarray, lambda value: _coded(torch.from_numpy(value.copy())), lambda tensor: tensor.numpy()),
    _Form("scalar", np.generic, lambda value: _coded(torch.from_numpy(np.array(value))), lambda kept: kept.numpy()[()]),
    _Form("tuple", tuple, lambda value: [_coded(each) for each in value], tuple),
    _Form("set", set, lambda value: [_coded(each) for each in sorted(value, key=repr)], set),
    _Form("torch.Generator", torch.Generator, _cpu_generator, _generator),
    _Form("random.Random", random.Random, lambda value: _coded(value.getstate()), _python_generator),
    _Form("numpy Generator", np.random.Generator, lambda value: _coded(value.bit_generator.state), _numpy_generator),
    _Form("numpy RandomState", np.random.RandomState, lambda value: _coded(value.get_state(False)), _legacy_generator),
)


def _same(left: Any, right: Any) -> bool:
    """Returns whether two kept values are the same."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict) and isinstance(right, dict):
        return list(left) == list(right) and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    return type(left) is type(right) and repr(left) == repr(right)
