"""AutoAttack (Croce and Hein 2020), as pyautoattack packages it: the only module that imports it.

This module adds what the package lacks: it supports models with fewer than ten classes, leaves the global random state
and the parameters' gradients (which its FAB attack would fill) alone, and returns the package's warnings.
"""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from robustcords.config.schema import format_radius
from robustcords.engine.modes import evaluation_mode, without_parameter_gradients
from robustcords.engine.precision import full_precision
from robustcords.evaluation.attacks.base import EvaluationAttack, EvaluationAttackConfig, Radii
from robustcords.evaluation.evaluator import BATCH, Evaluator, correct
from robustcords.evaluation.results import Measurement
from robustcords.models.base import ImageSize
from robustcords.rng import derive
from robustcords.threats.base import ThreatModel

_CLASSES_NEEDED = {"apgd-dlr": 3, "apgd-t": 4}  # DLR divides by z_1 - z_3, targeted DLR by z_1 - (z_3 + z_4) / 2
_SQUARE_TILES = 5  # Square starts under l2 and l1 from a grid of five by five tiles
_SQUARE_MATTERS = 0.002  # the drop in accuracy that pyautoattack warns at


class AutoAttackEvaluation(EvaluationAttackConfig):
    """AutoAttack (Croce and Hein 2020).

    Attributes:
        version: which set of attacks: ``"standard"``, the longer ``"plus"``, or ``"rand"`` for randomised models.
        epsilons: the radii to report, all different and above 0; left out, epsilon.
        limit: number of evaluated images to attack, chosen as by ``evaluation.limit``; 0 for all. The report then has
            clean accuracy and PGD on these images too.
    """

    version: Literal["standard", "plus", "rand"] = "standard"
    epsilons: Radii | None = None
    limit: Annotated[int, Field(ge=0)] = 0

    def resolved(self, threat: ThreatModel) -> Self:
        """Returns the options with the radius of the threat model where none is given."""
        if threat.autoattack_norm is None:
            raise ValueError(f"AutoAttack has no attacks for threat.norm = {threat.norm!r}; set autoattack = false")
        return super().resolved(threat)


class AutoAttack(EvaluationAttack):
    """AutoAttack's parameter-free attacks in sequence, each on the images that withstood those before it."""

    Config = AutoAttackEvaluation
    config: AutoAttackEvaluation

    @property
    def limit(self) -> int:
        """The option."""
        return self.config.limit

    def passes(self, classes: int, image_size: ImageSize) -> float:
        """Returns the iterations of its attacks at all radii; Square's queries are forward passes, a third of both."""
        chosen = variant(self.config.version, self.threat.autoattack_norm or "Linf", classes, image_size)
        each = {"square": _QUERIES / 3, "apgd-t": _ITERATIONS * chosen.targets, "fab-t": _ITERATIONS * chosen.targets}
        once = sum(each.get(name, _ITERATIONS) for name in chosen.attacks)
        return float(once * _REPEATED[self.config.version] * len(self.config.radii))

    def run(self, evaluator: Evaluator, clean: Tensor) -> list[Measurement]:
        """Returns the accuracy at each radius; determines the correctly classified images itself."""
        del clean
        x, _ = evaluator.batch(torch.arange(1))
        with torch.no_grad():
            classes = evaluator.model(x).shape[1]
        norm = evaluator.autoattack_norm
        chosen = variant(self.config.version, norm, classes, _size(x))
        measurements = []
        for epsilon in self.config.radii:

            def chunk(rows: Tensor, epsilon: float = epsilon) -> tuple[Tensor, list[str]]:
                outcomes, messages = [], list[str]()
                for part in rows.split(BATCH):
                    x, y = evaluator.batch(part)
                    seed = derive(evaluator.seed, "autoattack", int(evaluator.numbers[part[0]]))
                    options: Any = {"norm": norm, "epsilon": epsilon, "version": self.config.version, "seed": seed}
                    withstood, warned = run(evaluator.model, x, y, **options)
                    outcomes.append(withstood)
                    messages += warned
                return torch.cat(outcomes), messages

            settings = {"attack": chosen.name}
            measured = self.measure(evaluator, format_radius(epsilon), settings, chunk, chosen.attacks)
            warned = [*measured.warnings, *square_warning(measured.after)]
            measurements.append(measured.model_copy(update={"variant": chosen.name, "warnings": warned}))
        return measurements


_ITERATIONS, _QUERIES = 100, 5000
_REPEATED = {"standard": 1, "plus": 5, "rand": 20}
"""What the package's versions run: iterations, queries of Square, and restarts or draws of each iteration."""


@dataclass(frozen=True)
class Variant:
    """The part of an AutoAttack version that supports a model.

    Attributes:
        name: for reports: the version, and what was left out of it.
        attacks: the attacks, in running order.
        targets: number of target classes of the targeted attacks.
    """

    name: str
    attacks: tuple[str, ...]
    targets: int


