"""The Pareto front of robust accuracy and time, and a verdict in words."""

from __future__ import annotations

from collections.abc import Sequence

from robustcords.config.schema import parse_radius
from robustcords.report.comparison import ComparedMethod, Comparison, Measure, differences
from robustcords.report.intervals import Estimate
from robustcords.runtime.progress import duration


def deciding_measure(comparison: Comparison) -> Measure | None:
    """Returns AutoAttack at the training radius, else PGD at it, of the ``last`` weights where there are some."""
    radii = {float(parse_radius(run.recipe.threat.epsilon)) for run in comparison.runs}

    def rank(measure: Measure) -> tuple[bool, bool, bool, int]:
        trained = float(parse_radius(measure.radius)) in radii
        holders = sum(measure in method.accuracies for method in comparison.methods)
        return trained, measure.which == "last", measure.what.startswith("AutoAttack"), holders

    return max((m for m in comparison.measures if m.radius), key=rank, default=None)


def clean_measure(comparison: Comparison, which: str) -> Measure | None:
    """Returns the accuracy on clean images of one set of weights, where it was measured."""
    return next((m for m in comparison.measures if not m.radius and m.which == which), None)


def front(methods: Sequence[ComparedMethod], measure: Measure) -> list[ComparedMethod]:
    """Returns the methods that none beats in both training time and an accuracy, fastest first.

    Methods whose time or accuracy is not known are not among them.
    """
    known = [(m.seconds.mean, -m.accuracies[measure].mean, m) for m in methods if m.seconds and measure in m.accuracies]
    undominated: list[tuple[float, ComparedMethod]] = []
    for _, loss, method in sorted(known, key=lambda entry: entry[:2]):
        if not undominated or loss < undominated[-1][0]:
            undominated.append((loss, method))
    return [method for _, method in undominated]


def leader(methods: Sequence[ComparedMethod], measure: Measure) -> ComparedMethod | None:
    """Returns the method that is ahead of all others by more than the noise; None where there is no such method."""
    best, *others = _ranked(methods, measure)
    return best if others and not any(differences(best, other)[measure].noise for other in others) else None


def verdict(comparison: Comparison) -> str:
    """Says which method to train with, by how much it is ahead, and within what noise.

    The one with the highest deciding accuracy, see `deciding_measure`, or of those that are level with it, whose
    difference from it is within the noise, the one that trains in the least time.

    Returns:
        Some sentences; nothing where no two methods have been attacked in the same way.
    """
    measure = deciding_measure(comparison)
    if measure is None:
        return ""
    ranked = _ranked(comparison.methods, measure)
    if len(ranked) < 2:
        return ""
    best = ranked[0]
    gaps = {other.name: differences(best, other)[measure] for other in ranked[1:]}
    level = [other for other in ranked[1:] if gaps[other.name].noise]
    behind = [other for other in ranked[1:] if not gaps[other.name].noise]
    choice = min((best, *level), key=lambda method: method.seconds.mean if method.seconds else float("inf"))
    clean = clean_measure(comparison, measure.which)
    said = [f"By {measure.label} and time, train with {choice.name}: {_reached(choice, measure, clean)}."]
    if choice is not best:
        said.append(
            f"The most accurate is {best.name} ({_reached(best, measure, clean)}), by {_points(gaps[choice.name])}: "
            "within the noise."
        )
    if rest := [other.name for other in level if other is not choice]:
        said.append(f"Also level with {'it' if choice is best else 'that'}, within the noise: {'; '.join(rest)}.")
    if behind:
        nearest = behind[0]
        said.append(
            f"Behind {best.name} by more than the noise: {nearest.name} ({_reached(nearest, measure, clean)}), by "
            f"{_points(gaps[nearest.name])}{_and_others(len(behind) - 1)}."
        )
    if missing := [method.name for method in comparison.methods if measure not in method.accuracies]:
        named = "; ".join(missing[:3]) + _and_others(len(missing) - 3)
        said.append(f"Not compared, since they have no {measure.label}: {named}.")
    if min(len(method.runs) for method in ranked) == 1:
        said.append("With one seed of a method the noise is that of the test images: another seed may differ by more.")
    return " ".join(said)


def _ranked(methods: Sequence[ComparedMethod], measure: Measure) -> list[ComparedMethod]:
    """Returns the methods of which an accuracy is known, the highest first."""
    return sorted((m for m in methods if measure in m.accuracies), key=lambda m: -m.accuracies[measure].mean)


def _reached(method: ComparedMethod, measure: Measure, clean: Measure | None) -> str:
    """Says what a method reaches, and in what time."""
    text = f"{method.accuracies[measure].mean:.1%}"
    if clean is not None and clean in method.accuracies:
        text += f", {method.accuracies[clean].mean:.1%} clean"
    return f"{text}, in {duration(method.seconds.mean)}" if method.seconds else text


def _points(gap: Estimate) -> str:
    text = f"{gap.value * 100:.1f} points"
    return text if gap.low is None or gap.high is None else f"{text} [{gap.low * 100:.1f}, {gap.high * 100:.1f}]"


def _and_others(count: int) -> str:
    return f", and {count} other{'s' if count > 1 else ''}" if count > 0 else ""
