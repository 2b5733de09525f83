"""How the command line handles SIGINT and SIGTERM: it exits at once unless an `Interruption` handles them.

Free of torch, as it is in force before that is imported.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import suppress
from types import FrameType

from robustcords.errors import signal_name

NUMBERS = (signal.SIGINT, signal.SIGTERM)

SAME_S = 2.0
"""Signals within so many seconds are one request: what a terminal sends to all, a launcher also hands on."""

UNFINISHED: set[str] = set()
"""Files that are deleted if a signal ends the process, as they are of no use and may be large."""

_STUCK_S = 1.0
_SHOW_CURSOR = b"\x1b[?25h"


def end(number: int, _frame: FrameType | None = None) -> None:
    """Ends the process with one line, and the shell's exit status of the signal."""
    if os.environ.get("RANK", "0") == "0":
        with suppress(OSError):
            shown = _SHOW_CURSOR if os.isatty(2) else b""  # a progress bar has hidden it
            os.write(2, shown + f"error: stopped by {signal_name(number)}\n".encode())
    for file in [*UNFINISHED]:
        with suppress(OSError):
            os.unlink(file)  # noqa: PTH108 -- nothing is imported here
    os._exit(128 + number)


def install() -> None:
    """Makes the signals end this process at once from here on.

    Python calls handlers between bytecodes of the main thread; while that waits for another process, or is inside a
    long computation, the thread started here responds instead.
    """
    for number in NUMBERS:
        signal.signal(number, end)
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()


def _watch(reader: socket.socket) -> None:
    first = None
    while True:
        number = reader.recv(1)[0]
        if number not in NUMBERS:
            continue
        now = time.monotonic()
        handler: object = signal.getsignal(number)
        if handler is end or (first is not None and now - first > SAME_S):
            time.sleep(_STUCK_S)  # the main thread does it itself, if it can
            end(number)
        first = first or now


def settle() -> None:
    """Ignores further copies of a handled signal, which would change the exit status."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)
