"""Tables of a comparison: Markdown, CSV, the terminal, and the page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from csv import writer
from dataclasses import dataclass, replace

from rich.console import Console

from robustcords.report.comparison import ComparedMethod, Comparison, Measure, ReferenceKind
from robustcords.report.front import deciding_measure, front, leader, verdict
from robustcords.report.intervals import Estimate, Spread
from robustcords.report.markdown import fitting, in_markdown, plain
from robustcords.runtime.progress import duration, for_tables

NOISE = "≈"
"""Marks a difference whose interval holds 0."""
FRONT, ON_FRONT = "front", "●"
"""The column of the methods that none beats in both training time and the accuracy that decides, and its mark."""

LEGEND = (
    f"{ON_FRONT}: no other method beats it in both training time and the first of the accuracies. {NOISE}: within "
    "the noise: the 95 % interval of the difference (in the first tables, to the baseline) contains 0, or that of a "
    "speed-up 1. Intervals are not corrected for multiple comparisons: of twenty differences that are due to chance, "
    "one is outside on average. ±: standard deviation over seeds. Intervals over test images show how results vary "
    "between images, not between seeds; intervals over seeds the reverse. Training time is data, attack, update, "
    "communication, averaging and selection, without validation and checkpoints."
)
COLUMNS = ("method", "weights", "measure", "radius", "seeds", "mean", "std", "reference", "difference", "low", "high")
HEADER = (*COLUMNS, "within_noise", "interval")
MARK = "<!-- robustcords report -->"


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: what it says.
        best: whether it is the best of its column.
        noise: whether its difference to the baseline is within the noise.
    """

    text: str
    best: bool = False
    noise: bool = False


Column = tuple[str, Sequence[Cell]]
"""A column's name, and its cell of each method."""


@dataclass(frozen=True)
class Grid:
    """A table: its caption, its header, and of each row the name and the cells."""

    caption: str
    header: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


@dataclass(frozen=True)
class Section:
    """Something that comes with the comparison: tables, and what there is to note on them."""

    title: str
    grids: Sequence[Grid] = ()
    notes: Sequence[str] = ()


def headlines(comparison: Comparison) -> list[Grid]:
    """Returns a table of accuracies and costs for each set of weights that was evaluated.

    What decides comes first, then clean accuracy and training time, then the rest.
    """
    deciding = deciding_measure(comparison)
    grids = []
    for which in dict.fromkeys(measure.which for measure in comparison.measures):
        decides = replace(deciding, which=which) if deciding else None
        measures = [decides] if decides in comparison.measures and decides else []
        measures += [measure for measure in comparison.measures if measure.which == which and measure not in measures]
        before = 2 if decides in measures else 1
        methods = [method for method in comparison.methods if any(m.which == which for m in method.accuracies)]
        columns = [_accuracies(measure, methods) for measure in measures]
        columns.insert(before, _training_times(methods))
        columns += [_speed_ups(methods), _seconds_per_epoch(methods)]
        columns.append(("seeds", [Cell(str(len(method.runs))) for method in methods]))
        if decides in measures and len(methods) > 1:
            ahead = front(methods, decides)
            columns.insert(0, (FRONT, [Cell(ON_FRONT if method in ahead else "") for method in methods]))
        caption = f"Test accuracy in percent of the {which} weights, and what training cost"
        rows = zip(*(cells for _, cells in columns), strict=True)
        names = [method.name for method in methods]
        grids.append(Grid(caption, ["method", *(name for name, _ in columns)], list(zip(names, rows, strict=True))))
    return grids


def _accuracies(measure: Measure, methods: Sequence[ComparedMethod]) -> Column:
    best = leader(methods, measure)
    cells = []
    for method in methods:
        estimate = method.to_baseline.differences.get(measure) if method.to_baseline else None
        text = _percent(method.accuracies.get(measure), len(method.runs))
        cells.append(Cell(text, method is best, estimate is not None and estimate.noise))
    return measure.label, cells


