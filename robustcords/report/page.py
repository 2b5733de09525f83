"""The self-contained HTML page, with Markdown and CSV next to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from robustcords import __version__
from robustcords.errors import UserError
from robustcords.report import comparison_charts, comparison_tables, evaluation_charts, training_charts
from robustcords.report.comparison import Comparison
from robustcords.report.comparison_tables import Cell, Grid, Section
from robustcords.report.front import verdict
from robustcords.storage.files import check_writable, write_atomic

_MARKS = {
    ".html": '<meta name="generator" content="robustcords report">',
    ".md": comparison_tables.MARK,
    ".csv": ",".join(comparison_tables.HEADER),
}
_SYMBOLS = {
    "": "",
    "circle": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",
    "square": "M-4 -4h8v8h-8z",
    "diamond": "M0 -5l5 5l-5 5l-5 -5z",
    "triangle-up": "M0 -5l5 9h-10z",
    "triangle-down": "M0 5l5 -9h-10z",
    "cross": "M-1.6 -5h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4v-3.2h3.4z",
    "x": "M-5 -3l2 -2l3 3l3 -3l2 2l-3 3l3 3l-2 2l-3 -3l-3 3l-2 -2l3 -3z",
    "star": "M0 -6l1.6 4h4.2l-3.4 2.6l1.3 4.2l-3.7 -2.6l-3.7 2.6l1.3 -4.2l-3.4 -2.6h4.2z",
}
_DASHES = {"": "none", "solid": "none", "dash": "7 4", "dot": "2 3", "dashdot": "7 3 2 3", "longdash": "12 5"}


@dataclass(frozen=True)
class Picture:
    """A test image, what an attack makes of it, and how the model sees both; pictures are ``data:`` addresses."""

    number: int
    label: str
    predicted: str
    attacked: str
    clean: str
    adversarial: str
    difference: str


@dataclass(frozen=True)
class Thumbnail:
    """A training image: its class, and its ``data:`` address."""

    label: str
    image: str


@dataclass(frozen=True)
class SelectedImages:
    """Some images that a selector has kept, and some that it left out.

    Attributes:
        name: which selection of which run.
        kept: of those that were trained on.
        left_out: of the rest.
    """

    name: str
    kept: Sequence[Thumbnail]
    left_out: Sequence[Thumbnail]


@dataclass(frozen=True)
class Pictures:
    """The page's images.

    Attributes:
        caption: how they were made.
        shown: what a run is called, and its pictures.
        notes: why there are none of others.
        selections: what selectors kept and left out.
    """

    caption: str = ""
    shown: Sequence[tuple[str, Sequence[Picture]]] = ()
    notes: Sequence[str] = field(default_factory=list)
    selections: Sequence[SelectedImages] = ()


def refuse_foreign(output: Path) -> None:
    """Checks that the page and the files next to it overwrite nothing but an earlier report.

    Raises:
        UserError: the name does not end in ``.html``, its folder is not there, or one of the files is something else.
    """
    if output.suffix != ".html":
        raise UserError(f"--output {output}: must end in .html; the .md and .csv files are written next to it")
    check_writable(output)
    for suffix, mark in _MARKS.items():
        path = output.with_suffix(suffix)
        try:
            with path.open(encoding="utf-8") as file:
                ours = mark in file.read(1000)
        except FileNotFoundError:
            ours = not path.is_symlink()  # a link to nowhere is not ours either
        except (OSError, ValueError):
            ours = False
        if not ours:
            raise UserError(f"--output {output}: {path} exists and is not an earlier report; name another file")


def write(
    comparison: Comparison, output: Path, sections: Sequence[Section] = (), pictures: Pictures | None = None
) -> None:
    """Writes ``FILE.html``, ``FILE.md`` and ``FILE.csv``.

    Args:
        comparison: the runs.
        output: ``FILE.html``.
        sections: what comes with the comparison.
        pictures: adversarial images; None for none.

    Raises:
        UserError: one of the files exists and is no earlier report, or cannot be written.
    """
    refuse_foreign(output)
    contents = {
        ".html": html(comparison, output.stem, sections, pictures),
        ".md": comparison_tables.markdown(comparison, sections),
        ".csv": comparison_tables.csv(comparison),
    }
    for suffix, content in contents.items():
        write_atomic(output.with_suffix(suffix), content)


def html(comparison: Comparison, stem: str, sections: Sequence[Section], pictures: Pictures | None) -> str:
    """Returns the page: complete in itself, it asks for nothing from anywhere.

    Args:
        comparison: the runs.
        stem: what the files next to it are called, without their endings.
        sections: what comes with the comparison.
        pictures: adversarial images; None for none.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    places = Environment(
        loader=PackageLoader("robustcords.report", "template"), autoescape=True, undefined=StrictUndefined
    )
    deciding = comparison_charts.robustness(comparison)
    chart_sections = [
        section
        for module in (evaluation_charts, comparison_charts, training_charts)
        for section in module.sections(comparison)
        if section.charts or section.notes
    ]
    return places.get_template("page.html").render(
        title=_title(comparison),
        version=__version__,
        stem=stem,
        comparison=comparison,
        sections=sections,
        verdict=verdict(comparison),
        headlines=comparison_tables.headlines(comparison),
        differences=comparison_tables.difference_tables(comparison),
        intervals=comparison_tables.intervals(comparison),
        legend=comparison_tables.LEGEND,
        charts=chart_sections,
        deciding=deciding,
        figures={chart.key: chart.figure for section in (deciding, *chart_sections) for chart in section.charts},
        pictures=pictures or Pictures(notes=["No images were asked for."]),
        environments=_environments(comparison),
        differing=_differing(comparison),
        recipes=[
            (method.name, tomli_w.dumps(_without_none(method.runs[0].recipe.tables))) for method in comparison.methods
        ],
        sanity=_sanity(comparison),
        symbols=_SYMBOLS,
        dashes=_DASHES,
        plotly=Markup(get_plotlyjs()),
    )


