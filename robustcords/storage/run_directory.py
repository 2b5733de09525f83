"""The run directory: recipe, environment, metrics, selections, checkpoints, weights and report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors.torch import save as serialise_tensors
from torch import Tensor

from robustcords.errors import UserError, one_line, unreadable, unwritable
from robustcords.storage.checkpoint import Checkpoints
from robustcords.storage.files import changing, clear_unfinished, parse_json, read_object, write_atomic, write_json
from robustcords.storage.selections import Selection, load_selections

_FOLDERS = ("checkpoints", "weights", "selections")


class RunDirectory:
    """The files of one run; docs/run-directory.md describes each one.

    Only the main process writes. `create` makes a new one, and never touches an existing run.

    Args:
        path: of the directory.
        writes: whether this process may write.
        keep_checkpoints: number of checkpoints to keep.
    """

    def __init__(self, path: Path, *, writes: bool = True, keep_checkpoints: int = 2) -> None:
        self.path = path
        self.writes = writes
        self.checkpoints = Checkpoints(path / "checkpoints", keep_checkpoints)

    @classmethod
    def nowhere(cls) -> RunDirectory:
        """Returns an empty directory object that writes nothing."""
        return cls(Path(os.devnull) / "run", writes=False)

    @classmethod
    def of_run(cls, path: Path) -> RunDirectory:
        """Returns the directory of an existing run, read-only.

        Raises:
            UserError: there is none.
        """
        directory = cls(path, writes=False)
        if not directory.recipe.exists():
            raise UserError(f"{path}: not a run directory (it has no recipe.toml)")
        return directory

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.toml"

    @property
    def metrics(self) -> Path:
        """The metrics: one JSON object per line and epoch."""
        return self.path / "metrics.jsonl"

    @property
    def report(self) -> Path:
        """The results."""
        return self.path / "report.json"

    @property
    def finished(self) -> bool:
        """Whether the run has a complete report, the last file that is written.

        Raises:
            UserError: the report is damaged.
        """
        return self.report.exists() and read_object(self.report).get("complete", True) is not False

    def weights(self, which: str) -> Path:
        """Returns the path of the ``best`` or ``last`` weights."""
        return self.path / "weights" / f"{which}.safetensors"

    def save_weights(self, which: str, state: Mapping[str, Tensor]) -> None:
        """Writes the ``best`` or ``last`` weights as a plain state dict."""
        if self.writes:
            # Copies, so that parameters that share memory are written one by one.
            copies = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}
            write_atomic(self.weights(which), serialise_tensors(copies))

    def save_checkpoint(self, step: int, state: Callable[[], dict[str, Any]]) -> None:
        """Writes a checkpoint.

        Args:
            step: optimiser steps so far.
            state: returns the state; only called in a process that writes.
        """
        if self.writes:
            self.checkpoints.save(step, state())

    def start(self, recipe: str, environment: dict[str, Any]) -> None:
        """Writes the resolved recipe and the environment; for a resumed run, only what is missing.

        Raises:
            UserError: the existing environment is damaged.
        """
        if self.writes:
            if not self.recipe.exists():  # first, as this is what makes the directory a run
                write_atomic(self.recipe, recipe)
            self._make_folders()
            for folder in _FOLDERS:
                clear_unfinished(self.path / folder)
            for evaluated in (self.path / "evaluation").glob("*/"):
                clear_unfinished(evaluated)
            clear_unfinished(self.path)
            if not (self.path / "environment.json").exists():
                write_json(self.path / "environment.json", environment)
        if (self.path / "environment.json").exists():
            self.environment()  # better now than when the report is made, after training

    def _make_folders(self) -> None:
        """Makes the directory and its folders where they are missing, which they are in training from Python."""
        for folder in (self.path, *(self.path / name for name in _FOLDERS)):
            if not folder.is_dir():
                with changing(folder):
                    folder.mkdir(parents=True)

    def change_recipe(self, recipe: str) -> None:
        """Replaces the recipe of a resumed run by a longer one; an existing report is kept under a new name."""
        if self.writes:
            for path in (self.report, self.path / "report.md"):
                if path.exists():
                    with changing(path):
                        path.rename(path.with_stem(f"report_after_{len(self.rows())}_epochs"))
            write_atomic(self.recipe, recipe)

    def environment(self) -> dict[str, Any]:
        """Returns the environment.

        Raises:
            UserError: the file is missing or damaged.
        """
        return read_object(self.path / "environment.json")

    def rows(self) -> list[dict[str, Any]]:
        """Returns the epochs' metrics, without a last line that a crash truncated.

        Raises:
            UserError: another line is not an epoch's, or the file cannot be read.
        """
        rows = []
        try:
            whole, _, _ = (self.metrics.read_bytes() if self.metrics.exists() else b"").rpartition(b"\n")
        except OSError as error:
            raise unreadable(self.metrics, error) from error
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                rows.append(dict(parse_json(line)))
                _check_row(rows[-1])
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise UserError(f"{self.metrics}:{number}: damaged: not an epoch's line ({one_line(error)})") from error
        return rows

    def add_row(self, row: dict[str, Any]) -> None:
        """Appends one epoch's metrics."""
        if self.writes:
            with changing(self.metrics), self.metrics.open("a") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def keep_rows(self, epochs: Sequence[int]) -> list[dict[str, Any]]:
        """Keeps the metrics of completed epochs, which it returns, and drops all others: a resumed run repeats them.

        A process that does not write returns nothing; one that does makes the directory if it is missing.

        Args:
            epochs: numbers of the completed epochs, in order.

        Raises:
            UserError: the metrics of one are damaged or missing, or the directory cannot be made.
        """
        if self.writes:
            self._make_folders()
        kept: list[dict[str, Any]] = []
        if self.writes and (epochs or self.metrics.exists()):
            kept = [row for row in self.rows() if row["epoch"] in epochs]
            if [row["epoch"] for row in kept] != list(epochs):
                what = f"not one line for each of the {len(epochs)} epochs that are done"
                raise UserError(f"{self.metrics}: damaged: {what}")
            write_atomic(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))
        return kept

    def save_selection(self, epoch: int, indices: Tensor, weights: Tensor) -> None:
        """Writes ``selections/epoch_NNNN.npz``: indices (k,) int64 in the full training set, weights (k,) float32."""
        if self.writes:
            Selection(epoch, indices.numpy(), weights.numpy()).save(self.path / "selections")

    def selections(self) -> list[dict[str, int]]:
        """Returns epoch and size of every saved selection, in order.

        Raises:
            UserError: one is damaged.
        """
        found = load_selections(self.path / "selections")
        return [{"epoch": selection.epoch, "size": len(selection.indices)} for selection in found]


