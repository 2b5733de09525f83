"""The tables of one run: report.md and the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from robustcords.config.schema import parse_duration
from robustcords.evaluation import majority
from robustcords.evaluation.results import CLEAN, Evaluation
from robustcords.report.grouping import effort_name, flat, subset_name
from robustcords.report.intervals import wilson
from robustcords.report.markdown import in_markdown, on_terminal, plain
from robustcords.report.run_report import Environment, Report, Training, TrainTable
from robustcords.runtime.progress import duration, verbatim

MARK = "<!-- robustcords run -->"
"""The line that a report.md begins with."""

_UNIT = "accuracy in percent"
_INTERVAL = "± its 95 % interval over test images"
_CLASSES = 20
"""How many classes report.md shows; report.json has all of them."""


def markdown(report: Report) -> str:
    """Returns report.md: what was trained, how accurate it is, where the time went, and what it ran on."""
    parts = [
        MARK,
        f"# {plain(title(report))}",
        "\n".join(f"- {plain(line)}" for line in _recipe(report)),
        "## Test accuracy",
        accuracy_table(report),
    ]
    parts += [*_by_class(report), *_sanity(report)]
    if report.training.epochs:
        parts += ["## Training", *_training(report.training, report.recipe.train)]
    parts += ["## Environment", plain(_environment(report.environment))]
    return "\n\n".join(parts) + "\n"


def print_report(report: Report, console: Console | None = None) -> None:
    """Prints the table, AutoAttack's warnings, checks for masked gradients and the training time to the terminal."""
    console = console or verbatim()
    # Not the table's own title: that would be wrapped to the table's width.
    console.print(f"{title(report)}: {_UNIT}, {_INTERVAL}", soft_wrap=True)
    header, *rows = accuracy_rows(report)
    console.print(on_terminal(header, rows, wrap=False))
    lines = [
        *_figures(report),
        *_warnings(report),
        *_checks(report),
        *([_time(report.training, report.recipe.train)] if report.training.epochs else []),
    ]
    for line in lines:
        console.print(line, soft_wrap=True)


def data_name(name: str) -> str:
    """Returns a data set's name for a heading: for one on this machine, its folder's without the path."""
    return Path(name).name if Path(name).is_absolute() else name


def title(report: Report) -> str:
    """Returns one line that names a run, such as ``"mart on digits, cnn, adv-glister 30 %, Bullet"``."""
    recipe, data = report.recipe, data_name(report.recipe.data.name)
    if not report.training.epochs:  # weights from elsewhere, for which the recipe does not say how they were trained
        return f"{recipe.model.name} on {data}"
    parts = [f"{recipe.loss.name} on {data}", recipe.model.name]
    if recipe.selector:
        parts.append(subset_name(recipe.selector.name, recipe.selector.fraction))
    if name := effort_name(recipe.effort.name):
        parts.append(name)
    return ", ".join(parts)


def accuracy_rows(report: Report) -> list[list[str]]:
    """Returns the table of accuracies, head first: a row for each measure, a column for each set of weights."""
    evaluation = report.evaluation
    measures = {key: None for result in evaluation.values() for key in _measures(result)}
    rows = [["attack", "radius", "images", *evaluation]]
    for attack, radius, images in measures:
        accuracies = [_measures(result).get((attack, radius, images)) for result in evaluation.values()]
        rows.append([attack, radius, str(images), *(_with_interval(value, images) for value in accuracies)])
    return rows


def _with_interval(accuracy: float | None, images: int) -> str:
    """Returns an accuracy in percent, and how far its 95 % interval over so many images reaches at most (Wilson)."""
    if accuracy is None:
        return ""
    reach = max(abs(end - accuracy) for end in wilson(accuracy, images))
    return f"{100 * accuracy:.2f} ± {100 * reach:.2f}"


def _measures(result: Evaluation) -> dict[tuple[str, str, int], float | None]:
    """Returns accuracies by attack, radius and number of images."""
    accuracies = {}
    named = {m.what: ("none" if m.attack == CLEAN else m.name, m) for m in result.measurements}
    for name, measurement in named.values():
        for other, value in ((named[what], value) for what, value in measurement.same_images.items() if what in named):
            accuracies[other[0], other[1].radius or "", measurement.examples] = value
        accuracies[name, measurement.radius or "", measurement.examples] = measurement.accuracy
    return accuracies


def accuracy_table(report: Report) -> str:
    """Returns the accuracies as Markdown: what they are, a table, and what AutoAttack warned of."""
    header, *rows = accuracy_rows(report)
    table = in_markdown(header, [list(map(plain, row)) for row in rows])
    notes = map(plain, [*_figures(report), *_warnings(report)])
    about = f"Test {_UNIT}, {_INTERVAL}; an example counts only if it withstands the whole attack."
    return "\n\n".join((about, table, *notes))


def _by_class(report: Report) -> list[str]:
    """Returns report.md's section on single classes, the least accurate under the first attack first, or nothing."""
    parts = []
    for name, result in report.evaluation.items():
        kinds = list(result.per_class)
        leading = result.per_class[kinds[min(1, len(kinds) - 1)]] if kinds else {}
        shown = sorted(leading, key=leading.__getitem__)[:_CLASSES]
        if shown:
            rows = [[label, *(f"{result.per_class[kind].get(label, 0):.2%}"[:-1] for kind in kinds)] for label in shown]
            about = f"{name} weights, {len(shown)} of {len(leading)} classes, {_UNIT}."
            parts += [plain(about), in_markdown(["class", *map(plain, kinds)], [list(map(plain, row)) for row in rows])]
    return ["## Accuracy by class", *parts] if parts else []


