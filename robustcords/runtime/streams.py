"""Standard output and error that survive a closed pipe."""

from __future__ import annotations

import io
import sys
from typing import Any


class _Lasting(io.FileIO):
    """A stream that ignores writes after the first failure."""

    def write(self, content: Any) -> int:
        """Writes, and returns the number of bytes, also on failure."""
        try:
            return super().write(content) or 0
        except OSError:
            return memoryview(content).nbytes


def outlive_readers() -> None:
    """Prevents failed prints from ending the program: on a closed pipe or terminal, or a full disk.

    A long run must not die, or lose its exit status, because its log is no longer read, as when Ctrl-C ends the ``tee``
    behind it as well.
    """
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None or stream.fileno() != descriptor:
            continue
        stream.flush()
        lasting = io.BufferedWriter(_Lasting(descriptor, "w", closefd=False))
        # Names and tables have characters that a terminal's encoding may lack: they are escaped, and end no program.
        errors = "backslashreplace" if stream.errors == "strict" else stream.errors
        text = io.TextIOWrapper(
            lasting, encoding=stream.encoding, errors=errors, line_buffering=True, write_through=name == "stderr"
        )
        setattr(sys, name, text)
