from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
import torch
from support.ranks import free_port
from support.several import SERVER
from torch import distributed

from robustcords.runtime import accelerator, collectives, watchdog
from robustcords.runtime.watchdog import Watch


def work(rank: int, folder: Path, how: str) -> None:
    """One of three processes; the last one ends in its own way while the others do something."""
    torch.set_num_threads(1)
    sys.stderr = (folder / f"{rank}.txt").open("w")
    watchdog.GRACE_S = 1.0
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=3)
    with Watch() as watch:
        if rank == (0 if how == "the main one dies" else 2) and how != "all end":
            if "dies" in how:
                os._exit(9)
            raise ValueError("no such thing")
        if how == "fails":
            with pytest.raises(RuntimeError):
                collectives.barrier()
            (folder / f"{rank}.txt").write_text(str(watch.lost_within(10)))
        elif how == "all end":
            assert watch.lost_within(2.0 * (rank == 0)) is None
        else:
            time.sleep(60)


def spawned(folder: Path, how: str) -> list[int | None]:
    """Returns the exit statuses."""
    started = [SERVER.Process(target=work, args=(rank, folder, how)) for rank in range(3)]
    begun = time.monotonic()
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=max(0.0, begun + 150 - time.monotonic()))
    return [process.exitcode for process in started]


def said(folder: Path) -> list[str]:
    return [(folder / f"{rank}.txt").read_text().strip() for rank in range(3)]


def test_a_process_that_is_done_may_end(tmp_path: Path):
    assert spawned(tmp_path, "all end") == [0, 0, 0]
    assert said(tmp_path) == ["", "", ""]


def test_processes_that_wait_for_a_dead_one_are_ended_and_the_main_one_says_so(tmp_path: Path):
    assert spawned(tmp_path, "dies") == [1, 1, 9]
    assert said(tmp_path) == ["error: process 2 has died, or cannot be reached any more", "", ""]


def test_another_one_says_so_where_the_main_one_has_died(tmp_path: Path):
    assert spawned(tmp_path, "the main one dies") == [9, 1, 1]
    assert said(tmp_path) == ["", "error: process 0 has died, or cannot be reached any more", ""]


def test_a_computation_that_fails_learns_why_another_process_stopped(tmp_path: Path):
    assert spawned(tmp_path, "fails") == [0, 0, 1]
    assert said(tmp_path)[0] == "process 2 has stopped: ValueError: no such thing"
    assert said(tmp_path)[1] == "process 0 has stopped: process 2 has stopped: ValueError: no such thing"


def test_one_process_has_nobody_to_watch():
    with Watch() as watch:
        assert watch.lost_within(60) is None


def alone(rank: str, folder: Path, port: str) -> None:
    """One of two processes, the other one of which is not there."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank}
    os.environ |= {**place, "ACCELERATE_USE_CPU": "true"}
    os.dup2(os.open(folder / f"{rank}.txt", os.O_WRONLY | os.O_CREAT), 2)
    watchdog.MEETING_S = 1.0
    accelerator.start("auto")


def test_processes_that_do_not_meet_end_with_one_line(tmp_path: Path):
    ports = [free_port(), free_port()]
    started = [SERVER.Process(target=alone, args=(str(rank), tmp_path, port)) for rank, port in enumerate(ports)]
    for process in started:
        process.start()
    for rank, process in enumerate(started):
        process.join(timeout=50)
        assert process.exitcode == 1
        line = f"error: the 2 processes have not met at 127.0.0.1:{ports[rank]} within 1 s"
        assert (tmp_path / f"{rank}.txt").read_text().splitlines()[-1] == line
