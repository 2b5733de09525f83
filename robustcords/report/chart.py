"""The data of one chart of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, TypeVar

import numpy as np

from robustcords.report.run_report import EpochMetrics
from robustcords.report.runs import Run

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart, but for black, which a dark page
# hides. Symbols and dashes differ too, so that nothing hangs on colour alone.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
PATTERNS = ("", "/", "x", ".", "-")


_Key = TypeVar("_Key")


@dataclass(frozen=True)
class Style:
    """How one method looks in every chart."""

    color: str
    symbol: str = ""
    dash: str = ""
    pattern: str | None = None


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        key: names it in the page.
        title: what it shows.
        caption: how it is computed.
        figure: plotly's data and layout.
        legend: what each line or bar is, and how it looks. It is text below the chart, which is there without
            JavaScript and for screen readers, and takes nothing of the chart's height when names are long, as plotly's
            legend would.
        height: in pixels.
        small: whether several fit side by side.
    """

    key: str
    title: str
    caption: str
    figure: Mapping[str, Any]
    legend: Sequence[tuple[str, Style]] = ()
    height: int = 420
    small: bool = False


@dataclass(frozen=True)
class Section:
    """Charts of one kind, and what could not be shown."""

    key: str
    title: str
    charts: Sequence[Chart]
    notes: Sequence[str] = field(default_factory=list)


def style(number: int) -> Style:
    """Returns the look of a method by its number."""
    return Style(COLORS[number % len(COLORS)], SYMBOLS[number % len(SYMBOLS)], DASHES[number % len(DASHES)])


def over_epochs(runs: Iterable[Run], value: Callable[[EpochMetrics], float | None]) -> dict[int, float]:
    """Returns the mean over runs of a figure of each epoch that has it."""
    figures = ((row.epoch, value(row)) for run in runs for row in run.rows)
    return dict(sorted(mean_by((epoch, figure) for epoch, figure in figures if figure is not None).items()))


def mean_by(pairs: Iterable[tuple[_Key, float]]) -> dict[_Key, float]:
    """Returns the mean figure of each key, in the order in which keys come first."""
    figures: dict[_Key, list[float]] = {}
    for key, figure in pairs:
        figures.setdefault(key, []).append(figure)
    return {key: float(np.mean(values)) for key, values in figures.items()}


def not_shown(names: Sequence[str], why: str) -> list[str]:
    """Returns the note on methods that a chart lacks; none where it has all."""
    return [f"Not shown, {why}: {'; '.join(names)}."] if names else []


def line(number: int, x: Sequence[float], y: Sequence[float], name: str) -> dict[str, Any]:
    """Returns the trace of a method by its number."""
    return trace(style(number), x, y, name)


def trace(look: Style, x: Sequence[float], y: Sequence[float], name: str) -> dict[str, Any]:
    """Returns a line with markers."""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": escape(name),
        "x": list(x),
        "y": list(y),
        "marker": {"color": look.color, "symbol": look.symbol, "size": 7},
        "line": {"color": look.color, "dash": look.dash, "width": 2},
        "hovertemplate": f"<b>{escape(name)}</b><br>%{{x:.4g}}: %{{y:.4g}}<extra></extra>",
    }


def layout(x: str, y: str) -> dict[str, Any]:
    """Returns what all layouts share; colours are the page's, which knows whether it is dark."""
    axis = {"automargin": True, "zeroline": False, "ticks": "outside", "ticklen": 4, "showline": True}
    return {
        "xaxis": {"title": {"text": escape(x), "standoff": 8}, **axis},
        "yaxis": {"title": {"text": escape(y), "standoff": 8}, **axis},
        "margin": {"l": 56, "r": 16, "t": 12, "b": 48},
        "showlegend": False,
        "hovermode": "closest",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
    }


def figure(traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a figure as plotly.js takes it."""
    return {"data": list(traces), "layout": dict(layout)}


def unit(seconds: float) -> tuple[float, str]:
    """Returns the seconds of a unit that suits a time, and its name."""
    if seconds >= 2 * 3600:
        return 3600.0, "hours"
    return (60.0, "minutes") if seconds >= 120 else (1.0, "seconds")
