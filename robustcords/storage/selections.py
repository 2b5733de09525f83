"""Files of a selection: chosen rows and their weights."""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from robustcords.errors import UserError, one_line
from robustcords.storage.files import write_atomic

_PREFIX = "epoch_"
_UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error),
    RuntimeError,  # encryption or compression that zipfile does not know
)
"""What reading a file that is no selection, or a damaged one, raises."""


@dataclass(frozen=True)
class Selection:
    """One selection.

    Attributes:
        epoch: the first epoch that trained on it.
        indices: (k,) int64, in the full training set's numbering.
        weights: (k,) float32, >= 0.
    """

    epoch: int
    indices: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]

    def save(self, folder: Path) -> None:
        """Writes ``epoch_NNNN.npz``.

        Raises:
            UserError: that is not possible.
        """
        content = io.BytesIO()
        np.savez(content, indices=self.indices.astype(np.int64), weights=self.weights.astype(np.float32))
        write_atomic(folder / f"{_PREFIX}{self.epoch:04d}.npz", content.getvalue())


def load_selections(folder: Path) -> list[Selection]:
    """Returns the selections in a folder, in order; none if the folder is missing.

    Raises:
        UserError: one is damaged.
    """
    return [_load(path) for path in sorted(folder.glob(f"{_PREFIX}*.npz"))]


def _load(path: Path) -> Selection:
    epoch = path.stem.removeprefix(_PREFIX)
    if not epoch.isdecimal():
        raise UserError(f"{path}: damaged: not a selection (its name has no epoch)")
    return Selection(int(epoch), *read_selection(path, f"{path}: damaged"))


def read_selection(path: Path, blamed: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Returns the indices (k,) and weights (k,) of a selection's file, without executing code in it.

    Args:
        path: a run's ``selections/epoch_NNNN.npz``, or a file of ``robustcords select``.
        blamed: prefix of errors.

    Raises:
        UserError: it cannot be read, or does not have k >= 1 distinct whole numbers >= 0 and as many weights, finite,
            >= 0 and not all 0.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            indices, weights = content["indices"], content["weights"]
    except _UNREADABLE as error:
        raise UserError(f"{blamed}: not a selection ({one_line(error)})") from error
    problem = None
    if indices.shape != (indices.size,) or weights.shape != indices.shape or not indices.size:
        problem = f"indices {indices.shape} and weights {weights.shape}"
    elif indices.dtype.kind not in "iu" or weights.dtype.kind != "f":
        problem = f"indices of type {indices.dtype} and weights of type {weights.dtype}"
    elif len(np.unique(indices)) < indices.size or indices.min() < 0:
        problem = "indices that are not unique and >= 0"
    elif not np.isfinite(weights).all() or weights.min() < 0 or not weights.any():
        problem = "weights that are negative, not finite or all 0"
    if problem:
        raise UserError(f"{blamed}: not a selection: {problem}")
    return indices.astype(np.int64), weights.astype(np.float32)
