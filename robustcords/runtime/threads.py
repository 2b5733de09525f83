"""How OpenMP's threads wait for each other."""

from __future__ import annotations

import os

_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def sleep_while_waiting() -> None:
    """Has OpenMP's threads sleep while they wait for each other, so that other work on the machine gets the cores.

    By default they spin for some milliseconds; one that spins on a core that another process could use makes all others
    wait for it. Has an effect before torch is imported; what the user's environment says of waiting stands.
    """
    if not any(name in os.environ for name in _SETTINGS):
        os.environ["OMP_WAIT_POLICY"] = "passive"
