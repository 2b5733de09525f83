"""Images that stay on disk: the same as in memory, whichever way they are read."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data._utils import signal_handling

from robustcords import data
from robustcords.data import cache, parquet, storage, tables
from robustcords.data.base import Splits
from robustcords.data.decoded_file import DecodedPixels
from robustcords.data.decoder import Decoder
from robustcords.data.images import ImageSet
from robustcords.data.loading import loaded
from robustcords.data.on_disk import on_disk
from robustcords.data.rows import Paths
from robustcords.errors import RunError, UserError
from robustcords.runtime import signals

WAYS = {"kept": {"cache": True}, "decoded": {"cache": False}}


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROBUSTCORDS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "decoded"


def load(root: Path, **options: object) -> Splits:
    return loaded(data.source(str(root))(name=str(root), workers=0, **options))


def table(root: Path, pixels: np.ndarray) -> Path:
    """Writes images in row groups of two, the first one grey."""
    root.mkdir()
    for split, rows in (("train", pixels[:6]), ("test", pixels[6:])):
        encoded = []
        for number, array in enumerate(rows):
            buffer = io.BytesIO()
            Image.fromarray(array[..., 0] if number == 0 else array).save(buffer, "PNG")
            encoded.append(buffer.getvalue())
        columns = pa.table({"image": encoded, "label": [number % 2 for number in range(len(rows))]})
        pq.write_table(columns, root / f"{split}.parquet", row_group_size=2)
    return root


@pytest.fixture(params=["folders", "grey folders", "table", "parted"])
def source(request: pytest.FixtureRequest, tmp_path: Path, pixels: np.ndarray, class_folders: Path):
    """A folder of images, and the options that it needs."""
    match request.param:
        case "table":
            return table(tmp_path / "table", pixels), {}
        case "parted":
            (class_folders / "test").rename(tmp_path / "elsewhere")
            return class_folders, {"test_fraction": 0.4}
        case "grey folders":
            for number, file in enumerate(sorted(class_folders.rglob("*.png"))):
                with Image.open(file) as image:
                    image.convert("I;16" if number else "L").save(file)
    return class_folders, {"image_size": 4}


@pytest.mark.parametrize("way", WAYS)
def test_the_images_are_the_same_on_disk_as_in_memory(way: str, source):
    root, options = source
    expected = load(root, storage="memory", cache=False, **options)
    found = load(root, storage="disk", **WAYS[way], **options)
    for one, other in ((expected.train, found.train), (expected.test, found.test)):
        assert isinstance(one, ImageSet)
        stays = on_disk(other)
        assert stays
        assert isinstance(stays.reader, DecodedPixels if way == "kept" else Decoder)
        assert (one.shape, one.classes) == (other.shape, other.classes)
        assert torch.equal(one.labels, other.labels)
        rows = torch.randperm(len(one), generator=torch.Generator().manual_seed(0))
        assert one.digest(rows) == other.digest(rows)
        assert other.resident(torch.device("meta")) is other
        for (x, y), (x_, y_) in zip(
            one.batches([[1, 0], [1]], "cpu"), other.batches([[1, 0], [1]], "cpu"), strict=True
        ):
            assert torch.equal(x, x_)
            assert torch.equal(y, y_)
    assert found.notes[: len(expected.notes)] == expected.notes


def test_a_kept_file_serves_memory_and_disk(class_folders: Path, monkeypatch: pytest.MonkeyPatch):
    expected = load(class_folders, storage="memory")
    monkeypatch.setattr(Decoder, "read", None)
    assert load(class_folders, storage="disk").train.digest(torch.arange(6)) == expected.train.digest(torch.arange(6))
    (file,) = cache.cache_folder().glob("decoded/*.safetensors")
    from safetensors.torch import load_file  # what others read it with

    assert torch.equal(load_file(file)["train.images"], expected.train.images)


def test_workers_read_ahead_and_serve_one_after_another(class_folders: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    signal_handling._set_SIGCHLD_handler()  # as any loader with workers before has done
    images = load(class_folders, storage="disk", cache=False).train
    stays = on_disk(images)
    stays.workers = 1
    parts = [[0, 1], [5], [3, 2], [4]]
    expected = [images.batch(torch.tensor(rows))[0] for rows in parts]
    before = torch.get_rng_state()
    others = set(psutil.Process().children())
    first = images.batches(parts, "cpu")
    found = [next(first)[0], next(first)[0]]
    # Another reads in between, is left off in the middle, and a third one is served in whole.
    assert torch.equal(next(images.subset(torch.tensor([4, 2])).batches([[1], [0]], "cpu"))[0], images[2][0][None])
    assert [len(y) for _, y in images.batches([[1, 2, 3], [0]], "cpu")] == [3, 1]
    found += [x for x, _ in first]
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    [worker] = set(psutil.Process().children()) - others
    reading = images.batches([[0]] * 20, "cpu")
    next(reading)
    worker.kill()
    with pytest.raises(
        RunError, match=r"a process that reads images has died .*; data\.workers = 0 works without them"
    ):
        list(reading)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("fault", ["gone", "cut short", "another size"])
def test_a_file_that_cannot_be_read_any_more_is_named(fault: str, workers: int, class_folders: Path):
    images = load(class_folders, storage="disk", cache=False).train
    on_disk(images).workers = workers
    file = class_folders / "train" / "dog" / "1.png"
    match fault:
        case "gone":
            file.unlink()
        case "cut short":
            file.write_bytes(file.read_bytes()[:60])
        case _:
            Image.new("RGB", (9, 9)).save(file)
    with pytest.raises(UserError) as error:
        list(images.batches([[0], [4]], "cpu"))
    assert str(file) in str(error.value)
    assert len(error.value.lines) == 1


@pytest.mark.parametrize("change", ["gone", "other columns", "fewer groups", "other groups", "damaged"])
def test_a_table_that_changes_is_named(
    change: str, tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tables, "_KEPT_BYTES", 0)
    images = load(table(tmp_path / "table", pixels), storage="disk", cache=False).train
    file = tmp_path / "table" / "train.parquet"
    columns = pq.read_table(file)
    match change:
        case "gone":
            file.unlink()
        case "other columns":
            pq.write_table(columns.rename_columns(["picture", "class"]), file, row_group_size=2)
        case "fewer groups":
            pq.write_table(columns.slice(0, 2), file)
        case "other groups":
            pq.write_table(columns, file, row_group_size=1)
        case _:
            content = bytearray(file.read_bytes())
            content[4:-1000] = bytes(len(content) - 1004)
            file.write_bytes(content)
    with pytest.raises(UserError, match=f"^{file}: cannot be read: ") as error:
        images.batch(torch.tensor([4]))
    assert len(error.value.lines) == 1


@pytest.mark.parametrize("storage", ["disk", "memory"])
def test_a_table_that_is_rewritten_before_it_is_read(
    storage: str, tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    root, splits = table(tmp_path / "table", pixels), parquet.splits

    def and_rewrite(*its: object) -> Splits:
        pq.write_table(pq.read_table(root / "train.parquet").slice(0, 4), root / "train.parquet")
        return splits(*its)

    monkeypatch.setattr(parquet, "splits", and_rewrite)
    with pytest.raises(UserError, match=rf"^{root}/train\.parquet: cannot be read: it has 4 rows, where it had 6$"):
        load(root, storage=storage)


@pytest.mark.parametrize("storage", ["disk", "memory"])
def test_a_damaged_cache(storage: str, class_folders: Path, kept: Path):
    """One that is damaged before a run is made anew where the whole of it is read; later, the damage is named."""
    images = load(class_folders, storage="disk").train
    expected = images.digest(torch.arange(6))
    (file,) = kept.glob("*.safetensors")
    with file.open("r+b") as opened:
        opened.seek(-260, os.SEEK_END)  # in the second image of the test set, of four
        opened.write(b"\x00" * 50)
    assert images.digest(torch.arange(6)) == expected
    again = load(class_folders, storage=storage)
    if storage == "disk":
        with pytest.raises(UserError, match=rf"{file}: damaged at image 1; delete it to have it decoded again"):
            again.test.digest(torch.arange(4))
    else:
        assert again.test.digest(torch.arange(4)) == load(class_folders, cache=False).test.digest(torch.arange(4))


def test_a_disk_that_fails(class_folders: Path, kept: Path, monkeypatch: pytest.MonkeyPatch):
    def failing(*_: object) -> int:
        raise OSError(5, "Input/output error")

    images = load(class_folders, storage="disk").train
    monkeypatch.setattr("robustcords.data.decoded_file.os.preadv", failing)
    (file,) = kept.glob("*.safetensors")
    with pytest.raises(UserError, match=rf"^{file}: image 3 cannot be read \(Input/output error\)$"):
        images.batch(torch.tensor([3]))


def test_a_run_keeps_the_file_that_it_began_with(class_folders: Path, kept: Path):
    images = load(class_folders, storage="disk").train
    expected = images.digest(torch.arange(6))
    (file,) = kept.glob("*.safetensors")
    file.unlink()
    os.utime(class_folders / "train" / "cat" / "0.png", ns=(1, 1))
    load(class_folders, storage="disk")
    assert images.digest(torch.arange(6)) == expected


@pytest.mark.parametrize("wanted", ["disk", "auto"])
def test_a_full_disk(wanted: str, class_folders: Path, kept: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storage, "free_memory", lambda: 0)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: os.statvfs_result((0,) * 10) and type("", (), {"free": 10}))
    if wanted == "auto":
        found = load(class_folders)
        assert isinstance(on_disk(found.train).reader, Decoder)
        assert found.notes[-1].endswith("10 images, 0.9 kB decoded, stay on disk, and are decoded when they are read")
        return
    message = (
        rf"data\.storage = 'disk': {kept}: 0\.9 kB of decoded images cannot be written \(No space left on device\); "
        r"ROBUSTCORDS_CACHE names another folder, and data\.cache = false decodes them as they are read"
    )
    with pytest.raises(UserError, match=f"^{message}$"):
        load(class_folders, storage="disk")


def test_a_disk_that_fills_up_while_it_is_written_is_left_as_it_was(
    class_folders: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("robustcords.data.decoded_file.os.fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        load(class_folders, storage="disk")
    assert [file.suffix for file in kept.iterdir()] == [".lock"]


def test_a_signal_leaves_nothing_of_a_file_that_is_being_written(
    class_folders: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
):
    def exits(status: int) -> None:
        left = [file.suffix for file in kept.iterdir()]
        raise SystemExit(f"{status} {left}")

    monkeypatch.setattr(signals.os, "_exit", exits)
    monkeypatch.setattr("robustcords.data.decoded_file.os.fsync", lambda _: signals.end(signal.SIGINT))
    with pytest.raises(SystemExit, match=r"^130 \['\.lock'\]$"):
        load(class_folders, storage="disk")
    assert not signals.UNFINISHED


def test_what_a_killed_process_left_is_written_over(class_folders: Path, kept: Path):
    load(class_folders, storage="disk")
    (file,) = kept.glob("*.safetensors")
    expected = file.read_bytes()
    file.rename(file.with_suffix(".part"))
    with file.with_suffix(".part").open("r+b") as part:
        part.truncate(300)
    load(class_folders, storage="disk")
    assert file.read_bytes() == expected
    assert not file.with_suffix(".part").exists()


def test_where_images_are_follows_from_the_memory(class_folders: Path, monkeypatch: pytest.MonkeyPatch):
    size = 10 * 3 * 5 * 6
    for free, stays in ((4 * size, False), (4 * size - 4, True)):
        monkeypatch.setattr(storage, "free_memory", lambda free=free: free)
        assert bool(on_disk(load(class_folders, cache=False).train)) is stays
    assert not on_disk(load(class_folders, storage="memory").train)


def test_free_memory_is_that_of_the_container_and_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storage, "_CGROUPS", tmp_path)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert storage.free_memory() > 10_000
    (tmp_path / "memory.max").write_text("9000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert storage.free_memory() == 8000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert storage.free_memory() == 4000
    (tmp_path / "memory.max").write_text("max\n")
    assert storage.free_memory() > 10_000


def test_row_groups_are_kept_while_there_is_room(tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    rows = on_disk(load(table(tmp_path / "table", pixels), storage="disk", cache=False).train).reader.rows
    rows._kept.clear()
    asked = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda *its, **how: asked.append(its[1]) or read(*its, **how))
    expected = {row: rows.items([row])[0] for row in range(6)}
    assert asked == [0, 1, 2]
    rows.items([4, 0, 2, 5])
    assert asked == [0, 1, 2]
    largest = max(each.nbytes for each in rows._kept.values())
    monkeypatch.setattr(tables, "_KEPT_BYTES", 2 * largest)
    rows._kept.clear()
    asked.clear()
    assert rows.items([0, 2, 1, 4, 0, 2]) == [expected[row] for row in (0, 2, 1, 4, 0, 2)]
    assert asked == [0, 1, 2, 1]  # the one asked for longest ago has gone
    monkeypatch.setattr(tables, "_KEPT_BYTES", 0)
    assert rows.items([0, 5]) == [expected[0], expected[5]]


def test_paths_in_one_block():
    names = ["/a/é", "/b", "", "/c/\udcff.png"]
    assert list(Paths(names)) == names