def _title(comparison: Comparison) -> str:
    names = list(dict.fromkeys(str(method.recipe["data.name"]) for method in comparison.methods))
    return f"Robust training on {', '.join(names)}"


def _environments(comparison: Comparison) -> Grid:
    """Returns what each run ran on, and where it lies."""
    header = ("method", "seed", "device", "processes", "threads", "precision", "commit", "versions", "run directory")
    rows = []
    for method in comparison.methods:
        for run in method.runs:
            place = run.report.environment
            versions = ", ".join(f"{name} {number}" for name, number in place.versions.items())
            commit, dirty, _ = (place.git_commit or "").partition("-dirty")
            cells = (
                run.seed,
                place.device,
                place.world_size,
                place.threads,
                run.recipe.train.precision or "",
                commit[:12] + dirty,
                versions,
                run.path,
            )
            rows.append((method.name, [Cell(str(cell)) for cell in cells]))
    return Grid("What each run ran on", header, rows)


def _differing(comparison: Comparison) -> Grid:
    """Returns the keys that methods differ in."""
    recipes = [method.recipe for method in comparison.methods]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    telling = [key for key in keys if len({repr(recipe.get(key)) for recipe in recipes}) > 1]
    rows = [(m.name, [Cell(str(m.recipe.get(key, ""))) for key in telling]) for m in comparison.methods]
    return Grid("What the recipes differ in", ["method", *telling], rows if telling else [])


def _sanity(comparison: Comparison) -> list[Grid]:
    """Returns what each evaluation's checks for masked gradients found."""
    return [
        Grid(
            f"Masked gradients: {method.name}, seed {run.seed}, {which} weights",
            ("check", "result", "what was measured"),
            [(check.name, [Cell(check.status), Cell(check.finding)]) for check in entry.sanity.checks],
        )
        for method in comparison.methods
        for run in method.runs
        for which, entry in run.report.evaluation.items()
        if entry.sanity
    ]


def _without_none(value: Any) -> Any:
    """Returns a recipe's tables without nulls, which a report has for numbers that are not finite and TOML has not."""
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value if item is not None] if isinstance(value, list) else value
