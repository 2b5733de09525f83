"""The summary of one selection: sizes, weights, gradient matching error, and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from robustcords.data.images import Images
from robustcords.report.markdown import on_terminal
from robustcords.runtime.progress import for_tables
from robustcords.selection.base import SelectionReport
from robustcords.selection.selector import Subset

LISTED_CLASSES = 40
"""With more classes than these, their balance is summed up in one line."""


@dataclass(frozen=True)
class SelectionSummary:
    """What is said of a selection.

    Attributes:
        selector: the strategy's name.
        classes: of each class its name, how many examples were chosen, and of how many.
        weights: minimum, quartiles, maximum and mean of the weights; ``"zeros"``, the share of weights 0; and
            ``"effective size"``, Kish's ``(sum w)^2 / sum w^2``, from 1 to k.
        report: the strategy's own; None where it writes none.
        seconds: of the whole selection.
        output: the file that was written.
    """

    selector: str
    classes: Sequence[tuple[str, int, int]]
    weights: Mapping[str, float]
    report: SelectionReport | None
    seconds: float
    output: Path


def summarise_selection(
    selector: str, subset: Subset, train: Images, report: SelectionReport | None, seconds: float, output: Path
) -> SelectionSummary:
    """Returns what is said of a selection from a training split; see `SelectionSummary`."""
    labels = train.labels.cpu()
    chosen, available = (
        torch.bincount(part, minlength=len(train.classes)).tolist() for part in (labels[subset.indices], labels)
    )
    w = subset.weights.double().numpy()
    names = ("minimum", "lower quartile", "median", "upper quartile", "maximum")
    weights = dict(zip(names, np.quantile(w, [0, 0.25, 0.5, 0.75, 1]).tolist(), strict=True))
    weights |= {"mean": float(w.mean()), "zeros": float((w == 0).mean())}
    weights["effective size"] = subset.effective_size
    classes = list(zip(train.classes, chosen, available, strict=True))
    return SelectionSummary(selector, classes, weights, report, seconds, output)


def print_selection(summary: SelectionSummary, console: Console | None = None) -> None:
    """Prints a selection: tables on a terminal, plain columns elsewhere."""
    console = for_tables(console)
    size, available = (sum(counts) for counts in list(zip(*summary.classes, strict=True))[1:])
    parts: list[Table | str] = [
        f"{size} of {available} training images in {summary.seconds:.1f} s, chosen by {summary.selector}",
        _classes(summary.classes),
        "weights:",
        _weights(summary.weights),
        _matching(summary),
        "seconds:",
        _seconds(summary),
        str(summary.output),
    ]
    for part in parts:
        if isinstance(part, Table):
            part.box = part.box if console.is_terminal else None
            part.pad_edge = console.is_terminal
            console.print(part)
        else:
            console.print(part, soft_wrap=True)


def _classes(classes: Sequence[tuple[str, int, int]]) -> Table | str:
    if len(classes) <= LISTED_CLASSES:
        rows = [[name, str(chosen), str(of), f"{_percent(chosen, of):.1f}"] for name, chosen, of in classes]
        return on_terminal(["class", "chosen", "of", "percent"], rows)
    shares = np.array([_percent(chosen, of) for _, chosen, of in classes])
    counts = [chosen for _, chosen, _ in classes]
    missing = sum(count == 0 for count in counts)
    return (
        f"{len(classes)} classes: {min(counts)} to {max(counts)} images each, {shares.min():.1f} to "
        f"{shares.max():.1f} percent of the class (median {np.median(shares):.1f}); {missing} without any"
    )


def _percent(part: float, whole: float) -> float:
    return 100 * part / whole if whole else 0.0


def _weights(weights: Mapping[str, float]) -> Table:
    shown = {name: f"{value:.4g}" for name, value in weights.items()}
    shown["zeros"] = f"{weights['zeros']:.1%}"
    shown["effective size"] = f"{weights['effective size']:.1f}"
    return on_terminal(list(shown), [list(shown.values())], left=0)


def _matching(summary: SelectionSummary) -> str:
    report = summary.report
    if report is None or report.matching_error is None:
        return f"gradient-matching error: not measured: {summary.selector} provides no gradients"
    text = f"gradient-matching error: {report.matching_error:.3g}"
    if report.random_matching_error is not None:
        text += f"; of a random subset of the same size: {report.random_matching_error:.3g}"
    return text


def _seconds(summary: SelectionSummary) -> Table:
    phases = dict(summary.report.seconds) if summary.report else {}
    phases["other"] = max(0.0, summary.seconds - sum(phases.values()))
    rows = [[name, f"{value:.2f}", f"{_percent(value, summary.seconds):.1f}"] for name, value in phases.items()]
    return on_terminal(["phase", "seconds", "percent"], rows)
