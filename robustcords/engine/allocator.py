"""Memory allocation: huge pages, and freed pages that are kept for the next tensors."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_KEPT, _LARGEST = 2**30, 2**28


def ask_for_huge_pages() -> None:
    """Requests huge pages for large tensors; without effect if the kernel has none.

    torch reads the setting once, at its first allocation. A value in the user's environment takes precedence.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_freed_memory() -> None:
    """Lets the process keep up to 1 GiB of freed memory for its next allocations.

    By default the C library returns large blocks to the system, which clears every page before handing it out again: a
    training step, which allocates the same activations repeatedly, can spend a third of its time on that. Applies to
    blocks of up to 256 MiB (32 MiB before glibc 2.35), and to glibc only.
    """
    if sys.platform != "linux":
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries for Linux have none
    # Before 2.35 glibc refuses more than 32 MiB; and with the other option alone it would lend every block anew.
    if set_option is not None and (set_option(_MMAP_THRESHOLD, _LARGEST) or set_option(_MMAP_THRESHOLD, 2**25)):
        set_option(_TRIM_THRESHOLD, _KEPT)
