"""How OpenMP's threads wait."""

from __future__ import annotations

import os

import pytest

from robustcords.runtime.threads import sleep_while_waiting

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.mark.parametrize("setting", [None, *SETTINGS])
def test_they_sleep_unless_the_user_has_said_otherwise(setting: str | None, monkeypatch: pytest.MonkeyPatch):
    for name in SETTINGS:
        monkeypatch.setenv(name, "")  # so that it is afterwards as it was
        monkeypatch.delenv(name)
    if setting:
        monkeypatch.setenv(setting, "7")
    sleep_while_waiting()
    assert {name: os.environ[name] for name in SETTINGS if name in os.environ} == (
        {setting: "7"} if setting else {"OMP_WAIT_POLICY": "passive"}
    )
