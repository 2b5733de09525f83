from __future__ import annotations

from pathlib import Path

import pytest
from small_study import FULL, METHODS, make

from robustcords.experiments.compare import report


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of full data (two seeds), random subsets of two sizes, and Adv-GLISTER with Bullet."""
    folder = tmp_path_factory.mktemp("study")
    for name, changes in METHODS.items():
        make(folder, name, **changes)
    make(folder, "full-1", **FULL, seed=1)
    return folder


@pytest.fixture(scope="session")
def written(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the study, as the command writes it."""
    output = tmp_path_factory.mktemp("page") / "study.html"
    report([study], output, images=3)
    return output
