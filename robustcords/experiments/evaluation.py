"""``robustcords evaluate``: evaluates finished weights, as their recipe says or otherwise."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from robustcords.config import registry
from robustcords.config.schema import format_radius, parse_radius
from robustcords.errors import UserError, nearest
from robustcords.evaluation.attacks.pgd import PGDEvaluation
from robustcords.evaluation.config import EvaluationConfig, FurtherAttack
from robustcords.evaluation.results import SHORT_FORMS, Evaluation
from robustcords.evaluation.sanity.checks import IMAGES, Sanity
from robustcords.experiments import build, report_output
from robustcords.experiments.environment import environment
from robustcords.experiments.run import load_images, plain, session, test
from robustcords.recipe.recipe import Recipe, load
from robustcords.recipe.tables import find
from robustcords.report.run_report import Environment, Report, summarise
from robustcords.report.runs import environment_of, rows_of
from robustcords.runtime import collectives
from robustcords.storage.run_directory import RunDirectory
from robustcords.threats.base import ThreatModel


@dataclass(frozen=True)
class Changes:
    """What to evaluate, where it differs from the recipe.

    Attributes:
        limit: so many test images, taken as by ``evaluation.limit``; None as the recipe says, 0 all.
        attacks: names of attacks, with the options that the recipe gives them; empty as the recipe says.
        epsilons: radii for all of them that have any; empty as the recipe says.
        sanity: whether to check for masked gradients too.
    """

    limit: int | None = None
    attacks: Sequence[str] = ()
    epsilons: Sequence[str] = ()
    sanity: bool = False

    def apply(self, config: EvaluationConfig, threat: ThreatModel) -> EvaluationConfig:
        """Returns a recipe's evaluation table with these changes.

        With other radii, PGD's step size follows from them, unless the recipe has another than follows from its
        own threat model.

        Args:
            config: the recipe's.
            threat: the recipe's.

        Raises:
            UserError: an attack or a radius that there is not, or that an attack's steps do not reach.
        """
        if self.limit is not None:
            config = config.model_copy(update={"limit": self.limit})
        if self.attacks:
            config = config.model_copy(update=self._named(config))
        try:
            if self.epsilons:
                radii = [parse_radius(text) for text in self.epsilons]
                for radius in radii:
                    threat.check_radius(radius)
                config = config.with_options({key: a.options.at(radii, threat) for key, a in config.chosen.items()})
            applied = config.resolved(threat)
        except ValueError as error:
            option = f"--epsilon {' '.join(self.epsilons)}" if self.epsilons else f"--attack {' '.join(self.attacks)}"
            raise UserError(f"{option}: {_reason(error)}") from error
        for key, attack in applied.chosen.items():
            if reason := attack.options.falls_short:
                place, value = f"evaluation.{key}", getattr(attack.options, option := attack.options.blamed[0])
                shown = format_radius(value) if isinstance(value, float) else value
                change = f"{place}.{option}" if key in SHORT_FORMS else "evaluation.attacks"
                raise UserError(f"{place}.{option} = {shown}: {reason}; change it by --set {change}=...")
        return applied

    def _named(self, config: EvaluationConfig) -> dict[str, Any]:
        """Returns the attacks of the table that are named, and those that are not in it with their own options.

        Raises:
            UserError: there is no such attack.
        """
        further = [attack for attack in config.attacks if attack.name in self.attacks]
        known = {*registry.names("evaluation_attack"), *(attack.name for attack in config.attacks)}
        for name in dict.fromkeys(self.attacks):
            if name not in known and ":" not in name:
                raise UserError(f"--attack {name}: unknown{nearest(name, sorted(known))}")
            if name not in SHORT_FORMS and name not in {attack.name for attack in further}:
                try:
                    further.append(FurtherAttack.model_validate({"name": name}))
                except (UserError, ValueError) as error:
                    raise UserError(f"--attack {name}: {_reason(error)}") from error
        defaults = EvaluationConfig()
        short = {name: getattr(config, name) or getattr(defaults, name) for name in SHORT_FORMS if name in self.attacks}
        return {**dict.fromkeys(SHORT_FORMS), **short, "attacks": further}

    def checks(self, recipe: Recipe, config: EvaluationConfig) -> Sanity | None:
        """Returns what to check for masked gradients, at the first radius given or else the recipe's; None for nothing.

        Args:
            recipe: says the threat model and the number of images where the command does not.
            config: the recipe's evaluation after `apply`, whose PGD is checked.

        Raises:
            UserError: the recipe's radius is 0 and none is given, or AutoAttack has no attacks in its norm.
        """
        if not self.sanity:
            return None
        threat = recipe.threat
        if self.epsilons:
            threat = threat.with_epsilon(parse_radius(self.epsilons[0]))
        if threat.autoattack_norm is None:
            raise UserError(
                f"--sanity: compares with AutoAttack, which has no attacks for threat.norm = {threat.norm!r}"
            )
        if threat.epsilon == 0:
            raise UserError(
                "--sanity: the recipe's threat.epsilon is 0, so there is no attack to check; give --epsilon"
            )
        limit = min(IMAGES, recipe.evaluation.limit or IMAGES) if self.limit is None else self.limit
        return Sanity(threat, limit, config.pgd or PGDEvaluation())


def evaluate(
    run_dir: Path | None,
    recipe: str | None,
    weights: Path | None,
    overrides: Sequence[str],
    changes: Changes,
    output: Path | None,
    model: str | None = None,
) -> Report:
    """Evaluates a run's weights, or others as a recipe says; returns a report and writes it where asked.

    Args:
        run_dir: a run directory; its own report.json is left alone unless ``output`` names it, and then added to.
        recipe: with ``weights`` or ``model``, instead of ``run_dir``.
        weights: a safetensors file, or a checkpoint that the model's library reads.
        overrides: ``KEY=VALUE`` changes of the recipe.
        changes: what to evaluate otherwise than the recipe says.
        output: where the report goes, or None.
        model: in place of the recipe's; without ``weights`` it has those that its library publishes.

    Raises:
        UserError: anything of this cannot be used.
    """
    others = [given for given in (recipe, weights, model) if given is not None]
    if (run_dir is None) == (not others) or bool(others) != (recipe is not None and len(others) > 1):
        raise UserError("evaluate takes either a RUN_DIR, or --recipe together with --weights, --model or both")
    if model is not None:
        options, weights = _of_model(model, weights)
        overrides = [*options, *overrides]
    directory = RunDirectory.of_run(run_dir) if run_dir else None
    loaded = load(directory.recipe if directory else str(recipe), overrides, of_run=directory is not None)
    config = changes.apply(loaded.evaluation, loaded.threat)
    sanity = changes.checks(loaded, config)
    if output:
        report_output.check(output, directory)
    own = directory if directory and output and report_output.is_report_of(output, directory) else None
    files = _weights(directory, config) if directory else {"weights": weights}
    # Before anything is measured, as one of the files may be damaged.
    of_run = (environment_of(directory), rows_of(directory), directory.selections()) if directory else None
    with session(loaded) as work:
        images = load_images(loaded.model_copy(update={"evaluation": config}), work)
        network, layout = build.settled_model(loaded, images, work.accelerator.device)
        loaded = loaded.with_train(memory_format=layout)
        if own:
            report_output.check_addition(own, loaded, config, sanity, files, images.test)
        results: dict[str, Evaluation] = {}
        with work.interruption:
            for name, path in files.items():
                if path is not None:
                    build.load_weights(network, path)
                store = _store(directory, name)
                results[name] = test(network, images, loaded, config, work, store, f"{name} weights", sanity)
        around = of_run[0] if of_run else Environment(**environment(loaded, work.accelerator))
        rows, selections = of_run[1:] if of_run else ([], [])
        report = summarise(plain(loaded), around, rows, selections, results, build.cautions(loaded))
        if own and collectives.is_main():
            report_output.add(own, loaded, config, results)
        elif output and collectives.is_main():
            report_output.write(output, report)
    return report


def _reason(error: Exception) -> str:
    """Returns what is wrong in a line."""
    text = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
    return text.removeprefix("Value error, ")


def _of_model(name: str, weights: Path | None) -> tuple[list[str], Path | None]:
    """Returns the options of ``--set`` that put a model in the recipe's place, and what is left to load afterwards.

    Raises:
        UserError: there is no such model, or it has no weights of its own and none are given.
    """
    fields = find("model", name).Config.model_fields
    chosen = [f"model.name={name}"]
    if weights is None:
        if "pretrained" not in fields:
            raise UserError(f"--model {name}: has no published weights; give --weights too")
        return [*chosen, "model.pretrained=true"], None
    if "checkpoint" in fields and weights.suffix != ".safetensors":
        return [*chosen, f"model.checkpoint={weights}"], None
    return chosen, weights


def _weights(directory: RunDirectory, config: EvaluationConfig) -> dict[str, Path | None]:
    found: dict[str, Path | None] = {
        which: directory.weights(which) for which in config.checkpoints if directory.weights(which).exists()
    }
    if not found:
        raise UserError(f"{directory.path}: no {' or '.join(config.checkpoints)} weights yet; has the run finished?")
    return found


def _store(directory: RunDirectory | None, name: str) -> Path | None:
    """Returns where the finished parts of a run's evaluation are kept, which an interrupted one resumes from."""
    if directory is None or not os.access(directory.path, os.W_OK):
        return None
    return directory.path / "evaluation" / name
