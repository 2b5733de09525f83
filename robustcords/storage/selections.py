"""The files of a run's ``selections/`` folder: which examples were chosen, and how they are weighted."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from robustcords.errors import UserError, one_line
from robustcords.storage.files import write_atomic

_PREFIX = "epoch_"


@dataclass(frozen=True)
class Selection:
    """One file of the folder.

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
    """Returns the selections in a folder, in order; none where there is no folder.

    Raises:
        UserError: one of them is damaged.
    """
    return [_load(path) for path in sorted(folder.glob(f"{_PREFIX}*.npz"))]


def _load(path: Path) -> Selection:
    try:
        epoch = int(path.stem.removeprefix(_PREFIX))
        with np.load(path, allow_pickle=False) as content:
            found = Selection(epoch, content["indices"].astype(np.int64), content["weights"].astype(np.float32))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{path}: damaged: not a selection ({one_line(error)})") from error
    shapes = found.indices.shape, found.weights.shape
    if shapes != ((found.indices.size,),) * 2 or not found.indices.size:
        raise UserError(f"{path}: damaged: not a selection: indices {shapes[0]} and weights {shapes[1]}")
    return found
