"""docs/models.md says what becomes of torchvision's and timm's models."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from robustcords.models.external import TorchvisionModel

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/models.md").read_text(encoding="utf-8")
BENCHMARK: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks/library_models.py"))
SIZES, TRAINS = BENCHMARK["SIZES"], BENCHMARK["TRAINS"]


def documented() -> dict[str, list[str]]:
    """Returns what the page says of each model that was tried, by size."""
    found = {}
    for text in re.findall(r"^At every size: (.*)\.$", PAGE, re.M):
        found |= dict.fromkeys(re.findall(r"`([^`]+)`", text), [TRAINS] * len(SIZES))
    for row in re.findall(r"^\| `.*$", PAGE, re.M):
        name, *cells = (cell.strip() for cell in row.strip("| ").split(" | "))
        found[name.strip("`")] = cells
    return found


def test_the_page_has_every_classifier_of_torchvision() -> None:
    not_tried = re.findall(r"^Not tried.*$", PAGE, re.M)
    listed = {*documented(), *re.findall(r"`(torchvision:[^`]+)`", "".join(not_tried))}
    assert {name for name in listed if name.startswith("torchvision:")} == {
        f"torchvision:{name}" for name in TorchvisionModel.available()
    }
    assert all(len(cells) == len(SIZES) for cells in documented().values())


def test_without_the_sizes_of_all_models_there_is_no_page(tmp_path: Path) -> None:
    answers = BENCHMARK["Answers"](tmp_path / "answers.jsonl", minutes=0)
    with pytest.raises(SystemExit, match=r"the time ended before the sizes of torchvision's models were known"):
        BENCHMARK["survey"]("torchvision", answers, 150, everything=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(documented()))
def test_models_train_or_are_refused_as_the_page_says(name: str) -> None:
    for size, cell in zip(SIZES, documented()[name], strict=True):
        assert cell in {BENCHMARK["NOT_TRIED"], BENCHMARK["answer"](name, size).replace("|", "/")}
