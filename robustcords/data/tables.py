"""Rows of parquet files, read by row group, and of Hugging Face tables."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from robustcords.data.rows import CHUNK, Rows, failing

_KEPT_BYTES = 256 * 1024**2  # of row groups that a process keeps, for rows that are near each other


@dataclass(frozen=True)
class TableRows(Rows):
    """A split with a column of pictures and one of labels.

    Attributes:
        columns: the pictures' and the labels'.
        folder: where relative paths of pictures start from.
    """

    columns: tuple[str, str] = ("", "")
    folder: Path = Path()

    def read(self, item: Any) -> tuple[Any, Any]:
        """Returns a row's picture and label."""
        picture, label = item
        if isinstance(picture, dict):
            inside, path = picture.get("bytes"), picture.get("path")
            picture = inside if inside is not None or path is None else self.folder / path
        return picture, label

    def pairs(self, table: Any) -> list[tuple[Any, Any]]:
        """Returns the pictures and labels of an Arrow table."""
        return list(zip(*(table.column(name).to_pylist() for name in self.columns), strict=True))


def _reading(table: Path | str) -> AbstractContextManager[None]:
    """Is work on a table, which may have been damaged, or changed since it was opened; see `failing`."""
    return failing(lambda: f"{table}: cannot be read")


@dataclass(frozen=True)
class Parquets(TableRows):
    """Rows of local files.

    Pyarrow reads them in place. ``load_dataset`` would first copy them into a cache, take paths for patterns, and call
    a server of Hugging Face's that counts downloads.

    Attributes:
        files: in the order of the rows.
        groups: how many rows each row group of each file has.
    """

    files: tuple[Path, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()
    _kept: dict[int, Any] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def _places(self) -> list[tuple[int, int]]:
        """The file of each row group, and its number there."""
        return [(file, group) for file, sizes in enumerate(self.groups) for group in range(len(sizes))]

    @cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(itertools.chain.from_iterable(self.groups)))

    def items(self, rows: Sequence[int]) -> list[tuple[Any, Any]]:
        """Returns pictures and labels, from the row groups that they are in."""
        found = []
        for row in rows:
            number = bisect.bisect_right(self._ends, row)
            place = row - (self._ends[number - 1] if number else 0)
            found += self.pairs(self._group(number).slice(place, 1))
        return found

    def _group(self, number: int) -> Any:
        """Returns the table of a row group: kept, unless many others have been asked for since."""
        table = self._kept.pop(number, None)
        if table is None:
            file, group = self._places[number]
            with _reading(self.files[file]):
                table = self._opened(file).read_row_group(group, columns=list(self.columns))
                table = table.select(self.columns)
                if len(table) != (expected := self.groups[file][group]):
                    raise ValueError(f"row group {group} has {len(table)} rows, where it had {expected}")
            while self._kept and table.nbytes + sum(each.nbytes for each in self._kept.values()) > _KEPT_BYTES:
                self._kept.pop(next(iter(self._kept)))
        self._kept[number] = table  # the last to go
        return table

    def _opened(self, number: int) -> Any:
        """Returns a file.

        Raises:
            OSError, ValueError: it cannot be read, or has another number of rows than before.
        """
        from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

        parquet = ParquetFile(self.files[number])
        if parquet.metadata.num_rows != (expected := sum(self.groups[number])):
            raise ValueError(f"it has {parquet.metadata.num_rows} rows, where it had {expected}")
        return parquet

    def chunks(self) -> Iterator[Sequence[Any]]:
        """Yields all rows in order, of a row group no more than are needed."""
        for number, file in enumerate(self.files):
            with _reading(file):
                for part in self._opened(number).iter_batches(CHUNK, columns=list(self.columns)):
                    yield self.pairs(part)

    def where(self, row: int) -> str:
        """Returns the file, and the row in it."""
        ends = list(itertools.accumulate(map(sum, self.groups)))
        number = bisect.bisect_right(ends, row)
        return f"{self.files[number]}, row {row - (ends[number - 1] if number else 0)}"

    def labels(self) -> Sequence[Any]:
        """Returns the column of labels."""
        name, found = self.columns[1], []
        for number, file in enumerate(self.files):
            with _reading(file):
                found += self._opened(number).read(columns=[name]).column(name).to_pylist()
        return found


@dataclass(frozen=True)
class HubRows(TableRows):
    """Rows of a table of ``datasets``, which maps its own files into memory.

    Attributes:
        table: a ``datasets.Dataset``.
    """

    table: Any = None

    @cached_property
    def _arrow(self) -> Any:
        return self.table.select_columns(list(self.columns)).with_format("arrow")

    def items(self, rows: Sequence[int]) -> list[tuple[Any, Any]]:
        """Returns pictures and labels."""
        with _reading(self.name):
            return self.pairs(self._arrow[list(rows)])

    def labels(self) -> Sequence[Any]:
        """Returns the column of labels."""
        found: Sequence[Any] = self._arrow[:].column(self.columns[1]).to_pylist()
        return found
