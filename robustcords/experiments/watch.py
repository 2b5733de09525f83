"""``robustcords watch``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from robustcords.report.run_progress import table_of, underway
from robustcords.runtime.progress import Board, for_tables

_EVERY_S = 2.0


def watch(paths: Sequence[Path], *, once: bool = False) -> None:
    """Shows how far runs are, until all are done.

    Args:
        paths: run directories, or folders that hold some; runs that are begun meanwhile are shown too.
        once: print them once instead, and return.

    Raises:
        UserError: a path is no folder or holds no run, or what a run has written is damaged.
    """
    runs = underway(paths)
    if not once:
        with Board() as board:
            while not all(run.state == "done" for run in runs):
                board.show(partial(table_of, runs))
                time.sleep(_EVERY_S)
                runs = underway(paths)
    for_tables().print(table_of(runs))
