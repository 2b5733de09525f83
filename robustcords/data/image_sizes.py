"""Sizes of images, read from a sample of them."""

from __future__ import annotations

from pathlib import Path

from robustcords.data.folder_tree import files_below

_LOOKED_AT = 200


def sizes_below(folder: Path) -> set[tuple[int, int]]:
    """Returns the widths and heights that images below a folder have, of some that are spread over it.

    What is no image is passed over: reading the data says so.
    """
    from PIL import Image

    files = files_below(folder) or []
    found = set()
    for file in files[:: max(1, len(files) // _LOOKED_AT)]:
        try:
            with Image.open(file) as image:
                found.add(image.size)
        except Exception:  # whatever a decoder raises is the fault of the file it was given
            continue
    return found
