"""What report.json says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def summarise(
    recipe: Mapping[str, Any],
    environment: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    selections: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns a run's report as JSON values; a number that is not finite becomes null.

    Args:
        recipe: the resolved recipe's tables.
        environment: what environment.json says.
        metrics: the lines of metrics.jsonl, one an epoch; none where weights were evaluated without a run.
        selections: ``{"epoch": .., "size": ..}`` for each file of selections/.
        evaluation: the name of the weights (``"best"``, ``"last"``) to what `robustcords.evaluation.evaluate` returned.

    Returns:
        ``{"recipe", "environment", "training": {"epochs", "seconds", "selections"}, "evaluation"}``, where ``seconds``
        are the epochs' seconds by phase, summed.
    """
    seconds: dict[str, float] = {}
    for row in metrics:
        for phase, value in row["seconds"].items():
            seconds[phase] = seconds.get(phase, 0.0) + value
    training = {"epochs": len(metrics), "seconds": seconds, "selections": selections}
    report = {"recipe": recipe, "environment": environment, "training": training, "evaluation": evaluation}
    return {key: _finite(value) for key, value in report.items()}


def missing(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> list[str]:
    """Returns what an earlier evaluation of some weights has and a later one will not have, in words.

    Args:
        earlier: what `robustcords.evaluation.evaluate` returned.
        later: the same keys where they can be told before it is measured; of mappings by radius just the radii count.
    """
    found = []
    for key, what in (("examples", "images"), ("autoattack_examples", "images under AutoAttack")):
        if earlier.get(key, 0) > later.get(key, 0) > 0:
            found.append(f"{earlier[key]} {what}")
    for key, what in (("pgd", "PGD"), ("autoattack", "AutoAttack")):
        found += [f"{what} at {radius}" for radius in earlier.get(key, {}) if radius not in later.get(key, {})]
    if "sanity" in earlier and "sanity" not in later:
        found.append("the checks for masked gradients")
    return found


def _finite(value: Any) -> Any:
    """Returns a copy of JSON values with None for every NaN and infinity, which JSON has no words for."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
