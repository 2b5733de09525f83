"""Processes that begin with everything imported."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from robustcords.runtime.warm import WarmProcess

PROBE = """
import os, sys, torch
from robustcords import SAT
print(torch.get_num_threads(), os.getsid(0) == os.getpid(), os.getcwd(), sys.stdin.read() == "", file=sys.stderr)
class Probe(SAT):
    pass
"""


def test_it_is_the_command_line_with_its_own_environment_session_and_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "probe.py").write_text(PROBE)
    log = tmp_path / "log"
    log.write_text("before\n")
    process = WarmProcess(
        ["validate", "digits_trades", "--set", "loss.name=probe:Probe"], log, {"OMP_NUM_THREADS": "3", "MARK": "x"}
    )
    assert process.wait() == 0
    assert process.poll() == 0
    assert log.read_text().splitlines() == ["before", f"3 True {tmp_path} True"]


def test_what_the_input_is_at_fault_for_is_its_status(tmp_path: Path):
    process = WarmProcess(["validate", "no_such_recipe"], tmp_path / "log", {})
    assert process.wait() == 2
    assert (tmp_path / "log").read_text().startswith("error: ")


def test_a_signal_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slow.py").write_text("import pathlib, time\npathlib.Path('here').touch()\ntime.sleep(100)\n")
    process = WarmProcess(["validate", "digits_trades", "--set", "loss.name=slow:Slow"], tmp_path / "log", {})
    while process.poll() is None and not (tmp_path / "here").exists():
        time.sleep(0.05)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.send_signal(signal.SIGTERM)  # it has ended: nothing happens
