"""Walks a data folder, skipping files that belong to no data set, and reads split names from paths."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from robustcords.errors import UserError

_BY_THE_SYSTEM = {
    "$recycle.bin",
    "@eadir",
    "__macosx",
    "__pycache__",
    "desktop.ini",
    "lost+found",
    "system volume information",
    "thumbs.db",
}
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder is left out: hidden, or put there by a system and not by a person."""
    return name.startswith(".") or name.casefold() in _BY_THE_SYSTEM


def walk(
    folder: Path, on_error: Callable[[OSError], object] | None = None
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yields every folder that is not hidden with the names of the folders and files in it, sorted.

    Links are followed. A name that is removed from the list of folders is not descended into.

    Args:
        folder: where to begin; it may be hidden itself.
        on_error: what to do about a folder that cannot be read; left out, the error is raised.

    Raises:
        UserError: a link leads back to a folder that it is in, which would never end.
        OSError: a folder cannot be read.
    """
    for place, below, names in os.walk(folder, onerror=on_error or _raise, followlinks=True):
        below[:] = sorted(name for name in below if not is_hidden(name))
        parent = Path(place)
        _refuse_circle(folder, parent, below)
        yield parent, below, sorted(name for name in names if not is_hidden(name))


def paths_below(folder: Path) -> Iterator[str]:
    """Yields all files below a folder that are not hidden, a folder's own before those of the folders in it.

    They are texts: a million objects would take longer to make than to list.

    Raises:
        UserError, OSError: as `walk`.
    """
    for parent, _, names in walk(folder):
        before = f"{parent}{os.sep}"
        yield from [before + name for name in names]


def files_below(folder: Path) -> list[str] | None:
    """Returns all files below a folder that are not hidden; None where it cannot be read, which a reader will tell."""
    try:
        return list(paths_below(folder))
    except (OSError, UserError):
        return None


def split_of(name: str) -> tuple[str | None, str]:
    """Returns the split that a name says it is of, and the rest of the name.

    For example ``("train", "")`` for ``"Training"``, ``("test", "fog-3")`` for ``"fog-test-3"``, ``(None, "cats")`` for
    ``"cats"``. The first word that names a split counts, in any case of letters.
    """
    for word in re.finditer("[A-Za-z]+", name):
        if split := _SPLITS.get(word[0].lower()):
            around = (part.strip(" ._-") for part in (name[: word.start()], name[word.end() :]))
            return split, "-".join(part for part in around if part)
    return None, name


def _raise(error: OSError) -> None:
    raise error


def _refuse_circle(top: Path, parent: Path, below: list[str]) -> None:
    """Checks that no folder in a folder leads back to one above it, also by way of other links."""
    for name in below:
        inner = parent / name
        if not inner.is_symlink():
            continue
        target = inner.resolve()
        steps = parent.relative_to(top).parts
        above = (top.joinpath(*steps[:depth]).resolve() for depth in range(len(steps) + 1))
        if any(place.is_relative_to(target) for place in above):
            raise UserError(f"{inner}: a link to a folder that contains it")
