"""The vocabulary of components' `requires` and `provides`.

A component from outside may use words of its own; they go together where both sides use the same.
"""

from __future__ import annotations

from collections.abc import Iterable

STEPS_TO_VARY = "attack steps to vary"
"""A method attacks each example as hard as the run's effort plans."""

STEPS_BY_EXAMPLE = "attack steps that differ by example"
"""An attack writes ``search_each``: each example of a batch has steps of its own, and may be stopped between them."""

CLEAN_VIEW, ADVERSARIAL_VIEW = "a clean view", "an adversarial view"
"""A method gives the loss the images as they are, or what the attack made of them."""

HARD_LABELS = "hard labels"
"""Every image has one class: the augmentation does not mix images. What gets labels requires this unless it says that
it takes shares of the classes, (B, classes), too."""

ONE_RADIUS = "one radius in all epochs"
"""An effort never plans a radius, so that what an attack keeps from epoch to epoch fits."""

GEOMETRY = "crops and flips that can be undone"
"""An augmentation does nothing but move pixels, and says where to: `robustcords.data.augmentations.geometry`."""

VALIDATION_IMAGES = "validation images"
"""Some of the training set are held out."""

CUBE = "a bound for every pixel by itself"
"""The threat model is l-infinity's ball, or another that is a box."""

L2_DISTANCES = "distances in l2"
"""The threat model is l2's ball, so that the l2 length of a perturbation says whether it is allowed."""

SECOND_DERIVATIVES = "derivatives of gradients"
"""A backward pass can be differentiated, which a compiled one cannot."""


def words(declared: Iterable[str]) -> frozenset[str]:
    """Returns what a class declares as ``requires`` or ``provides``, which may be one word alone."""
    return frozenset({declared} if isinstance(declared, str) else declared)


VIEWS = {"clean": CLEAN_VIEW, "adversarial": ADVERSARIAL_VIEW}
"""The name of a loss's view to what it requires."""