def _training_times(methods: Sequence[ComparedMethod]) -> Column:
    costs = [method.seconds.mean for method in methods if method.seconds]
    cheapest = min(costs) if len(costs) > 1 else None
    cells = [Cell(_training_time(m.seconds), bool(m.seconds and m.seconds.mean == cheapest)) for m in methods]
    return "training time", cells


def _speed_ups(methods: Sequence[ComparedMethod]) -> Column:
    cells = []
    for method in methods:
        speed = method.speed_up
        text = _speed_up(speed) + _of_seeds(speed.seeds, len(method.runs)) if speed else ""
        cells.append(Cell(text, noise=bool(speed and speed.noise)))
    return "speed-up", cells


def _seconds_per_epoch(methods: Sequence[ComparedMethod]) -> Column:
    spreads = [method.seconds_per_epoch for method in methods]
    return "s/epoch", [Cell(_seconds(spread.mean, spread.std) if spread else "") for spread in spreads]


def difference_tables(comparison: Comparison) -> list[Grid]:
    """Returns the differences to each kind of reference, in points."""
    grids = []
    for kind in ReferenceKind:
        pairs = [(m, reference) for m in comparison.methods for reference in m.references if reference.kind == kind]
        shown = sorted({measure for _, reference in pairs for measure in reference.differences}, key=lambda m: m.order)
        for which in dict.fromkeys(measure.which for measure in shown):
            measures = [measure for measure in shown if measure.which == which]
            similar = kind is ReferenceKind.SIMILAR_TIME
            rows = [
                (
                    method.name,
                    [
                        Cell(reference.name),
                        *([Cell(_speed_up(reference.time) if reference.time else "")] if similar else []),
                        *_points(reference.differences, measures, len(method.runs)),
                    ],
                )
                for method, reference in pairs
                if any(measure in reference.differences for measure in measures)
            ]
            weights = "" if kind is ReferenceKind.EARLY_STOPPING else f", {which} weights"
            header = ["method", "against", *(["its time"] if similar else []), *(m.label for m in measures)]
            grids.append(Grid(f"{kind.value}{weights}, in percentage points, with 95 % interval", header, rows))
    return grids


def intervals(comparison: Comparison) -> list[str]:
    """Returns what kinds of intervals the comparison has, each once."""
    references = [reference for method in comparison.methods for reference in method.references]
    return list(dict.fromkeys(estimate.how for reference in references for estimate in reference.differences.values()))


def _percent(spread: Spread | None, runs: int) -> str:
    """Writes an accuracy, and of how many seeds where a method has more runs."""
    if spread is None:
        return ""
    text = f"{spread.mean * 100:.2f}" + (f" ± {spread.std * 100:.2f}" if spread.std is not None else "")
    return text + _of_seeds(len(spread.values), runs)


def _seconds(mean: float, std: float | None) -> str:
    digits = 1 if mean >= 10 else 2
    return f"{mean:.{digits}f}" + (f" ± {std:.{digits}f}" if std is not None else "")


def _training_time(spread: Spread | None) -> str:
    """Writes training time for a person."""
    if spread is None:
        return ""
    return duration(spread.mean) + (f" ± {duration(spread.std)}" if spread.std is not None else "")


def _speed_up(speed: Estimate) -> str:
    """Writes a speed-up, with its interval where it has one."""
    text = f"{speed.value:.2f}\N{MULTIPLICATION SIGN}"
    return text if speed.low is None else f"{text} [{speed.low:.2f}, {speed.high:.2f}]"


def _points(estimates: Mapping[Measure, Estimate], measures: Sequence[Measure], runs: int) -> list[Cell]:
    """Writes differences, and of how many seeds where a method has more runs."""
    cells = []
    for estimate in map(estimates.get, measures):
        text = points(estimate) + _of_seeds(estimate.seeds, runs) if estimate else ""
        cells.append(Cell(text, noise=bool(estimate and estimate.noise)))
    return cells


def _of_seeds(seeds: int, runs: int) -> str:
    """Says of how many seeds a figure is, where its method has more runs."""
    return f" ({seeds} seed{'s' if seeds != 1 else ''})" if seeds < runs else ""


