"""Where ``evaluate`` and ``select`` write: nothing that a user or a run has made is lost."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from robustcords.config import format_radius
from robustcords.errors import UserError, unwritable
from robustcords.evaluation_config import ATTACKS, EvaluationConfig
from robustcords.experiment import differences
from robustcords.files import check_writable, parse_json, write_atomic, write_json
from robustcords.recipe import Recipe
from robustcords.report.runs import load_run
from robustcords.report.summary import missing
from robustcords.report.tables import MARK, markdown
from robustcords.run_directory import RunDirectory
from robustcords.sanity import Sanity

_MORE = {"evaluation.limit", "evaluation.checkpoints", "evaluation.autoattack.limit"}
_MORE |= {f"evaluation.{name}.epsilons" for name in ATTACKS}
"""What may be set otherwise for an evaluation that goes into a run's own report."""


def write(output: Path, report: dict[str, Any]) -> None:
    """Writes a report as its name says, and beside a report.json that has one the report.md that belongs to it."""
    if output.suffix == ".md":
        write_atomic(output, markdown(report))
        return
    write_json(output, report)
    if is_own(output) and (beside := output.with_name("report.md")).exists():
        write_atomic(beside, markdown(report))


def is_own(output: Path) -> bool:
    """Returns whether this is where a run has its own report."""
    return output.name == "report.json" and (output.parent / "recipe.toml").exists()


def refuse_foreign(output: Path, directory: RunDirectory | None) -> None:
    """Checks, before anything is measured, that a report can be written here, over nothing but an earlier one.

    Args:
        output: where the report goes.
        directory: the run that is evaluated, whose own report it may be; None for weights from elsewhere.

    Raises:
        UserError: it is something else, or another run's own report, or cannot be written.
    """
    check_writable(output)
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
    if is_own(output) and (directory is None or output.resolve() != directory.report.resolve()):
        raise UserError(f"--output {output}: is another run's own report; name another file")


def _is_report(report: object) -> bool:
    if not isinstance(report, dict) or not report.keys() >= {"recipe", "training", "evaluation"}:
        return False
    results = report["evaluation"]
    return isinstance(results, dict) and all(isinstance(result, dict) for result in results.values())


def refuse_other(output: Path, own: Recipe, recipe: Recipe) -> None:
    """Checks that a run's own report goes on telling how it was trained, and how its attacks were run.

    Args:
        output: the run's report.json.
        own: the run's recipe.
        recipe: the same with ``--set``.

    Raises:
        UserError: that would say otherwise.
    """
    off = [name for name in ATTACKS if getattr(own.evaluation, name) is None]
    changed = [key for key in differences(own, recipe) if not any(key.startswith(f"evaluation.{name}") for name in off)]
    if own.train.epochs != recipe.train.epochs:  # more of them are no difference to a run that goes on
        changed.append("train.epochs")
    if refused := sorted(set(changed) - _MORE):
        raise UserError(f"--output {output}: the run has another recipe ({', '.join(refused)}); name another file")


def refuse_less(
    output: Path, config: EvaluationConfig, sanity: Sanity | None, weights: Iterable[str], images: int
) -> None:
    """Checks that a run's own report keeps all that it has, before anything is measured for it.

    Args:
        output: the run's report.json, which may not be there yet.
        config: what will be measured.
        sanity: what will be checked.
        weights: the names of the weights that will be evaluated.
        images: how many test images there are.

    Raises:
        UserError: something that it has will not be measured, or it is damaged.
    """
    if not output.exists():
        return
    examples = min(config.limit or images, images)
    later: dict[str, Any] = {"examples": examples}
    if config.pgd:
        later["pgd"] = [format_radius(epsilon) for epsilon in config.pgd.epsilons]
    if config.autoattack:
        later["autoattack"] = [format_radius(epsilon) for epsilon in config.autoattack.epsilons]
        later["autoattack_examples"] = min(config.autoattack.limit or examples, examples)
    if sanity:
        later["sanity"] = sanity
    for name, earlier in load_run(output.parent).report["evaluation"].items():
        lost = missing(earlier, later) if name in weights else [f"the {name} weights"]
        if lost:
            raise UserError(f"--output {output}: would lose what it has ({', '.join(lost)}); name another file")


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
