"""Disks that are full or read-only, for real: one line, earlier checkpoints as they were, and the run goes on later."""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.digits_run import RECIPE, rows
from support.forked_run import begin, finish, log, statuses, wait_for

from robustcords.errors import RunError
from robustcords.experiments import run as experiment
from robustcords.report.run_report import Report
from robustcords.storage.checkpoint import Checkpoints
from robustcords.storage.run_directory import RunDirectory

resource: Any = pytest.importorskip("resource", reason="limits as POSIX has them")

FULL = {
    "step": r"(checkpoints/\.step_\d+(/\S+)?|weights/best\.safetensors|selections/\S+|metrics\.jsonl)",
    "selection": r"selections/epoch_000\d\.npz",
    "evaluation": r"(evaluation/(best|last)(/\w+\.json)?|report\.md)",
}


def ended(folder: Path) -> str:
    """Returns the last line that was written, the only one with an error in it."""
    said = log(folder)
    (folder / "log.txt").unlink()
    assert "Traceback" not in said
    assert said.count("error") == 1
    return said.splitlines()[-1]


def no_file_above(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_no_room_for_a_checkpoint(tmp_path: Path):
    [process] = begin(tmp_path, prepare=partial(no_file_above, 10_000))
    assert statuses([process]) == [1], log(tmp_path)
    file = r"run/checkpoints/\.step_\d+/tensors\.safetensors"
    assert re.fullmatch(rf"error: {file}: cannot be written \(File too large\)", ended(tmp_path))
    assert not list((tmp_path / "run" / "checkpoints").iterdir()), "what there was no room for takes none"


@pytest.mark.parametrize(("name", "made"), [("fsync", ()), ("replace", ()), ("fsync", ("report.md",))])
def test_no_room_for_the_report(name: str, made: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The run is not taken for a finished one."""
    owner, left = (os if name == "fsync" else Path), [*made]
    original = getattr(owner, name)

    def full(*arguments: Any) -> Any:
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if name == "fsync" and stat.S_ISDIR(os.fstat(arguments[0]).st_mode):
            left.pop()
        return original(*arguments)

    monkeypatch.setattr(owner, name, full)
    monkeypatch.setattr(experiment, "markdown", lambda _: "a report")
    directory = RunDirectory(tmp_path)
    file = "report.json" if made else "report.md"
    with pytest.raises(RunError, match=rf"^{tmp_path}/{file}: cannot be written \(No space left on device\)$"):
        experiment.write_report(directory, Report.model_construct())
    assert not directory.finished
    assert tuple(path.name for path in tmp_path.iterdir()) == made


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(place)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def test_a_disk_that_fills_up_or_is_read_only(small_disk: Path, tmp_path: Path):
    what = ("run", *RECIPE, "--output", "disk/run", "--resume")
    run = small_disk / "run"
    for phase, file in FULL.items():
        [process] = begin(tmp_path, what=what)
        wait_for(phase, process, tmp_path)
        fill(small_disk)
        assert statuses([process]) == [1], log(tmp_path)
        text = ended(tmp_path)
        assert re.fullmatch(rf"error: disk/run/{file}: cannot be written \(No space left on device\)", text), phase
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert Checkpoints(run / "checkpoints").latest() or phase == "step"
        (small_disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    [process] = begin(tmp_path, what=what)
    assert statuses([process]) == [2], log(tmp_path)
    assert ended(tmp_path) == "error: disk/run: cannot be written (Read-only file system)"
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    finish(begin(tmp_path, what=what), tmp_path)
    assert [row["epoch"] for row in rows(run)] == list(range(6))
    assert (run / "report.json").exists()
