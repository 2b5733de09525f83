"""Finished runs, read from their directories."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from robustcords.config.schema import parse_radius
from robustcords.errors import UserError, one_line
from robustcords.recipe.short_forms import of_run, written_out
from robustcords.storage.files import parse_json, read_object
from robustcords.storage.selections import Selection, load_selections

CLEAN = "clean"


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
        outcomes: (``"best"`` or ``"last"``, ``"clean"``, ``"PGD 8/255"`` or ``"AutoAttack 8/255"``) to what is known of
            single images; none where the folder ``evaluation/`` is missing.
        notes: what is missing, a line each.
    """

    path: Path
    report: dict[str, Any]
    rows: Sequence[dict[str, Any]]
    selections: Sequence[Selection]
    outcomes: dict[tuple[str, str], Outcomes]
    notes: Sequence[str] = ()

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe's tables, as this version writes them."""
        return of_run(self.report["recipe"])

    @property
    def seed(self) -> int:
        """The recipe's seed."""
        return int(self.report["recipe"]["seed"])


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """Returns the finished runs that some paths are or hold, each once, in the order of the paths.

    Args:
        paths: run directories, or folders that have run directories somewhere below them.

    Raises:
        UserError: a path is no folder, holds no run, or a run is damaged; or none of the runs is finished.
    """
    found = _directories(paths)
    finished = [path for path in found if (path / "report.json").exists()]
    if not finished:
        raise UserError(f"{', '.join(map(str, found))}: not finished (no report.json); go on with run --resume")
    return [load_run(path) for path in finished]


def unfinished(paths: Iterable[Path]) -> list[Path]:
    """Returns the run directories that `find_runs` leaves out because they have no report yet."""
    return [path for path in _directories(paths) if not (path / "report.json").exists()]


def load_run(path: Path) -> Run:
    """Reads a finished run. What only some pages need may be missing: weights, checkpoints, selections, metrics.

    Raises:
        UserError: the directory has no report, or a file in it is damaged.
    """
    report = _checked(path / "report.json", read_object(path / "report.json"), _Report)
    notes = []
    rows = _rows(path / "metrics.jsonl")
    if len(rows) != report["training"]["epochs"]:
        notes.append(f"metrics.jsonl has {len(rows)} of the {report['training']['epochs']} epochs")
    selections = load_selections(path / "selections")
    if not selections and report["training"]["selections"]:
        notes.append("no selections/: overlap is not known")
    outcomes: dict[tuple[str, str], Outcomes] = {}
    for which, entry in report["evaluation"].items():
        found, wanted = _outcomes(path / "evaluation" / which, entry), _reported(entry)
        outcomes |= {(which, what): outcome for what, outcome in found.items()}
        if missing := [what for what in wanted if what not in found]:
            notes.append(f"evaluation/{which}/ does not have the single images' outcomes of {', '.join(missing)}")
    return Run(path, report, rows, selections, outcomes, notes)


def _directories(paths: Iterable[Path]) -> list[Path]:
    """Returns the run directories that some paths are or hold."""
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: {'a file' if path.exists() else 'there is no such folder'}; name a run directory")
        below = [path] if _is_run(path) else list(_below(path))
        if not below:
            raise UserError(f"{path}: neither a run directory (no recipe.toml) nor a folder with some below it")
        for each in below:
            found.setdefault(each.resolve(), each)
    return list(found.values())


def _is_run(path: Path) -> bool:
    return (path / "recipe.toml").is_file()


def _below(path: Path) -> Iterator[Path]:
    """Yields run directories below a folder, not looking into them, nor into hidden folders."""
    for folder, names, _ in os.walk(path):
        runs = sorted(name for name in names if _is_run(Path(folder, name)))
        yield from (Path(folder, name) for name in runs)
        names[:] = sorted(name for name in names if name not in runs and not name.startswith("."))


def _radius(text: str | float) -> str | float:
    """Checks that a radius can be compared with others.

    Raises:
        ValueError: it is no positive number or fraction.
    """
    value = parse_radius(text)
    if not 0 < value < math.inf:
        raise ValueError(f"{text!r} is not a radius")
    return text


_Share = Annotated[float, Field(ge=0, le=1)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0)]
_Some = Annotated[int, Field(gt=0)]
_Radius = Annotated[str, AfterValidator(_radius)]


class _Part(BaseModel):
    """The part of a file that comparing runs relies on; anything may stand beside it.

    A number that was not finite is null.
    """

    model_config = ConfigDict(extra="allow", strict=True)


class _Named(_Part):
    name: str


class _Selector(_Named):
    fraction: Annotated[float, Field(gt=0, le=1)]


