"""Checkpoints: tensors as safetensors, everything else as JSON, whole or not there at all.

A checkpoint is a folder ``checkpoints/step_00000042`` with ``state.json``, ``tensors.safetensors`` and
``manifest.json``, which has the SHA-256 of the other two. Nothing in it is unpickled when it is read.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialise_tensors
from torch import Tensor

from robustcords.files import sync_folder, write_atomic

_TENSOR, _ITEMS = "__tensor__", "__items__"


def pack(state: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Returns a nested state as JSON values, its tensors moved to ``tensors``.

    Args:
        state: dicts, lists, tuples, numbers, strings, None and tensors, nested.
        tensors: is filled; a tensor's key is its path in the state.
        path: where in the state this value stands.

    Raises:
        TypeError: for any other value.
    """
    if isinstance(state, Tensor):
        tensors[path] = state.detach().to("cpu", copy=True).contiguous()
        return {_TENSOR: path}
    if isinstance(state, dict):
        items = [[key, pack(value, tensors, f"{path}/{key}")] for key, value in state.items()]
        return dict(items) if all(isinstance(key, str) for key in state) else {_ITEMS: items}
    if isinstance(state, list | tuple):
        return [pack(value, tensors, f"{path}/{number}") for number, value in enumerate(state)]
    if state is None or isinstance(state, bool | int | float | str):
        return state
    raise TypeError(f"{path}: a checkpoint cannot keep a {type(state).__name__}")


def unpack(packed: Any, tensors: dict[str, Tensor]) -> Any:
    """Returns the state that `pack` was given; tuples come back as lists."""
    if isinstance(packed, list):
        return [unpack(value, tensors) for value in packed]
    if not isinstance(packed, dict):
        return packed
    if _TENSOR in packed:
        return tensors[packed[_TENSOR]]
    items = packed[_ITEMS] if _ITEMS in packed else packed.items()
    return {key: unpack(value, tensors) for key, value in items}


class Checkpoints:
    """The newest checkpoints of a run.

    Args:
        folder: where they are kept.
        keep: how many; older ones are deleted after a newer one is whole.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Writes a checkpoint into a temporary folder, flushes it to the disk, renames it; returns its folder.

        Args:
            step: optimiser steps taken so far; names the folder.
            state: as `pack` takes it.
        """
        target = self.folder / f"step_{step:08d}"
        temporary = self.folder / f".{target.name}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        tensors: dict[str, Tensor] = {}
        packed = json.dumps(pack(state, tensors), allow_nan=False).encode()
        contents = {"state.json": packed, "tensors.safetensors": serialise_tensors(tensors)}
        for name, content in contents.items():
            write_atomic(temporary / name, content)
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        write_atomic(temporary / "manifest.json", json.dumps(sums, indent=2))
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        sync_folder(self.folder)
        for old in self.paths()[: -self.keep]:
            shutil.rmtree(old)
        return target

    def paths(self) -> list[Path]:
        """Returns the checkpoints' folders, oldest first, whole or not."""
        return sorted(self.folder.glob("step_*"))

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """Returns the newest whole checkpoint and its state, or None; a warning names damaged ones."""
        for path in reversed(self.paths()):
            try:
                return path, read(path)
            except (OSError, ValueError, KeyError) as error:
                warnings.warn(f"checkpoint {path} is damaged and was skipped: {error}", stacklevel=2)
        return None


def read(path: Path) -> dict[str, Any]:
    """Returns the state of a checkpoint.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: a file is not what was written.
    """
    sums = json.loads((path / "manifest.json").read_bytes())
    contents = {name: (path / name).read_bytes() for name in ("state.json", "tensors.safetensors")}
    if sums != {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}:
        raise ValueError("its files do not have the checksums that were written with them")
    state = unpack(json.loads(contents["state.json"]), parse_tensors(contents["tensors.safetensors"]))
    return dict(state)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads an optimiser's state, its tensors in the memory layout of the parameters that they belong to."""
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
