"""How OpenMP's threads wait for each other."""

from __future__ import annotations

import os

_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def sleep_while_waiting() -> None:
    """Makes OpenMP's threads sleep instead of spin while they wait, so that other processes get the cores.

    By default they spin for some milliseconds; a thread that spins on a core that another process needs delays all
    others. Effective before torch is imported; settings in the user's environment take precedence.
    """
    if not any(name in os.environ for name in _SETTINGS):
        os.environ["OMP_WAIT_POLICY"] = "passive"