class _Threat(_Part):
    norm: str = "linf"
    epsilon: Annotated[str | float, AfterValidator(_radius)]


class _Train(_Part):
    epochs: _Some


class _Recipe(_Part):
    seed: int
    data: _Named
    model: _Named
    threat: _Threat
    attack: _Named
    loss: _Named
    selector: _Selector | None = None
    effort: _Named | None = None
    train: _Train

    @model_validator(mode="before")
    @classmethod
    def _without_short_forms(cls, values: Any) -> Any:
        return written_out(values) if isinstance(values, dict) else values


class _Environment(_Part):
    device: str
    world_size: int
    threads: int
    git_commit: str | None = None
    versions: dict[str, str]


class _Selected(_Part):
    epoch: _Count
    size: _Count


class _Training(_Part):
    epochs: _Some
    seconds: dict[str, _Seconds | None]
    selections: list[_Selected]
    warnings: list[str] = []


class _Check(_Part):
    name: str
    status: str
    finding: str


class _Sanity(_Part):
    checks: list[_Check]


class _Evaluation(_Part):
    clean: _Share | None
    largest_class: _Share | None = None
    classes_right: _Count | None = None
    examples: _Some
    pgd: dict[_Radius, _Share | None] = {}
    pgd_attack: str = ""
    autoattack: dict[_Radius, _Share | None] = {}
    autoattack_examples: _Some | None = None
    autoattack_largest_class: _Share | None = None
    autoattack_version: str = ""
    autoattack_attacks: list[str] = []
    autoattack_warnings: list[str] = []
    sanity: _Sanity | None = None

    @model_validator(mode="after")
    def _attacks_are_named(self) -> Self:
        if self.pgd and not self.pgd_attack:
            raise ValueError("pgd without pgd_attack")
        if self.autoattack and not (self.autoattack_version and self.autoattack_examples):
            raise ValueError("autoattack without autoattack_version and autoattack_examples")
        return self


class _Report(_Part):
    recipe: _Recipe
    environment: _Environment
    training: _Training
    evaluation: dict[Literal["best", "last"], _Evaluation]


class _Chosen(_Part):
    classes: list[_Count] | None = None


class _Row(_Part):
    epoch: _Count
    train_loss: float | None
    seconds: dict[str, _Seconds]
    counts: dict[str, _Count] | None = None
    dynamics: dict[str, _Count] | None = None
    validation: dict[str, _Share] | None = None
    selection: _Chosen | None = None


def _checked(path: Path, content: dict[str, Any], shape: type[_Part], line: int | None = None) -> dict[str, Any]:
    """Returns the content if it has the shape.

    Raises:
        UserError: it has not; says where.
    """
    try:
        shape.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        where = f"{path}:{line}" if line else str(path)
        what = problem["msg"].lower().removeprefix("value error, ")
        raise UserError(f"{where}: damaged: {key}: {what}") from error
    return content


def _rows(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl; none where there is no such file.

    Raises:
        UserError: a line is damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = dict(parse_json(line))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}:{number}: damaged: not a JSON object ({error})") from error
        rows.append(_checked(path, row, _Row, number))
    return rows


def _reported(entry: dict[str, Any]) -> dict[str, float | None]:
    """Returns the accuracies of a report's entry, by what the evaluation calls them in its files."""
    return {
        CLEAN: entry["clean"],
        **{f"PGD {radius}": value for radius, value in entry.get("pgd", {}).items()},
        **{f"AutoAttack {radius}": value for radius, value in entry.get("autoattack", {}).items()},
    }


def _outcomes(folder: Path, entry: dict[str, Any]) -> dict[str, Outcomes]:
    """Returns what a folder knows of the single images behind a report's entry.

    The folder may hold evaluations with other settings or weights too; those whose accuracy is not the reported one
    are passed over, as are files that are damaged or not finished.
    """
    found = {}
    reported = _reported(entry)
    for path in sorted(folder.glob("*.json")):
        try:
            content = parse_json(path.read_bytes())
            what, images = str(content["fingerprint"]["what"]), str(content["fingerprint"]["images"])
            outcomes = np.array(content["outcomes"], dtype=np.int64)
        except (OSError, ValueError, TypeError, KeyError, OverflowError):
            continue
        attacks = len(entry.get("autoattack_attacks", [])) if what.startswith("AutoAttack ") else 1
        examples = entry.get("autoattack_examples") if what.startswith("AutoAttack ") else entry["examples"]
        right = outcomes >= attacks
        known = reported.get(what)
        whole = outcomes.shape == (examples,) and bool((outcomes >= 0).all())
        if whole and known is not None and abs(float(right.mean()) - known) < 1e-12:
            found[what] = Outcomes(right, images)
    return found
