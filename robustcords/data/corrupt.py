"""Skipping images of a split that cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcords.data.pixels import to_array
from robustcords.data.rows import Rows, message_of
from robustcords.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Readable(Rows):
    """Those rows of a split whose pictures can be read.

    Attributes:
        whole: the split.
        kept: (count,) int64, their rows in it.
    """

    whole: Rows
    kept: NDArray[np.int64]

    def items(self, rows: Sequence[int]) -> Sequence[Any]:
        """Returns what the split stores."""
        return self.whole.items(self.kept[list(rows)].tolist())

    def read(self, item: Any) -> tuple[Any, Any]:
        """Returns an item's picture and label."""
        return self.whole.read(item)

    def where(self, row: int) -> str:
        """Names a row as the split does."""
        return self.whole.where(int(self.kept[row]))

    def labels(self) -> Sequence[Any] | Tensor | None:
        """Returns the labels of these rows, where they are known."""
        known = self.whole.labels()
        if isinstance(known, Tensor):
            return known[torch.from_numpy(self.kept)]
        return None if known is None else [known[row] for row in self.kept]


def readable(rows: Rows, size: int | None) -> tuple[Rows, str | None]:
    """Returns a split without the images that cannot be read, and a line on them; all are decoded to find out.

    Args:
        rows: the split.
        size: side of the square that images will be decoded to.

    Raises:
        UserError: none of them can be read.
    """

    def problem(item: Any) -> str | None:
        try:
            to_array(rows.read(item)[0], size)
        except Exception as error:  # whatever a decoder raises is the fault of the file it was given
            return message_of(error)
        return None

    problems: list[str | None] = []
    with ThreadPoolExecutor(rows.threads) as pool:
        for chunk in rows.chunks():
            problems += (map if rows.threads == 1 else pool.map)(problem, chunk)
    kept = np.array([row for row, text in enumerate(problems) if text is None], dtype=np.int64)
    if len(kept) == len(problems):
        return rows, None
    first = next(row for row, text in enumerate(problems) if text is not None)
    about = f"{rows.where(first)}: {problems[first]}"
    if not len(kept):
        raise UserError(f"{rows.name}: none of its {len(problems)} images can be read; the first: {about}")
    line = (
        f"{rows.name}: {len(problems) - len(kept)} of {len(problems)} images cannot be read and are left out "
        f"(data.skip_corrupt), the first of them {about}"
    )
    return Readable(rows.name, len(kept), rows.threads, rows.notes, whole=rows, kept=kept), line