def _check_row(row: dict[str, Any]) -> None:
    """Checks the values that a report needs; raises any error if they are invalid."""
    if not all(isinstance(value, float | int) for value in (row["epoch"], *row["seconds"].values())):
        raise TypeError("epoch and seconds have to be numbers")


def has_run(path: Path) -> bool:
    """Returns whether a directory has a run, finished or not."""
    return (path / "recipe.toml").exists()


def refuse_taken(output: Path) -> None:
    """Checks that a directory named by the user is empty or missing.

    Hidden files are ignored, as a crash can leave the temporary file of the very first write.

    Raises:
        UserError: it is a file, or not empty.
    """
    if output.is_dir() and any(not path.name.startswith(".") for path in output.iterdir()):
        if has_run(output):
            raise UserError(f"--output {output}: already holds a run; name another, or continue with --resume")
        raise UserError(f"--output {output}: the directory is not empty; name another")
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output}: that is a file, not a directory")


def create(output: Path | None, name: str) -> Path:
    """Creates the directory of a new run.

    Args:
        output: the user's choice; None for ``runs/NAME``, or ``runs/NAME-2``, ``-3`` ... if that is taken.
        name: the recipe's name.

    Raises:
        UserError: `output` is not empty, cannot be created, or has a name that trackers cannot encode.
    """
    try:
        str(output or name).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"the name {str(output or name)!r} is not UTF-8; name another directory with --output"
        ) from None
    try:
        if output is not None:
            refuse_taken(output)
            output.mkdir(parents=True, exist_ok=True)
            return output
        Path("runs").mkdir(exist_ok=True)
        for number in range(1, 1_000_000):
            path = Path("runs") / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return path
    except OSError as error:
        raise unwritable(Path(error.filename or output or "runs"), error) from error
    raise UserError(f"runs/{name}: no free number is left")


def claim(path: Path) -> AbstractContextManager[object]:
    """Locks a directory for this process until the returned context ends.

    The lock is on a file, ``.lock``; the system releases it however the process ends.

    Raises:
        UserError: another process holds the lock, or there is no permission to write.
    """
    try:
        return FileLock(path / ".lock").acquire(timeout=0)
    except Timeout as error:
        what = "another process is running in there; wait for it, or name another directory with --output"
        raise UserError(f"{path}: {what}") from error
    except OSError as error:
        raise unwritable(path, error) from error


def newest(name: str) -> Path | None:
    """Returns the newest of ``runs/NAME``, ``runs/NAME-2``, ... that `create` made, or None."""
    numbered = {1: Path("runs") / name}
    for path in Path("runs").glob(f"{name}-*"):
        suffix = path.name.removeprefix(f"{name}-")
        if suffix.isdecimal():
            numbered[int(suffix)] = path
    existing = [number for number, path in numbered.items() if path.is_dir()]
    return numbered[max(existing)] if existing else None
