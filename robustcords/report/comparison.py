"""A comparison of runs: accuracy and cost of each method, and which differences exceed the noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from robustcords.config.schema import parse_radius
from robustcords.errors import UserError
from robustcords.evaluation.results import CLEAN, SHORT_FORMS
from robustcords.recipe.tables import DEFAULTS
from robustcords.report import grouping
from robustcords.report.cautions import cautions
from robustcords.report.intervals import Accuracy, Estimate, Spread, difference, ratio
from robustcords.report.runs import Run, load_run
from robustcords.runtime.stopwatch import TRAINING

COSTS = (*TRAINING, "selection")
"""The phases that count as training time. Validation, checkpoints and logging are how a run is looked at."""


@dataclass(frozen=True)
class Measure:
    """One kind of accuracy.

    Attributes:
        which: the weights, ``"best"`` or ``"last"``.
        attack: ``"clean"``, ``"PGD-50-10"``, ``"AutoAttack standard"``, ...; under l2 ``"l2 PGD-50-10"``.
        radius: as a report writes it; empty for clean images.
        what: what the evaluation calls it: ``"clean"``, ``"PGD 8/255"``, ``"AutoAttack 8/255"``, ...
    """

    which: str
    attack: str
    radius: str
    what: str

    @property
    def label(self) -> str:
        """The attack and its radius."""
        return f"{self.attack} {self.radius}".strip()

    @property
    def order(self) -> tuple[bool, int, str, float]:
        """Sorts ``last`` before ``best``, clean before PGD before AutoAttack before others, and by radius."""
        kinds = [CLEAN, *SHORT_FORMS.values()]
        kind = self.what.split(maxsplit=1)[0]
        radius = float(parse_radius(self.radius)) if self.radius else 0.0
        return self.which == "best", *((kinds.index(kind), "") if kind in kinds else (len(kinds), self.attack)), radius


@dataclass(frozen=True)
class Label:
    """What whoever planned a run says of it.

    Attributes:
        name: what its method is called.
        equal_time: names of the methods whose time it was made to train for.
    """

    name: str
    equal_time: Sequence[str] = ()


class ReferenceKind(Enum):
    """Why a method is compared with another, as the caption of a table says it."""

    BASELINE = "Difference to the baseline"
    RANDOM = "Difference to a random subset of the same fraction"
    SIMILAR_TIME = "Difference to training on all images for a similar time"
    EARLY_STOPPING = "Early stopping: best minus last weights"


@dataclass(frozen=True)
class Reference:
    """What a method is compared with.

    Attributes:
        kind: why.
        name: of the other method; ``"last weights"`` for its own, with which ``best`` is compared.
        differences: how much more accurate the method is than that.
        time: how many times as long as the method it trained; None for its own weights, or where that is not known.
    """

    kind: ReferenceKind
    name: str
    differences: Mapping[Measure, Estimate]
    time: Estimate | None = None


@dataclass(frozen=True)
class ComparedMethod:
    """One method: the runs of its seeds, what they reach, and how that compares.

    Attributes:
        name: differs from that of every other method of the comparison.
        recipe: dotted key to value, of what its runs share.
        runs: one of each seed, in order of the seeds.
        accuracies: over seeds, each in [0, 1].
        seconds: of training, selection included; None where a run does not say.
        seconds_per_epoch: those by the number of epochs.
        references: all that it is compared with.
    """

    name: str
    recipe: Mapping[str, Any]
    runs: Sequence[Run]
    accuracies: Mapping[Measure, Spread]
    seconds: Spread | None
    seconds_per_epoch: Spread | None
    references: Sequence[Reference] = ()

    @property
    def to_baseline(self) -> Reference | None:
        """What it is compared with first of all; None for a baseline itself."""
        return next((reference for reference in self.references if reference.kind is ReferenceKind.BASELINE), None)

    @property
    def baseline(self) -> str | None:
        """The name of its baseline; None for a baseline itself."""
        return self.to_baseline.name if self.to_baseline else None

    @property
    def speed_up(self) -> Estimate | None:
        """How many times less training time it takes than the baseline."""
        return self.to_baseline.time if self.to_baseline else None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        methods: baselines first, otherwise in order of appearance.
        measures: every accuracy that a method has, in the order of a table.
        warnings: what makes the runs hard to compare, and what AutoAttack warned of, a line each.
        left_out: which runs are not in it, and why, a line each.
        notes: what is missing of the others, a line each.
    """

    methods: Sequence[ComparedMethod]
    measures: Sequence[Measure]
    warnings: Sequence[str]
    left_out: Sequence[str]
    notes: Sequence[str]

    @property
    def runs(self) -> list[Run]:
        """The runs of all methods."""
        return [run for method in self.methods for run in method.runs]

    def method(self, name: str) -> ComparedMethod:
        """Returns the method of a name."""
        return next(method for method in self.methods if method.name == name)


