"""Whether the components of a recipe go together: each requirement must be provided by another component."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from robustcords.config import registry
from robustcords.config.requirements import (
    ADVERSARIAL_VIEW,
    CLEAN_VIEW,
    CUBE,
    GEOMETRY,
    HARD_LABELS,
    ONE_RADIUS,
    SECOND_DERIVATIVES,
    STEPS_BY_EXAMPLE,
    STEPS_TO_VARY,
    VALIDATION_IMAGES,
    VIEWS,
    words,
)

_WHY = {
    STEPS_TO_VARY: ("method", 'attacks all images alike; set effort.name = "uniform"'),
    STEPS_BY_EXAMPLE: ("attack", 'has none; set attack.name = "pgd"'),
    CLEAN_VIEW: ("method", "has none"),
    ADVERSARIAL_VIEW: ("method", "has none"),
    HARD_LABELS: ("augmentation", "mixes images and their labels"),
    ONE_RADIUS: ("effort", 'varies it; set effort.name = "uniform"'),
    CUBE: ("threat", "has none"),
    GEOMETRY: ("augmentation", 'does more; set augmentation.name = "crop_flip" or "none"'),
}
"""What can be required of a kind of component, and what is so of one that does not provide it."""


@dataclass(frozen=True)
class NamedComponent:
    """A component of a recipe.

    Attributes:
        kind: as the registry has it.
        key: the dotted key that names it.
        found: its class.
        config: its table.
    """

    kind: str
    key: str
    found: Any
    config: Any

    @property
    def requires(self) -> frozenset[str]:
        """What it cannot do without; of a loss, its views too."""
        views = getattr(self.found, "views", ()) if self.kind == "loss" else ()
        return words(getattr(self.found, "requires", ())) | {VIEWS[view] for view in views if view in VIEWS}

    @property
    def provides(self) -> frozenset[str]:
        """What others may require."""
        return words(getattr(self.found, "provides", ()))


def missing(parts: Sequence[NamedComponent], *, held_out: bool, compiled: bool) -> tuple[str, ...] | None:
    """Returns why two components do not go together, and the keys that disagree; None where all do.

    Args:
        parts: the components, those inside another one after it.
        held_out: whether there is a validation split.
        compiled: whether the model is compiled.
    """
    provided = frozenset[str]().union(*(part.provides for part in parts))
    provided |= {VALIDATION_IMAGES} if held_out else set()
    provided |= set() if compiled else {SECOND_DERIVATIVES}
    for part in parts:
        for word in sorted(part.requires - provided):
            if word == VALIDATION_IMAGES:
                return f"requires {word}, and [data] validation_fraction is 0", part.key, "data.validation_fraction"
            if word == SECOND_DERIVATIVES:
                return f"requires {word}, and [train] compile is true", part.key, "train.compile"
            if word not in _WHY:
                return f"requires {word}, which nothing in the recipe provides", part.key
            kind, why = _WHY[word]
            # The innermost: wrappers provide what it does.
            other = [each for each in parts if each.kind == kind][-1]
            name = getattr(other.config, registry.KINDS[kind].key)
            return f'requires {word}, and {kind} "{name}" {why}', part.key, other.key
    return None
