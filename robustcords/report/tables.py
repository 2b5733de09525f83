"""A report for a person: report.md, and a table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from robustcords.evaluation import majority
from robustcords.recipe.short_forms import of_run
from robustcords.report.grouping import effort_name
from robustcords.report.tabular import in_markdown, on_terminal, plain
from robustcords.runtime.progress import duration

Report = Mapping[str, Any]
"""What `robustcords.report.summary.summarise` returns."""

MARK = "<!-- robustcords run -->"
"""The line that a report.md begins with."""

_UNIT = "accuracy in percent"


def markdown(report: Report) -> str:
    """Returns report.md: what was trained, how accurate it is, where the time went, and what it ran on."""
    parts = [
        MARK,
        f"# {plain(title(report))}",
        _list(_recipe(of_run(report["recipe"]))),
        "## Test accuracy",
        *_accuracy(report),
    ]
    parts += _sanity(report)
    if report["training"]["epochs"]:
        parts += ["## Training", *_training(report["training"])]
    if report["environment"]:
        parts += ["## Environment", plain(_environment(report["environment"]))]
    return "\n\n".join(parts) + "\n"


def rich_table(report: Report) -> Table:
    """Returns the accuracies as a table for the terminal."""
    header, *rows = accuracy_rows(report)
    return on_terminal(header, rows, wrap=False)


def print_report(report: Report, console: Console | None = None) -> None:
    """Prints the table, AutoAttack's warnings, checks for masked gradients and the training time to the terminal."""
    console = console or Console()
    # Not the table's own title: that would be wrapped to the table's width.
    console.print(f"{title(report)}: {_UNIT}", markup=False, highlight=False, soft_wrap=True)
    console.print(rich_table(report))
    lines = [
        *_warnings(report),
        *_checks(report),
        *([_time(report["training"])] if report["training"]["epochs"] else []),
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def title(report: Report) -> str:
    """Returns one line that names a run, such as ``"mart on digits, cnn, adv-glister 30 %, Bullet"``."""
    recipe = of_run(report["recipe"])
    parts = [f"{recipe['loss']['name']} on {recipe['data']['name']}", recipe["model"]["name"]]
    if selector := recipe.get("selector"):
        parts.append(f"{selector['name']} {_share(selector)}")
    if name := effort_name(recipe["effort"]["name"]):
        parts.append(name)
    return ", ".join(parts)


def accuracy_rows(report: Report) -> list[list[str]]:
    """Returns the table of accuracies, head first: a row for each measure, a column for each set of weights."""
    evaluation = report["evaluation"]
    measures = {key: None for result in evaluation.values() for key in _measures(result)}
    rows = [["attack", "radius", "images", *evaluation]]
    for attack, radius, images in measures:
        found = [_measures(result).get((attack, radius, images)) for result in evaluation.values()]
        rows.append([attack, radius, str(images), *("" if value is None else f"{value:.2%}"[:-1] for value in found)])
    return rows


def _measures(result: Report) -> dict[tuple[str, str, int], float]:
    """Returns accuracies by attack, radius and number of images."""
    examples = result["examples"]
    found = {("none", "", examples): result["clean"]}
    for radius, value in result.get("pgd", {}).items():
        found[result["pgd_attack"], radius, examples] = value
    if same := result.get("same_images"):
        found["none", "", result["autoattack_examples"]] = same["clean"]
        for radius, value in same["pgd"].items():
            found[result["pgd_attack"], radius, result["autoattack_examples"]] = value
    for radius, value in result.get("autoattack", {}).items():
        found[f"AutoAttack {result['autoattack_version']}", radius, result["autoattack_examples"]] = value
    return found


def _accuracy(report: Report) -> list[str]:
    header, *rows = accuracy_rows(report)
    table = in_markdown(header, [list(map(plain, row)) for row in rows])
    notes = map(plain, _warnings(report))
    return [f"Test {_UNIT}; an example counts only if it withstands the whole attack.", table, *notes]


def _warnings(report: Report) -> list[str]:
    found = [f"warning: {text}" for text in report["training"].get("warnings", [])]
    for name, result in report["evaluation"].items():
        kinds = {"examples": "sample", "autoattack_examples": "autoattack_sample"}
        taken = [str(result[count]) for count, kind in kinds.items() if result.get(kind) == "stratified"]
        if taken:
            found.append(f"{name}: {' and '.join(taken)} test images are a fixed sample, stratified by class")
        if text := majority.warning(result):
            found.append(f"Accuracy ({name}): {text}")
    return found + [
        f"AutoAttack warns ({name}): {text}"
        for name, result in report["evaluation"].items()
        for text in result.get("autoattack_warnings", [])
    ]


def _checks(report: Report) -> list[str]:
    """Returns one line for each check for masked gradients."""
    return [
        f"{check['status']}: {check['name']} ({name}): {check['finding']}"
        for name, result in report["evaluation"].items()
        for check in result.get("sanity", {}).get("checks", [])
    ]


def _sanity(report: Report) -> list[str]:
    """Returns report.md's section on masked gradients, or nothing."""
    parts = []
    for name, result in report["evaluation"].items():
        if found := result.get("sanity"):
            about = (
                f"{name} weights: {found['attacked']} of {found['examples']} test images are classified "
                f"correctly as they are, and attacked at {found['norm']} radius {found['epsilon']}. "
                f"An honest model fails a check by chance with probability {found['level']:g} at most."
            )
            rows = [[plain(check[key]) for key in ("name", "status", "finding")] for check in found["checks"]]
            parts += [about, in_markdown(["check", "result", "what was measured"], rows, left=3)]
    return ["## Masked gradients", *parts] if parts else []


def _recipe(recipe: Report) -> list[str]:
    """Returns one line for each thing that makes the run what it is."""
    train, threat = recipe["train"], recipe["threat"]
    return [
        *(f"{kind}: {_component(recipe[kind])}" for kind in ("data", "model")),
        f"threat: {threat['norm']}, radius {threat['epsilon']}",
        *(f"{kind}: {_component(recipe[kind])}" for kind in ("attack", "loss")),
        f"selector: {_component(recipe['selector'])}" if recipe.get("selector") else "selector: none, full data",
        _effort(recipe["effort"]),
        *(f"{kind}: {_component(recipe[kind])}" for kind in ("optimizer", "schedule")),
        f"{train['epochs']} epochs, batches of {train['batch_size']}, precision {train['precision']}, "
        f"seed {recipe['seed']}",
    ]


def _effort(table: Report) -> str:
    if table["name"] == "uniform":
        return "Bullet: none, the same attack for every image"
    if table["name"] != "bullet":
        return f"effort: {_component(table)}"
    return f"Bullet: attack steps {', '.join(f'{kind} {steps}' for kind, steps in table['steps'].items())}"


def _component(table: Report) -> str:
    options = ", ".join(f"{key} {value}" for key, value in table.items() if key != "name")
    return f"{table['name']} ({options})" if options else str(table["name"])


def _share(selector: Report) -> str:
    return f"{selector['fraction'] * 100:g} %"


def _training(training: Report) -> list[str]:
    seconds = {phase: value for phase, value in training["seconds"].items() if phase != "total"}
    total = training["seconds"]["total"]
    rows = [[phase, f"{value:.1f}", f"{value / total:.1%}"[:-1]] for phase, value in seconds.items()]
    table = in_markdown(["phase", "seconds", "percent"], rows)
    return [f"The run {_time(training)}.", table]


def _time(training: Report) -> str:
    """Returns how long training took, and how often a subset was selected."""
    epochs = training["epochs"]
    text = f"trained {epochs} epoch{'s' if epochs > 1 else ''} in {duration(training['seconds']['total'])}"
    selections = training["selections"]
    if not selections:
        return text
    sizes = sorted({selection["size"] for selection in selections})
    size = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return f"{text}, on {len(selections)} subset{'s' if len(selections) > 1 else ''} of {size} images"


def _environment(environment: Report) -> str:
    """Returns the environment in one line."""
    versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items())
    count, threads = environment["world_size"], environment["threads"]
    processes = f"{count} process{'es' if count > 1 else ''} of {threads} thread{'s' if threads > 1 else ''}"
    commit = f", commit {environment['git_commit']}" if environment.get("git_commit") else ""
    return f"{environment['device']}, {processes}, {environment['precision']}; {versions}{commit}"


def _list(lines: list[str]) -> str:
    return "\n".join(f"- {plain(line)}" for line in lines)
