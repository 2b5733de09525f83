"""Freed memory that is kept is not asked for, and cleared, again."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.several import together

from robustcords.engine.allocator import keep_freed_memory

resource: Any = pytest.importorskip("resource", reason="of POSIX systems")
_NO_HUGE_PAGES = 41  # PR_SET_THP_DISABLE


def faults() -> int:
    """Returns the page faults of allocating and freeing the same large tensor repeatedly."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def work(rank: int, file: Path) -> None:
    assert not ctypes.CDLL(None).prctl(_NO_HUGE_PAGES, 1, 0, 0, 0), "these would make few faults of many"
    without = faults()
    keep_freed_memory()
    faults()
    file.write_text(f"{without} {faults()}")


@pytest.mark.skipif(sys.platform != "linux", reason="of the C library of Linux")
def test_a_block_that_is_freed_is_used_again(tmp_path: Path):
    together(work, 1, tmp_path / "faults.txt")
    without, kept = map(int, (tmp_path / "faults.txt").read_text().split())
    assert without > 40_000
    assert kept < 0.1 * without
