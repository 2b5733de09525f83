"""What ``robustcords select`` prints, through the command line on the digits."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from support.command_line import Answer, Command, settings

from robustcords.errors import UserError
from robustcords.experiments import build
from robustcords.models.last_layer import find_head
from robustcords.recipe import recipe
from robustcords.report.selection_tables import LISTED_CLASSES, SelectionSummary, print_selection
from robustcords.selection.base import SelectionReport
from robustcords.selection.gradients import memory
from robustcords.selection.solvers import omp

SMALL = settings(data__train_limit=450, model__width=4, model__depths="[1]", attack__steps=1, train__precision="fp32")

OWN = """
import torch
from robustcords.selection.base import SelectionReport
from robustcords.selection.strategies.random import RandomSubset

class Own(RandomSubset):
    def select(self, budget, model_params):
        rows, _ = super().select(budget, model_params)
        errors = (0.0125, 0.25) if self.context.measure else (None, None)
        self.report = SelectionReport({"attack": 0.001, "solve": 0.002}, *errors)
        return rows, torch.arange(budget, dtype=torch.float32) % 4
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights of the small network."""
    loaded = recipe.load("digits_mart", SMALL[1::2])
    file = tmp_path_factory.mktemp("weights") / "first.safetensors"
    save_file(build.model(loaded, build.data(loaded)).state_dict(), file)
    return file


def selected(command: Command, weights: Path, **options: object) -> Answer:
    arguments = ("select", "digits_mart", "--weights", weights, "--output", "chosen.npz")
    answer = command(*arguments, *SMALL, *settings(**options))
    assert answer.status == 0, answer.err
    return answer


def cells(out: str, first: str) -> list[str]:
    """Returns the cells of the line that begins with a cell."""
    (line,) = [line for line in out.splitlines() if line.split("  ")[0].strip() == first]
    return line.split()


def table(out: str, header: str) -> dict[str, str]:
    """Returns the one row below a header."""
    lines = out.splitlines()
    (place,) = [number for number, line in enumerate(lines) if line.split("  ")[0].strip() == header]
    return dict(zip(re.split(r"\s{2,}", lines[place].strip()), lines[place + 1].split(), strict=True))


def test_it_says_what_was_selected(command: Command, weights: Path):
    Path("own_strategy.py").write_text(OWN)
    out = selected(command, weights, selector__name="own_strategy:Own", selector__fraction=0.25).out
    with np.load("chosen.npz") as content:
        indices, given = content["indices"], content["weights"].astype(np.float64)
    images = build.data(recipe.load("digits_mart", SMALL[1::2]))
    lines = out.splitlines()
    assert re.fullmatch(r"101 of 405 training images in \d+\.\d s, chosen by own_strategy:Own", lines[0])
    assert lines[-1] == "chosen.npz"
    assert all(line == line.rstrip() or "  " in line for line in lines)
    assert "\x1b" not in out
    assert "│" not in out

    places = {int(number): place for place, number in enumerate(images.train.numbers)}
    labels = images.train.labels.numpy()
    chosen = labels[[places[number] for number in indices.tolist()]]
    for label, name in enumerate(images.train.classes):
        count, of = (chosen == label).sum(), (labels == label).sum()
        assert cells(out, name) == [name, str(count), str(of), f"{100 * count / of:.1f}"]

    found = table(out, "minimum")
    quartiles = np.percentile(given, [0, 25, 50, 75, 100])
    names = ["minimum", "lower quartile", "median", "upper quartile", "maximum", "mean"]
    assert list(found) == [*names, "zeros", "effective size"]
    for name, value in zip(names, [*quartiles, given.mean()], strict=True):
        assert float(found[name]) == pytest.approx(value, rel=1e-3)
    assert found["zeros"] == f"{100 * np.mean(given == 0):.1f}%"
    assert float(found["effective size"]) == pytest.approx(given.sum() ** 2 / (given**2).sum(), abs=0.06)

    assert "gradient-matching error: 0.0125; of a random subset of the same size: 0.25" in lines
    assert cells(out, "attack")[1] == "0.00"
    assert {"solve", "other"} <= {line.split()[0] for line in lines}


@pytest.mark.parametrize("name", ["random", "gradmatch"])
def test_it_says_what_is_not_measured(command: Command, weights: Path, name: str):
    out = selected(command, weights, selector__name=name, selector__fraction=0.2).out
    assert f"gradient-matching error: not measured: {name} provides no gradients" in out.splitlines()
    assert len(cells(out, "solve")) == 3


def test_the_precision_of_the_attack_can_be_chosen(command: Command, weights: Path):
    arguments = ("select", "digits_mart", "--weights", weights, *SMALL)
    answer = command(*arguments, "--output", "half.npz", *settings(selector__attack_precision="fp16"))
    assert (answer.status, answer.out) == (2, "")
    assert answer.err == 'error: selector.attack_precision = "fp16" needs a GPU; on a CPU use "bf16" or "fp32"\n'
    assert not Path("half.npz").exists()
    for precision in ("fp32", "bf16"):
        options = settings(selector__name="adv-gradmatch", selector__attack_precision=precision)
        assert command(*arguments, "--output", f"{precision}.npz", *options).status == 0
    with np.load("fp32.npz") as first, np.load("bf16.npz") as second:
        assert not np.array_equal(first["weights"], second["weights"])


def test_a_run_refuses_a_precision_of_the_attack_before_it_begins(command: Command):
    options = settings(selector__attack_precision="fp16")
    answer = command("run", "digits_mart", *SMALL, *options, "--output", "run")
    assert (answer.status, answer.out) == (2, "")
    assert answer.err.startswith('error: selector.attack_precision = "fp16" needs a GPU')
    assert not Path("run").exists()


@pytest.mark.parametrize(("name", "reason"), [("x" * 300, "File name too long"), ("/proc/x.npz", "")])
def test_a_file_that_cannot_be_written_is_one_line(command: Command, weights: Path, name: str, reason: str):
    answer = command("select", "digits_mart", "--weights", weights, *SMALL, "--output", name)
    assert (answer.status, answer.out) == (2, "")
    assert answer.err.startswith(f"error: {name}: cannot be written ({reason}")
    assert answer.err.count("\n") == 1


def summary(classes: int, report: SelectionReport | None = None) -> SelectionSummary:
    weights = {"minimum": 0.5, "zeros": 0.0, "effective size": 3.0}
    counts = [(f"class [{number}]", number, 2 * classes) for number in range(classes)]
    return SelectionSummary("adv-glister", counts, weights, report, 2.0, Path("out.npz"))


def printed(found: SelectionSummary, terminal: bool) -> str:
    console = Console(force_terminal=terminal, color_system=None, width=100)
    with console.capture() as capture:
        print_selection(found, console)
    return capture.get()


def test_tables_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    out = printed(summary(3, SelectionReport({"solve": 0.5}, 0.1)), terminal=True)
    assert "│ class [1] │      1 │  6 │    16.7 │" in out
    assert "gradient-matching error: 0.1\n" in out
    assert re.search(r"│ solve │ +0.50 │ +25.0 │\n│ other │ +1.50 │ +75.0 │", out)


def test_many_classes_are_one_line(capsys: pytest.CaptureFixture[str]):
    count = LISTED_CLASSES + 1
    print_selection(summary(count))
    out = capsys.readouterr().out
    assert (
        f"{count} classes: 0 to {count - 1} images each, 0.0 to 48.8 percent of the class (median 24.4); 1 without any"
        in out
    )
    assert torch.arange(count).sum().item() == int(out.split()[0])


@pytest.mark.parametrize(
    ("options", "fits"),
    [
        ({"granularity": "full"}, False),
        ({"granularity": "full", "linear_layer": False}, True),
        ({"granularity": "per_batch"}, True),
        ({"granularity": "per_class"}, True),
    ],
)
def test_too_many_candidates_are_refused_before_training(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], fits: bool
) -> None:
    monkeypatch.setattr(omp, "_LARGEST_GRAM", 200)
    monkeypatch.setattr(omp, "_LARGEST_DIRECTION", 100)
    changes = [f"selector.{key}={str(value).lower()}" for key, value in options.items()]
    loaded = recipe.load("digits_mart", ["selector.name=adv-gradmatch", "model.width=4", *changes])
    images = build.data(loaded)
    network = build.model(loaded, images)
    if fits:
        build.check_size(loaded, network, images)
        return
    with pytest.raises(UserError, match=r"among 1,212 candidates.*170.*selector\.granularity = \"per_class\""):
        build.check_size(loaded, network, images)


@pytest.mark.parametrize(("granularity", "refused"), [("full", True), ("per_batch", True), ("per_class", False)])
def test_more_gradients_than_memory_are_refused_before_training(
    monkeypatch: pytest.MonkeyPatch, granularity: str, refused: bool
) -> None:
    loaded = recipe.load(
        "digits_mart", ["selector.name=adv-glister", "model.width=4", f"selector.granularity={granularity}"]
    )
    images = build.data(loaded)
    network = build.model(loaded, images)
    features = find_head(network, 10).in_features
    size = 1212 * 2 * (features + 20) * 4  # two views, each with its features, logits and deltas in float32
    monkeypatch.setattr(memory, "free_memory", lambda: size)
    build.check_size(loaded, network, images)
    monkeypatch.setattr(memory, "free_memory", lambda: size - 1)
    with pytest.raises(UserError, match=r"from 1,212 images at once keeps .*per_class") if refused else nullcontext():
        build.check_size(loaded, network, images)
