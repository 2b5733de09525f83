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
from robustcords.errors import UserError
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


@pytest.mark.parametrize("storage", ["memory", "disk"])
@pytest.mark.parametrize("what", ["classes", "labels", "checks"])
def test_what_is_not_pixels_has_a_checksum_too(
    what: str, storage: str, class_folders: Path, decoded: list[Path], cache: Path
):
    expected = load(class_folders, storage=storage, workers=0).train
    (file,) = cache.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    length = 8 + int.from_bytes(content[:8], "little")
    places = {"classes": content.index(b"cat"), "labels": length, "checks": length + 6 * 8}
    content[places[what]] ^= 1
    file.write_bytes(content)
    found = load(class_folders, storage=storage, workers=0).train
    assert found.classes == expected.classes
    assert found.digest(torch.arange(6)) == expected.digest(torch.arange(6))
    assert len(decoded) == 2


def test_a_file_that_changes_while_it_is_decoded(class_folders: Path, monkeypatch: pytest.MonkeyPatch):
    file, read = class_folders / "train" / "cat" / "0.png", folders.read_class_folders

    def and_change(folder: Path, config: folders.FolderConfig) -> Splits:
        found = read(folder, config)
        file.write_bytes((class_folders / "train" / "dog" / "0.png").read_bytes())
        return found

    with monkeypatch.context() as patched:
        patched.setattr(folders, "read_class_folders", and_change)
        load(class_folders)
    expected = load(class_folders, cache=False).train
    assert torch.equal(load(class_folders).train.images, expected.images)


def test_a_folder_is_the_same_by_any_of_its_names(
    class_folders: Path, tmp_path: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "link").symlink_to(class_folders)
    monkeypatch.chdir(class_folders.parent)
    for path in (class_folders, tmp_path / "link", class_folders.name):
        loaded(data.source(str(class_folders))(name="photographs", path=str(path)))
    assert len(decoded) == 1


def test_a_link_to_nothing_is_a_corrupt_image(class_folders: Path, decoded: list[Path]):
    link = class_folders / "train" / "cat" / "9.png"
    link.symlink_to("nowhere.png")
    with pytest.raises(UserError, match=rf"^{link}: "):
        load(class_folders)
    for _ in range(2):
        (warning,) = load(class_folders, skip_corrupt=True).warnings
        assert f"1 of 7 images cannot be read and are left out (data.skip_corrupt), the first of them {link}" in warning
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
