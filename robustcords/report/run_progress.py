"""The progress of runs, read from their directories."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from robustcords.errors import UserError
from robustcords.report.markdown import on_terminal
from robustcords.report.runs import directories, rows_of
from robustcords.runtime.progress import duration
from robustcords.storage.files import parse_json
from robustcords.storage.run_directory import RunDirectory

_HEADER = ("run", "state", "epochs", "trained for", "to go", "loss", "validation: clean", "robust", "last sign")


@dataclass(frozen=True)
class Underway:
    """How far a run is.

    Attributes:
        name: of its directory, with the folders that lead to it.
        state: ``"training"``, ``"evaluating"`` or ``"done"``. Whether a process still works on it is not known, but
            when it last wrote something.
        epochs: of the metrics, with how many there are to be where the recipe says so.
        share: of the training that is done, see `trained_share`.
        seconds: of training and what comes with it, up to the last epoch that has ended.
        loss: training loss of the last epoch.
        validation: what the newest validation measured: accuracies ``clean`` and ``robust``.
        silent: seconds since a file was written.
    """

    name: str
    state: str
    epochs: str
    share: float
    seconds: float
    loss: float | None
    validation: Mapping[str, float]
    silent: float

    @property
    def remaining(self) -> float | None:
        """A guess at the seconds of training that are left; None before there is anything to guess from."""
        return self.seconds / self.share * (1 - self.share) if self.share else None


def underway(paths: Iterable[Path]) -> list[Underway]:
    """Returns how far the runs are that some paths are or hold.

    Raises:
        UserError: a path is no folder or holds no run, or what a run has written is damaged.
    """
    return [_of_run(path) for path in directories(paths)]


def _of_run(path: Path) -> Underway:
    directory = RunDirectory.of_run(path)
    rows = rows_of(directory)
    planned = _train(directory).get("epochs")
    state = "done" if directory.finished else "evaluating" if directory.report.exists() else "training"
    validations = [noted for row in rows if (noted := row.noted("validation"))]
    return Underway(
        str(path),
        state,
        f"{len(rows)} of {planned}" if planned else str(len(rows)),
        1.0 if state != "training" else trained_share(directory.metrics, planned),
        sum(row.seconds.get("total") or 0.0 for row in rows),
        rows[-1].train_loss if rows else None,
        validations[-1] if validations else {},
        _silent(path),
    )


def _train(directory: RunDirectory) -> Mapping[str, Any]:
    try:
        train = tomllib.loads(directory.recipe.read_text(encoding="utf-8")).get("train")
    except ValueError as error:
        raise UserError(f"{directory.recipe}: damaged: {error}") from error
    return train if isinstance(train, dict) else {}


def trained_share(metrics: Path, epochs: int | None) -> float:
    """Returns how much of a run's training is done, in [0, 1]; 0 where that is not known.

    Args:
        metrics: its metrics.jsonl; a last line that is not whole does not count.
        epochs: how many it is to have; None where its length is in steps, of which each line says the share.
    """
    whole, _, _ = (metrics.read_bytes() if metrics.exists() else b"").rpartition(b"\n")
    lines = whole.splitlines()
    if epochs:
        return min(1.0, len(lines) / epochs)
    try:
        return float(parse_json(lines[-1])["progress"])
    except (IndexError, ValueError, LookupError, TypeError):
        return 0.0


def _silent(path: Path) -> float:
    """Returns the seconds since something in a run directory was written."""
    return max(0.0, time.time() - max(file.stat().st_mtime for file in (path, *path.rglob("*")) if file.exists()))


def table_of(runs: Sequence[Underway]) -> Table:
    """Returns runs as a table."""
    table = on_terminal(_HEADER, map(_row, runs), left=2)
    done = sum(run.state == "done" for run in runs)
    table.caption = f"{done} of {len(runs)} done"
    return table


def _row(run: Underway) -> list[str]:
    left = run.remaining if run.state == "training" else None
    accuracies = (run.validation.get(name) for name in ("clean", "robust"))
    return [
        run.name,
        run.state,
        run.epochs,
        duration(run.seconds),
        "" if left is None else duration(left),
        "" if run.loss is None else f"{run.loss:.4f}",
        *("" if accuracy is None else f"{accuracy:.1%}" for accuracy in accuracies),
        f"{duration(run.silent)} ago",
    ]
