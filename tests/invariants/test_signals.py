"""SIGINT and SIGTERM stop every command in good order, a later second one at once; never with a traceback."""

from __future__ import annotations

import ctypes
import signal
import sys
import time
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from support.command_line import start
from support.digits_run import AUTOATTACK
from support.forked_run import RUN, begin, log, send, statuses, wait_for
from support.phases import PHASES, page

from robustcords.errors import signal_name
from robustcords.runtime.signals import SAME_S
from robustcords.storage.checkpoint import Checkpoints

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")

INT, TERM = signal.SIGINT, signal.SIGTERM


def late_in(phase: str) -> None:
    """Lets an hour pass when the process comes to a phase."""
    from robustcords.runtime import interruption

    shared, now = page(Path("phase_0")), time.monotonic
    interruption.time.monotonic = lambda: now() + 3600 * (PHASES[shared[0]] == phase)


@pytest.mark.parametrize("phase", ["selection", "validation", "AutoAttack"])
def test_the_time_limit_counts_everything(phase: str, tmp_path: Path):
    options = (AUTOATTACK, "--set=train.time_limit=1 h", "--set=train.epochs=3")
    [process] = begin(tmp_path, *options, prepare=partial(late_in, phase))
    assert statuses([process]) == [75], log(tmp_path)
    assert log(tmp_path).splitlines()[-1] == "error: stopped at train.time_limit; continue with --resume"
    assert "Traceback" not in log(tmp_path)


def deadlock(*_: Any, **__: Any) -> None:
    """Waits for ever, where Python calls no handlers of signals."""
    page(Path("phase_0"))[0] = len(PHASES)
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)


def stuck_in(place: str) -> None:
    from robustcords.evaluation.attacks import autoattack
    from robustcords.experiments import build
    from robustcords.selection.selector import SubsetSelector
    from robustcords.training.trainer import Trainer

    owners = {"data": build, "train_step": Trainer, "select": SubsetSelector, "run": autoattack}
    setattr(owners[place], place, deadlock)


def stuck(folder: Path, place: str, world: int = 1) -> list[ForkServerProcess]:
    options = (AUTOATTACK, "--set=train.epochs=1", "--set=selector.select_first=true" if place == "select" else "")
    return begin(folder, *filter(None, options), prepare=partial(stuck_in, place), world=world)


def is_stuck(processes: list[ForkServerProcess], folder: Path) -> None:
    while processes[0].is_alive() and page(folder / "phase_0")[0] != len(PHASES):
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="a mutex is not the same size everywhere")
def test_a_later_second_signal_ends_a_run_at_once_whatever_it_is_deep_in(tmp_path: Path):
    places = ("train_step", "select", "run")
    all_of = {place: stuck(tmp_path / place, place)[0] for place in places}
    for place, process in all_of.items():
        is_stuck([process], tmp_path / place)
    everyone = list(all_of.values())
    send(INT, *everyone)
    time.sleep(SAME_S / 2)
    send(TERM, *everyone)  # the same request
    time.sleep(SAME_S)
    assert all(process.is_alive() for process in everyone)
    send(INT, *everyone)
    assert statuses(everyone, 20) == [130] * 3
    for place in places:
        assert log(tmp_path / place).splitlines()[-1] == "error: stopped by Ctrl-C (SIGINT)"
        assert "Traceback" not in log(tmp_path / place)


@pytest.mark.skipif(sys.platform != "linux", reason="a mutex is not the same size everywhere")
def test_before_there_is_anything_to_lose_the_first_one_does(tmp_path: Path):
    processes = stuck(tmp_path, "data")
    is_stuck(processes, tmp_path)
    send(TERM, *processes)
    assert statuses(processes, 20) == [143]
    assert log(tmp_path) == "error: stopped by SIGTERM\n"


@pytest.mark.skipif(sys.platform != "linux", reason="sees in /proc what is imported")
def test_also_while_torch_is_imported(tmp_path: Path):
    process = start("-m", "robustcords", *RUN, folder=tmp_path)
    maps = Path(f"/proc/{process.pid}/maps")
    while "libtorch" not in maps.read_text():
        time.sleep(0.005)
    process.send_signal(INT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "error: stopped by Ctrl-C (SIGINT)\n")


def test_copies_of_a_signal_change_nothing(tmp_path: Path):
    [process] = begin(tmp_path)
    wait_for("step", process, tmp_path)
    end, number = time.monotonic() + SAME_S / 4, 0  # a later one would be a second request
    while process.is_alive() and time.monotonic() < end:
        send(TERM if number % 2 else INT, process)
        number += 1
        time.sleep(0.005)
    [status] = statuses([process], 20)
    assert status in {130, 143}  # two threads may take the first two, and either be the first to note its own
    assert log(tmp_path).splitlines()[-1] == f"error: stopped by {signal_name(status - 128)}; continue with --resume"
    assert log(tmp_path).count("error") == 1


def test_two_processes_stop_together_also_if_one_alone_is_asked_to(tmp_path: Path):
    options = (AUTOATTACK, "--set=train.epochs=1", "--set=selector.select_first=true")
    for phase, asked in (("selection", [1]), ("AutoAttack", [0, 1])):
        processes = begin(tmp_path, *options, world=2)
        wait_for(phase, processes[0], tmp_path)
        send(TERM, *(processes[rank] for rank in asked))
        assert statuses(processes, 10) == [143, 143], log(tmp_path)[-2000:]
        said = log(tmp_path)
        assert said.splitlines()[-1] == "error: stopped by SIGTERM; continue with --resume"
        assert "Traceback" not in said
        assert Checkpoints(tmp_path / "run" / "checkpoints").paths()
