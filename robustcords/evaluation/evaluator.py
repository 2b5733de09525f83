"""What all measurements of an evaluation share: the model in eval mode, the images, the chunks of work."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcords import __version__
from robustcords.attacks.base import Attack
from robustcords.data.images import Images
from robustcords.data.split import SampleKind, sample
from robustcords.engine.contracts import title
from robustcords.engine.inference import Inference
from robustcords.engine.modes import Model, evaluation_mode
from robustcords.engine.precision import exact_float32, full_precision
from robustcords.errors import UserError
from robustcords.evaluation import ledger
from robustcords.evaluation.results import CLEAN
from robustcords.losses.objective import Objective, cross_entropy_of
from robustcords.rng import Noise, derive
from robustcords.runtime import collectives
from robustcords.threats.base import ThreatModel

BATCH = 256
"""Images a forward pass."""


@dataclass(frozen=True)
class Evaluator:
    """Shared state of all measurements of one model on one test set.

    Attributes:
        model: images in [0, 1] to logits; folded while `measuring`.
        data: the test set.
        numbers: (count,) rows of the test set that are evaluated.
        kind: how these were sampled.
        threat: the norm, and the radius that step sizes and radii follow from where they are not given.
        seed: of all random numbers.
        device: of the model.
        store: folder for finished chunks, or None.
        identity: fingerprint of the model and the images.
        on_progress: called with the progress of a measurement.
        withstood: for each measurement on all images a mask (count,) of the correctly classified ones.
    """

    model: Inference
    data: Images
    numbers: Tensor
    kind: SampleKind
    threat: ThreatModel
    seed: int
    device: torch.device
    store: Path | None
    identity: dict[str, Any]
    on_progress: ledger.Progress | None
    withstood: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        model: nn.Module,
        data: Images,
        limit: int,
        threat: ThreatModel,
        seed: int,
        device: torch.device | str,
        store: Path | None,
        on_progress: ledger.Progress | None,
    ) -> Evaluator:
        """Returns an evaluator on ``limit`` images, drawn by `sample`; 0 for all.

        Raises:
            UserError: there are no images.
        """
        if len(data) == 0:
            raise UserError("evaluation: the test set has no images")
        numbers, kind = sample(data.labels, limit)
        network = model if isinstance(model, Inference) else Inference(model)
        identity = _identity(network.model, data, numbers) if store is not None and collectives.is_main() else {}
        return cls(network, data, numbers, kind, threat, seed, torch.device(device), store, identity, on_progress)

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.numbers)

    @property
    def autoattack_norm(self) -> str:
        """AutoAttack's name of the threat's norm.

        Raises:
            UserError: AutoAttack does not support it.
        """
        if self.threat.autoattack_norm is None:
            raise UserError(f"AutoAttack has no attacks for threat.norm = {self.threat.norm!r}")
        return self.threat.autoattack_norm

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns images and labels of some rows of `numbers`, on the device."""
        return self.data.batch(self.numbers[rows], self.device)

    def noise(self, purpose: str, rows: Tensor) -> Noise:
        """Returns noise for some rows of `numbers`, keyed by the images' numbers in the test set."""
        return Noise(derive(self.seed, purpose), self.numbers[rows].to(self.device))

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Context with the model in eval mode, folded, in exact float32."""
        with evaluation_mode(self.model), exact_float32(self.device), self.model.folded():
            yield

    def clean(self) -> Tensor:
        """Returns a mask (count,) of the clean images that are classified correctly."""

        def work(rows: Tensor) -> tuple[Tensor, list[str]]:
            parts = [classified(self.model, *self.batch(part)) for part in rows.split(BATCH)]
            return torch.cat(parts).long(), []

        self.withstood[CLEAN] = flags = self.run(CLEAN, {}, self.count, work)[0] > 0
        return flags

    @property
    def labels(self) -> Tensor:
        """The labels (count,) of `numbers`, on the CPU."""
        return self.data.labels[self.numbers]

    def per_class(self) -> dict[str, dict[str, float]]:
        """Returns the accuracy of each class with images, for each measurement on all images."""
        members = {name: self.labels == label for label, name in enumerate(self.data.classes)}
        return {
            what: {name: share(flags[rows]) for name, rows in members.items() if rows.any()}
            for what, flags in self.withstood.items()
        }

    def part(self, limit: int) -> tuple[Tensor, SampleKind]:
        """Returns rows of `numbers`, sampled like the images of the whole evaluation, and how."""
        return sample(self.labels, limit)

    def run(self, name: str, settings: dict[str, Any], count: int, work: ledger.Work) -> tuple[Tensor, list[str]]:
        """Calls `ledger.run` with a ledger for these settings.

        Args:
            name: of the measurement, for the ledger and for progress.
            settings: everything that the outcomes depend on besides model, images, norm and seed.
            count: number of examples.
            work: computes one chunk.
        """
        common = {"what": name, "norm": self.threat.norm, "seed": self.seed, "count": count}
        chunks = ledger.Ledger(self.store, {**common, **settings, **self.identity})
        return ledger.run(name, count, work, ledger=chunks, device=self.device, on_progress=self.on_progress)


def withstands(
    model: Model,
    x: Tensor,
    y: Tensor,
    noise: Noise,
    alive: Tensor,
    attack: Attack,
    restarts: int,
    objective_of: Callable[[Tensor], Objective] = cross_entropy_of,
) -> Tensor:
    """Returns a mask (B,) of the examples ``alive`` that are classified correctly after every restart's last iterate.

    Broken examples are dropped between restarts, and the others regrouped into full batches.

    Args:
        model: as `Model`.
        x: (B, C, H, W) in [0, 1].
        y: (B,) labels.
        noise: for the random starts.
        alive: (B,) bool, the examples to attack; the others are False in the result.
        attack: the attack.
        restarts: random starts, at least 1.
        objective_of: labels (B,) to the objective.

    Raises:
        UserError: the attack may leave the ball.
    """
    refuse_uncontained(attack)

    def attacked(x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        return attack(model, x, objective_of(y), noise)

    for restart in range(restarts):
        alive = survivors(model, x, y, noise.restart(restart), alive, attacked)
    return alive


def survivors(
    model: Model,
    x: Tensor,
    y: Tensor,
    noise: Noise,
    alive: Tensor,
    attacked: Callable[[Tensor, Tensor, Noise], Tensor],
) -> Tensor:
    """Returns a mask (B,) of the examples ``alive`` that are classified correctly after an attack.

    Args:
        model: as `Model`.
        x: (B, C, H, W) in [0, 1].
        y: (B,) labels.
        noise: for the attack.
        alive: (B,) bool, the examples to attack; the others are False in the result.
        attacked: images, labels and noise of some examples to adversarial images.
    """
    alive = alive.clone()
    for rows in alive.nonzero().flatten().split(BATCH):
        if len(rows):
            alive[rows] = classified(model, attacked(x[rows], y[rows], noise[rows]), y[rows])
    return alive


def refuse_uncontained(attack: Attack) -> None:
    """Checks that an attack stays inside the ball.

    Raises:
        UserError: it may leave it.
    """
    if not attack.contained:
        raise UserError(f"attack {title(attack)} may leave the ball (contained = False): for training, not evaluation")


def classified(model: Model, x: Tensor, y: Tensor) -> Tensor:
    """Returns a mask (B,) of the images (B, C, H, W) that the model classifies as their labels (B,)."""
    with torch.no_grad():
        return correct(full_precision(model(x)), y)


def correct(logits: Tensor, y: Tensor) -> Tensor:
    """Returns a mask (B,) of the logits (B, classes) whose largest is at the label (B,); NaN counts as wrong."""
    return (logits.argmax(1) == y) & ~logits.isnan().any(1)


def share(flags: Tensor) -> float:
    """Returns the share of true values in (n,) bool; 0 if it is empty."""
    return int(flags.sum()) / max(1, len(flags))


def _identity(model: nn.Module, data: Images, numbers: Tensor) -> dict[str, Any]:
    """Returns a fingerprint of the model and the images."""
    weights = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    return {"robustcords": __version__, "weights": _sha256(weights), "images": data.digest(numbers)}


def _sha256(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