def compare(
    runs: Sequence[Run],
    baseline: Path | None = None,
    left_out: Sequence[str] = (),
    labels: Mapping[Path, Label] | None = None,
) -> Comparison:
    """Groups runs into methods and compares each with what a `Reference` can be.

    Args:
        runs: at least one.
        baseline: the directory of a run whose method all others are compared with, added to `runs` if it is not among
            them; None for full data without Bullet under the same loss.
        left_out: which runs are known to be missing, and why.
        labels: of runs that were planned, by their directories. Then what is compared for a similar time is what was
            planned for it; otherwise it goes by the times.

    Raises:
        UserError: the baseline is no finished run.
    """
    runs, labels = list(runs), labels or {}
    if baseline is not None and not any(_same(run.path, baseline) for run in runs):
        if not (baseline / "report.json").exists():
            raise UserError(f"--baseline {baseline}: not a finished run (no report.json)")
        runs.append(load_run(baseline))
    missing = list(left_out)
    groups = grouping.group(runs)
    recipes = [recipe for recipe, _ in groups]
    planned = [next((labels[run.path] for run in members if run.path in labels), None) for _, members in groups]
    names = [label.name if label else name for name, label in zip(grouping.method_names(recipes), planned, strict=True)]
    methods = [_method(name, *each, missing) for name, each in zip(names, groups, strict=True)]
    baselines = _baselines(groups, baseline)
    seconds = [method.seconds.mean if method.seconds else None for method in methods]
    for n, method in enumerate(list(methods)):
        numbers = {
            ReferenceKind.BASELINE: [other for other in [baselines[n]] if other is not None],
            ReferenceKind.RANDOM: grouping.random_subsets_of(recipes, n),
            ReferenceKind.SIMILAR_TIME: (
                [other for other, label in enumerate(planned) if label and names[n] in label.equal_time]
                if any(planned)
                else grouping.similar_time_as(recipes, seconds, baselines, n)
            ),
        }
        methods[n] = _compared(method, [(kind, methods[other]) for kind, found in numbers.items() for other in found])
    methods.sort(key=lambda method: method.baseline is not None)
    measures = sorted({measure for method in methods for measure in method.accuracies}, key=lambda m: m.order)
    named = [(f"{method.name}, seed {run.seed}", run) for method in methods for run in method.runs]
    notes = [f"{run.path}: {note}" for run in runs for note in run.notes]
    return Comparison(methods, measures, [*cautions(named), *_unequal_subsets(methods)], missing, notes)


def _unequal_subsets(methods: Sequence[ComparedMethod]) -> list[str]:
    """Returns a line for each method whose subsets are not as large as the random ones that it is compared with.

    The same fraction is of fewer images where some are held out for validation.
    """
    sizes = {method.name: _subset_sizes(method) for method in methods}
    return [
        f"{method.name}: subsets of {sizes[method.name]} images, those of {reference.name} of {sizes[reference.name]}"
        for method in methods
        for reference in method.references
        if reference.kind is ReferenceKind.RANDOM and len({sizes[method.name], sizes[reference.name], ""}) == 3
    ]


