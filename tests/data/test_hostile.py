"""Data sets that would harm, through the command line: one line that names the file, and no code runs."""

import io
import os
import pickle
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.command_line import call, settings

from robustcords.errors import UserError
from robustcords.storage import run_directory

MARKER = "code-ran"
READY = "the images were read"


class Opens:
    def __reduce__(self):
        return open, (MARKER, "w")


@pytest.fixture
def refusal(tmp_path, monkeypatch, capsys):
    """Gives the line with which a run on a data set ends, the last at the point where it would make its directory."""

    def stop(output, name):
        raise UserError(READY)

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROBUSTCORDS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr(run_directory, "create", stop)

    def run(name, **options):
        quick = {"model__width": 4, "train__precision": "fp32", "selector": "false", "bullet": "false"}
        answer = call(capsys, "run", "digits_mart", *settings(data__name=name, **quick, **options))
        assert not Path(MARKER).exists()
        assert (answer.status, "Traceback" in answer.err) == (2, False), answer
        line = answer.err.splitlines()[-1]
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return run


@pytest.mark.parametrize(
    ("name", "folder", "files"),
    [
        ("cifar10", "cifar-10-batches-py", [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta"]),
        ("cifar100", "cifar-100-python", ["train", "test", "meta"]),
    ],
)
def test_cifars_own_pickles_are_not_read_unless_they_are_the_known_ones(tmp_path, refusal, name, folder, files):
    (tmp_path / "set" / folder).mkdir(parents=True)
    for file in files:
        (tmp_path / "set" / folder / file).write_bytes(pickle.dumps(Opens()))
    assert refusal(name, data__path=tmp_path / "set").startswith(f"data {name!r}: not usable in ")


def chunk(kind, content):
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def enormous():
    """A PNG of 100 bytes that says it is 2 ** 31 - 1 pixels wide and high."""
    size = (2**31 - 1).to_bytes(4, "big")
    head = chunk(b"IHDR", size + size + bytes([8, 2, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"x" * 64)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Opens()), "not an image, or of a kind that Pillow does not know"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(code-ran) (w) file\n",
            "EPS files are programs, which are not executed; convert it to PNG",
        ),
        (enormous(), "Image size (4611686014132420609 pixels) exceeds limit of 178956970 pixels, could be "),
    ],
)
def test_images_that_would_run_or_fill_the_memory(class_folders, refusal, content, message):
    (class_folders / "train" / "dog" / "1.png").write_bytes(content)
    assert refusal(class_folders).startswith(f"{class_folders}/train/dog/1.png: {message}")


def test_every_mode_is_converted_as_documented(class_folders, refusal):
    for number, mode in enumerate(["1", "L", "LA", "P", "RGBA"]):
        Image.new(mode, (6, 5)).save(class_folders / "train" / "dog" / f"mode{number}.png")
    Image.fromarray(np.zeros((5, 6), np.uint16)).save(class_folders / "train" / "dog" / "grey16.png")
    assert refusal(class_folders) == READY
    Image.new("F", (6, 5)).save(class_folders / "train" / "dog" / "float.tiff")
    assert refusal(class_folders).startswith(f"{class_folders}/train/dog/float.tiff: images of mode 'F' are not ")


def test_odd_names_are_shown_in_one_line(class_folders, refusal):
    (class_folders / "train" / "dog" / "a\n\x1b[31m\udcff.png").write_bytes(b"x")
    assert refusal(class_folders).startswith(rf"{class_folders}/train/dog/a\n\x1b[31m\udcff.png: not an image")


def test_links_that_lead_back(class_folders, refusal):
    for name in ("one", "two"):
        (class_folders / "train" / "dog" / name).symlink_to(class_folders / "train" / "dog")
    assert "a link to a folder that contains it" in refusal(class_folders)


def test_devices_and_pipes_are_not_read(class_folders, refusal):
    os.mkfifo(class_folders / "train" / "dog" / "pipe")
    assert refusal(class_folders).endswith("train/dog/pipe: the file is empty")
    (class_folders / "train" / "dog" / "pipe").unlink()
    (class_folders / "train" / "dog" / "z.png").symlink_to("/dev/zero")
    assert refusal(class_folders).endswith("train/dog/z.png: the file is empty")


@pytest.mark.skipif(os.name == "nt", reason="permissions are Unix's")
def test_what_may_not_be_read_is_named_and_not_left_out(class_folders, refusal, monkeypatch):
    scandir = os.scandir

    def refuse(path="."):
        if Path(os.fspath(path)).name == "private":
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    (class_folders / "train" / "dog" / "private").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    place = class_folders / "train" / "dog" / "private"
    assert refusal(class_folders) == f"data '{class_folders}': cannot be read: {place}: Permission denied"


def png():
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"label": [0, 1, None, 1]}, "train.parquet, row 2: there is no label"),
        ({"label": [0, 1, float("nan"), 1]}, ", train split: column 'label' holds float64, not integers"),
        ({"label": ["a", "b", "a", "b"]}, ", train split: column 'label' holds string, not integers"),
        ({"label": [0, 1, -1, 1]}, "train.parquet, row 2: the label -1 is out of range (allowed: 0 and up)"),
        ({"label": pa.array([0, 1, 2**63 + 5, 1], pa.uint64())}, "train.parquet, row 2: the label 9223372036854775813"),
        ({"image": [png(), pickle.dumps(Opens()), png(), png()]}, "train.parquet, row 1: not an image"),
        ({"image": [{"bytes": None, "path": "/dev/zero"}] * 4}, "train.parquet, row 0: the file is empty"),
    ],
)
def test_tables_with_odd_cells(tmp_path, refusal, table, message):
    columns = {"image": [png()] * 4, "label": [0, 1, 0, 1], **table}
    (tmp_path / "set").mkdir()
    for split in ("train", "test"):
        pq.write_table(pa.table(columns), tmp_path / "set" / f"{split}.parquet")
    line = refusal(tmp_path / "set")
    assert line.startswith(f"{tmp_path}/set")
    assert message in line


def test_tables_with_odd_columns(tmp_path, refusal):
    (tmp_path / "set").mkdir()
    images, labels = pa.array([png()] * 2), pa.array([0, 1])
    good = pa.table({"image": images, "label": labels})
    pq.write_table(good, tmp_path / "set" / "test.parquet")
    for table, message in (
        (pa.table([images, labels, labels], names=["image", "label", "label"]), "there are two columns 'label'"),
        (pa.table({"im\nage": images, "label": labels}), r"no image column found (columns: im\nage, label)"),
        (good.replace_schema_metadata({"huggingface": "[" * 100_000}), "not a readable parquet file: "),
        (good.replace_schema_metadata({"huggingface": '{"info": 7}'}), "not a readable parquet file: "),
    ):
        pq.write_table(table, tmp_path / "set" / "train.parquet")
        assert message in refusal(tmp_path / "set")
