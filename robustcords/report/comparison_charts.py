"""Charts of accuracy and cost, method by method."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from html import escape

from robustcords.report import chart
from robustcords.report.chart import Chart, Section, style
from robustcords.report.comparison import ComparedMethod, Comparison, Measure, accuracies_of
from robustcords.report.front import clean_measure, deciding_measure, front
from robustcords.report.intervals import wilson
from robustcords.report.run_report import EpochMetrics

_LOG_FROM = 8
"""The ratio of the largest to the smallest time from which on the axis is logarithmic."""


def sections(comparison: Comparison) -> list[Section]:
    """Returns all sections but `robustness`, of which some may have neither charts nor notes."""
    return [curves(comparison), fractions(comparison)]


def robustness(comparison: Comparison) -> Section:
    """Returns robust accuracy against training time: the plot that decides."""
    title, measure = "Robustness against training time", deciding_measure(comparison)
    if measure is None:
        return Section("robustness", title, [], ["No run was evaluated under an attack."])
    shown = [(n, m) for n, m in enumerate(comparison.methods) if measure in m.accuracies and m.seconds]
    missing = [m.name for m in comparison.methods if measure not in m.accuracies or not m.seconds]
    notes = [f"Not shown, without {measure.label} or a training time: {name}." for name in missing]
    if not shown:
        return Section("robustness", title, [], notes)
    times = [method.seconds.mean for _, method in shown if method.seconds]
    unit, name = chart.unit(max(times))
    ahead = front([method for _, method in shown], measure)
    traces = []
    for number, method in shown:
        seconds, accuracy = method.seconds, method.accuracies[measure]
        assert seconds is not None
        low, high = error_bar(method, measure)
        x_error = {"type": "data", "array": [(seconds.std or 0) / unit], "thickness": 1, "visible": bool(seconds.std)}
        y_error = {"type": "data", "symmetric": False, "array": [high], "arrayminus": [low], "thickness": 1}
        traces.append(
            {
                **chart.line(number, [seconds.mean / unit], [accuracy.mean * 100], method.name),
                "mode": "markers+text",
                "text": [f"<b>{escape(method.name)}</b>" if method in ahead else escape(method.name)],
                "textposition": "top center",
                "textfont": {"size": 11},
                "cliponaxis": False,
                "error_x": x_error,
                "error_y": y_error,
                "hovertemplate": f"<b>{escape(method.name)}</b><br>{escape(measure.label)}: %{{y:.2f}} %"
                f" (+{high:.2f} / -{low:.2f})<br>%{{x:.3g}} {name}<extra></extra>",
            }
        )
        traces[-1]["marker"] |= {"size": 12, "line": {"width": 1}}
    line = {"color": "#8C8C8C", "dash": "dot", "width": 1.5, "shape": "hv"}
    x = [method.seconds.mean / unit for method in ahead if method.seconds]
    y = [method.accuracies[measure].mean * 100 for method in ahead]
    traces.insert(0, {"type": "scatter", "mode": "lines", "x": x, "y": y, "line": line, "hoverinfo": "skip"})
    kind = "log" if max(times) > _LOG_FROM * min(times) else "linear"
    layout = chart.layout(f"training time ({name})", f"{measure.label}, accuracy (%)")
    layout["xaxis"] |= {"type": kind} | ({"rangemode": "tozero"} if kind == "linear" else {"dtick": "D2"})
    caption = (
        f"{measure.label} of the {measure.which} weights against training time with selection, mean over seeds; up and "
        "left is better. Bars: standard deviation over seeds, or for a single seed the 95 % interval of so many test "
        "images (Wilson). Dotted, and in bold: what no other method beats in both."
        + (" The time axis is logarithmic." if kind == "log" else "")
    )
    legend = [(method.name, style(number)) for number, method in shown]
    return Section(
        "robustness", title, [Chart("decides", title, caption, chart.figure(traces, layout), legend, 460)], notes
    )


def error_bar(method: ComparedMethod, measure: Measure) -> tuple[float, float]:
    """Returns how far an accuracy's error bar reaches down and up, in percentage points."""
    spread = method.accuracies[measure]
    if spread.std is not None:
        return spread.std * 100, spread.std * 100
    run = next(run for run in method.runs if run.seed in spread.values)
    low, high = wilson(spread.mean, accuracies_of(run)[measure].examples)
    return (spread.mean - low) * 100, (high - spread.mean) * 100


