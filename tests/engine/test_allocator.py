"""Freed memory that is kept is not asked for, and cleared, again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.command_line import start

CODE = """
import resource, sys
from robustcords.engine.allocator import keep_freed_memory
import torch

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def again_and_again():
    before = faults()
    for _ in range(20):
        torch.ones(10_000_000)
    return faults() - before

without = again_and_again()
keep_freed_memory()
again_and_again()
print(without, again_and_again())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of the C library of Linux")
def test_a_block_that_is_freed_is_used_again(tmp_path: Path):
    # Without huge pages, which would make few faults of many.
    process = start("-c", CODE, folder=tmp_path, THP_MEM_ALLOC_ENABLE="0", GLIBC_TUNABLES="glibc.malloc.hugetlb=0")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    without, kept = map(int, out.split())
    assert kept < 0.1 * without
