"""Where decoded images are kept: in memory, or on disk if memory is short."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import psutil

Storage = Literal["auto", "memory", "disk"]

_SHARE = 4
"""Images stay in memory where they take no more than one part in so many of what is free: a split is copied out of
them, and training needs some too."""
_CGROUPS = Path("/sys/fs/cgroup")


def stays_on_disk(wanted: Storage, size: int) -> bool:
    """Returns whether images stay on disk.

    Args:
        wanted: as a recipe says.
        size: bytes that all of them take decoded.
    """
    return wanted == "disk" or (wanted == "auto" and size > free_memory() // _SHARE)


def free_memory() -> int:
    """Returns the bytes that each of this machine's processes may still take: of the machine's, or its container's."""
    free = int(psutil.virtual_memory().available)
    try:
        most, used = (int((_CGROUPS / f"memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, most - used)
    except (OSError, ValueError):  # there is no container, or it has no limit
        pass
    return max(0, free) // processes()


def processes() -> int:
    """Returns how many processes of the run this machine has."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def worker_count(wanted: int | None) -> int:
    """Returns how many processes read images for each of the run's; left out, one for each of its cores, at most 8."""
    if wanted is not None:
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(1, cores // processes()))


def in_units(size: int) -> str:
    """Returns a size as people write it, such as ``"30.1 GB"``."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"
