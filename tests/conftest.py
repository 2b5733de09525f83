"""Shared by all tests.

The process that shares tests out among others reads this too, and they wait for it: what takes long to import is
imported by the fixtures that need it.

Fixtures:
    command: runs a command line in this process, in an empty folder.
    importable: an empty folder whose modules are found.
    write: writes a recipe into an empty folder.
    brief: AutoAttack and the checks for masked gradients with few steps.
    hide_package: has imports of this package fail.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.brief import shorten
from support.cases import can_run

LONG = (
    "tests/invariants/",
    "tests/evaluation/",
    "tests/test_docs.py",
    "tests/training/",
    "tests/experiments/",
    "tests/report/",
    "tests/cli/",
    "tests/extension/",
    "tests/methods/",
)
"""What takes longest: a process that is given one of these files last would end long after the others."""


def pytest_configure():
    """Has the processes that tests start take one thread each: those of several tests at a time spin otherwise.

    Nor does each of them compile torch's sources again, where the environment says that nothing compiled is to be kept.
    The garbage collector looks less often at the half a million objects that imports leave, and that stay.
    """
    gc.set_threshold(700, 10, 100)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory):
    """Decoded images of the tests go nowhere else."""
    os.environ["ROBUSTCORDS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """The tests' tensors are tiny: more threads only wait for each other."""
    import torch

    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Begins with the long files, and leaves out what needs submodlib where it is not installed.

    Files are shared out among processes one after the other, each to one process (``--dist loadfile``), so that what a
    file's tests have in common is made once.
    """
    items.sort(key=lambda item: next((n for n, path in enumerate(LONG) if item.nodeid.startswith(path)), len(LONG)))
    for item in items:
        if not can_run(item.nodeid) and "cords" not in item.nodeid:
            item.add_marker(pytest.mark.skip(reason="needs submodlib"))


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch):
    """Makes AutoAttack and the checks for masked gradients short."""
    shorten(monkeypatch)


@pytest.fixture
def hide_package(monkeypatch: pytest.MonkeyPatch):
    """Has every import of this package fail from then on, as where it is not installed."""

    def hide() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "robustcords"]:
            monkeypatch.setitem(sys.modules, name, None)

    return hide


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Has modules in an empty folder found, and forgotten: another test's folder has others of the same names."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(f"{tmp_path}{os.sep}"):
            del sys.modules[name]


@pytest.fixture
def command(capsys, importable, monkeypatch):
    """Runs a command in an empty folder, whose modules it finds."""
    from support.command_line import call

    monkeypatch.chdir(importable)
    return lambda *arguments: call(capsys, *arguments)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a recipe into an empty folder, which is the current one, and returns its name."""
    monkeypatch.chdir(tmp_path)

    def function(text: str, name: str = "r.toml") -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return function
