"""Two hosts: network namespaces that a cable joins. Nothing is sent outside them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command_line import ROOT, Command, settings
from support.digits_run import TINY, check_close, rows
from support.ranks import ended, said, start

pytestmark = pytest.mark.netns

ADDRESSES = ("10.77.0.1", "10.77.0.2")
RUN = [
    "digits_mart",
    *settings(
        model__name="tinynet:TinyNet",
        attack__steps=2,
        selector__select_first="true",
        train__epochs=3,
        train__accumulation=2,
        train__averaging__kind="ema",
        train__averaging__decay=0.5,
        train__precision="fp32",
        train__validate_every=1,
        callbacks__overfitting="false",
        evaluation__limit=200,
        evaluation__pgd="{steps = 2, restarts = 1, step_size = 0.1, epsilons = [0.15]}",
        evaluation__autoattack="{limit = 2, epsilons = [1.0]}",
    ),
]
LONG = settings(train__epochs=2000, train__validate_every=2000)
SILENCE_S = 6


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr.strip()}"


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Gives two network namespaces with an end of a cable each, called ``cable``."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.fail("tests marked netns need Linux, root, and the command ip (Debian's package iproute2)")
    names = (f"robustcords-{os.getpid()}-a", f"robustcords-{os.getpid()}-b")
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ends = [("name", "cable", "netns", name) for name in names]
        ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def launch(hosts: tuple[str, str], folder: Path, *arguments: str) -> list[subprocess.Popen[str]]:
    """Starts a run through Accelerate's launcher on both hosts."""
    started = []
    for rank, host in enumerate(hosts):
        words = "--cpu --num_processes 2 --num_machines 2 --mixed_precision no --dynamo_backend no"
        place = f"--machine_rank {rank} --main_process_ip {ADDRESSES[0]} --main_process_port 29500"
        launcher = [sys.executable, "-m", "accelerate.commands.launch", *words.split(), *place.split()]
        started.append(
            subprocess.Popen(
                ["ip", "netns", "exec", host, *launcher, str(ROOT / "cli.py"), "run", *arguments],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(folder)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
    return started


def answers(started: list[subprocess.Popen[str]], within: float) -> list[tuple[int, str, str]]:
    """Returns statuses and output; fails, and ends what is left, where the hosts do not end in time."""
    deadline = time.monotonic() + within
    try:
        told = [process.communicate(timeout=max(0.0, deadline - time.monotonic())) for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return [(process.returncode, *each) for process, each in zip(started, told, strict=True)]


def until(done: Path, within: float = 240) -> None:
    """Waits for a file or folder."""
    deadline = time.monotonic() + within
    while not list(done.parent.glob(done.name)):
        assert time.monotonic() < deadline, f"there is no {done}"
        time.sleep(0.05)


def steps(run: Path) -> int:
    """Returns how many steps the newest checkpoint has behind it."""
    return max(int(path.name.removeprefix("step_")) for path in (run / "checkpoints").glob("step_*"))


def test_two_hosts_do_what_one_process_does(hosts: tuple[str, str], tmp_path: Path, command: Command):
    (tmp_path / "tinynet.py").write_text(TINY)
    (main, out, err), (other, nothing, silence) = answers(launch(hosts, tmp_path, *RUN, "--output", "two"), 240)
    assert (main, other) == (0, 0), (err, silence)
    # The launcher's own barrier at the end is a race: the host that keeps its store may be gone first.
    ours = [line for line in silence.splitlines() if "torch/distributed/elastic/agent/server/api.py" not in line]
    assert (nothing, ours) == ("", [])
    lines = err.splitlines()
    assert lines[0] == "two: 1212 training images, 450 test images, 2 processes"
    assert [line.partition("  ")[0] for line in lines[1:]] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert out.splitlines()[-1] == "two"
    answer = command("run", *RUN, "--output", "one")
    assert answer.status == 0, answer.err
    check_close(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("accident", ["a process is killed", "the cable is cut"])
def test_a_lost_host_ends_the_run_which_goes_on(accident: str, hosts: tuple[str, str], tmp_path: Path):
    (tmp_path / "tinynet.py").write_text(TINY)
    run = ["run", *RUN, *LONG, "--output", "run", "--resume"]
    started = start(2, tmp_path, run, hosts=hosts, address=ADDRESSES[0], silence=SILENCE_S)
    until(tmp_path / "run" / "checkpoints" / "step_*")
    if accident == "a process is killed":
        started[1].kill()
        assert ended(started, within=60) == [1, -signal.SIGKILL]
    else:
        ip("-n", hosts[1], "link", "set", "cable", "down")
        assert ended(started, within=60) == [1, 1]
        ip("-n", hosts[1], "link", "set", "cable", "up")
        assert said(tmp_path, 1) == ["error: process 0 has died, or cannot be reached any more; continue with --resume"]
    reason = "error: process 1 has died, or cannot be reached any more; continue with --resume"
    assert [line for line in said(tmp_path, 0) if not line.startswith(("run", "epoch"))] == [reason]
    taken = steps(tmp_path / "run")
    short = [*run, "--set", "train.time_limit=1 s"]
    for on in (hosts, hosts[:1]):
        again = start(len(on), tmp_path, short, hosts=on, address=ADDRESSES[0])
        assert set(ended(again, within=240)) == {75}, said(tmp_path, 0)
        assert said(tmp_path, 0)[1].startswith("resumed from run/checkpoints/step_")
    assert [row["epoch"] for row in rows(tmp_path / "run")] == list(range(len(rows(tmp_path / "run"))))
    assert steps(tmp_path / "run") >= taken + 2
