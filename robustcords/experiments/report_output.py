"""Where ``evaluate`` and ``select`` write, without overwriting anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from robustcords.config.schema import format_radius
from robustcords.data.images import Images
from robustcords.data.split import sample
from robustcords.errors import UserError, unwritable
from robustcords.evaluation.config import EvaluationConfig
from robustcords.evaluation.results import SHORT_FORMS, Evaluation
from robustcords.evaluation.sanity.checks import Sanity
from robustcords.experiments.run import changed_keys, plain, write_report
from robustcords.recipe.recipe import Recipe, load
from robustcords.recipe.roles import role_of
from robustcords.report.run_report import Report
from robustcords.report.run_tables import MARK, markdown
from robustcords.report.runs import load_run
from robustcords.storage.files import check_writable, parse_json, write_atomic
from robustcords.storage.run_directory import RunDirectory

_WHERE = {"epsilons", "limit"}
"""The keys of an attack that are not how it is run."""


def check(output: Path, directory: RunDirectory | None) -> None:
    """Checks, before anything is measured, that a report can be written here, over nothing but an earlier one.

    Args:
        output: where the report goes.
        directory: the run that is evaluated, whose own report it may be; None for weights from elsewhere.

    Raises:
        UserError: it is something else, or a run's own report that it may not be, or cannot be written.
    """
    check_writable(output)
    if (output.parent / "recipe.toml").exists() and output.stem.startswith("report"):
        _check_own(output, directory)
    if output.is_symlink() and not output.exists():
        raise UserError(f"--output {output}: a link to nowhere; name another file")
    if not output.exists():
        return
    try:
        content = output.read_bytes()
        if output.suffix == ".md":
            earlier = MARK.encode() in content.splitlines()
        else:
            report = parse_json(content)
            earlier = isinstance(report, dict) and report.keys() >= {"recipe", "training", "evaluation"}
    except (OSError, ValueError):
        earlier = False
    if not earlier:
        raise UserError(f"--output {output}: exists and is not a report; name another file")


def _check_own(output: Path, directory: RunDirectory | None) -> None:
    """Checks that a report in a run directory is the one of the run that is evaluated, and that this has finished."""
    if directory is None or not is_report_of(output, directory):
        raise UserError(f"--output {output}: where a run has its own report; name another file")
    if not directory.finished:
        raise UserError(f"--output {output}: the run has not finished; use run --resume, or name another file")


def is_report_of(output: Path, directory: RunDirectory) -> bool:
    """Returns whether this is the report.json of a run."""
    return output.resolve() == directory.report.resolve()


def check_addition(
    directory: RunDirectory,
    recipe: Recipe,
    config: EvaluationConfig,
    sanity: Sanity | None,
    weights: Iterable[str],
    test: Images,
) -> None:
    """Checks, before it is measured, that an evaluation can be added to a run's own report.

    Args:
        directory: of the run.
        recipe: that of the run with ``--set``.
        config: what will be measured.
        sanity: what will be checked for masked gradients.
        weights: the names of the weights.
        test: the test set.

    Raises:
        UserError: it would be of another run, or be mixed with what was measured otherwise; or the report is damaged.
    """

    def refuse(why: str) -> None:
        raise UserError(f"--output {directory.report}: {why}; name another file")

    changed = changed_keys(load(directory.recipe, of_run=True), recipe)
    kept = {key for key in changed if role_of(key).changeable or key.startswith("evaluation.")}
    if trained_otherwise := sorted(changed - kept):
        refuse(f"the run has another recipe ({', '.join(trained_otherwise)})")
    report = load_run(directory.path).report
    reported, tables = report.recipe.tables.get("evaluation", {}), _tables(recipe, config)
    rows, kind = sample(test.labels, config.limit)
    for name in weights:
        found = report.evaluation.get(name)
        for key, attack in config.build(recipe.threat).items():
            known = found.under(attack.title) if found else []
            wanted = {attack.what(format_radius(radius)) for radius in attack.config.radii} or {attack.what(None)}
            if not wanted - {each.what for each in known}:
                continue  # nothing is added
            limit, taken, measured = len(rows), kind, found.measurements[0] if found else None
            if hasattr(attack.config, "limit"):  # then it need not be of all images that are evaluated
                part, taken = sample(test.labels.cpu()[rows], attack.limit)
                limit, measured = len(part), known[0] if known else None
            if measured and measured.examples != limit:
                refuse(f"has {name} weights on {measured.examples} images, not {limit}")
            if measured and taken == "stratified" and measured.sample != taken:
                refuse(f"has {name} weights on the first {measured.examples} images, which are not all classes'")
            if other := _otherwise(reported, tables, key, measured=bool(known)):
                refuse(f"has {attack.name} with other settings ({', '.join(other)})")
        checked = found.sanity.examples if found and found.sanity else 0
        if sanity and checked > min(sanity.limit or len(test), len(test)):
            refuse(f"has {name} weights checked on {checked} images")


def _otherwise(reported: Mapping[str, Any], tables: Mapping[str, Any], key: str, *, measured: bool) -> list[str]:
    """Returns the options in which an attack differs from how a report says that it was run.

    Args:
        reported: the report's evaluation tables.
        tables: those of the evaluation that is to be added.
        key: of the attack in these, see `_entries`.
        measured: whether the report has figures under the same label.
    """
    own, asked = _entries(reported), _entries(tables)[key]
    if key in SHORT_FORMS:
        alike = [own[key]] if key in own else []
    else:
        alike = [each for each in own.values() if measured and each.get("name") == asked["name"]]
    return min((_differing(each, asked) for each in alike), key=len, default=[])


def _differing(reported: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Returns the options, name included, in which an attack is not run as a table says."""
    return [key for key, value in asked.items() if key not in _WHERE and reported.get(key) != value]