def variant(version: str, norm: str, classes: int, image_size: ImageSize) -> Variant:
    """Returns the part of a version that can run.

    The targeted attacks have at most nine target classes, and with fewer than ten classes all but the label's own. The
    DLR loss needs three classes, its targeted form four; see `square_fits` for Square.

    Args:
        version: ``"standard"``, ``"plus"`` or ``"rand"``.
        norm: as AutoAttack calls it, ``"Linf"``, ``"L2"`` or ``"L1"``.
        classes: number of logits, at least 2.
        image_size: height and width of an image.
    """
    wanted = _attacker(nn.Identity(), norm, 1.0, version, 0, torch.device("cpu")).attacks_to_run
    fits = {name: classes >= _CLASSES_NEEDED.get(name, 2) for name in wanted}
    if not square_fits(norm, image_size):
        fits["square"] = False
    attacks = tuple(name for name in wanted if fits[name])
    missing = [name for name in wanted if not fits[name]]
    targets = min(9, classes - 1)
    notes = [f"without {' and '.join(missing)}"] if missing else []
    if targets < 9 and any(name.endswith("-t") for name in attacks):
        notes.append(f"{targets} target class{'es' if targets > 1 else ''}")
    return Variant(f"{version} ({', '.join(notes)})" if notes else version, attacks, targets)


def run(
    model: nn.Module, x: Tensor, y: Tensor, *, norm: str, epsilon: float, version: str, seed: int
) -> tuple[Tensor, list[str]]:
    """Attacks a batch with one attack after the other, each on the examples that withstood all before it.

    The result is what ``AutoAttack.run_standard_evaluation`` gives for the same seed and the batch in one piece.

    Args:
        model: images in [0, 1] to logits; run in eval mode.
        x: (B, C, H, W) float32 in [0, 1]. Misclassified clean examples count as broken.
        y: (B,) int64 labels.
        norm: as AutoAttack calls it, ``"Linf"``, ``"L2"`` or ``"L1"``.
        epsilon: radius in pixel space, greater than 0.
        version: see `variant`.
        seed: in [0, 2**63).

    Returns:
        (B,) int64, the number of `variant`'s attacks that each example withstood before it broke (0 for misclassified
        ones); and pyautoattack's distinct warnings.
    """
    withstood, chosen, messages = _withstood(model, x, y, norm, epsilon, version, seed)
    return withstood, _tidy(messages, chosen)


def apgd(model: nn.Module, x: Tensor, y: Tensor, *, norm: str, epsilon: float, seed: int) -> Tensor:
    """Returns a mask (B,) of the examples that withstand AutoAttack's APGD on cross-entropy and the targeted DLR loss.

    These are the first attacks of the standard version, which break nearly all examples that it breaks.

    Args:
        model: as for `run`.
        x: as for `run`; misclassified examples do not withstand.
        y: (B,) int64 labels.
        norm: as AutoAttack calls it, ``"Linf"``, ``"L2"`` or ``"L1"``.
        epsilon: radius in pixel space, greater than 0.
        seed: in [0, 2**63).
    """
    withstood, chosen, _ = _withstood(model, x, y, norm, epsilon, "standard", seed, only="apgd")
    return withstood == len(chosen.attacks)


