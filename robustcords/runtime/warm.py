"""Processes for runs that start with everything imported: forked from one that has only imported."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

_PROGRAM = "robustcords.__main__"
"""Started by its name, as ``python -m robustcords`` is: what runs here is above this module."""
# The first step of an optimizer imports torch._dynamo.
_SLOW = ("robustcords.cli.app", "robustcords.experiments.run", "torch._dynamo")


class Started(Protocol):
    """A started process, such as `subprocess.Popen`."""

    def poll(self) -> int | None:
        """Returns the exit status, negative for a signal; None while it runs."""

    def send_signal(self, sig: int, /) -> None:
        """Sends a signal, unless the process has ended."""

    def wait(self) -> int:
        """Waits for its end, and returns the exit status."""


class WarmProcess:
    """A ``robustcords`` command in a forked process, which saves importing torch.

    It has its own session and no input, and its standard output is discarded. For machines without GPUs, which forked
    processes may not be able to use.

    Args:
        arguments: of the command line, such as ``("run", "my.toml")``.
        log: the file to which standard error is appended.
        environment: changes of its environment; ``OMP_NUM_THREADS`` is applied too.
    """

    def __init__(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(_SLOW))
        passed = (list(arguments), str(log), dict(environment), str(Path.cwd()))
        self._process = context.Process(target=_run, args=passed)
        self._process.start()

    def poll(self) -> int | None:
        """See `Started`."""
        return self._process.exitcode

    def send_signal(self, sig: int, /) -> None:
        """See `Started`."""
        if self._process.pid and self._process.is_alive():
            os.kill(self._process.pid, sig)

    def wait(self) -> int:
        """See `Started`."""
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode


def _run(arguments: list[str], log: str, environment: dict[str, str], folder: str) -> None:
    os.setsid()
    os.chdir(folder)
    for descriptor, path in enumerate((os.devnull, os.devnull, log)):
        os.dup2(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666), descriptor)
    os.environ.update(environment)
    if threads := environment.get("OMP_NUM_THREADS"):  # OpenMP has read its own by now
        import torch

        torch.set_num_threads(int(threads))
    sys.argv = ["robustcords", *arguments]
    importlib.import_module(_PROGRAM).start()
