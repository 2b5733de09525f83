"""Decoded images that are kept between runs: the same ones, decoded once, and never those of other files."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path
from threading import Thread

import pytest
import torch
from filelock import FileLock
from support.several import together

from robustcords import data
from robustcords.data import cache as kept
from robustcords.data import decoded_file
from robustcords.data import folder as folders
from robustcords.data.base import Splits
from robustcords.data.loading import loaded
from robustcords.runtime import progress
from robustcords.runtime.progress import Display, verbatim


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROBUSTCORDS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "decoded"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that have been decoded so far."""
    read, found = folders.read_class_folders, list[Path]()
    monkeypatch.setattr(
        folders, "read_class_folders", lambda folder, config: found.append(folder) or read(folder, config)
    )
    return found


def load(root: Path, **options: object) -> Splits:
    return loaded(data.source(str(root))(name=str(root), **options))


def test_images_are_decoded_once(class_folders: Path, decoded: list[Path], cache: Path):
    first, again = load(class_folders), load(class_folders)
    assert len(decoded) == 1
    for one, other in ((first.train, again.train), (first.test, again.test)):
        assert torch.equal(one.images, other.images)
        assert one.images.dtype == other.images.dtype == torch.uint8
        assert torch.equal(one.labels, other.labels)
        assert one.classes == other.classes
    assert (first.notes, first.warnings) == (again.notes, again.warnings)
    assert [path.suffix for path in sorted(cache.iterdir())] == [".lock", ".safetensors"]


@pytest.mark.parametrize("change", ["another file", "another time", "one more", "one less", "another size of images"])
def test_other_images_are_decoded_anew(change: str, class_folders: Path, decoded: list[Path]):
    load(class_folders)
    file, options = class_folders / "train" / "cat" / "0.png", {}
    match change:
        case "another file":
            file.write_bytes((class_folders / "train" / "dog" / "0.png").read_bytes())
        case "another time":
            os.utime(file, ns=(1, 1))
        case "one more":
            (file.parent / "9.png").write_bytes(file.read_bytes())
        case "one less":
            file.unlink()
        case _:
            options = {"image_size": 4}
    images = load(class_folders, **options).train
    assert len(decoded) == 2
    expected = folders.Folder(name=str(class_folders), **options).load().train
    assert torch.equal(images.images, expected.images)


@pytest.mark.parametrize("content", [b"", b"no tensors", None])
def test_a_damaged_file_is_written_anew(content: bytes | None, class_folders: Path, decoded: list[Path], cache: Path):
    expected = load(class_folders)
    (file,) = cache.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] if content is None else content)
    assert torch.equal(load(class_folders).train.images, expected.train.images)
    load(class_folders)
    assert len(decoded) == 2


def test_nothing_is_kept_where_nobody_wants_it(class_folders: Path, cache: Path):
    load(class_folders, cache=False)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_none(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[Path]
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ROBUSTCORDS_CACHE", str(tmp_path / "file" / "cache"))
    assert len(load(class_folders).train) == len(load(class_folders).train) == 6
    assert len(decoded) == 2


def many(rank: int, root: str, cache: str) -> None:
    os.environ["ROBUSTCORDS_CACHE"] = cache
    assert len(load(Path(root)).train) == 6


def test_several_processes_keep_one_whole_file(class_folders: Path, tmp_path: Path, cache: Path):
    together(many, 3, str(class_folders), str(tmp_path / "cache"))
    assert len(list(cache.glob("*.safetensors"))) == 1
    assert not list(cache.glob(".*"))


def test_what_takes_long_is_said(class_folders: Path, monkeypatch: pytest.MonkeyPatch):
    """Another process that decodes the same images is waited for; then decoding them takes a while."""
    monkeypatch.setattr(kept, "_MOMENT", 0.0)
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    monkeypatch.setattr(decoded_file, "_AT_ONCE", 4)
    source, text = data.source(str(class_folders))(name=str(class_folders)), io.StringIO()
    path = kept._path(source)
    path.parent.mkdir(parents=True)
    with FileLock(path.with_suffix(".lock")):
        waiting = Thread(target=loaded, args=(source, Display(console=verbatim(file=text))))
        waiting.start()
        end = time.monotonic() + 20
        while "\n" not in text.getvalue() and time.monotonic() < end:
            time.sleep(0.01)
    waiting.join()
    assert path.exists()
    assert text.getvalue().splitlines() == [
        f"waiting for another process, which is decoding the same images into {path}",
        "decoding images: 4 of 10, 0 s to go",
        "decoding images: 6 of 10, 0 s to go",
    ]
