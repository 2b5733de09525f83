"""Checkpoints: tensors as safetensors, everything else as JSON, written atomically.

A checkpoint is a folder ``checkpoints/step_00000042`` with ``state.json``, ``tensors.safetensors`` and
``manifest.json``, which has the SHA-256 of the other two. Nothing in it is unpickled when it is read.

It is written as ``.step_00000042``, the manifest last, and renamed when it is whole. Where that name is taken (a run
stopped at an epoch's last step saves that step again at the epoch's end), the older one goes first; a crash in between
leaves the newer one under its hidden name, where it is found, and the next `Checkpoints.save` finishes the work.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialise_tensors
from torch import Tensor

from robustcords.errors import UserError, kind_of, one_line, unreadable
from robustcords.storage.files import changing, parse_json, sync_folder, write_atomic

_TENSOR, _ITEMS, _FLOAT = "__tensor__", "__items__", "__float__"
_STATE, _TENSORS, _MANIFEST = "state.json", "tensors.safetensors", "manifest.json"
_DAMAGE = (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError)
"""What a damaged checkpoint ends in. One that cannot be read just now is whole, and starting over is no answer."""


def pack(state: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Returns a nested state as JSON values, its tensors moved to ``tensors``.

    Args:
        state: dicts of plain keys, lists, tuples, numbers, strings, None and tensors, nested.
        tensors: is filled; a tensor's key is its path in the state.
        path: of this value in the state.

    Raises:
        TypeError: for any other value.
    """
    if isinstance(state, Tensor):
        while path in tensors:  # of the keys 1 and "1", or of one with a slash in it
            path += "'"
        tensors[path] = state.detach().to("cpu", copy=True).contiguous()
        return {_TENSOR: path}
    state = _plain(state)
    if isinstance(state, dict):
        state = {_plain(key): value for key, value in state.items()}
        for key in state:
            if not (key is None or isinstance(key, bool | int | float | str)):
                raise TypeError(f"{path}: a checkpoint cannot keep {kind_of(key)} as a key")
        items = [[key, pack(value, tensors, f"{path}/{key}")] for key, value in state.items()]
        plain = all(isinstance(key, str) for key in state) and not {_TENSOR, _ITEMS, _FLOAT} & state.keys()
        return dict(items) if plain else {_ITEMS: items}
    if isinstance(state, float) and not math.isfinite(state):  # JSON has no such numbers
        return {_FLOAT: str(float(state))}
    if isinstance(state, list | tuple):
        return [pack(value, tensors, f"{path}/{number}") for number, value in enumerate(state)]
    if state is None or isinstance(state, bool | int | float | str):
        return state
    raise TypeError(f"{path}: a checkpoint cannot keep {kind_of(state)}")


def _plain(value: Any) -> Any:
    """Converts NumPy's numbers to Python's; returns anything else unchanged."""
    for kind, own in ((np.bool_, bool), (np.integer, int), (np.floating, float)):
        if isinstance(value, kind):
            return own(value)
    return value


def unpack(packed: Any, tensors: dict[str, Tensor]) -> Any:
    """Returns the state that `pack` was given; tuples come back as lists."""
    if isinstance(packed, list):
        return [unpack(value, tensors) for value in packed]
    if not isinstance(packed, dict):
        return packed
    if _TENSOR in packed:
        return tensors[packed[_TENSOR]]
    if _FLOAT in packed:
        return float(packed[_FLOAT])
    items = packed[_ITEMS] if _ITEMS in packed else packed.items()
    return {key: unpack(value, tensors) for key, value in items}


def _serialised(state: Any) -> dict[str, bytes]:
    """Returns the contents of a checkpoint's files, by name."""
    tensors: dict[str, Tensor] = {}
    packed = json.dumps(pack(state, tensors), allow_nan=False).encode()
    return {_STATE: packed, _TENSORS: serialise_tensors(tensors)}


def _parsed(contents: Mapping[str, bytes]) -> Any:
    """Inverse of `_serialised`."""
    return unpack(parse_json(contents[_STATE]), parse_tensors(contents[_TENSORS]))


