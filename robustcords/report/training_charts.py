"""Charts of training dynamics: kinds of examples, time, selections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from robustcords.report import chart
from robustcords.report.chart import COLORS, DASHES, PATTERNS, SYMBOLS, Chart, Section, Style, style
from robustcords.report.comparison import ComparedMethod, Comparison
from robustcords.report.grouping import effort_of
from robustcords.report.run_report import EpochMetrics
from robustcords.report.runs import Run

KINDS = ("outlier", "boundary", "robust")
_EVEN = 0.05
"""Up to this share of an equal one, classes are called even: a map of them would show nothing."""
_PARTS = ("attack", "update", "selection", "data", "rest")  # of the time of a run


def sections(comparison: Comparison) -> list[Section]:
    """Returns all sections, of which some may have neither charts nor notes."""
    return [times(comparison), selections(comparison), dynamics(comparison)]


def dynamics(comparison: Comparison) -> Section:
    """Returns the shares of outlier, boundary and robust examples over epochs (Fig. 1 of the paper)."""
    charts = []
    looks = [Style(COLORS[n], dash=DASHES[n], symbol=SYMBOLS[n]) for n in (1, 4, 0)]
    for number, method in enumerate(comparison.methods):
        source = next(
            (key for key in ("dynamics", "counts") for run in method.runs if any(_counted(key, r) for r in run.rows)),
            "",
        )
        if not source:
            continue
        traces = []
        for kind, look in zip(KINDS, looks, strict=True):
            points = chart.over_epochs(method.runs, partial(_share, source, kind))
            x, y = [epoch + 1 for epoch in points], [100 * share for share in points.values()]
            traces.append(chart.trace(look, x, y, kind) | {"mode": "lines+markers" if len(x) <= 20 else "lines"})
        caption = {
            "dynamics": "by a PGD attack on fixed training images after the epoch",
            "counts": effort_of(method.runs[0].recipe.effort.name).legend,
        }[source]
        layout = chart.layout("epoch", "images (%)")
        layout["yaxis"] |= {"range": [0, 100]}
        legend = list(zip(KINDS, looks, strict=True))
        charts.append(
            Chart(f"dynamics-{number}", method.name, caption, chart.figure(traces, layout), legend, 260, small=True)
        )
    title = "Outlier, boundary and robust examples"
    without = [m.name for n, m in enumerate(comparison.methods) if not any(c.key == f"dynamics-{n}" for c in charts)]
    return Section("dynamics", title, charts, chart.not_shown(without, "these runs kept no count"))


def _counts(source: str, row: EpochMetrics) -> Mapping[str, float]:
    """Returns what the effort counted of an epoch, or what a callback did."""
    return (row.counts or {}) if source == "counts" else row.noted(source)


def _counted(source: str, row: EpochMetrics) -> float:
    """Returns how many examples of these kinds an epoch counted; another effort's kinds are not shown."""
    counts = _counts(source, row)
    return sum(counts.get(kind, 0) for kind in KINDS)


def _share(source: str, kind: str, row: EpochMetrics) -> float | None:
    """Returns a kind's share of what an epoch counted."""
    total = _counted(source, row)
    return _counts(source, row).get(kind, 0) / total if total else None


def times(comparison: Comparison) -> Section:
    """Returns where the time went, as stacked bars."""
    methods = list(reversed(comparison.methods))
    seconds = [_parts(method.runs) for method in methods]
    unit, name = chart.unit(max(sum(parts.values()) for parts in seconds))
    rows = list(range(len(methods)))
    traces = []
    looks = [Style(COLORS[n], pattern=PATTERNS[n]) for n in range(len(_PARTS))]
    for phase, look in zip(_PARTS, looks, strict=True):
        shares = [100 * parts[phase] / (sum(parts.values()) or 1) for parts in seconds]
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": phase,
                "y": rows,
                "x": [parts[phase] / unit for parts in seconds],
                "width": 0.42,
                "marker": {"color": look.color, "pattern": {"shape": look.pattern, "fillmode": "overlay", "size": 6}},
                "customdata": [[escape(method.name), share] for method, share in zip(methods, shares, strict=True)],
                "hovertemplate": f"<b>%{{customdata[0]}}</b><br>{phase}: %{{x:.3g}} {name}, %{{customdata[1]:.1f}} %"
                "<extra></extra>",
            }
        )
    layout = chart.layout(f"{name}, mean over seeds", "")
    layout |= {"barmode": "stack"}
    layout["yaxis"] |= {"visible": False, "range": [-0.6, len(rows) - 0.2], "fixedrange": True}
    # Names above their bars: next to them they would leave a phone no room for the bars.
    layout["annotations"] = [
        {
            "x": 0,
            "xanchor": "left",
            "y": row + 0.24,
            "yanchor": "bottom",
            "text": escape(method.name),
            "showarrow": False,
        }
        for row, method in enumerate(methods)
    ]
    layout["margin"] |= {"l": 12}
    caption = "Rest: validation, checkpoints, communication, averaged weights and logging."
    legend = list(zip(_PARTS, looks, strict=True))
    bars = Chart("time", "Where the time went", caption, chart.figure(traces, layout), legend, 90 + 46 * len(rows))
    return Section("time", "Where the time went", [bars])


