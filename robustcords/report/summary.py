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
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns a run's report as JSON values; a number that is not finite becomes null.

    Args:
        recipe: the resolved recipe's tables.
        environment: what environment.json says.
        metrics: the lines of metrics.jsonl, one an epoch; none where weights were evaluated without a run.
        selections: ``{"epoch": .., "size": ..}`` for each file of selections/.
        evaluation: the name of the weights (``"best"``, ``"last"``) to what was measured of them.
        warnings: what to know of the recipe's attacks, a sentence each.

    Returns:
        ``{"recipe", "environment", "training": {"epochs", "seconds", "selections", "warnings"}, "evaluation"}``, where
        ``seconds`` are the epochs' seconds by phase, summed.
    """
    seconds: dict[str, float] = {}
    for row in metrics:
        for phase, value in row["seconds"].items():
            seconds[phase] = seconds.get(phase, 0.0) + value
    training = {"epochs": len(metrics), "seconds": seconds, "selections": selections, "warnings": list(warnings)}
    report = {"recipe": recipe, "environment": environment, "training": training, "evaluation": evaluation}
    return {key: _finite(value) for key, value in report.items()}


def _finite(value: Any) -> Any:
    """Returns a copy of JSON values with None for every NaN and infinity, which JSON has no words for."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