def square_fits(norm: str, image_size: ImageSize) -> bool:
    """Returns whether Square can attack images of this height and width.

    Under l2 and l1 pyautoattack starts from square tiles of a fifth of the height, offset by a margin from the top and
    left. It places as many per side as would fit without the margin: with 12, 14, 19 or 24 pixels in both directions,
    for example, the last ones exceed the image, and it raises RuntimeError. One-pixel tiles outside are skipped, and
    images narrower than a tile get none.
    """
    height, width = image_size
    tile = height // _SQUARE_TILES
    if norm == "Linf" or tile == 1:
        return True
    margin = (height - tile * _SQUARE_TILES) // 2
    return tile > 1 and (width < tile or all(margin + side // tile * tile <= side for side in image_size))


def _size(x: Tensor) -> ImageSize:
    """Returns height and width of images (B, C, H, W)."""
    return x.shape[2], x.shape[3]


def square(model: nn.Module, x: Tensor, y: Tensor, *, norm: str, epsilon: float, queries: int, seed: int) -> Tensor:
    """Returns a mask (B,) of the examples that withstand Square (Andriushchenko et al. 2020), which uses no gradients.

    Args:
        model: as for `run`.
        x: as for `run`; misclassified examples do not withstand.
        y: (B,) int64 labels.
        norm: as AutoAttack calls it; see `square_fits`.
        epsilon: radius in pixel space, greater than 0.
        queries: forward passes per example, at least 1.
        seed: in [0, 2**63).
    """
    withstood, _, _ = _withstood(model, x, y, norm, epsilon, "standard", seed, only="square", queries=queries)
    return withstood > 0


def _withstood(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    norm: str,
    epsilon: float,
    version: str,
    seed: int,
    *,
    only: str = "",
    queries: int | None = None,
) -> tuple[Tensor, Variant, list[str]]:
    """Implements `run`, for the attacks whose names begin with ``only``, and with ``queries`` of Square.

    Returns:
        (B,) int64, the number of attacks that each example withstood before it broke; these attacks; and pyautoattack's
        warnings.
    """
    withstood = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    messages: list[str] = []
    with evaluation_mode(model), _untouched(model, x.device), _caught(messages):
        with torch.no_grad():
            logits = full_precision(model(x))
        chosen = variant(version, norm, logits.shape[1], _size(x))
        chosen = replace(chosen, attacks=tuple(name for name in chosen.attacks if name.startswith(only)))
        attacker = _attacker(model, norm, epsilon, version, seed, x.device)
        for targeted in (attacker.apgd_targeted, attacker.fab):  # under l1 APGD aims at five by itself
            targeted.n_target_classes = min(targeted.n_target_classes, chosen.targets)
        attacker.square.n_queries = queries or attacker.square.n_queries
        alive = correct(logits, y).nonzero().flatten()
        for attack in chosen.attacks:
            alive = _survivors(attacker, attack, x, y, alive)
            withstood[alive] += 1
    return withstood, chosen, messages


def _survivors(attacker: Any, attack: str, x: Tensor, y: Tensor, alive: Tensor) -> Tensor:
    """Returns the rows among ``alive`` that withstand one attack."""
    if len(alive) == 0:
        return alive
    attacker.attacks_to_run = [attack]
    _, prediction = attacker.run_standard_evaluation(x[alive], y[alive], batch_size=len(alive))
    return alive[prediction == y[alive]]


def square_warning(accuracies: Mapping[str, float | None]) -> list[str]:
    """Returns a warning if Square, which uses no gradients, broke examples that all attacks before it had not.

    This is pyautoattack's own test, on the whole set instead of a batch.

    Args:
        accuracies: attack to the robust accuracy after it, in running order.
    """
    names = list(accuracies)
    if "square" not in names or names[0] == "square":
        return []
    drop = (accuracies[names[names.index("square") - 1]] or 0.0) - (accuracies["square"] or 0.0)
    if drop <= _SQUARE_MATTERS:
        return []
    return [f"Square Attack lowered the accuracy by {drop:.2%} more: the model may hide its gradients"]


def _attacker(model: nn.Module, norm: str, epsilon: float, version: str, seed: int, device: torch.device) -> Any:
    """Returns pyautoattack's attacker of the model, with logits in float32, which its arithmetic needs."""
    from pyautoattack import AutoAttack

    logits = nn.Sequential(model, _Float32())
    return AutoAttack(logits, norm=norm, eps=epsilon, version=version, seed=seed, device=device)


class _Float32(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits.float()


@contextmanager
def _untouched(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Context that preserves the global random state, the parameters' gradients and a debugger's trace function."""
    from pyautoattack import checks

    cards = (
        {device.index if device.index is not None else torch.cuda.current_device()} if device.type == "cuda" else set()
    )
    if torch.cuda.is_available():
        cards.add(torch.cuda.current_device())
    trace = sys.gettrace()
    # pyautoattack counts calls of autograd and never starts anew: one model that makes them would accuse all others.
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    try:
        with torch.random.fork_rng(devices=sorted(cards)), without_parameter_gradients(model):
            yield
    finally:
        sys.settrace(trace)


class _Collector(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(record.getMessage())


@contextmanager
def _caught(messages: list[str]) -> Iterator[None]:
    """Context that redirects pyautoattack's log to a list."""
    logger = logging.getLogger("auto-attack")
    before = logger.propagate, logger.level, logger.handlers
    logger.propagate, logger.handlers = False, [_Collector(messages)]
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        logger.propagate, level, logger.handlers = before
        logger.setLevel(level)
    messages.extend(str(warning.message) for warning in caught)


def _tidy(messages: list[str], chosen: Variant) -> list[str]:
    """Returns the distinct messages, without counts that depend on the batch and without those that do not apply."""
    kept: list[str] = []
    for message in messages:
        if "targeted DLR" in message and "apgd-t" not in chosen.attacks:
            continue  # with three classes pyautoattack warns of the targeted DLR loss, whether it is used or not
        text = re.sub(r"there are \d+ points", "there are points", message)
        text = text.removesuffix(" See flags_doc.md for details.")
        if text not in kept:
            kept.append(text)
    return kept