def _parts(runs: Sequence[Run]) -> dict[str, float]:
    """Returns the mean seconds of each part of a run."""
    means = dict.fromkeys(_PARTS, 0.0)
    for run in runs:
        named = {phase: run.report.training.phases.get(phase, 0.0) for phase in means if phase != "rest"}
        rest = max(0.0, run.report.training.total - sum(named.values()))
        for phase, value in (*named.items(), ("rest", rest)):
            means[phase] += value / len(runs)
    return means


def selections(comparison: Comparison) -> Section:
    """Returns how much of a selection was in the one before, and how it is spread over the classes."""
    title = "Selections: overlap and class balance"
    selecting = [(n, m) for n, m in enumerate(comparison.methods) if "selector.fraction" in m.recipe]
    if not selecting:
        return Section("selections", title, [])
    charts, notes = [], []
    traces, legend = [], []
    for number, method in selecting:
        points = overlaps(method.runs)
        if points:
            look = style(number)
            x, y = [epoch + 1 for epoch in points], [100 * share for share in points.values()]
            traces.append(chart.line(number, x, y, method.name))
            share = 100 * float(method.recipe["selector.fraction"])
            line = {"color": look.color, "dash": "dot", "width": 1}
            traces.append(
                {"type": "scatter", "mode": "lines", "x": [x[0] - 0.5, x[-1] + 0.5], "y": [share] * 2, "line": line}
                | {"hovertemplate": f"random: {share:g} %<extra></extra>"}
            )
            legend.append((method.name, look))
    if traces:
        layout = chart.layout("epoch of the selection", "images kept (%)")
        layout["yaxis"] |= {"range": [0, 104]}
        caption = (
            "Share of a selection that was in the one before, mean over seeds. Thin dotted: what a random subset would "
            "give, which is the fraction."
        )
        charts.append(
            Chart("overlap", "Overlap with the selection before", caption, chart.figure(traces, layout), legend, 340)
        )
    notes += chart.not_shown(
        [m.name for _, m in selecting if not overlaps(m.runs)],
        "overlap needs two selections and the folder selections/",
    )
    level, without = [], []
    for number, method in selecting:
        counts = _counts_by_class(method)
        if not counts:
            without.append(method.name)
        elif _unevenness(counts) < _EVEN:
            level.append(method.name)
        else:
            charts.append(_balance(number, method, counts))
    if level:
        notes.append(f"Every class has the same share of each selection, to {_EVEN:.0%} of it: {'; '.join(level)}.")
    notes += chart.not_shown(without, "class balance is not in these runs' metrics.jsonl")
    return Section("selections", title, charts, notes)


def overlaps(runs: Sequence[Run]) -> dict[int, float]:
    """Returns the share of each selection that was in the one before, by epoch, mean over runs."""
    pairs = (pair for run in runs for pair in pairwise(run.selections))
    shares = ((now.epoch, float(np.isin(now.indices, before.indices).mean())) for before, now in pairs)
    return dict(sorted(chart.mean_by(shares).items()))


def _counts_by_class(method: ComparedMethod) -> dict[int, list[int]]:
    """Returns how many images of each class were selected, by epoch, of several seeds of the first; or nothing."""
    selected = {row.epoch: row.selection.classes for row in method.runs[0].rows if row.selection}
    counts = {epoch: list(classes) for epoch, classes in selected.items() if classes and any(classes)}
    return counts if len({len(classes) for classes in counts.values()}) == 1 else {}


def _of_equal_shares(counts: Mapping[int, Sequence[int]]) -> npt.NDArray[np.float64]:
    """Returns (epochs, classes), the images of a class by what an equal share would be."""
    images = np.array(list(counts.values()), dtype=float)
    return np.asarray(images / images.sum(axis=1, keepdims=True) * images.shape[1])


def _unevenness(counts: Mapping[int, Sequence[int]]) -> float:
    return float(np.abs(_of_equal_shares(counts) - 1).max())


def _balance(number: int, method: ComparedMethod, counts: Mapping[int, Sequence[int]]) -> Chart:
    """Returns a map of classes and epochs."""
    shares, spread = _of_equal_shares(counts), _unevenness(counts)
    trace = {
        "type": "heatmap",
        "x": [str(epoch + 1) for epoch in counts],
        "y": list(range(shares.shape[1])),
        "z": shares.T.tolist(),
        "customdata": np.array(list(counts.values())).T.tolist(),
        "colorscale": "RdBu",
        "zmin": 1 - spread,
        "zmax": 1 + spread,
        "colorbar": {"thickness": 10, "outlinewidth": 0},
        "hovertemplate": "class %{y}, epoch %{x}<br>%{customdata} images, %{z:.2f} of an equal share<extra></extra>",
    }
    layout = chart.layout("epoch of the selection", "class")
    layout["xaxis"] |= {"type": "category"}
    caption = f"Images of a class by what an equal share would be; 1 is in the middle. Seed {method.runs[0].seed}."
    return Chart(f"balance-{number}", method.name, caption, chart.figure([trace], layout), (), 280, small=True)
