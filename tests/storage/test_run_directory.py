"""The files of a run, and which directories may be used for one."""

from __future__ import annotations

import json
import os
import pickle
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from support import system_fsync

from robustcords.errors import UserError
from robustcords.storage.files import write_atomic
from robustcords.storage.run_directory import RunDirectory, create, newest


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def started(path: str = "run") -> RunDirectory:
    run = RunDirectory(create(Path(path), "name"))
    run.start("seed = 1\n", {"seed": 1})
    return run


def test_names_are_numbered_and_never_given_out_twice():
    assert [str(create(None, "mine")) for _ in range(3)] == ["runs/mine", "runs/mine-2", "runs/mine-3"]
    assert str(create(None, "other")) == "runs/other"
    Path("runs/mine-10").mkdir()
    Path("runs/mine-final").mkdir()
    assert str(newest("mine")) == "runs/mine-10"
    assert newest("nothing") is None


def test_a_named_directory_has_to_be_free():
    assert create(Path("a/b"), "name") == Path("a/b")
    assert create(Path("a/b"), "name") == Path("a/b"), "an empty folder may be used"
    started("taken")
    with pytest.raises(UserError, match=r"--output taken: already holds a run; .* or continue with --resume"):
        create(Path("taken"), "name")
    with pytest.raises(UserError, match="--output a: the directory is not empty; name another"):
        create(Path("a"), "name")
    Path("file").write_text("mine")
    with pytest.raises(UserError, match="--output file: that is a file"):
        create(Path("file"), "name")
    with pytest.raises(UserError, match="file/below: cannot be written"):
        create(Path("file/below"), "name")
    assert Path("file").read_text() == "mine"


def test_what_a_crash_in_the_first_write_left_is_in_nobodys_way():
    Path("run").mkdir()
    Path("run/.recipe.toml.abcd1234").write_text("seed")
    assert started().recipe.read_text() == "seed = 1\n"


@pytest.mark.parametrize("content", [b"", b'{"seed": 1', b"[1]", b"7", b"\xff\xfe{"])
def test_damaged_files_are_named_in_one_line(content: bytes):
    run = started()
    (run.path / "environment.json").write_bytes(content)
    for read in (run.environment, lambda: run.start("seed = 1\n", {})):
        with pytest.raises(UserError, match=r"^run/environment\.json: damaged: not a JSON object \(.*\)$"):
            read()
    (run.path / "environment.json").unlink()
    with pytest.raises(UserError, match=r"^run/environment\.json: cannot be read \(No such file or directory\)$"):
        run.environment()


def test_starting_again_writes_only_what_is_missing():
    run = started()
    (run.path / "environment.json").unlink()
    run.start("seed = 2\n", {"seed": 2})
    assert run.recipe.read_text() == "seed = 1\n"
    assert run.environment() == {"seed": 2}


def test_only_the_process_that_writes_does():
    path = create(Path("run"), "name")
    run = RunDirectory(path, writes=False)
    run.start("seed = 1\n", {})
    run.add_row({"epoch": 0, "seconds": {}})
    run.save_selection(0, torch.arange(2), torch.ones(2))
    run.keep_rows([])
    assert list(path.iterdir()) == []


def test_metrics_are_kept_up_to_an_epoch_and_a_cut_line_is_dropped():
    run = started()
    assert run.rows() == []
    for epoch in range(4):
        run.add_row({"epoch": epoch, "seconds": {}, "train_loss": epoch / 3})
    with run.metrics.open("a") as file:
        file.write('{"epoch": 4, "train')
    assert [row["epoch"] for row in run.rows()] == [0, 1, 2, 3]
    run.keep_rows([0, 1])
    run.add_row({"epoch": 2, "seconds": {}})
    assert [json.loads(line)["epoch"] for line in run.metrics.read_text().splitlines()] == [0, 1, 2]
    assert run.rows()[1]["train_loss"] == 1 / 3
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.add_row({"epoch": 3, "seconds": {}, "train_loss": float("nan")})


def test_what_is_written_is_on_the_disk_before_a_run_goes_on(monkeypatch: pytest.MonkeyPatch):
    run, synced = started(), []

    def fsync(descriptor: int) -> None:
        system_fsync(descriptor)
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append("folder" if folder else os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomic(Path("file"), "some text")
    assert synced == [9, "folder"]
    run.add_row({"epoch": 0, "seconds": {}, "train_loss": 0.5})
    assert synced[2:] == [run.metrics.stat().st_size]


class Opens:
    """A pickle that makes a file where it is read."""

    def __reduce__(self):
        return open, ("opened", "w")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY", pickle.dumps(Opens())])
def test_a_damaged_selection_is_named_in_one_line_and_runs_nothing(content: bytes):
    run = started()
    run.save_selection(0, torch.arange(2), torch.ones(2))
    (run.path / "selections" / "epoch_0001.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"^run/selections/epoch_0001\.npz: damaged: not a selection \(.*\)$"):
        run.selections()
    assert not Path("opened").exists()


def test_selections_have_the_contracts_names_and_types():
    run = started()
    run.save_selection(20, torch.tensor([7, 5], dtype=torch.int32), torch.tensor([0.5, 2.0], dtype=torch.float64))
    run.save_selection(0, torch.arange(3), torch.ones(3))
    assert run.selections() == [{"epoch": 0, "size": 3}, {"epoch": 20, "size": 2}]
    with np.load(run.path / "selections" / "epoch_0020.npz", allow_pickle=False) as content:
        assert (content["indices"].dtype, content["weights"].dtype) == (np.int64, np.float32)
        assert content["indices"].tolist() == [7, 5]
        assert content["weights"].tolist() == [0.5, 2.0]
