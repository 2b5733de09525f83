"""The paper's tables and figures as data: published numbers, the recipe of each row, and the baselines it lacks."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

COLUMNS = ("clean", "pgd 4/255", "pgd 8/255", "pgd 16/255", "autoattack", "seconds_per_epoch", "speed_up")
"""What the paper measures. Accuracies are in percent, as printed."""


@dataclass(frozen=True)
class Row:
    """A row of a table, or a point or a scheme of a figure.

    Attributes:
        id: name of the recipe's file, without ``.toml``.
        dataset: name of the data set, as ``[data]`` has it.
        method: as the paper calls it, without citation and "(Ours)".
        setting: what tells it from other rows of the same method, such as ``"200 epochs"``, or ``""``.
        recipe: the shipped recipe.
        paper: every one of `COLUMNS`, as printed; None where the paper gives no number.
        baseline: this row is ours, not the paper's.
        speed_up_over: id of the row whose time speed-ups are of; its own for a row that others are compared with.
        equal_time: ids of rows; this one is to train for as long as the longest of them did in all, selection included.
            Its recipe has the number of epochs that this comes to with the paper's times.
        keeps: dotted names of tables and keys that a preset leaves as the recipe has them.
        notes: contradictions and gaps in the paper that concern this row alone.
    """

    id: str
    dataset: str
    method: str
    setting: str
    recipe: str
    paper: Mapping[str, float | None]
    baseline: bool
    speed_up_over: str
    equal_time: tuple[str, ...]
    keeps: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PaperTable:
    """A table or figure of the paper.

    Attributes:
        id: ``"table1"`` and so on; the folder of its recipes.
        title: a short one.
        caption: the paper's own.
        source: paper, and the section that speaks about it.
        columns: those of `COLUMNS` that it prints.
        rows: the paper's in its order, then our baselines, one data set after the other.
        notes: contradictions and gaps in the paper that concern several rows.
    """

    id: str
    title: str
    caption: str
    source: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def row(self, name: str) -> Row:
        """Returns the row with an id.

        Raises:
            KeyError: there is none.
        """
        for row in self.rows:
            if row.id == name:
                return row
        raise KeyError(name)


def _read() -> dict[str, PaperTable]:
    values = tomllib.loads((Path(__file__).parent / "numbers.toml").read_text(encoding="utf-8"))
    tables = {name: table for name, table in values.items() if isinstance(table, dict)}
    return {name: _table(name, table, values) for name, table in tables.items()}


def _table(name: str, table: dict[str, Any], source: dict[str, Any]) -> PaperTable:
    return PaperTable(
        id=name,
        title=table["title"],
        caption=table["caption"],
        source=f"{source['source']}, arXiv:{source['arxiv']}, {source['license']}, section {table['section']}",
        columns=tuple(table["columns"]),
        rows=tuple(_rows(name, table)),
        notes=tuple(table["notes"]),
    )


def _rows(name: str, table: dict[str, Any]) -> Iterator[Row]:
    for dataset, printed in table["rows"].items():
        ours = table.get("baselines", {}).get(dataset, [])
        for row in (*printed, *ours):
            numbers = dict(zip(table["columns"], row.get("numbers", ()), strict="numbers" in row))
            shown = {key: None if numbers.get(key, "-") == "-" else float(numbers[key]) for key in COLUMNS}
            yield Row(
                id=row["id"],
                dataset=dataset,
                method=row["method"],
                setting=row.get("setting", ""),
                recipe=f"paper/{name}/{row['id']}",
                paper=MappingProxyType(shown),
                baseline=row in ours,
                speed_up_over=row.get("speed_up_over", printed[0]["id"]),
                equal_time=tuple(row.get("equal_time", ())),
                keeps=tuple(row.get("keeps", ())),
                notes=tuple(row.get("notes", ())),
            )


TABLES: Mapping[str, PaperTable] = MappingProxyType(_read())
"""Tables 1 to 4 and Figures 1 and 2: ``"table1"`` ... ``"figure2"``."""
