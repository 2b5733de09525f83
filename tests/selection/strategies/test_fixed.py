"""Training on the subset of a file."""

from __future__ import annotations

import os
import pickle
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.command_line import Answer, Command, settings
from support.several import together
from support.small_problem import Problem
from torch import distributed

from robustcords.errors import UserError
from robustcords.experiments import build
from robustcords.recipe import recipe
from robustcords.selection.strategies.fixed import FixedSubset

SIZE = 21
NUMBERS = torch.arange(SIZE) * 3 + 1
"""The problem's rows in a full training set, of which two in three are elsewhere."""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(indices: Any, weights: Any) -> str:
    np.savez("subset.npz", indices=indices, weights=weights)
    return "subset.npz"


def select(file: str, budget: int, numbers: torch.Tensor = NUMBERS) -> tuple[list[int], torch.Tensor]:
    problem = Problem([12, 9])
    problem.train.numbers = numbers
    config = FixedSubset.Config(file=file, fraction=budget / SIZE)
    return FixedSubset.from_context(config, problem.context()).select(budget, None)


def test_numbers_of_the_full_set_become_rows_and_keep_order_and_weights():
    rows, weights = select(written([61, 1, 7, 4], np.array([0.5, 2, 0, 1.25], dtype=np.float32)), 4)
    assert rows == [20, 0, 2, 1]
    assert weights.dtype == torch.float32
    assert weights.tolist() == [0.5, 2, 0, 1.25]


def test_without_a_split_numbers_are_rows():
    rows, weights = select(written(np.arange(SIZE)[::-1], np.arange(SIZE) / 8), SIZE, numbers=torch.arange(SIZE))
    assert rows == list(range(SIZE))[::-1]
    assert weights.tolist() == [place / 8 for place in range(SIZE)]


def test_a_fraction_that_does_not_fit_is_told_with_one_that_does():
    file = written(NUMBERS[:10], np.ones(10))
    with pytest.raises(UserError) as error:
        select(file, 4)
    text = str(error.value)
    assert text.startswith(
        'selector.file = "subset.npz": holds 10 examples, and selector.fraction = 0.190476 of the 21 '
    )
    assert round(float(text.rpartition(" = ")[2]) * SIZE) == 10


@pytest.mark.parametrize("count", range(1, SIZE + 1))
def test_the_fraction_that_is_named_selects_as_many(count: int):
    with pytest.raises(UserError) as error:
        select(written(NUMBERS[:count], np.ones(count)), 1 if count > 1 else 2)
    named = float(str(error.value).rpartition(" = ")[2])
    assert FixedSubset.Config(file="x", fraction=named).budget_of(SIZE) == count


@pytest.mark.parametrize(("number", "shown"), [(2, "2"), (64, "64"), (10**12, "1000000000000")])
def test_examples_that_are_not_in_the_training_split(number: int, shown: str):
    with pytest.raises(UserError) as error:
        select(written([1, number, 4], np.ones(3)), 3)
    expected = f"of its 3 examples 1 are not in the training split ({shown}): held out for validation"
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