def _figures(report: Report) -> list[str]:
    """Returns one line for each further figure of an attack, such as a median distance."""
    figures = [
        f"{measurement.label} ({name}): {key.replace('_', ' ')} {f'{value:.4g}' if isinstance(value, float) else value}"
        for name, result in report.evaluation.items()
        for measurement in result.measurements
        for key, value in measurement.extras.items()
    ]
    return list(dict.fromkeys(figures))


def _warnings(report: Report) -> list[str]:
    lines = [f"warning: {text}" for text in report.training.warnings]
    if not report.complete:
        lines.insert(
            0, "warning: the evaluation has not ended: this is what was measured so far; resume it with run --resume"
        )
    for name, result in report.evaluation.items():
        taken = list(dict.fromkeys(str(m.examples) for m in result.measurements if m.sample == "stratified"))
        if taken:
            lines.append(f"{name}: {' and '.join(taken)} test images are a fixed sample, stratified by class")
        if text := majority.warning(result):
            lines.append(f"Accuracy ({name}): {text}")
    return lines + [
        f"{attack} warns ({name}): {text}"
        for name, result in report.evaluation.items()
        for attack, text in result.warnings
    ]


def _checks(report: Report) -> list[str]:
    """Returns one line for each check for masked gradients."""
    return [
        f"{check.status}: {check.name} ({name}): {check.finding}"
        for name, result in report.evaluation.items()
        for check in (result.sanity.checks if result.sanity else [])
    ]


def _sanity(report: Report) -> list[str]:
    """Returns report.md's section on masked gradients, or nothing."""
    parts = []
    for name, result in report.evaluation.items():
        if sanity := result.sanity:
            about = (
                f"{name} weights: {sanity.attacked} of {sanity.examples} test images are classified "
                f"correctly as they are, and attacked at {sanity.norm} radius {sanity.epsilon}. "
                f"An honest model fails a check by chance with probability {sanity.level:g} at most."
            )
            rows = [[plain(text) for text in (check.name, check.status, check.finding)] for check in sanity.checks]
            parts += [about, in_markdown(["check", "result", "what was measured"], rows, left=3)]
    return ["## Masked gradients", *parts] if parts else []


def _recipe(report: Report) -> list[str]:
    """Returns one line for each thing that makes the run what it is; of weights from elsewhere without training."""
    recipe = report.recipe
    train, threat, tables = recipe.train, recipe.threat, recipe.tables
    evaluated = [f"{kind}: {_component(tables[kind])}" for kind in ("data", "model")]
    evaluated.append(f"threat: {threat.norm}, radius {threat.epsilon}")
    if not report.training.epochs:
        return evaluated
    return [
        *evaluated,
        *(f"{kind}: {_component(tables[kind])}" for kind in ("attack", "loss")),
        f"selector: {_component(tables['selector'])}" if recipe.selector else "selector: none, full data",
        *(f"{kind}: {_component(tables[kind])}" for kind in ("effort", "optimizer", "schedule")),
        f"{train.length}, batches of {train.batch_size}, precision {train.precision}, seed {recipe.seed}",
    ]


def _component(table: Mapping[str, Any]) -> str:
    options = ", ".join(f"{key} {value}" for key, value in flat(table) if key != "name")
    return f"{table['name']} ({options})" if options else str(table["name"])


def _training(training: Training, train: TrainTable) -> list[str]:
    total = training.total or 1.0
    rows = [[phase, f"{value:.1f}", f"{value / total:.1%}"[:-1]] for phase, value in training.phases.items()]
    table = in_markdown(["phase", "seconds", "percent"], rows)
    return [f"The run {_time(training, train)}.", table]


def _time(training: Training, train: TrainTable) -> str:
    """Returns how long training took, by how much it missed its budget, and how often a subset was selected."""
    epochs, selections = training.epochs, training.selections
    text = f"trained {epochs} epoch{'s' if epochs > 1 else ''} in {duration(training.total)}"
    if train.budget:
        planned = parse_duration(train.budget).total_seconds()
        missed = f"{abs(training.total / planned - 1):.1%} {'more' if training.total > planned else 'less'}"
        text = f"{text}, {missed} than its budget of {train.budget}"
    if not selections:
        return text
    sizes = sorted({selection.size for selection in selections})
    size = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return f"{text}, on {len(selections)} subset{'s' if len(selections) > 1 else ''} of {size} images"


def _environment(environment: Environment) -> str:
    """Returns the environment in one line."""
    versions = ", ".join(f"{name} {number}" for name, number in environment.versions.items())
    count, threads = environment.world_size, environment.threads
    processes = f"{count} process{'es' if count > 1 else ''} of {threads} thread{'s' if threads > 1 else ''}"
    commit = f", commit {environment.git_commit}" if environment.git_commit else ""
    return f"{environment.device}, {processes}, {environment.precision}; {versions}{commit}"
