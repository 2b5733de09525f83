"""Parquet files as Hugging Face writes them, in a local folder or on the hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from robustcords.data.base import DataSource, Splits
from robustcords.data.decoded_splits import splits
from robustcords.data.folder import existing_folder
from robustcords.data.folder_tree import files_below
from robustcords.data.rows import message_of
from robustcords.data.sets import (
    FolderConfig,
    choose,
    class_sets,
    fallback_note,
    parquet_files,
    parquet_sets,
    refuse_both,
    tested_split,
)
from robustcords.data.shards import check_shards, shard
from robustcords.data.tables import HubRows, Parquets, TableRows
from robustcords.errors import UserError, listed, nearest

_IMAGE_NAMES = ("img", "image")
_LABEL_NAMES = ("label", "labels", "fine_label")


class ParquetConfig(FolderConfig):
    """Options of parquet files.

    Attributes:
        image_column: the column of encoded images; left out, the only column of images, or the one named img or image.
        label_column: the column of integer labels; left out, the only column of class labels, or the one named label,
            labels or fine_label.
    """

    image_column: str | None = None
    label_column: str | None = None


class Parquet(DataSource):
    """A folder of parquet files (``train-*.parquet``, ``test-*.parquet``, or ``train/*.parquet`` ...), or a hub id.

    ``name`` is the folder or the id; with ``path``, the folder is read and ``name`` is only what the set is called.
    Local files are read in place and nothing is written next to them; sets from the hub are kept in Hugging Face's own
    cache. Nothing is cropped or flipped unless asked.
    """

    Config = ParquetConfig
    config: ParquetConfig

    def files(self) -> Sequence[str] | None:
        """Returns the files below the folder; None for a hub id, which has a cache of its own."""
        if self.config.path is None and not Path(self.config.name).expanduser().is_dir():
            return None
        return files_below(existing_folder(self.config))

    def load(self) -> Splits:
        """Returns the decoded training and test sets."""
        if self.config.path is not None or Path(self.config.name).expanduser().is_dir():
            return read_parquet(existing_folder(self.config), self.config)
        return _read_hub(self.config)


def read_parquet(folder: Path, config: ParquetConfig) -> Splits:
    """Returns the decoded sets of a folder of parquet files.

    Raises:
        UserError: a split, file or column is missing, there are several sets that could be meant, class folders too, or
            a file, image or label cannot be read.
    """
    sets = parquet_sets(folder)
    if not sets:
        raise UserError(f"{folder}: no parquet files called train-*.parquet and test-*.parquet")
    refuse_both(folder, sets, class_sets(folder), config.subset)
    chosen = choose(folder, sets, config)
    parts = []
    for shards, split in ((chosen.train, "train"), (chosen.test, chosen.test_split)):
        if not shards:  # it is a part of the training split
            continue
        check_shards(shards)
        parts.append(_local_rows([part.path for part in shards], f"{folder}, {split} split", config))
    return _splits(parts, config, (*chosen.notes, *_skipped(folder)))


def _skipped(folder: Path) -> tuple[str, ...]:
    """Returns a line on the parquet files of which nothing says the split, where there are some."""
    names = [str(path.relative_to(folder)) for path in parquet_files(folder) if shard(folder, path).split is None]
    return (f"{folder}: {len(names)} parquet files of no split are skipped ({listed(names)})",) if names else ()


def _local_rows(files: list[Path], name: str, config: ParquetConfig) -> tuple[TableRows, Sequence[str] | None]:
    """Returns one split of local files and its classes' names."""
    opened = [_open(file) for file in files]
    first = opened[0][1]
    columns, notes = _columns(first, name, config)
    for (_, own), file in zip(opened, files, strict=True):
        if any(own.get(column) != first[column] for column in columns):
            raise UserError(f"{file}: columns {', '.join(columns)} are not of the same types as in {files[0]}")
    groups = tuple(
        tuple(about.row_group(number).num_rows for number in range(about.num_row_groups))
        for about in (parquet.metadata for parquet, _ in opened)
    )
    count, threads = sum(map(sum, groups)), torch.get_num_threads()
    around: Any = {"columns": columns, "folder": files[0].parent, "files": tuple(files), "groups": groups}
    return Parquets(name, count, threads, notes, **around), getattr(first[columns[1]], "names", None)


def _open(file: Path) -> tuple[Any, Any]:
    """Returns a parquet file, of which only the end has been read, and its columns as Hugging Face's features."""
    import datasets
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

    try:
        parquet = ParquetFile(file)
        columns = parquet.schema_arrow.names
        if twice := next((name for name in columns if columns.count(name) > 1), None):
            raise UserError(f"{file}: there are two columns {twice!r}")
        return parquet, datasets.Features.from_arrow_schema(parquet.schema_arrow)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:  # its metadata is JSON
        raise UserError(f"{file}: not a readable parquet file: {message_of(error)}") from error


def _read_hub(config: ParquetConfig) -> Splits:
    """Returns the decoded sets of a hub id."""
    import datasets

    name = config.name
    try:
        found = datasets.load_dataset(name, config.subset)
    except Exception as error:
        raise UserError(
            f"data {name!r}: cannot be loaded from the Hugging Face hub: {message_of(error)}; data.path can name a "
            "folder with its parquet files"
        ) from error
    test = tested_split(f"data {name!r}", list(found), config)
    names = ["train", *([test] if test else [])]
    parts = [_hub_rows(found[split], f"{name}, {split} split", config) for split in names]
    return _splits(parts, config, fallback_note(f"data {name!r}", test, config))


def _splits(parts: list[tuple[TableRows, Sequence[str] | None]], config: ParquetConfig, notes: Sequence[str]) -> Splits:
    (train, classes), *tested = parts
    if not tested:
        return splits(train, config.test_fraction, classes, config, notes)
    test, test_classes = tested[0]
    if classes and test_classes and list(classes) != list(test_classes):
        raise UserError(f"{test.name}: the classes are not those of the train split, or not in the same order")
    return splits(train, test, classes, config, notes)


def _hub_rows(table: Any, name: str, config: ParquetConfig) -> tuple[TableRows, Sequence[str] | None]:
    """Returns one split of a hub id and its classes' names."""
    columns, notes = _columns(table.features, name, config)
    rows = HubRows(name, len(table), torch.get_num_threads(), notes, columns=columns, table=table)
    return rows, getattr(table.features[columns[1]], "names", None)


def _columns(features: Any, name: str, config: ParquetConfig) -> tuple[tuple[str, str], tuple[str, ...]]:
    """Returns the columns of images and labels, and lines on others."""
    image, about_images = _image_column(features, name, config)
    label, about_labels = _label_column(features, name, config)
    return (image, label), (*about_images, *about_labels)


def _image_column(features: Any, name: str, config: ParquetConfig) -> tuple[str, tuple[str, ...]]:
    import datasets

    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    encoded = [key for key, feature in features.items() if _may_hold_images(feature)]
    return _pick("image", features, images, [*images, *encoded], _IMAGE_NAMES, config.image_column, name)


def _may_hold_images(feature: Any) -> bool:
    if isinstance(feature, dict):
        return "bytes" in feature
    return getattr(feature, "dtype", None) in {"binary", "large_binary"}


def _label_column(features: Any, name: str, config: ParquetConfig) -> tuple[str, tuple[str, ...]]:
    import datasets

    labels = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    integers = [
        key for key, feature in features.items() if re.fullmatch(r"u?int\d+", str(getattr(feature, "dtype", "")))
    ]
    return _pick("label", features, labels, [*labels, *integers], _LABEL_NAMES, config.label_column, name)


def _pick(
    kind: str, features: Any, sure: list[str], possible: list[str], usual: Sequence[str], wanted: str | None, name: str
) -> tuple[str, tuple[str, ...]]:
    """Returns the column to read, and a line on others of its kind.

    It is the one that was asked for, the only sure one, or the only one with a usual name.
    """
    option, columns = f"data.{kind}_column", ", ".join(features)
    if wanted is not None and wanted not in features:
        raise UserError(f"{name}: {option}: there is no column {wanted!r}{nearest(wanted, features)}")
    only = sure if len(sure) == 1 else []
    choices = dict.fromkeys([*only, *(key for key in usual if key in (possible if only else features))])
    if wanted is None and len(choices) > 1:
        raise UserError(f"{name}: several columns could be the {kind}: {', '.join(choices)}; set {option}")
    column = wanted or next(iter(choices), None)
    if column is None:
        raise UserError(f"{name}: no {kind} column found (columns: {columns}); set {option}")
    if column not in possible:
        kinds = "encoded images" if kind == "image" else "integers"
        held = getattr(features[column], "dtype", None) or type(features[column]).__name__
        raise UserError(f"{name}: column {column!r} holds {held}, not {kinds} (columns: {columns}); set {option}")
    others = [key for key in sure if key != column and wanted is None]
    return column, (f"{name}: reads {column}, not {listed(others)}; set {option} to choose",) if others else ()
