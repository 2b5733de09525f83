"""The accuracy of always predicting the largest class.

Such a model withstands every attack, so its robust accuracy is as high as its clean accuracy and says nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from robustcords.evaluation.results import Evaluation

_ROUNDING = 1e-9


def largest_share(labels: Tensor) -> float:
    """Returns the share of the largest class among labels (n,), n >= 1."""
    return int(labels.bincount().max()) / len(labels)


def classes_right(labels: Tensor, right: Tensor) -> int:
    """Returns the number of classes with a correctly classified example.

    Args:
        labels: (n,).
        right: mask (n,) of the correctly classified examples.
    """
    return len(labels[right.to(labels.device)].unique())


def at_most(accuracy: float, share: float) -> bool:
    """Returns whether an accuracy is not above the largest class's share."""
    return accuracy <= share + _ROUNDING


def validation_warning(clean: float, labels: Tensor) -> str | None:
    """Returns a warning if the validation accuracy that chose `best` is no better than the largest class, or None.

    Args:
        clean: the accuracy.
        labels: (n,) of the validation split, n >= 1.
    """
    share = largest_share(labels)
    if not at_most(clean, share):
        return None
    return (
        f"warning: clean accuracy on the validation split, {clean:.1%}, is not above the share of its largest class, "
        f"{share:.1%}: always predicting one class reaches that, and withstands every attack; best is chosen on it"
    )


def warning(result: Evaluation) -> str | None:
    """Returns a line on the accuracies that are not above the largest class's share, or None.

    A robust accuracy below half of the share is not reported: such a model predicts more than one class, and is simply
    not robust.

    Args:
        result: of `evaluate`, or an entry of a report, which may lack the shares.
    """
    low = []
    for each in result.measurements:
        value, limit = each.accuracy, each.largest_class
        if value is None or limit is None or not at_most(value, limit):
            continue
        if each.radius is None or value >= limit / 2:
            low.append(f"{each.label}{f' {each.radius}' if each.radius else ''} {value:.2%} (share {limit:.2%})")
    if not low:
        return None
    single = "; images of one class alone are classified correctly" if result.classes_right == 1 else ""
    return f"not above the largest class's share, which always predicting one class reaches: {', '.join(low)}{single}"
