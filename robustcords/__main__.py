"""``python -m robustcords``, and what the ``robustcords`` command and ``cli.py`` call: the program from its start."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from robustcords.engine.allocator import ask_for_huge_pages
from robustcords.runtime import signals, streams, threads


def start(target: Sequence[str] = ("-m", "robustcords")) -> None:
    """Runs the command line, from signals to exit status.

    Args:
        target: what several processes are started with: a script, or ``"-m"`` and a module.
    """
    signals.install()
    streams.outlive_readers()
    threads.sleep_while_waiting()
    ask_for_huge_pages()
    # Behind everything that is installed: a recipe names modules of the current folder, however this was started.
    sys.path.append("")
    from robustcords.cli.app import main
    from robustcords.runtime.launch import spread

    spread(target)
    try:
        main()
    except SystemExit as ended:
        if ended.code in {128 + number for number in signals.NUMBERS}:
            signals.settle()
        raise


if __name__ == "__main__":
    start()
