"""Charts of an evaluation: accuracy against the radius, and of each class."""

from __future__ import annotations

from html import escape

from robustcords.config.schema import parse_radius
from robustcords.evaluation.results import CLEAN
from robustcords.report import chart
from robustcords.report.chart import COLORS, Chart, Section, Style, style
from robustcords.report.comparison import ComparedMethod, Comparison, Measure
from robustcords.report.front import clean_measure, deciding_measure

_CLASSES = 20
"""Of more classes than these the least robust are shown."""


def sections(comparison: Comparison) -> list[Section]:
    """Returns all sections, of which some may have no charts."""
    deciding = deciding_measure(comparison)
    which = deciding.which if deciding else "last"
    return [radii(comparison, which), classes(comparison, which)]


def radii(comparison: Comparison, which: str) -> Section:
    """Returns accuracy against the radius, of every attack that was run at two radii or more.

    Args:
        comparison: the runs.
        which: the name of the weights.
    """
    attacks: dict[str, list[Measure]] = {}
    for measure in comparison.measures:
        if measure.radius and measure.which == which:
            attacks.setdefault(measure.attack, []).append(measure)
    clean = clean_measure(comparison, which)
    charts: list[Chart] = []
    for attack, measures in attacks.items():
        unit = 255 if all("/" in measure.radius for measure in measures) else 1
        traces, legend = [], []
        for number, method in enumerate(comparison.methods):
            points = {float(parse_radius(m.radius)) * unit: m for m in measures if m in method.accuracies}
            if len(points) < 2:
                continue
            if clean in method.accuracies and clean is not None:
                points = {0.0: clean, **points}
            x = sorted(points)
            y = [100 * method.accuracies[points[radius]].mean for radius in x]
            traces.append(chart.line(number, x, y, method.name))
            legend.append((method.name, style(number)))
        if traces:
            layout = chart.layout("radius (levels of 255)" if unit > 1 else "radius", "accuracy (%)")
            layout["xaxis"] |= {"rangemode": "tozero"}
            layout["yaxis"] |= {"rangemode": "tozero"}
            caption = f"Test accuracy under {attack}, {which} weights, mean over seeds; at 0 the images as they are."
            charts.append(Chart(f"radii-{len(charts)}", attack, caption, chart.figure(traces, layout), legend, 360))
    return Section("radii", "Accuracy against the radius", charts)


def classes(comparison: Comparison, which: str) -> Section:
    """Returns clean and robust accuracy of each class, a chart for each method.

    Args:
        comparison: the runs.
        which: the name of the weights.
    """
    looks = {CLEAN: Style(COLORS[5], pattern=""), "robust": Style(COLORS[1], pattern="/")}
    charts = []
    for number, method in enumerate(comparison.methods):
        robust = _attack(method, which)
        accuracies = {kind: _of_classes(method, which, what) for kind, what in ((CLEAN, CLEAN), ("robust", robust))}
        leading = accuracies["robust"] or accuracies[CLEAN]
        shown = sorted(leading, key=lambda name: leading[name])[:_CLASSES]
        if not shown:
            continue
        traces = [
            {
                "type": "bar",
                "name": CLEAN if kind == CLEAN else escape(robust),
                "x": list(range(len(shown))),
                "y": [100 * of_kind.get(name, 0) for name in shown],
                "customdata": [escape(name) for name in shown],
                "marker": {"color": looks[kind].color, "pattern": {"shape": looks[kind].pattern, "size": 6}},
                "hovertemplate": "%{customdata}: %{y:.1f} %<extra>%{fullData.name}</extra>",
            }
            for kind, of_kind in accuracies.items()
            if of_kind
        ]
        layout = chart.layout("", "accuracy (%)") | {"barmode": "group"}
        layout["xaxis"] |= {"tickvals": list(range(len(shown))), "ticktext": [escape(name) for name in shown]}
        layout["yaxis"] |= {"range": [0, 100]}
        caption = f"Test accuracy of the {which} weights, mean over seeds; the least robust classes first" + (
            f", {len(shown)} of {len(leading)}." if len(shown) < len(leading) else "."
        )
        legend = [(robust if kind == "robust" else CLEAN, looks[kind]) for kind in accuracies if accuracies[kind]]
        figure = chart.figure(traces, layout)
        charts.append(Chart(f"classes-{number}", method.name, caption, figure, legend, 300, small=True))
    return Section("classes", "Accuracy of each class", charts)


def _attack(method: ComparedMethod, which: str) -> str:
    """Returns the attack that a method's classes are shown under: at the training radius, or the first, or ""."""
    entries = [run.report.evaluation[which] for run in method.runs if which in run.report.evaluation]
    attacks = [what for what in (entries[0].per_class if entries else ()) if what != CLEAN]
    trained = f" {method.runs[0].recipe.threat.epsilon}"
    return next((what for what in attacks if what.endswith(trained)), attacks[0] if attacks else "")


def _of_classes(method: ComparedMethod, which: str, what: str) -> dict[str, float]:
    """Returns class to accuracy, mean over those seeds that have it."""
    entries = [run.report.evaluation[which] for run in method.runs if which in run.report.evaluation]
    return chart.mean_by(pair for entry in entries for pair in entry.per_class.get(what, {}).items())