def as_kept(state: Any) -> Any:
    """Returns a state as after saving and loading: a copy, with tensors on the CPU and lists in place of tuples.

    Raises:
        TypeError: a checkpoint cannot hold it; the text says where and why.
    """
    try:
        return _parsed(_serialised(state))
    except (TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise TypeError(" ".join(str(error).split()) or type(error).__name__) from error


class Checkpoints:
    """The newest checkpoints of a run.

    Args:
        folder: of the checkpoints.
        keep: number to keep; older ones are deleted after a newer one is complete.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Writes a checkpoint into a temporary folder, flushes it to the disk, renames it; returns its folder.

        Args:
            step: optimiser steps so far; names the folder.
            state: see `pack`.

        Raises:
            UserError: there is no permission to write it.
            RunError: the disk is full, or fails; earlier checkpoints are unchanged.
        """
        contents = _serialised(state)
        temporary = self.folder / f".step_{step:08d}"
        with changing(temporary):
            self._finish()
            temporary.mkdir(parents=True)
            try:
                _write(temporary, contents)
            except Exception:
                shutil.rmtree(temporary, ignore_errors=True)  # what there was no room for takes none
                raise
            target = self._show(temporary)
            # Later ones are damaged, or this run would have gone on from them; they must not outlive it.
            for old in {*self.paths()} - {*self._until(target)[-self.keep :]}:
                shutil.rmtree(old)
        return target

    def _until(self, newest: Path) -> list[Path]:
        """Returns the checkpoints up to a step, oldest first."""
        paths = self.paths()
        return paths[: paths.index(newest) + 1]

    def _show(self, temporary: Path) -> Path:
        """Renames a complete checkpoint to its visible name, replacing what has it; returns its folder."""
        target = self.folder / temporary.name.removeprefix(".")
        sync_folder(self.folder)  # from here on the hidden one may be all there is
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
        sync_folder(self.folder)
        return target

    def _finish(self) -> None:
        """Finishes or deletes what a crash left of an earlier `save`."""
        for temporary in self.folder.glob(".step_*"):
            try:
                read(temporary)
            except _DAMAGE:
                shutil.rmtree(temporary)
            else:
                self._show(temporary)

    def paths(self) -> list[Path]:
        """Returns the checkpoints' folders, oldest first, complete or not; hidden ones only if complete."""
        written = [path for path in self.folder.glob(".step_*") if (path / _MANIFEST).exists()]
        found = [*self.folder.glob("step_*"), *written]
        # Of two of one step the hidden one is the newer.
        return sorted(found, key=lambda path: (path.name.lstrip("."), path.name.startswith(".")))

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """Returns the newest complete checkpoint and its state, or None; a warning names damaged ones.

        Raises:
            UserError: there is no permission to read one.
            RunError: the disk fails.
        """
        for path in reversed(self.paths()):
            try:
                return path, read(path)
            except _DAMAGE as error:
                warnings.warn(f"checkpoint {path} is damaged and was skipped: {error}", stacklevel=2)
            except OSError as error:
                raise unreadable(path, error) from error
        return None


def _write(path: Path, contents: dict[str, bytes]) -> None:
    """Writes a checkpoint's files, the manifest last."""
    for name, content in contents.items():
        write_atomic(path / name, content)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    write_atomic(path / _MANIFEST, json.dumps(sums, indent=2))


def read(path: Path) -> dict[str, Any]:
    """Returns the state of a checkpoint.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: a file is damaged.
    """
    sums = parse_json((path / _MANIFEST).read_bytes())
    contents = {name: (path / name).read_bytes() for name in (_STATE, _TENSORS)}
    if sums != {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}:
        raise ValueError("its files do not have the checksums that were written with them")
    try:
        return dict(_parsed(contents))
    except (SafetensorError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"its files are not a checkpoint's ({one_line(error)})") from error


@contextmanager
def belonging(path: Path) -> Iterator[None]:
    """Context of loading a checkpoint's state: a mismatch means that it is of another run.

    Raises:
        UserError: the state does not fit.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"checkpoint {path}: not one of this run ({one_line(error)[:300]})") from error


def restore_parts(parts: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    """Loads each part's state, by name."""
    for name, part in parts.items():
        if isinstance(part, torch.optim.Optimizer):
            restore_optimizer(part, states[name])
        else:
            part.load_state_dict(states[name])


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads an optimiser's state, with tensors in the memory format of their parameters."""
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
