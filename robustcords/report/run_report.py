"""The schema of report.json and of a line of metrics.jsonl: one class reads and writes each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    model_serializer,
    model_validator,
)

from robustcords.config.schema import parse_radius
from robustcords.evaluation.results import Evaluation, radius
from robustcords.recipe.short_forms import of_run
from robustcords.storage.files import read_object, write_json
from robustcords.storage.records import Count, Record, Seconds, Some, finite

VERSION = 2
"""Of report.json. Version 1, that of robustcords 0.1, says none."""


def _weights(name: str) -> str:
    """Checks the name of some weights.

    Raises:
        ValueError: there are no weights of that name.
    """
    if name not in {"best", "last", "weights"}:
        raise ValueError("input should be 'best', 'last' or 'weights'")
    return name


Weights = Annotated[str, AfterValidator(_weights)]
"""The name of some weights: a run's ``"best"`` or ``"last"``, or ``"weights"`` from elsewhere."""


def _length(text: str | float) -> str | float:
    """Checks the threat's radius, which may be 0.

    Raises:
        ValueError: it is no radius.
    """
    return text if parse_radius(text) == 0 else radius(text)


class ComponentTable(Record):
    """A table of the recipe that names a component; its options stand next to the name."""

    name: str


class SelectorTable(ComponentTable):
    """``[selector]``."""

    fraction: Annotated[float, Field(gt=0, le=1)]


class ThreatTable(Record):
    """``[threat]``."""

    norm: str = "linf"
    epsilon: Annotated[str | float, AfterValidator(_length)]


class TrainTable(Record):
    """``[train]``, as far as a report tells it."""

    epochs: Some | None = None
    steps: Some | list[Some] | None = None
    budget: str | None = None
    batch_size: Some | None = None
    precision: str | None = None

    @property
    def length(self) -> str:
        """How long training was to be, in words."""
        if self.epochs:
            return f"{self.epochs} epoch{'s' if self.epochs != 1 else ''}"
        if self.budget:
            return self.budget
        return f"{sum(self.steps) if isinstance(self.steps, list) else self.steps} steps"


class AttackTable(Record):
    """How PGD or another attack of ``[evaluation]`` was run."""

    steps: int | None = None
    restarts: int | None = None
    step_size: str | float | None = None


class EvaluationTable(Record):
    """``[evaluation]``, as far as a report tells it."""

    pgd: AttackTable | Literal[False] = False


class RecipeTables(Record):
    """The resolved recipe's tables, typed as far as a report reads them.

    Attributes:
        tables: all of them, as this version writes them; the report keeps what was written.
    """

    seed: int
    data: ComponentTable
    model: ComponentTable
    threat: ThreatTable
    attack: ComponentTable
    loss: ComponentTable
    method: ComponentTable
    selector: SelectorTable | None = None
    effort: ComponentTable
    train: TrainTable
    evaluation: EvaluationTable = EvaluationTable()
    _tables: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def tables(self) -> dict[str, Any]:  # noqa: D102 -- an attribute, said above
        return of_run(self._tables)

    @model_validator(mode="wrap")
    @classmethod
    def _kept(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        recipe = handler(of_run(values) if isinstance(values, Mapping) else values)
        if isinstance(values, Mapping):
            recipe._tables = finite(values)
        return recipe

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        return self._tables


class Environment(Record):
    """environment.json: what a run was made with."""

    versions: dict[str, str]
    device: str
    git_commit: str | None = None
    world_size: int
    threads: int
    seed: int | None = None
    precision: str = ""


class SelectionSize(Record):
    """A file of ``selections/``: the epoch of the selection, and how many examples were selected."""

    epoch: Count
    size: Count


class Training(Record):
    """How training went.

    Attributes:
        epochs: lines of metrics.jsonl; 0 where weights were evaluated without a run.
        seconds: the epochs' seconds by phase, summed, with their ``"total"``.
        selections: in order of their epochs.
        warnings: what to know of the recipe's attacks, a sentence each.
    """

    epochs: Count
    seconds: dict[str, Seconds | None]
    selections: list[SelectionSize]
    warnings: list[str] = Field(default=[])

    @property
    def phases(self) -> dict[str, float]:
        """The seconds by phase, without their total."""
        return {phase: value or 0.0 for phase, value in self.seconds.items() if phase != "total"}

    @property
    def total(self) -> float:
        """The seconds of all phases."""
        return self.seconds.get("total") or 0.0


class SelectionClasses(Record):
    """What an epoch's line says of a selection."""

    classes: list[Count] | None = None
    effective_size: float | None = None


class EpochMetrics(Record):
    """A line of metrics.jsonl: one epoch. What callbacks note is among the keys that it does not know."""

    epoch: Count
    train_loss: float | None
    seconds: dict[str, Seconds]
    counts: dict[str, Count] | None = None
    selection: SelectionClasses | None = None

    def noted(self, callback: str) -> dict[str, float]:
        """Returns the numbers that a callback noted of the epoch, by their names; none where it noted none."""
        entry = (self.model_extra or {}).get(callback)
        numbers = entry.items() if isinstance(entry, dict) else ()
        return {name: value for name, value in numbers if type(value) in {int, float}}


class Report(Record):
    """A run's report: what report.json says.

    Attributes:
        version: of the file.
        recipe: the resolved recipe's tables.
        environment: what the run was made with.
        training: how it went.
        evaluation: the name of the weights to what was measured of them.
        complete: whether all is measured that was to be; the report of a run whose evaluation was stopped says what is.
    """

    version: Annotated[int, Field(ge=VERSION, le=VERSION)]
    recipe: RecipeTables
    environment: Environment
    training: Training
    evaluation: dict[Weights, Evaluation]
    complete: bool = True

    @model_validator(mode="before")
    @classmethod
    def _upgraded(cls, content: Any) -> Any:
        """Returns a report of an earlier version as one of this: what it leaves out had one value."""
        if isinstance(content, dict) and content.get("version", 1) == 1:
            return {**content, "version": VERSION}
        return content

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a report, of this version or an earlier one.

        Raises:
            UserError: the file cannot be read, or something in it is missing or wrong; says what.
        """
        return cls.from_json(read_object(path), path)

    def write(self, path: Path) -> None:
        """Writes report.json."""
        write_json(path, self.to_json())


def summarise(
    recipe: Mapping[str, Any],
    environment: Environment,
    rows: Sequence[EpochMetrics],
    selections: Sequence[Mapping[str, int]],
    evaluation: Mapping[str, Evaluation],
    warnings: Sequence[str] = (),
    *,
    complete: bool = True,
) -> Report:
    """Returns a run's report.

    Args:
        recipe: the resolved recipe's tables.
        environment: what environment.json says.
        rows: the lines of metrics.jsonl, one an epoch; none where weights were evaluated without a run.
        selections: ``{"epoch": .., "size": ..}`` for each file of selections/.
        evaluation: the name of the weights (``"best"``, ``"last"``) to what was measured of them.
        warnings: what to know of the recipe's attacks, a sentence each.
        complete: whether all is measured that was to be.
    """
    seconds: dict[str, float] = {}
    for row in rows:
        for phase, value in row.seconds.items():
            seconds[phase] = seconds.get(phase, 0.0) + value
    training = {"epochs": len(rows), "seconds": seconds, "selections": list(selections), "warnings": list(warnings)}
    parts = {"recipe": recipe, "environment": environment, "training": training, "evaluation": dict(evaluation)}
    return Report.model_validate({"version": VERSION, **parts, **({} if complete else {"complete": False})})
