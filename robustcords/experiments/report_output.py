"""Where ``evaluate`` and ``select`` write: nothing that a user or a run has made is lost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from robustcords.config.schema import format_radius
from robustcords.data.images import Images
from robustcords.data.split import sample
from robustcords.errors import UserError, unwritable
from robustcords.evaluation.config import ATTACKS, EvaluationConfig
from robustcords.evaluation.sanity.checks import Sanity
from robustcords.experiments.run import CHANGEABLE, changed_keys, plain, write_report
from robustcords.recipe.recipe import Recipe, load
from robustcords.report.runs import load_run
from robustcords.report.tables import MARK, markdown
from robustcords.storage.files import check_writable, parse_json, write_atomic, write_json
from robustcords.storage.run_directory import RunDirectory

_TAKEN = {"pgd": ("examples", "sample"), "autoattack": ("autoattack_examples", "autoattack_sample")}
"""Which entries of a report say of how many images an attack's figures are, and how those were taken."""

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
        ours = MARK.encode() in content.splitlines()
        earlier = ours if output.suffix == ".md" else _is_report(parse_json(content))
    except (OSError, ValueError):
        earlier = False
    if not earlier:
        raise UserError(f"--output {output}: exists and is not a report; name another file")


def _check_own(output: Path, directory: RunDirectory | None) -> None:
    """Checks that a report in a run directory is the one of the run that is evaluated, and that this has finished."""
    if directory is None or not is_own(output, directory):
        raise UserError(f"--output {output}: where a run has its own report; name another file")
    if not output.exists():
        raise UserError(f"--output {output}: the run has not finished; go on with run --resume, or name another file")


def is_own(output: Path, directory: RunDirectory) -> bool:
    """Returns whether this is the report.json of a run."""
    return output.resolve() == directory.report.resolve()


def _is_report(report: object) -> bool:
    return isinstance(report, dict) and report.keys() >= {"recipe", "training", "evaluation"}


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
        UserError: it would be of another run, or stand beside what was measured otherwise; or the report is damaged.
    """

    def refuse(why: str) -> None:
        raise UserError(f"--output {directory.report}: {why}; name another file")

    changed = changed_keys(load(directory.recipe, of_run=True), recipe) - CHANGEABLE
    if trained_otherwise := sorted(key for key in changed if not key.startswith("evaluation.")):
        refuse(f"the run has another recipe ({', '.join(trained_otherwise)})")
    report = load_run(directory.path).report
    tables = _tables(recipe, config)
    rows, kind = sample(test.labels, config.limit)
    taken = {"pgd": (len(rows), kind)}
    if config.autoattack:
        part, kind = sample(test.labels.cpu()[rows], config.autoattack.limit)
        taken["autoattack"] = (len(part), kind)
    for name in weights:
        found = report["evaluation"].get(name, {})
        for attack in ATTACKS:
            table = getattr(config, attack)
            if table is None or not (_radii(table) - found.get(attack, {}).keys()):
                continue  # nothing is added
            limit, kind = taken[attack]
            counted, known = _TAKEN[attack]
            measured = found.get(counted) or limit
            if limit != measured:
                refuse(f"has {name} weights on {measured} images, not {limit}")
            if kind == "stratified" and found.get(counted) and found.get(known) != kind:
                refuse(f"has {name} weights on the first {measured} images, which are not all classes'")
            told, asked = report["recipe"].get("evaluation", {}).get(attack), tables[attack]
            if told and (other := [key for key in asked if key not in _WHERE and told.get(key) != asked[key]]):
                refuse(f"has {attack} with other settings ({', '.join(other)})")
        checked = (found.get("sanity") or {}).get("examples", 0)
        if sanity and checked > min(sanity.limit or len(test), len(test)):
            refuse(f"has {name} weights checked on {checked} images")


def add(
    directory: RunDirectory, recipe: Recipe, config: EvaluationConfig, results: Mapping[str, Mapping[str, Any]]
) -> None:
    """Adds an evaluation to a run's own report: radii and attacks that it lacks, and checks for masked gradients.

    Args:
        directory: of the run, after `check_addition`.
        recipe: that of the run with ``--set``.
        config: what was measured.
        results: weights to what `robustcords.evaluation.evaluate.evaluate` returned, and ``sanity``.
    """
    report = directory.read_report()
    told, tables = report["recipe"].setdefault("evaluation", {}), _tables(recipe, config)
    for name, result in results.items():
        found = report["evaluation"].setdefault(name, dict(result))
        for attack in ATTACKS:
            added = {key: value for key, value in result.items() if key.startswith(attack)}
            for key, value in added.items():
                if isinstance(value, Mapping):
                    found[key] = {**value, **found.get(key, {})}
                elif key == "autoattack_warnings":
                    found[key] = list(dict.fromkeys([*found.get(key, []), *value]))
                else:
                    found.setdefault(key, value)
            if added and not told.get(attack):
                told[attack] = tables[attack]
        if "sanity" in result:
            found["sanity"] = result["sanity"]
    write_report(directory, report)


def _radii(table: Any) -> set[str]:
    return {format_radius(epsilon) for epsilon in table.epsilons}


def _tables(recipe: Recipe, config: EvaluationConfig) -> dict[str, Any]:
    """Returns an evaluation's tables as a report has them."""
    return dict(plain(recipe.model_copy(update={"evaluation": config}))["evaluation"])


def write(output: Path, report: dict[str, Any]) -> None:
    """Writes a report of its own as its name says: as Markdown or as JSON."""
    if output.suffix == ".md":
        write_atomic(output, markdown(report))
    else:
        write_json(output, report)


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