def curves(comparison: Comparison) -> Section:
    """Returns training loss and validation accuracies over epochs."""
    kinds: tuple[tuple[str, str, str, float, Callable[[EpochMetrics], float | None]], ...] = (
        ("loss", "Training loss", "training loss", 1.0, lambda row: row.train_loss),
        ("clean", "Validation accuracy, clean", "accuracy (%)", 100.0, partial(_validated, "clean")),
        ("robust", "Validation accuracy under PGD-10", "accuracy (%)", 100.0, partial(_validated, "robust")),
    )
    captions = {
        "loss": "Mean over seeds. Losses of different names are different quantities.",
        "clean": "On the validation split, mean over seeds.",
        "robust": "On the validation split, steps of a quarter of the radius, mean over seeds.",
    }
    charts = []
    for key, title, axis, scale, value in kinds:
        lines = [(n, m, chart.over_epochs(m.runs, value)) for n, m in enumerate(comparison.methods)]
        lines = [(n, m, points) for n, m, points in lines if points]
        traces = []
        for number, method, points in lines:
            x, y = [epoch + 1 for epoch in points], [y * scale for y in points.values()]
            crowded = {"mode": "lines"} if len(x) > 40 else {}
            traces.append(chart.line(number, x, y, method.name) | crowded)
        if traces:
            legend = [(method.name, style(number)) for number, method, _ in lines]
            figure = chart.figure(traces, chart.layout("epoch", axis))
            charts.append(Chart(f"curve-{key}", title, captions[key], figure, legend, 360))
    notes = [] if len(charts) > 1 else ["No run was measured on a validation split."]
    return Section("curves", "Learning curves", charts, notes if charts else ["No run has metrics.jsonl."])


def _validated(name: str, row: EpochMetrics) -> float | None:
    """Returns an accuracy on the validation split, where the epoch has it."""
    return row.noted("validation").get(name)


def fractions(comparison: Comparison) -> Section:
    """Returns accuracy and speed-up against the fraction (Fig. 2 of the paper), where there are two fractions."""
    series: dict[str, list[tuple[float, ComparedMethod]]] = {}
    recipes: dict[str, str] = {}
    for method in comparison.methods:
        if "selector.fraction" in method.recipe:
            same = {key: value for key, value in method.recipe.items() if key != "selector.fraction"}
            key = repr(sorted(same.items()))
            share = float(method.recipe["selector.fraction"])
            recipes.setdefault(key, method.name.replace(f" {share * 100:g} %", "", 1))
            series.setdefault(key, []).append((share, method))
    lines = [
        (recipes[key], sorted(points, key=lambda point: point[0])) for key, points in series.items() if len(points) > 1
    ]
    measure = deciding_measure(comparison)
    clean = clean_measure(comparison, measure.which if measure else "last")
    kinds: list[tuple[str, str, Callable[[ComparedMethod], float | None]]] = [
        (m.label, "accuracy (%)", partial(_accuracy, m)) for m in (measure, clean) if m
    ]
    kinds.append(("Speed-up", "times faster than the baseline", lambda m: m.speed_up.value if m.speed_up else None))
    charts = []
    for number, (title, axis, value) in enumerate(kinds):
        traces, legend = [], []
        for row, (name, points) in enumerate(lines):
            whole = dict.fromkeys(method.baseline for _, method in points if method.baseline)
            ends = [(1.0, comparison.method(name)) for name in whole] if title != "Speed-up" else []
            coordinates = [(100 * share, y) for share, method in [*points, *ends] if (y := value(method)) is not None]
            traces.append(chart.line(row, [x for x, _ in coordinates], [y for _, y in coordinates], name))
            legend.append((name, style(row)))
        if any(trace["y"] for trace in traces):
            caption = (
                "Mean over seeds; at 100 % the baseline." if title != "Speed-up" else "Of the whole training time."
            )
            figure = chart.figure(traces, chart.layout("images trained on (%)", axis))
            charts.append(Chart(f"fraction-{number}", title, caption, figure, legend, 300, small=True))
    return Section("fractions", "Accuracy and speed-up against the fraction", charts)


def _accuracy(measure: Measure, method: ComparedMethod) -> float | None:
    """Returns a method's mean accuracy in percent."""
    spread = method.accuracies.get(measure)
    return spread.mean * 100 if spread else None
