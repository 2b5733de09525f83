"""Which sets and splits a folder holds, and which of them a recipe means; several are never mixed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic, TypeVar

from pydantic import Field

from robustcords.data.decoded_splits import ImageConfig
from robustcords.data.folder_tree import split_of, walk
from robustcords.data.shards import Shard, shard
from robustcords.errors import UserError, listed, nearest

TEST_NAMES = ("test", "validation", "valid", "val")
_IMAGES = {".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}

OnError = Callable[[OSError], object] | None
"""What to do about a folder that cannot be read; None raises the error."""

T = TypeVar("T", Path, Shard)
Sets = Mapping[str, Mapping[str, Sequence[T]]]
"""A set's path below the folder (``"."`` for the folder itself) to its splits, and a split to its files or folders."""


class FolderConfig(ImageConfig):
    """Options of folders of images, whichever way they are kept.

    Attributes:
        subset: which of several data sets below a folder to read, such as ``"fog"``, or which configuration of a hub
            id; left out, there must be only one. The error that reports several lists their names.
        test_split: the split to test on; left out, test, or validation if there is no test split.
        test_fraction: share of the training split to test on instead of training on it, if there is no split to test
            on. It is stratified by class and always has the same images.
    """

    subset: Annotated[str, Field(min_length=1)] | None = None
    test_split: Annotated[str, Field(min_length=1)] | None = None
    test_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None


@dataclass(frozen=True)
class Chosen(Generic[T]):
    """The two splits that are read.

    Attributes:
        train: files or folders of the training split.
        test: those of the split that is tested on; none where that is a part of the training split.
        test_split: that split's name.
        notes: what a person should know of the choice, a line each.
    """

    train: Sequence[T]
    test: Sequence[T]
    test_split: str
    notes: tuple[str, ...]


def parquet_sets(folder: Path, on_error: OnError = None) -> dict[str, dict[str, list[Shard]]]:
    """Returns the parquet files below a folder of which the split is known, by set and split.

    Args:
        folder: where to look, at any depth.
        on_error: as for `robustcords.data.folder_tree.walk`.
    """
    found: dict[str, dict[str, list[Shard]]] = {}
    for part in (shard(folder, path) for path in parquet_files(folder, on_error)):
        if part.split:
            found.setdefault(part.set, {}).setdefault(part.split, []).append(part)
    return found


def parquet_files(folder: Path, on_error: OnError = None) -> list[Path]:
    """Returns the parquet files below a folder, at any depth; hidden ones are left out."""
    return sorted(
        parent / name
        for parent, _, names in walk(folder, on_error)
        for name in names
        if name.lower().endswith(".parquet")
    )


def class_sets(folder: Path, on_error: OnError = None) -> dict[str, dict[str, list[Path]]]:
    """Returns the folders of class folders below a folder, by set and split: those called train, val and so on.

    A folder with more in its name, such as ``train-clean``, counts where the folders in it hold images. Where there are
    none at all, a folder of nothing but folders of images is a training split itself, and these are its classes.
    """
    found: dict[str, dict[str, list[Path]]] = {}
    for parent, below, _ in walk(folder, on_error):
        for name in list(below):
            split, rest = split_of(name)
            if split and (not rest or _has_classes(parent / name, on_error, _IMAGES.__contains__)):
                below.remove(name)  # what is in it are classes, whatever they are called
                key = (parent / rest).relative_to(folder).as_posix()
                found.setdefault(key, {}).setdefault(split, []).append(parent / name)

    def is_one(splits: Mapping[str, list[Path]]) -> bool:
        return any(_has_classes(place, on_error) for places in splits.values() for place in places)

    sets = {key: splits for key, splits in found.items() if is_one(splits)}
    return sets or ({".": {"train": [folder]}} if _is_classes(folder, on_error) else {})


