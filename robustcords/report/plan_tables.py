"""The results of ``robustcords plan``, and their table on the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from robustcords.report.markdown import on_terminal
from robustcords.runtime.progress import duration, for_tables

SURVIVING = 0.5
"""The share of the test images that is taken to withstand the evaluation: the more do, the longer it takes."""

_HEADER = (
    "recipe", "batches", "s a batch", "attack", "update", "a selection", "s an epoch", "memory", "epochs", "training",
    "of it selection", "evaluation",
)  # fmt: skip


@dataclass(frozen=True)
class Planned:
    """What a recipe costs here.

    Attributes:
        recipe: its name.
        device: what it was measured on.
        batches: of an epoch.
        epochs: of the run: as the recipe says, or as many as its budget has room for.
        seconds_per_epoch: of the run's training, with all that comes with it, by the epoch.
        seconds_per_step: of a batch, by phase.
        seconds: of the run's training by part: its batches, selection, validation, checkpoint.
        evaluation_seconds: about what the evaluation takes.
        data_seconds: what reading the data took.
        seconds_per_selection: of one selection; 0 where there are none.
        peak_memory: bytes at most while training: of the GPU, or of the process where there is none.
        budget: seconds to train that ``epochs_in_budget`` is of; None where there is no budget.
        epochs_in_budget: how many epochs that has room for.
        test_images: how many there are.
        seconds_per_image: that the evaluation takes for an image of the test set, by attack.
        unknown: attacks of the evaluation whose cost nobody has said, and is left out.
    """

    recipe: str
    device: str
    batches: int
    epochs: float
    seconds_per_epoch: float
    seconds_per_step: Mapping[str, float]
    seconds: Mapping[str, float]
    evaluation_seconds: float
    data_seconds: float
    seconds_per_selection: float
    peak_memory: int
    budget: float | None
    epochs_in_budget: float | None
    test_images: int
    seconds_per_image: Mapping[str, float]
    unknown: Sequence[str]

    @property
    def total(self) -> float:
        """The seconds of the whole run."""
        return sum(self.seconds.values()) + self.evaluation_seconds + self.data_seconds

    def to_json(self) -> dict[str, object]:
        """Returns what ``--json`` prints of it."""
        return {**asdict(self), "total": self.total}


def print_plans(plans: Sequence[Planned], *, as_json: bool) -> None:
    """Prints what each recipe costs, and what was assumed; or the figures as JSON."""
    console = for_tables()
    if as_json:
        console.file.write(json.dumps({"recipes": [each.to_json() for each in plans]}, indent=2) + "\n")
        return
    budgets = any(each.budget for each in plans)
    header = [*_HEADER, *["epochs in budget"] * budgets]
    console.print(on_terminal(header, [_row(each)[: len(header)] for each in plans]))
    lines = [
        f"on {' and '.join(dict.fromkeys(each.device for each in plans))}; evaluation if {SURVIVING:.0%} of the images "
        "withstand it",
        *(f"{each.recipe}: evaluation without {', '.join(each.unknown)}" for each in plans if each.unknown),
    ]
    for line in lines:
        console.print(line, soft_wrap=True)


def _row(each: Planned) -> list[str]:
    step = sum(each.seconds_per_step.values()) or 1.0
    share = {phase: f"{each.seconds_per_step.get(phase, 0.0) / step:.0%}" for phase in ("attack", "update")}
    training = sum(each.seconds.values())
    return [
        each.recipe,
        str(each.batches),
        f"{step:.3g}",
        share["attack"],
        share["update"],
        f"{each.seconds_per_selection:.3g} s" if each.seconds_per_selection else "none",
        f"{each.seconds_per_epoch:.3g}",
        f"{each.peak_memory / 1024**3:.2f} GiB",
        f"{each.epochs:.4g}",
        duration(training),
        f"{each.seconds.get('selection', 0.0) / training:.0%}",
        duration(each.evaluation_seconds),
        "" if each.epochs_in_budget is None else f"{each.epochs_in_budget:.4g} in {duration(each.budget or 0)}",
    ]