ONES = np.ones(2)
WRONG = {
    "other names": {"rows": np.arange(2), "weights": ONES},
    "no whole numbers": {"indices": np.array([1.0, 4.0]), "weights": ONES},
    "whole weights": {"indices": np.array([1, 4]), "weights": np.ones(2, dtype=np.int64)},
    "other lengths": {"indices": np.array([1, 4]), "weights": np.ones(3)},
    "columns": {"indices": np.array([[1], [4]]), "weights": np.ones((2, 1))},
    "twice the same": {"indices": np.array([1, 1]), "weights": ONES},
    "negative indices": {"indices": np.array([-1, 1]), "weights": ONES},
    "negative weights": {"indices": np.array([1, 4]), "weights": -ONES},
    "not finite": {"indices": np.array([1, 4]), "weights": np.array([1, np.nan])},
    "all 0": {"indices": np.array([1, 4]), "weights": np.zeros(2)},
    "none": {"indices": np.array([], dtype=np.int64), "weights": np.array([])},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_file_that_holds_no_selection(wrong: str):
    np.savez("subset.npz", **WRONG[wrong])
    with pytest.raises(UserError, match=r'^selector\.file = "subset\.npz": not a selection[ :].*$'):
        select("subset.npz", 2)


class Opens:
    """A pickle that makes a file where it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("opened", "w")


@pytest.mark.parametrize("kind", ["empty", "text", "pickle", "npy", "npz of objects", "cut off"])
def test_a_file_of_another_kind_runs_nothing(kind: str):
    file, objects = Path("subset.npz"), np.array([Opens()], dtype=object)
    if kind == "npz of objects":
        np.savez(file, indices=objects, weights=objects)
    elif kind == "npy":
        with file.open("wb") as stream:
            np.save(stream, np.arange(3))
    elif kind == "cut off":
        written(np.arange(3), np.ones(3))
        file.write_bytes(file.read_bytes()[:200])
    else:
        file.write_bytes({"empty": b"", "text": b"1 2 3", "pickle": pickle.dumps(Opens())}[kind])
    with pytest.raises(UserError, match=r'^selector\.file = "subset\.npz": not a selection \(.*\)$'):
        select("subset.npz", 2)
    assert not Path("opened").exists()


@pytest.mark.parametrize("file", ["gone.npz", "."])
def test_no_such_file(file: str):
    with pytest.raises(UserError, match=r"there is no such file; `robustcords select` writes one"):
        select(file, 2)


def one_of_two(rank: int, store: str, folder: str) -> None:
    """The main process has the file, and for the second call nobody has."""
    os.chdir(folder if rank == 0 else Path(folder).parent)
    options = {"world_size": 2, "rank": rank, "timeout": timedelta(seconds=60)}
    distributed.init_process_group("gloo", init_method=f"file://{store}", **options)
    rows, weights = select("subset.npz", 3)
    assert (rows, weights.tolist()) == ([2, 0, 1], [1, 2, 3])
    with pytest.raises(UserError, match=r"gone\.npz.*there is no such file"):
        select("gone.npz", 3)
    distributed.destroy_process_group()


def test_the_main_process_reads_the_file_for_all(tmp_path: Path):
    folder = tmp_path / "main"
    folder.mkdir()
    np.savez(folder / "subset.npz", indices=[7, 1, 4], weights=[1.0, 2.0, 3.0])
    together(one_of_two, 2, str(tmp_path / "store"), str(folder))


SMALL = settings(
    data__train_limit=600,
    model__width=4,
    model__depths="[1]",
    attack__steps=1,
    train__epochs=2,
    train__batch_size=54,
    train__precision="fp32",
    selector__select_every=100,
    evaluation__pgd="false",
    evaluation__autoattack="false",
    callbacks__overfitting="false",
)
ITSELF = settings(selector__name="adv-gradmatch", selector__select_first="true", selector__fraction=0.2)
FILE = settings(selector__name="fixed", selector__file="subset.npz", selector__fraction=0.2)


def succeeds(command: Command, *arguments: Any) -> Answer:
    answer = command(*arguments)
    assert answer.status == 0, answer.err
    return answer


def test_training_on_what_select_writes_is_training_that_selects_by_itself(command: Command):
    """The weights that are selected with are the initial ones, so that both runs begin and select alike."""
    loaded = recipe.load("digits_mart", [*SMALL[1::2], *ITSELF[1::2]])
    images = build.data(loaded)
    save_file(build.model(loaded, images).state_dict(), "initial.safetensors")
    chosen = ("--weights", "initial.safetensors", "--output", "subset.npz")
    succeeds(command, "select", "digits_mart", *SMALL, *ITSELF, *chosen)
    with np.load("subset.npz") as content:
        numbers, weights = content["indices"], content["weights"]
    assert numbers.max() >= len(images.train), "the full set's numbers would pass for the split's rows"
    assert len(np.unique(weights)) > 100

    succeeds(command, "run", "digits_mart", *SMALL, *ITSELF, "--output", "itself")
    succeeds(command, "run", "digits_mart", *SMALL, *FILE, "--output", "file")
    runs = [Path("itself"), Path("file")]
    for name in ("weights/last.safetensors", "weights/best.safetensors", "selections/epoch_0000.npz"):
        first, second = (run / name for run in runs)
        assert first.read_bytes() == second.read_bytes(), name
    assert [path.name for path in Path("file/selections").iterdir()] == ["epoch_0000.npz"]

    weights[0] *= 2
    np.savez("subset.npz", indices=numbers, weights=weights)
    succeeds(command, "run", "digits_mart", *SMALL, *FILE, "--output", "other")
    other = Path("other/weights/last.safetensors").read_bytes()
    assert other != Path("file/weights/last.safetensors").read_bytes(), "the weights are not read"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"selector__file": "gone.npz"}, 'selector.file = "gone.npz": there is no such file'),
        ({"selector__fraction": 0.5}, "set selector.fraction = 0.004"),
        ({"seed": 1}, "are not in the training split ("),
        ({"selector__select_first": "false"}, "leave select_first out"),
    ],
)
def test_a_run_is_refused_before_it_begins(command: Command, options: dict[str, Any], expected: str):
    train = build.data(recipe.load("digits_mart", SMALL[1::2])).train.numbers
    elsewhere = set(build.data(recipe.load("digits_mart", [*SMALL[1::2], "seed=1"])).train.numbers.tolist())
    held_out = next(number for number in train.tolist() if number not in elsewhere)
    written([held_out, int(train[0] if train[0] != held_out else train[1])], np.ones(2))
    answer = command("run", "digits_mart", *SMALL, *FILE, *settings(**options), "--output", "run")
    assert (answer.status, answer.out) == (2, "")
    assert answer.err.splitlines()[-1].startswith("error: ")
    assert expected in answer.err.splitlines()[-1]
    assert not Path("run").exists()