def points(estimate: Estimate) -> str:
    """Writes a difference of accuracies in percentage points, with its interval."""
    text = signed(estimate.value * 100)
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{signed(estimate.low * 100)}, {signed(estimate.high * 100)}]"


def signed(value: float) -> str:
    """Writes a difference with its sign, and one that rounds to nothing without."""
    return "0.00" if abs(value) < 0.005 else f"{value:+.2f}"


def markdown(comparison: Comparison, sections: Sequence[Section] = ()) -> str:
    """Returns the comparison as Markdown: the verdict, its tables, further sections, and all notes."""
    parts = [MARK, "# Comparison of runs", *([plain(words)] if (words := verdict(comparison)) else [])]
    for grid in headlines(comparison):
        parts += [f"## {grid.caption}", _markdown_table(grid)]
    parts.append(LEGEND)
    for section in sections:
        parts.append(f"## {plain(section.title)}")
        for grid in section.grids:
            parts += [f"### {plain(grid.caption)}", _markdown_table(grid)]
    for grid in difference_tables(comparison):
        parts += [f"## {grid.caption}", _markdown_table(grid)]
    lists = {
        "Intervals": intervals(comparison),
        "Warnings": comparison.warnings,
        "Notes": [*comparison.left_out, *comparison.notes],
        **{f"Notes on {section.title}": section.notes for section in sections},
        "Runs": [f"{method.name}, seed {run.seed}: {run.path}" for method in comparison.methods for run in method.runs],
    }
    for title, lines in lists.items():
        if lines:
            parts += [f"## {plain(title)}", "\n".join(f"- {plain(line)}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(grid: Grid) -> str:
    return in_markdown(
        list(map(plain, grid.header)), ([plain(name), *map(_marked, cells)] for name, cells in grid.rows)
    )


def _marked(cell: Cell) -> str:
    text = f"**{plain(cell.text)}**" if cell.best else plain(cell.text)
    return f"{text} {NOISE}" if cell.noise else text


def csv(comparison: Comparison) -> str:
    """Returns the comparison as CSV, a line for each method, measure and reference; accuracies are fractions."""
    stream = io.StringIO()
    out = writer(stream, lineterminator="\n")
    out.writerow(HEADER)
    for method in comparison.methods:
        for measure, spread in method.accuracies.items():
            attack = (measure.which, measure.attack, measure.radius)
            compared = [
                _estimate(r.name, r.differences[measure]) for r in method.references if measure in r.differences
            ]
            out.writerows([method.name, *attack, *_figures(spread), *rest] for rest in compared or [_nothing()])
        for name, cost in (("seconds", method.seconds), ("seconds per epoch", method.seconds_per_epoch)):
            if cost:
                out.writerow([method.name, "", name, "", *_figures(cost), *_nothing()])
        if method.speed_up:
            out.writerow([method.name, "", "speed-up", "", "", "", "", *_estimate(method.baseline, method.speed_up)])
    return stream.getvalue()


def _figures(spread: Spread) -> list[str]:
    return [" ".join(map(str, spread.values)), repr(spread.mean), "" if spread.std is None else repr(spread.std)]


def _estimate(reference: str | None, estimate: Estimate) -> list[str]:
    ends = ["" if end is None else repr(end) for end in (estimate.low, estimate.high)]
    noise = "" if estimate.low is None else str(estimate.noise).lower()
    return [reference or "", repr(estimate.value), *ends, noise, estimate.how]


def _nothing() -> list[str]:
    return [""] * (len(HEADER) - 7)


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Prints the verdict, the headline tables and the warnings to the terminal."""
    console = for_tables(console)
    if words := verdict(comparison):
        console.print(words, "\n", soft_wrap=True)
    for grid in headlines(comparison):
        rows = [[name, *(f"{c.text} {NOISE}" if c.noise else c.text for c in cells)] for name, cells in grid.rows]
        console.print(grid.caption, soft_wrap=True)
        console.print(fitting(grid.header, rows, console))
    for line in [LEGEND, *(f"warning: {text}" for text in comparison.warnings), *comparison.left_out]:
        console.print(line, soft_wrap=True)
