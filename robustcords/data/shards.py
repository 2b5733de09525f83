"""Names of parquet files: which split and set a file belongs to, and whether all shards of a split are present."""

from __future__ import annotations

import filecmp
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustcords.data.folder_tree import split_of
from robustcords.errors import UserError

# "train-00000-of-00002", also with the digest that Hugging Face wrote after it for some time.
_NUMBER_OF = re.compile(r"(\d+)-of-(\d+)(?:-[0-9a-f]{16})?$")
_NUMBER = re.compile(r"(\d+)$")
# What Spark writes after a shard's number, and what systems write into the name of a copy.
_JOB = re.compile(r"-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(-c\d+)?|\.(snappy|gz|zstd|lz4|brotli)$")
_COPY = re.compile(r"^copy of |[ _-]+copy( \(?\d+\)?)?$|\s*\(\d+\)$", re.IGNORECASE)


@dataclass(frozen=True)
class Shard:
    """What the name of a parquet file says.

    Attributes:
        path: the file.
        split: ``"train"``, ``"test"`` or ``"validation"``; None where neither the name nor a folder says.
        set: folders and words of the name that are neither split nor number, as a path; ``"."`` for none.
        number: the shard's number, or None.
        total: how many shards it says there are, or None.
    """

    path: Path
    split: str | None
    set: str
    number: int | None
    total: int | None


def shard(folder: Path, path: Path) -> Shard:
    """Returns what the name of a parquet file below a folder says: the file's own, or else that of the nearest folder.

    Files of one split and set differ in numbers alone: ``train-0.parquet`` and ``train-1.parquet`` are of one set,
    ``train-clean.parquet`` and ``train-fog.parquet`` of two.
    """
    stem = _COPY.sub("", _JOB.sub("", path.name.removesuffix(path.suffix)))
    number, total = None, None
    if found := _NUMBER_OF.search(stem) or _NUMBER.search(stem):
        number, total = int(found[1]), int(found[2]) if found.re is _NUMBER_OF else None
        stem = stem[: found.start()]
    split, rest = split_of(stem)
    parts = [rest.strip(" ._-")]
    for name in reversed(path.relative_to(folder).parts[:-1]):
        if split is None:
            split, name = split_of(name)  # noqa: PLW2901 -- what is left of it
        parts.insert(0, name)
    return Shard(path, split, "/".join(filter(None, parts)) or ".", number, total)


def check_shards(shards: Sequence[Shard]) -> None:
    """Checks that the files of one split are the parts of one whole, each of them once.

    Raises:
        UserError: a shard is missing, there twice, or of another number of shards than the others.
    """
    first = shards[0]
    for other in shards[1:]:
        if (other.total, other.number is None) != (first.total, first.number is None):
            raise UserError(
                f"{other.path}: is next to {first.path.name}: files of one split have to be numbered alike; remove "
                "those that do not belong to it"
            )
    if pair := _twice(shards):
        raise UserError(f"{pair[1]}: the same part of the {first.split} split as {pair[0]}; remove one of them")
    if first.total is not None:
        _check_count([int(part.number or 0) for part in shards], first.total, first)


def _check_count(numbers: Sequence[int], total: int, first: Shard) -> None:
    """Checks that shards are numbered from 0, or else from 1, up to their number."""
    start = 0 if 0 in numbers or total not in numbers else 1
    there = f"{first.path.parent}: {first.split} split: {first.path.name} is one of {total} files"
    if missing := sorted({*range(start, start + total)} - {*numbers}):
        raise UserError(f"{there}, of which {len(missing)} are missing, the first number {missing[0]}")
    if len(numbers) > total:
        raise UserError(f"{there}, but there is a number {max(numbers)}")


def _twice(shards: Sequence[Shard]) -> tuple[Path, Path] | None:
    """Returns two files that are the same shard, by their numbers or by their bytes."""
    by_number: dict[int | None, Path] = {}
    by_size: dict[int, list[Path]] = {}
    for part in shards:
        earlier = by_size.setdefault(part.path.stat().st_size, [])
        alike = (path for path in earlier if filecmp.cmp(path, part.path, shallow=False))
        if (same := by_number.get(part.number)) or (same := next(alike, None)):
            return same, part.path
        by_number[part.number] = part.path
        earlier.append(part.path)
    return None