def _is_classes(folder: Path, on_error: OnError) -> bool:
    """Returns whether there are two folders or more in a folder, each with images in it, and none called as a split."""
    _, below, _ = next(walk(folder, on_error), (folder, [], []))
    inside = (next(walk(folder / name, on_error), (folder, [], []))[2] for name in below)
    return (
        len(below) > 1
        and not any(split_of(name)[0] for name in below)
        and all(any(Path(name).suffix.lower() in _IMAGES for name in names) for names in inside)
    )


def _has_classes(
    folder: Path,
    on_error: OnError,
    counts: Callable[[str], bool] = lambda suffix: suffix != ".parquet",
) -> bool:
    """Returns whether there are files of these kinds in the folders in a folder."""
    return any(
        counts(Path(name).suffix.lower())
        for parent, _, names in walk(folder, on_error)
        for name in names
        if parent != folder
    )


def refuse_both(folder: Path, tables: Iterable[str], classes: Iterable[str], subset: str | None = None) -> None:
    """Checks that what is meant in a folder is parquet files or class folders, and not both.

    Args:
        folder: the folder.
        tables: its sets of parquet files.
        classes: its sets of class folders.
        subset: the set that is meant, or None.

    Raises:
        UserError: it could be both.
    """
    if subset is not None:
        tables, classes = ({subset} & {*names} for names in (tables, classes))
    if tables and classes:
        raise UserError(
            f"{folder}: holds parquet files ({listed(tables)}) and class folders ({listed(classes)}); name the folder "
            "of one of them"
        )


def choose(folder: Path, sets: Sets[T], config: FolderConfig) -> Chosen[T]:
    """Returns the training and the test split that a recipe means.

    Args:
        folder: where the sets are.
        sets: what is there, at least one set.
        config: which of it is meant.

    Raises:
        UserError: there is no such set or split, or there are several that could be meant.
    """
    if config.subset is not None:
        if config.subset not in sets:
            raise UserError(f"{folder}: data.subset: there is no set {config.subset!r}{nearest(config.subset, sets)}")
        sets = {config.subset: sets[config.subset]}
    test = tested_split(str(folder), list(dict.fromkeys(split for each in sets.values() for split in each)), config)
    found = []
    for split in ("train", test) if test else ("train",):
        names = sorted(name for name, splits in sets.items() if split in splits)
        if len(names) > 1:
            raise UserError(
                f"{folder}: holds several sets with a {split} split ({listed(names)}); say which as data.subset = "
                f"{names[-1]!r}, or name a deeper folder"
            )
        found.append(names[0])
    notes = fallback_note(str(folder), test, config)
    if not test:
        return Chosen(sets[found[0]]["train"], (), "", notes)
    if found[0] != found[1]:
        notes += (f"{folder}: trains on {found[0]}, tests on {found[1]}",)
    return Chosen(sets[found[0]]["train"], sets[found[1]][test], test, notes)


def tested_split(name: str, present: Sequence[str], config: FolderConfig) -> str:
    """Returns the split to test on, or "" for a part of train, after checking that they are there.

    Raises:
        UserError: one of them is not.
    """
    wanted = config.test_split
    if "train" not in present:
        raise UserError(f"{name}: there is no train split (splits: {', '.join(present)})")
    if wanted is not None and wanted not in present:
        raise UserError(f"{name}: there is no split {wanted!r}{nearest(wanted, present)}")
    test = wanted or next((split for split in TEST_NAMES if split in present), None)
    if test is None and config.test_fraction is None:
        raise UserError(
            f"{name}: there is no test split (splits: {', '.join(present)}); set data.test_split, or "
            "data.test_fraction to test on a part of train"
        )
    return test or ""


def fallback_note(name: str, test: str, config: FolderConfig) -> tuple[str, ...]:
    """Returns a line that says what is tested on where that is not called test and no recipe asks for it."""
    if test == "train":
        return (f"{name}: tests on the images that it trains on, as data.test_split says",)
    if not test:
        return (
            f"{name}: there is no test split; tests on {config.test_fraction:.0%} of train, which are not trained on",
        )
    if test == "test" or config.test_split is not None:
        return ()
    return (f"{name}: there is no test split; tests on {test}",)