def _entries(evaluation: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the tables of the attacks in a recipe's evaluation, by their keys in it."""
    short = {name: evaluation[name] for name in SHORT_FORMS if evaluation.get(name)}
    return short | {f"attacks[{number}]": each for number, each in enumerate(evaluation.get("attacks", []))}


def add(directory: RunDirectory, recipe: Recipe, config: EvaluationConfig, results: Mapping[str, Evaluation]) -> None:
    """Adds an evaluation to a run's own report: radii and attacks that it lacks, and checks for masked gradients.

    Args:
        directory: of the run, after `check_addition`.
        recipe: that of the run with ``--set``.
        config: what was measured.
        results: weights to what was measured of them.
    """
    report = Report.read(directory.report)
    reported = dict(report.recipe.tables.get("evaluation", {}))
    for key, table in _entries(_tables(recipe, config)).items():
        if key in SHORT_FORMS:
            reported[key] = reported.get(key) or table
        elif all(_differing(each, table) for each in reported.get("attacks", [])):
            reported["attacks"] = [*reported.get("attacks", []), table]
    evaluation = dict(report.evaluation)
    for name, result in results.items():
        evaluation[name] = evaluation[name].with_more(result) if name in evaluation else result
    whole = {**report.to_json(), "evaluation": {name: entry.to_json() for name, entry in evaluation.items()}}
    whole["recipe"] = {**report.recipe.tables, "evaluation": reported}
    write_report(directory, Report.from_json(whole, directory.report))


def _tables(recipe: Recipe, config: EvaluationConfig) -> dict[str, Any]:
    """Returns an evaluation's tables as a report has them."""
    return dict(plain(recipe.model_copy(update={"evaluation": config}))["evaluation"])


def write(output: Path, report: Report) -> None:
    """Writes a report of its own as its name says: as Markdown or as JSON."""
    if output.suffix == ".md":
        write_atomic(output, markdown(report))
    else:
        report.write(output)


def refuse_taken(output: Path) -> None:
    """Checks, before there is a selection to lose, that a new file can be written.

    Raises:
        UserError: it exists, or cannot be written.
    """
    try:
        taken = output.exists() or output.is_symlink()  # a link to nowhere too
    except OSError as error:
        raise unwritable(output, error) from error
    if taken:
        raise UserError(f"--output {output}: exists; name another file")
    check_writable(output)
