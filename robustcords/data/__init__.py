"""Data sets, and lookup by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from robustcords.config import registry
from robustcords.data.catalogue import SETS
from robustcords.errors import UserError, listed, nearest

if TYPE_CHECKING:
    from robustcords.data.base import DataSource

DATA = {
    "digits": "robustcords.data.digits:Digits",
    **dict.fromkeys(SETS, "robustcords.data.vision:Vision"),
}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def source(name: str) -> type[DataSource]:
    """Returns the class that reads a data set, which is then built as ``source(name)(name=name, **options)``.

    Args:
        name: in this order of precedence: a registered name; a folder that holds parquet files or class folders;
            ``"package.module:Class"``, which imports, and so executes, that module; or a Hugging Face hub id
            ``"owner/dataset"``. A folder whose name is registered is reached as ``"./name"``.

    Raises:
        UserError: the name is none of these, or the folder holds no images in either form.
    """
    folder = Path(name).expanduser()
    if name in DATA or (":" in name and not folder.is_dir()):
        return _checked(name)
    if folder.is_dir():
        return _reader(name, folder)
    if _HUB_ID.fullmatch(name):
        from robustcords.data.parquet import Parquet

        return Parquet
    if "/" in name or "\\" in name:
        raise UserError(f"data {name!r}: there is no such folder, and a hub id has the form 'owner/dataset'")
    raise UserError(f"unknown data {name!r}{nearest(name, DATA)}, or a folder, or a hub id 'owner/dataset'")


def _checked(name: str) -> type[DataSource]:
    """Returns the class that a registered name or ``"package.module:Class"`` stands for."""
    from robustcords.data.base import DataSource

    found = registry.find("data", name)
    if not (isinstance(found, type) and issubclass(found, DataSource)):
        raise UserError(f"data {name!r}: not a subclass of robustcords.data.base:DataSource")
    return found


def _reader(name: str, folder: Path) -> type[DataSource]:
    """Returns the class for what a folder holds."""
    from robustcords.data.folder import Folder
    from robustcords.data.folder_tree import walk
    from robustcords.data.parquet import Parquet
    from robustcords.data.sets import class_sets, parquet_files, parquet_sets, refuse_both

    def pass_over(error: OSError) -> None:
        """Leaves what cannot be read to the reader, which says so."""

    classes = class_sets(folder, pass_over)
    refuse_both(folder, parquet_sets(folder, pass_over), classes)
    if classes:
        return Folder
    if parquet_files(folder, pass_over):
        return Parquet
    _, folders, names = next(walk(folder, pass_over), (folder, [], []))
    raise UserError(
        f"data {name!r}: the folder holds neither parquet files (train-*.parquet, test-*.parquet) nor class folders "
        f"(train/CLASS/*.png, test/CLASS/*.png, or CLASS/*.png); it holds {listed([*folders, *names]) or 'nothing'}"
    )
