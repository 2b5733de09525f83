"""What is imported, and when: one process does one thing after the other, and none imports more than it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fnmatch import fnmatch
from typing import Any

import pytest

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
HEAVY = ["torch", "accelerate", "numpy"]
DATA = ["torchvision", "datasets", "sklearn", "pyarrow", "pandas"]
PACKAGE = """
import os
before = dict(os.environ)
import robustcords
assert dict(os.environ) == before
"""
NO_CORDS = """
sys.modules["cords"] = None
from robustcords.selection.solvers.greedy import TaylorGreedy
from robustcords.selection.solvers.omp import MatchingPursuit
del sys.modules["cords"]
"""
NETWORK = """
from robustcords.models import source
source("resnet8")(name="resnet8").build(1, 8, 2, [0], [1], 0)
"""
RECIPES = """
from robustcords.recipe import recipe
recipe.load("digits_trades", ["selector=false"])
recipe.load("digits_mart", ["selector.name=random"])
"""
THREADS = """
from robustcords.runtime.threads import sleep_while_waiting
sleep_while_waiting()
"""
STEPS = {
    "the package": (PACKAGE, HEAVY),
    "help": ("from robustcords.cli.app import main\nsys.argv = ['robustcords', 'run', '--help']\nmain()", HEAVY),
    "the reader of recipes": ("import robustcords.recipe.recipe", HEAVY),
    "shipped recipes": ("robustcords.recipe.recipe.shipped()", []),
    "the registry of data sets": ("from robustcords import data", ["torch"]),
    "how threads wait": (THREADS, ["torch"]),
    "options of data sets": ("for each in ('cifar10', 'digits'): data.source(each).Config(name=each)", DATA),
    "a data set of Hugging Face": ("data.source('a/b')", DATA),
    "solvers": (NO_CORDS, ["cords", "robustcords.selection.cords.*"]),
    "a network": (NETWORK, ["torchvision", "timm"]),
    "recipes without a strategy of CORDS": (RECIPES, ["cords"]),
}
"""What is done, in this order, and what has not been imported after it."""

SCRIPT = """
import json, sys
found, told = {}, []
for name, code in json.loads(sys.argv[1]):
    try:
        exec(code, globals())
    except SystemExit:
        pass
    found[name] = list(sys.modules)
from robustcords.config.registry import find
for absent in ("cords", "scipy"):  # not installed, and installed without what it needs
    sys.modules[absent] = None
    try:
        find("selector", "adv-glister")
    except Exception as error:
        told.append(f"{type(error).__name__}: {error}")
    del sys.modules[absent]
print(json.dumps([found, told]))
"""


@pytest.fixture(scope="module")
def answer() -> tuple[str, str, dict[str, list[str]], list[str]]:
    """What the process printed, the modules that were there after each step, and what it was told without CORDS."""
    steps = json.dumps([(name, code) for name, (code, _) in STEPS.items()])
    around = {name: value for name, value in os.environ.items() if name not in SETTINGS} | {"OMP_DISPLAY_ENV": "true"}
    started = [sys.executable, "-c", SCRIPT, steps]
    done = subprocess.run(started, env=around, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed, _, last = done.stdout.rstrip().rpartition("\n")
    return printed, done.stderr, *json.loads(last)


@pytest.mark.parametrize("step", STEPS)
def test_it_imports_no_more_than_it_needs(answer: Any, step: str):
    _, unwanted = STEPS[step]
    assert [name for name in answer[2][step] if any(fnmatch(name, each) for each in unwanted)] == []


def test_help_is_there_and_so_is_torch_where_it_is_needed(answer: Any):
    assert "--resume" in answer[0]
    assert {"torch", "robustcords.models.resnet"} <= set(answer[2]["a network"])


def test_without_cords_one_line_says_how_to_get_it(answer: Any):
    assert len(answer[3]) == 2
    for line in answer[3]:
        assert line.startswith("UserError: ")
        assert line.count("\n") == 0
        assert "pip install --no-deps cords==0.0.4" in line


@pytest.mark.skipif(sys.platform != "linux", reason="the library that torch is built with here prints what it reads")
def test_openmps_threads_sleep_while_they_wait(answer: Any):
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in answer[1]
