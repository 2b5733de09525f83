"""Our runs alongside the paper's numbers, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from robustcords.evaluation.results import CLEAN
from robustcords.paper.tables import COLUMNS, PaperTable, Row
from robustcords.report.comparison import Label, training_seconds
from robustcords.report.comparison_tables import Cell, Grid, Section, signed
from robustcords.report.intervals import Spread
from robustcords.report.markdown import on_terminal
from robustcords.report.runs import Run
from robustcords.runtime.progress import for_tables

_RADIUS = "8/255"
"""What the paper's column of AutoAttack is under (section 4.1)."""
_UNITS = {"seconds_per_epoch": "s / epoch", "speed_up": "speed-up"}


def rows(table: PaperTable, runs: Mapping[str, Sequence[Run]]) -> list[list[str]]:
    """Returns the table as text, head first: what the paper prints, what our runs gave, and the difference.

    Args:
        table: of the paper.
        runs: row id to its finished runs, one for each seed, in the order of the table; a row may have none.

    Returns:
        A line for each row and each of the paper, ours, and ours minus the paper's, where there are such: on other
        data than the paper's there is no difference. Accuracies in percent, as mean and standard deviation over seeds:
        of the last weights, and in a line of their own of the best ones where they were evaluated.
    """
    columns = [
        column
        for column in table.columns or COLUMNS
        if any(_measured(row, runs, column) for row in _present(table, runs))
    ]
    table_rows = [["method", "", *(_UNITS.get(column, column) for column in columns), "seeds"]]
    for row in _present(table, runs):
        printed = {column: row.paper[column] for column in columns}
        lines = []
        if not row.baseline:
            lines.append(["paper", *(_number(printed[column], column) for column in columns), ""])
        seeds = str(len(runs[row.id])) if runs[row.id] else "none"
        early = any("best" in run.report.evaluation for run in runs[row.id])
        for which in ("last", "best") if early else ("last",):
            ours = {column: _measured(row, runs, column, which) for column in columns}
            name = f"ours, {which} weights" if early else "ours"
            lines.append([name, *(_spread(ours[column], column) for column in columns), seeds])
            if not row.baseline and runs[row.id]:
                alike = all(run.recipe.data.name == row.dataset for run in runs[row.id])
                gaps = [_gap(ours[column], printed[column], column) if alike else "" for column in columns]
                lines.append(["difference", *gaps, "" if alike else f"none: not on {row.dataset}"])
        table_rows += [[_name(row, table, runs) if number == 0 else "", *line] for number, line in enumerate(lines)]
    return table_rows


def labels(table: PaperTable, runs: Mapping[str, Sequence[Run]]) -> dict[Path, Label]:
    """Returns what the runs of a table's rows are called, and whose time they were made to train for."""
    names = {row.id: _name(row, table, runs) for row in _present(table, runs)}
    return {
        run.path: Label(names[row.id], [names[other] for other in row.equal_time if other in names])
        for row in _present(table, runs)
        for run in runs[row.id]
    }


def notes(table: PaperTable, runs: Mapping[str, Sequence[Run]]) -> list[str]:
    """Returns what to know of both: what ours ran on, the paper's source, where it contradicts itself or is silent."""
    settings = dict.fromkeys(_setting(run) for row in _present(table, runs) for run in runs[row.id])
    own = [f"{row.method}: {note}" for row in _present(table, runs) for note in row.notes]
    return [
        *(f"Ours: {text}." for text in settings),
        f"Paper: {table.source}.",
        "What follows is of the paper and of its rows as recipes/paper has them, which a preset changes.",
        *table.notes,
        *own,
    ]


def _setting(run: Run) -> str:
    """Returns what makes a run's numbers others than the paper's, whatever the method."""
    data, model = run.recipe.data.name, run.recipe.model.name
    parts = [f"{model} on {data}", run.recipe.train.length]
    for entry in list(run.report.evaluation.values())[:1]:
        parts.append(f"{entry.examples} test images")
        if entry.pgd:
            parts.append(entry.pgd_attack)
        if entry.autoattack:
            parts.append(f"AutoAttack {entry.autoattack_version} on {entry.autoattack_examples}")
    return ", ".join(parts)


def section(table: PaperTable, runs: Mapping[str, Sequence[Run]]) -> Section:
    """Returns `rows` and `notes` for the page."""
    header, *lines = rows(table, runs)
    grid = Grid(table.caption, header, [(line[0], [Cell(text) for text in line[1:]]) for line in lines])
    return Section(table.title, [grid], notes(table, runs))


def print_alongside(table: PaperTable, runs: Mapping[str, Sequence[Run]], console: Console | None = None) -> None:
    """Prints `rows` and `notes` to the terminal."""
    console = for_tables(console)
    header, *lines = rows(table, runs)
    shown = on_terminal(header, lines, left=2)
    for row, line in zip(shown.rows, lines, strict=True):
        row.end_section = line[1] == "difference"
    console.print(table.title, soft_wrap=True)
    console.print(shown)
    for note in notes(table, runs):
        console.print(f"- {note}", soft_wrap=True)


def _name(row: Row, table: PaperTable, runs: Mapping[str, Sequence[Run]]) -> str:
    """Returns what a row is called: its method, and its data set and setting where others differ in these alone."""
    several = len({other.dataset for other in _present(table, runs)}) > 1
    said = [row.dataset] * several + [row.setting] * bool(row.setting)
    return f"{row.method} ({', '.join(said)})" if said else row.method


def _present(table: PaperTable, runs: Mapping[str, Sequence[Run]]) -> list[Row]:
    return [row for row in table.rows if row.id in runs]


def _measured(row: Row, runs: Mapping[str, Sequence[Run]], column: str, which: str = "last") -> Spread | None:
    """Returns our figure in a column of the paper's, over seeds; accuracies in percent, of the weights ``which``."""
    values = {run.seed: value for run in runs[row.id] if (value := _of_run(run, column, which)) is not None}
    if column == "speed_up":
        over = {run.seed: training_seconds(run) for run in runs.get(row.speed_up_over, ())}
        mine = {run.seed: training_seconds(run) for run in runs[row.id]}
        pairs = {
            seed: (over[seed], seconds)
            for seed, seconds in mine.items()
            if row.id != row.speed_up_over and seed in over
        }
        values = {seed: theirs / own for seed, (theirs, own) in pairs.items() if theirs and own}
    return Spread(values) if values else None


def _of_run(run: Run, column: str, which: str) -> float | None:
    if column == "seconds_per_epoch":
        seconds = training_seconds(run)
        return seconds / run.report.training.epochs if seconds else None
    entry = run.report.evaluation.get(which)
    attack, _, radius = column.partition(" ")
    share = entry.accuracy(attack, None if attack == CLEAN else radius or _RADIUS) if entry else None
    return None if share is None else 100 * share


def _number(value: float | None, column: str) -> str:
    if value is None:
        return ""
    return f"{value:.2f}\N{MULTIPLICATION SIGN}" if column == "speed_up" else f"{value:.2f}"


def _spread(spread: Spread | None, column: str) -> str:
    if spread is None:
        return ""
    text = _number(spread.mean, column)
    return text if spread.std is None else f"{text} ± {spread.std:.2f}"


def _gap(ours: Spread | None, printed: float | None, column: str) -> str:
    """Returns ours minus the paper's, in points; times differ with the hardware, so they are not subtracted."""
    if ours is None or printed is None or column == "seconds_per_epoch":
        return ""
    return signed(ours.mean - printed)
