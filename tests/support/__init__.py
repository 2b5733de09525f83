"""What several tests share: small runs and problems, processes, the command line, recipes and pages.

Processes that import this do not wait for the disk: one that is killed loses nothing that it wrote, and the files of a
test need not outlive the machine. `system_fsync` is the call that waits.
"""

from __future__ import annotations

import os

system_fsync = os.fsync


def fsync(descriptor: int) -> None:
    """Refuses a descriptor that is closed, as the system does."""
    os.fstat(descriptor)


os.fsync = fsync
