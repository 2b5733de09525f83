"""Finished runs, read from their directories."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from robustcords.errors import UserError
from robustcords.evaluation.results import Evaluation
from robustcords.report.run_report import Environment, EpochMetrics, RecipeTables, Report
from robustcords.storage.files import parse_json
from robustcords.storage.run_directory import RunDirectory
from robustcords.storage.selections import Selection, load_selections


@dataclass(frozen=True)
class Outcomes:
    """Which test images one evaluation got right, image by image.

    Attributes:
        right: (n,) bool, in the order of the test set.
        images: the SHA-256 of the images that were evaluated.
    """

    right: npt.NDArray[np.bool_]
    images: str


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        path: its directory.
        report: report.json.
        rows: the lines of metrics.jsonl; none where that is missing.
        selections: in order of their epochs; none without a selector, or where the folder is missing.
        outcomes: (``"best"`` or ``"last"``, `Measurement.what`) to what is known of single images; none where the
            folder ``evaluation/`` is missing.
        notes: what is missing, a line each.
    """

    path: Path
    report: Report
    rows: Sequence[EpochMetrics]
    selections: Sequence[Selection]
    outcomes: dict[tuple[str, str], Outcomes]
    notes: Sequence[str] = ()

    @property
    def recipe(self) -> RecipeTables:
        """The resolved recipe's tables."""
        return self.report.recipe

    @property
    def seed(self) -> int:
        """The recipe's seed."""
        return self.recipe.seed


def rows_of(directory: RunDirectory) -> list[EpochMetrics]:
    """Returns the epochs' metrics of a run that need not have finished; a last line that is cut short is left out.

    Raises:
        UserError: another line is damaged.
    """
    return [
        EpochMetrics.from_json(row, directory.metrics, number) for number, row in enumerate(directory.rows(), start=1)
    ]


def environment_of(directory: RunDirectory) -> Environment:
    """Returns what a run was made with.

    Raises:
        UserError: the file is missing or damaged.
    """
    return Environment.from_json(directory.environment(), directory.path / "environment.json")


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """Returns the finished runs that some paths are or hold, each once, in the order of the paths.

    Args:
        paths: run directories, or folders that have run directories somewhere below them.

    Raises:
        UserError: a path is no folder, holds no run, or a run is damaged; or none of the runs is finished.
    """
    run_directories = directories(paths)
    finished = [path for path in run_directories if (path / "report.json").exists()]
    if not finished:
        raise UserError(
            f"{', '.join(map(str, run_directories))}: not finished (no report.json); resume with run --resume"
        )
    return [load_run(path) for path in finished]


def unfinished(paths: Iterable[Path]) -> list[Path]:
    """Returns the run directories that `find_runs` leaves out because they have no report yet."""
    return [path for path in directories(paths) if not (path / "report.json").exists()]


def load_run(path: Path) -> Run:
    """Reads a finished run. What only some pages need may be missing: weights, checkpoints, selections, metrics.

    Raises:
        UserError: the directory has no report, or a file in it is damaged.
    """
    report = Report.read(path / "report.json")
    if not report.training.epochs:
        raise UserError(f"{path / 'report.json'}: damaged: training.epochs: input should be greater than 0")
    notes = []
    rows = rows_of(RunDirectory(path))
    if len(rows) != report.training.epochs:
        notes.append(f"metrics.jsonl has {len(rows)} of the {report.training.epochs} epochs")
    if not report.complete:
        notes.append("the evaluation has not ended; resume it with run --resume")
    selections = load_selections(path / "selections")
    if not selections and report.training.selections:
        notes.append("no selections/: overlap is not known")
    outcomes: dict[tuple[str, str], Outcomes] = {}
    for which, entry in report.evaluation.items():
        known = _outcomes(path / "evaluation" / which, entry)
        outcomes |= {(which, what): outcome for what, outcome in known.items()}
        if missing := [measurement.what for measurement in entry.measurements if measurement.what not in known]:
            notes.append(f"evaluation/{which}/ does not have the single images' outcomes of {', '.join(missing)}")
    return Run(path, report, rows, selections, outcomes, notes)


def directories(paths: Iterable[Path]) -> list[Path]:
    """Returns the run directories that some paths are or hold."""
    by_resolved_path: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: {'a file' if path.exists() else 'there is no such folder'}; name a run directory")
        below = [path] if _is_run(path) else list(_below(path))
        if not below:
            raise UserError(f"{path}: neither a run directory (no recipe.toml) nor a folder with some below it")
        for directory in below:
            by_resolved_path.setdefault(directory.resolve(), directory)
    return list(by_resolved_path.values())


def _is_run(path: Path) -> bool:
    return (path / "recipe.toml").is_file()


def _below(path: Path) -> Iterator[Path]:
    """Yields run directories below a folder, not looking into them, nor into hidden folders."""
    for folder, names, _ in os.walk(path):
        runs = sorted(name for name in names if _is_run(Path(folder, name)))
        yield from (Path(folder, name) for name in runs)
        names[:] = sorted(name for name in names if name not in runs and not name.startswith("."))


def _outcomes(folder: Path, entry: Evaluation) -> dict[str, Outcomes]:
    """Returns what a folder knows of the single images behind a report's entry.

    The folder may hold evaluations with other settings or weights too; those whose accuracy is not the reported one
    are passed over, as are files that are damaged or not finished.
    """
    by_attack = {}
    reported = {measurement.what: measurement for measurement in entry.measurements}
    for path in sorted(folder.glob("*.json")):
        try:
            content = parse_json(path.read_bytes())
            what, images = str(content["fingerprint"]["what"]), str(content["fingerprint"]["images"])
            outcomes = np.array(content["outcomes"], dtype=np.int64)
        except (OSError, ValueError, TypeError, KeyError, OverflowError):
            continue
        known = reported.get(what)
        if known is None or known.accuracy is None or outcomes.shape != (known.examples,) or (outcomes < 0).any():
            continue
        right = outcomes >= max(1, len(known.stages))
        if abs(float(right.mean()) - known.accuracy) < 1e-12:
            by_attack[what] = Outcomes(right, images)
    return by_attack
