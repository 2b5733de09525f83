"""How OpenMP's threads wait."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from robustcords.runtime.threads import sleep_while_waiting

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SHOWS = "from robustcords.runtime import threads; threads.sleep_while_waiting(); import torch; torch.ones(9) + 1"


@pytest.mark.parametrize("setting", [None, *SETTINGS])
def test_they_sleep_unless_the_user_has_said_otherwise(setting: str | None, monkeypatch: pytest.MonkeyPatch):
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    if setting:
        monkeypatch.setenv(setting, "7")
    sleep_while_waiting()
    assert {name: os.environ[name] for name in SETTINGS if name in os.environ} == (
        {setting: "7"} if setting else {"OMP_WAIT_POLICY": "passive"}
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the library that torch is built with here prints what it reads")
def test_the_library_reads_it():
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    shown = subprocess.run(
        [sys.executable, "-c", SHOWS],
        env=environment | {"OMP_DISPLAY_ENV": "true"},
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in shown