def _subset_sizes(method: ComparedMethod) -> str:
    sizes = {selection.size for run in method.runs for selection in run.report.training.selections}
    return ", ".join(map(str, sorted(sizes)))


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _baselines(groups: Sequence[tuple[dict[str, Any], list[Run]]], baseline: Path | None) -> list[int | None]:
    """Returns the number of each method's baseline."""
    if baseline is None:
        return grouping.baselines([recipe for recipe, _ in groups])
    number = next(n for n, (_, runs) in enumerate(groups) if any(_same(run.path, baseline) for run in runs))
    return [None if n == number else number for n in range(len(groups))]


def _method(name: str, recipe: Mapping[str, Any], members: Sequence[Run], left_out: list[str]) -> ComparedMethod:
    """Returns a method that is not compared yet; of runs with the same seed the first counts."""
    by_seed: dict[int, Run] = {}
    for run in members:
        if run.seed in by_seed:
            left_out.append(f"{run.path}: left out: the same recipe and seed as {by_seed[run.seed].path}")
        by_seed.setdefault(run.seed, run)
    runs = [by_seed[seed] for seed in sorted(by_seed)]
    measures = {measure for run in runs for measure in accuracies_of(run)}
    accuracies = {}
    for measure in sorted(measures, key=lambda m: m.order):
        values = {run.seed: accuracies_of(run)[measure].value for run in runs if measure in accuracies_of(run)}
        accuracies[measure] = Spread(values)
    seconds = {run.seed: found for run in runs if (found := training_seconds(run))}
    each = {run.seed: seconds[run.seed] / run.report.training.epochs for run in runs if run.seed in seconds}
    whole, by_epoch = (Spread(values) if values else None for values in (seconds, each))
    return ComparedMethod(name, recipe, runs, accuracies, whole, by_epoch)


def training_seconds(run: Run) -> float | None:
    """Returns a run's training time, selection included; None where it is not known or 0."""
    seconds = run.report.training.seconds
    return sum(seconds.get(phase) or 0.0 for phase in COSTS) or None


def accuracies_of(run: Run) -> dict[Measure, Accuracy]:
    """Returns every accuracy that a run's report has."""
    accuracies = {}
    prefix = "" if run.recipe.threat.norm == DEFAULTS["threat"]["norm"] else f"{run.recipe.threat.norm} "
    for which, entry in run.report.evaluation.items():
        for measurement in entry.measurements:
            if measurement.accuracy is not None:
                outcomes = run.outcomes.get((which, measurement.what))
                single = (outcomes.right, outcomes.images) if outcomes else (None, "")
                name = measurement.name if measurement.attack == CLEAN else f"{prefix}{measurement.name}"
                measure = Measure(which, name, measurement.radius or "", measurement.what)
                accuracies[measure] = Accuracy(measurement.accuracy, measurement.examples, *single)
    return accuracies


def _compared(method: ComparedMethod, others: Sequence[tuple[ReferenceKind, ComparedMethod]]) -> ComparedMethod:
    """Returns a method compared with others, each of a kind, and its ``best`` weights with its ``last``."""
    references = []
    for kind, other in others:
        time = ratio(other.seconds.values, method.seconds.values) if other.seconds and method.seconds else None
        references.append(Reference(kind, other.name, differences(method, other), time))
    stopping = {}
    for measure in method.accuracies:
        early = replace(measure, which="best")
        if measure.which == "last" and early in method.accuracies:
            stopping[early] = difference(_by_seed(method, early), _by_seed(method, measure))
    if stopping:
        references.append(Reference(ReferenceKind.EARLY_STOPPING, "last weights", stopping))
    return replace(method, references=references)


def differences(method: ComparedMethod, other: ComparedMethod) -> dict[Measure, Estimate]:
    """Returns how much more accurate one method is than another, in each measure that both have."""
    shared = [measure for measure in method.accuracies if measure in other.accuracies]
    return {measure: difference(_by_seed(method, measure), _by_seed(other, measure)) for measure in shared}


def _by_seed(method: ComparedMethod, measure: Measure) -> dict[int, Accuracy]:
    by_seed = {run.seed: accuracies_of(run) for run in method.runs}
    return {seed: accuracies[measure] for seed, accuracies in by_seed.items() if measure in accuracies}
