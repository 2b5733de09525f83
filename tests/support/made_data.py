"""Data sets on the disk, made for tests."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(brightness: int = 0, size: tuple[int, int] = (8, 8)) -> Image.Image:
    """Returns an image of one colour."""
    return Image.new("RGB", size, (brightness, brightness, brightness))


def png(brightness: int = 0) -> bytes:
    """Returns an encoded image of one colour."""
    buffer = io.BytesIO()
    picture(brightness).save(buffer, "PNG")
    return buffer.getvalue()


def table(file: Path, labels: Sequence[int], brightness: int = 0, names: Sequence[str] = ()) -> Path:
    """Writes a parquet file: an image of this brightness for each label; with names, as Hugging Face does."""
    file.parent.mkdir(parents=True, exist_ok=True)
    columns = pa.table({"image": [png(brightness) for _ in labels], "label": list(labels)})
    if names:
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
        cells = [{"bytes": png(brightness), "path": None} for _ in labels]
        columns = datasets.Dataset.from_dict({"image": cells, "label": list(labels)}, features=features).data.table
    pq.write_table(columns, file)
    return file


def class_folder(folder: Path, count: int, brightness: int = 0) -> Path:
    """Writes so many images of this brightness into a folder."""
    folder.mkdir(parents=True)
    for number in range(count):
        picture(brightness).save(folder / f"{number}.png")
    return folder


def classes_as_folders(root: Path, train: int = 2, test: int = 1, brightness: int = 0) -> Path:
    """Writes class folders of so many images, all alike: three classes that no model can tell apart."""
    for split, count in (("train", train), ("test", test)):
        for name in ("ant", "bee", "cat"):
            class_folder(root / split / name, count, brightness)
    return root
