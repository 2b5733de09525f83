"""One run at a time in a directory, and a finished one that goes on for longer."""

from __future__ import annotations

import io
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.command_line import call, contents, settings
from support.several import SERVER

from robustcords.errors import UserError
from robustcords.recipe.recipe import load
from robustcords.runtime import accelerator
from robustcords.storage import run_directory

RECIPE = [
    "digits_mart",
    *settings(
        data__train_limit=240,
        model__width=2,
        model__depths="[1]",
        attack__steps=1,
        train__batch_size=108,
        bullet="false",
        selector="false",
        loss__name="sat",
        evaluation__limit=10,
        evaluation__pgd="{steps = 1, restarts = 1, step_size = 0.15, epsilons = [0.15]}",
        evaluation__autoattack="false",
        callbacks__overfitting="false",
    ),
]


def hold(path: Path) -> None:
    """Is a process that is running in a directory until it is killed."""
    with run_directory.claim(path):
        (path / "claimed").touch()
        time.sleep(600)


def test_a_second_run_is_refused_while_the_first_lives_and_not_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    path, options = Path("run"), [*RECIPE, *settings(train__epochs=1), "--output", "run"]
    assert call(capsys, "run", *options).status == 0
    (path / "report.json").unlink()
    before = contents(tmp_path / "run")
    holder = SERVER.Process(target=hold, args=(tmp_path / "run",), daemon=True)
    holder.start()
    while holder.is_alive() and not (path / "claimed").exists():
        time.sleep(0.005)
    (path / "claimed").unlink()
    line = "run: another process is running in there; wait for it, or name another directory with --output"
    with pytest.raises(UserError, match=f"^{line}$"):
        run_directory.claim(path)
    answer = call(capsys, "run", *options, "--resume")
    assert (answer.status, answer.err) == (2, f"error: {line}\n")
    assert {file: held for file, held in contents(tmp_path / "run").items() if file.name != ".lock"} == {
        file: held for file, held in before.items() if file.name != ".lock"
    }
    shutil.copytree(path, "copy")
    with run_directory.claim(Path("copy")):  # a lock is not copied with its file
        pass
    holder.kill()
    holder.join(timeout=30)
    assert (path / ".lock").exists(), "and means nothing by itself"
    for _ in range(2):
        with run_directory.claim(path):
            pass


def test_a_finished_run_goes_on_for_more_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = Path("run")

    def train(epochs: int, *more: str):
        return call(capsys, "run", *RECIPE, *settings(train__epochs=epochs), *more, "--output", "run", "--resume")

    assert train(1).status == 0
    first = (run / "report.json").read_bytes()
    assert train(1, "--set", "train.keep_checkpoints=5").status == 0
    assert (run / "report.json").read_bytes() == first, "nothing more was asked for"
    longer = train(3)
    assert longer.status == 0
    assert "resumed from run/checkpoints/step_" in longer.err
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert (run / "report_after_1_epochs.json").read_bytes() == first
    assert (run / "report_after_1_epochs.md").exists()
    assert json.loads((run / "report.json").read_text())["recipe"]["train"]["epochs"] == 3
    fewer = train(2)
    assert fewer.status == 2
    assert "what differs: train.epochs; what may: more train.epochs or train.steps, " in fewer.err


def parquet_files(folder: Path, of_the_first_class: int) -> None:
    noise, images = np.random.default_rng(0), []
    for _ in range(24):
        written = io.BytesIO()
        Image.fromarray(noise.integers(0, 255, (8, 8), dtype=np.uint8)).save(written, "png")
        images.append({"bytes": written.getvalue()})
    labels = [int(number >= of_the_first_class) for number in range(24)]
    folder.mkdir()
    for split in ("train", "test"):
        pq.write_table(pa.table({"image": images, "label": labels}), folder / f"{split}-0.parquet")


def test_a_run_goes_on_where_its_data_have_moved_to_and_not_with_others(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    parquet_files(Path("here"), 12)
    parquet_files(Path("other"), 11)
    options = [*settings(data__name="my/pictures", data__validation_fraction=0, train__batch_size=8), "--output", "run"]

    def train(path: str, epochs: int, *more: str):
        where = settings(data__path=path, train__epochs=epochs)
        return call(capsys, "run", *RECIPE, *where, *options, "--resume", *more)

    assert train("here", 1).status == 0
    Path("here").rename("there")
    moved = train("there", 2, *settings(train__memory_format="contiguous"))
    assert moved.status == 0, moved.err
    assert "resumed from run/checkpoints/step_" in moved.err
    assert load("run/recipe.toml").data.path == str(tmp_path / "there")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    other = train("other", 3)
    assert other.status == 2
    assert other.err.endswith("was trained on other data: their labels are not those of data.path\n")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert train("there", 3).status == 0


def test_auto_precision_stays_what_it_was_where_the_run_began(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def train(machine: str, epochs: int):
        monkeypatch.setattr(accelerator, "fastest", lambda _: machine)
        options = settings(train__epochs=epochs, train__precision="auto")
        assert call(capsys, "run", *RECIPE, *options, "--output", "run", "--resume").status == 0
        return load("run/recipe.toml").train.precision

    assert train("bf16", 1) == "bf16"
    assert train("fp32", 2) == "bf16"
