"""Memory allocation: huge pages, and freed pages that are kept for the next tensors."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_KEPT, _LARGEST = 2**30, 2**28


def ask_for_huge_pages() -> None:
    """Asks the kernel for huge pages for large tensors; where it has none to give, nothing changes.

    torch reads this once, when it first allocates a tensor. What the user's environment says of it stands.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_freed_memory() -> None:
    """Lets the process keep up to 1 GiB of the memory that it frees, for what it allocates next.

    By default the C library gives large blocks back to the system, which clears every page before it lends it again: a
    training step that allocates the same activations again and again can spend a third of its time on that.
    Applies to blocks of up to 256 MiB (32 MiB before glibc 2.35), and to glibc; elsewhere nothing changes.
    """
    if sys.platform != "linux":
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries for Linux have none
    # Before 2.35 glibc refuses more than 32 MiB; and with the other option alone it would lend every block anew.
    if set_option is not None and (set_option(_MMAP_THRESHOLD, _LARGEST) or set_option(_MMAP_THRESHOLD, 2**25)):
        set_option(_TRIM_THRESHOLD, _KEPT)
