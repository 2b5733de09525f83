"""A comparison as tables: Markdown, CSV, the terminal, and what the page shows."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from csv import writer
from dataclasses import dataclass

from rich.console import Console

from robustcords.report.comparison import Comparison, Kind, Measure, Method
from robustcords.report.intervals import Estimate, Spread
from robustcords.report.tabular import in_markdown, on_terminal, plain
from robustcords.runtime.progress import duration, for_tables

NOISE = "≈"
"""Marks a difference whose interval holds 0."""

LEGEND = (
    f"{NOISE}: within the noise: the 95 % interval of the difference (in the first tables, to the baseline) holds 0, "
    "or that of a speed-up 1. Of twenty differences that mean nothing one is outside on average: no interval allows "
    "for how many there are. ±: standard deviation over seeds. An interval over test images says what other images "
    "would change, not what another seed would; one over seeds the reverse. Training time is data, attack, update, "
    "communication, averaging and selection; validation and checkpoints do not count."
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


@dataclass(frozen=True)
class Grid:
    """A table: its caption, its header, and of each row the name and the cells."""

    caption: str
    header: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


@dataclass(frozen=True)
class Block:
    """Something that comes before the comparison itself: paragraphs, then tables."""

    title: str
    text: Sequence[str] = ()
    grids: Sequence[Grid] = ()


def headlines(comparison: Comparison) -> list[Grid]:
    """Returns the table of accuracies and costs for each set of weights that was evaluated."""
    found = []
    for which in dict.fromkeys(measure.which for measure in comparison.measures):
        measures = [measure for measure in comparison.measures if measure.which == which]
        methods = [method for method in comparison.methods if any(m.which == which for m in method.accuracies)]
        caption = f"Test accuracy in percent of the {which} weights, and what training cost"
        header = ["method", "seeds", *(m.label for m in measures), "s/epoch", "training time", "speed-up"]
        rows = [(method.name, _headline(method, measures, methods)) for method in methods]
        found.append(Grid(caption, header, rows))
    return found


def _headline(method: Method, measures: Sequence[Measure], methods: Sequence[Method]) -> list[Cell]:
    cells = [Cell(str(len(method.runs)))]
    for measure in measures:
        spread = method.accuracies.get(measure)
        best = max(other.accuracies[measure].mean for other in methods if measure in other.accuracies)
        estimate = method.to_baseline.differences.get(measure) if method.to_baseline else None
        noise = estimate is not None and estimate.noise
        cells.append(
            Cell(
                _percent(spread, len(method.runs)),
                len(methods) > 1 and spread is not None and spread.mean == best,
                noise,
            )
        )
    costs = [other.seconds.mean for other in methods if other.seconds]
    cheapest = len(costs) > 1 and method.seconds is not None and method.seconds.mean == min(costs)
    per_epoch, whole = method.seconds_per_epoch, method.seconds
    speed = method.speed_up
    return [
        *cells,
        Cell(_seconds(per_epoch.mean, per_epoch.std) if per_epoch else ""),
        Cell(_training_time(whole), cheapest),
        Cell(
            _speed_up(speed) + _of_seeds(speed.seeds, len(method.runs)) if speed else "",
            noise=bool(speed and speed.noise),
        ),
    ]


def differences(comparison: Comparison) -> list[Grid]:
    """Returns the differences to each kind of reference, in points."""
    found = []
    for kind in Kind:
        pairs = [(m, reference) for m in comparison.methods for reference in m.references if reference.kind == kind]
        shown = sorted({measure for _, reference in pairs for measure in reference.differences}, key=lambda m: m.order)
        for which in dict.fromkeys(measure.which for measure in shown):
            measures = [measure for measure in shown if measure.which == which]
            similar = kind is Kind.SIMILAR_TIME
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
            weights = "" if kind is Kind.EARLY_STOPPING else f", {which} weights"
            header = ["method", "against", *(["its time"] if similar else []), *(m.label for m in measures)]
            found.append(Grid(f"{kind.value}{weights}, in percentage points, with 95 % interval", header, rows))
    return found


def intervals(comparison: Comparison) -> list[str]:
    """Returns what kinds of intervals the comparison has, each once."""
    references = [reference for method in comparison.methods for reference in method.references]
    return list(dict.fromkeys(estimate.how for each in references for estimate in each.differences.values()))


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
    for each in map(estimates.get, measures):
        text = points(each) + _of_seeds(each.seeds, runs) if each else ""
        cells.append(Cell(text, noise=bool(each and each.noise)))
    return cells


def _of_seeds(seeds: int, runs: int) -> str:
    """Says of how many seeds a figure is, where its method has more runs."""
    return f" ({seeds} seed{'s' if seeds != 1 else ''})" if seeds < runs else ""


def points(estimate: Estimate) -> str:
    """Writes a difference of accuracies in percentage points, with its interval."""
    text = f"{estimate.value * 100:+.2f}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{estimate.low * 100:+.2f}, {estimate.high * 100:+.2f}]"


def markdown(comparison: Comparison, blocks: Sequence[Block] = ()) -> str:
    """Returns the comparison as Markdown: first some blocks, then tables, intervals, warnings and notes."""
    parts = [MARK, "# Comparison of runs"]
    for block in blocks:
        parts += [f"## {plain(block.title)}", *map(plain, block.text)]
        for grid in block.grids:
            parts += [f"### {plain(grid.caption)}", _markdown_table(grid)]
    for grid in headlines(comparison):
        parts += [f"## {grid.caption}", _markdown_table(grid)]
    parts.append(LEGEND)
    for grid in differences(comparison):
        parts += [f"## {grid.caption}", _markdown_table(grid)]
    lists = {
        "Intervals": intervals(comparison),
        "Warnings": comparison.warnings,
        "Notes": [*comparison.left_out, *comparison.notes],
        "Runs": [f"{method.name}, seed {run.seed}: {run.path}" for method in comparison.methods for run in method.runs],
    }
    for title, lines in lists.items():
        if lines:
            parts += [f"## {title}", "\n".join(f"- {plain(line)}" for line in lines)]
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
    """Prints the headline tables and the warnings to the terminal."""
    console = for_tables(console)
    for grid in headlines(comparison):
        rows = [[name, *(f"{c.text} {NOISE}" if c.noise else c.text for c in cells)] for name, cells in grid.rows]
        console.print(grid.caption, soft_wrap=True)
        console.print(on_terminal(grid.header, rows))
    for line in [LEGEND, *(f"warning: {text}" for text in comparison.warnings), *comparison.left_out]:
        console.print(line, soft_wrap=True)
