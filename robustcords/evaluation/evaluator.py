"""What an evaluation's measurements have in common: the model as they run it, the images, the chunks of work."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustcords import __version__
from robustcords.attacks.base import Attack
from robustcords.attacks.pgd import PGD
from robustcords.config.schema import Table, format_radius
from robustcords.data.images import Images
from robustcords.data.split import SampleKind, sample
from robustcords.engine.inference import Inference
from robustcords.engine.modes import Model, evaluation_mode
from robustcords.engine.precision import exact_float32, full_precision
from robustcords.errors import UserError
from robustcords.evaluation import ledger
from robustcords.evaluation.attacks import autoattack
from robustcords.evaluation.config import AutoAttackEvaluation, PGDEvaluation
from robustcords.evaluation.majority import largest_share
from robustcords.losses.objective import Objective
from robustcords.rng import Noise, derive
from robustcords.runtime import collectives
from robustcords.threats.base import ThreatModel

BATCH = 256
"""Images a forward pass."""


@dataclass(frozen=True)
class Evaluator:
    """Measures one model on one test set: what all of its measurements share.

    Attributes:
        model: images in [0, 1] to logits; folded while `measuring`.
        data: the test set.
        numbers: (count,) the rows of it that are looked at.
        kind: how these were taken.
        threat: the norm, and the radius that step sizes and radii follow from where they are not given.
        seed: of all random numbers.
        device: where the model is.
        store: folder for finished chunks, or None.
        identity: what tells this model and these images from others.
        on_progress: is told how far a measurement is.
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
        """Returns an evaluator on ``limit`` images, taken by `sample`; 0 for all.

        Raises:
            UserError: there is no image.
        """
        if len(data) == 0:
            raise UserError("evaluation: the test set has no images")
        numbers, kind = sample(data.labels, limit)
        network = model if isinstance(model, Inference) else Inference(model)
        identity = _identity(network.model, data, numbers) if store is not None and collectives.is_main() else {}
        return cls(network, data, numbers, kind, threat, seed, torch.device(device), store, identity, on_progress)

    @property
    def count(self) -> int:
        """How many images are looked at."""
        return len(self.numbers)

    @property
    def autoattack_norm(self) -> str:
        """What AutoAttack calls the threat's norm.

        Raises:
            UserError: AutoAttack has no attacks in it.
        """
        if self.threat.autoattack_norm is None:
            raise UserError(f"AutoAttack has no attacks for threat.norm = {self.threat.norm!r}")
        return self.threat.autoattack_norm

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns images and labels of some rows of `numbers`, on the device."""
        return self.data.batch(self.numbers[rows], self.device)

    def noise(self, purpose: str, rows: Tensor) -> Noise:
        """Returns random numbers for some rows of `numbers`, keyed by the images' own numbers in the test set."""
        return Noise(derive(self.seed, purpose), self.numbers[rows].to(self.device))

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Puts the model into eval mode, folded, and float32 into full precision for as long as the block lasts."""
        with evaluation_mode(self.model), exact_float32(self.device), self.model.frozen():
            yield

    def clean(self) -> Tensor:
        """Returns (count,) bool, which images are classified correctly as they are."""

        def work(rows: Tensor) -> tuple[Tensor, list[str]]:
            parts = [classified(self.model, *self.batch(part)) for part in rows.split(BATCH)]
            return torch.cat(parts).long(), []

        return self.run("clean", {}, self.count, work)[0] > 0

    def pgd(self, config: PGDEvaluation, clean: Tensor) -> dict[str, Tensor]:
        """Returns which images (count,) bool withstand PGD at each radius, by the radius as reports write it.

        Args:
            config: after `PGDEvaluation.resolved`.
            clean: (count,) bool, which images are classified correctly as they are.
        """
        withstood = {}
        for epsilon in config.epsilons or []:
            radius = format_radius(epsilon)
            threat = self.threat.with_epsilon(epsilon)
            attack = PGD(threat, steps=config.steps, step_size=config.step_size, random_start="uniform")
            settings = {"attack": _settings(config), "epsilon": radius}

            def work(rows: Tensor, attack: PGD = attack) -> tuple[Tensor, list[str]]:
                x, y = self.batch(rows)
                alive, noise = clean[rows].to(self.device), self.noise("evaluation", rows)
                return withstands(self.model, x, y, noise, alive, attack, config.restarts).long(), []

            withstood[radius] = self.run(f"PGD {radius}", settings, self.count, work)[0] > 0
        return withstood

    @property
    def labels(self) -> Tensor:
        """The labels (count,) of `numbers`, on the CPU."""
        return self.data.labels[self.numbers]

    def part(self, limit: int) -> tuple[Tensor, SampleKind]:
        """Returns places in `numbers` that are taken as the images of the whole evaluation were."""
        return sample(self.labels, limit)

    def autoattack(self, config: AutoAttackEvaluation) -> dict[str, Any]:
        """Returns the entries of AutoAttack at each radius.

        Args:
            config: after `AutoAttackEvaluation.resolved`.
        """
        places, kind = self.part(config.limit)
        x, _ = self.batch(torch.arange(1))
        with torch.no_grad():
            classes = self.model(x).shape[1]
        variant = autoattack.variant(config.version, self.autoattack_norm, classes, min(x.shape[-2:]))
        after, messages = {}, list[str]()
        for epsilon in config.epsilons or []:
            radius = format_radius(epsilon)
            settings = {"attack": variant.name, "epsilon": radius}
            if kind == "stratified":  # the first so many of other images have the same number, and are others
                settings["places"] = kind

            def work(rows: Tensor, epsilon: float = epsilon) -> tuple[Tensor, list[str]]:
                return self._autoattack_chunk(places[rows], epsilon, config.version)

            withstood, warnings = self.run(f"AutoAttack {radius}", settings, len(places), work)
            after[radius] = {name: share(withstood > number) for number, name in enumerate(variant.attacks)}
            messages += warnings + autoattack.square_warning(after[radius])
        return {
            "autoattack": {radius: accuracies[variant.attacks[-1]] for radius, accuracies in after.items()},
            "autoattack_examples": len(places),
            "autoattack_sample": kind,
            "autoattack_largest_class": largest_share(self.labels[places]),
            "autoattack_version": variant.name,
            "autoattack_attacks": list(variant.attacks),
            "autoattack_after": after,
            "autoattack_warnings": list(dict.fromkeys(messages)),
        }

    def _autoattack_chunk(self, rows: Tensor, epsilon: float, version: str) -> tuple[Tensor, list[str]]:
        found, messages = [], list[str]()
        for part in rows.split(BATCH):
            x, y = self.batch(part)
            seed = derive(self.seed, "autoattack", int(self.numbers[part[0]]))
            withstood, warnings = autoattack.run(
                self.model, x, y, norm=self.autoattack_norm, epsilon=epsilon, version=version, seed=seed
            )
            found.append(withstood)
            messages += warnings
        return torch.cat(found), messages

    def run(self, name: str, settings: dict[str, Any], count: int, work: ledger.Work) -> tuple[Tensor, list[str]]:
        """Returns what `chunks.run` does, with a ledger of its own for these settings.

        Args:
            name: of the measurement, for the ledger and for progress.
            settings: everything that the numbers depend on beside model, images, norm and seed.
            count: number of examples.
            work: done for one chunk at a time.
        """
        common = {"what": name, "norm": self.threat.norm, "seed": self.seed, "count": count}
        kept = ledger.Ledger(self.store, {**common, **settings, **self.identity})
        return ledger.run(name, count, work, ledger=kept, device=self.device, on_progress=self.on_progress)


def cross_entropy_of(y: Tensor) -> Objective:
    """Returns the objective of PGD: cross-entropy with labels (B,)."""
    return Objective(lambda logits: cross_entropy(logits, y, reduction="none"))


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
    """Returns (B,) bool: which of the examples ``alive`` are classified correctly after every restart's last iterate.

    Broken examples are dropped between restarts and the others closed up into full batches.

    Args:
        model: as `Model`.
        x: (B, C, H, W) in [0, 1].
        y: (B,) labels.
        noise: for the random starts.
        alive: (B,) bool, which examples to attack; the others are False in the result.
        attack: what to attack with.
        restarts: random starts, at least 1.
        objective_of: labels (B,) to what the attack maximises.
    """
    alive = alive.clone()
    for restart in range(restarts):
        for rows in alive.nonzero().flatten().split(BATCH):
            if len(rows) == 0:
                return alive
            x_adv = attack(model, x[rows], objective_of(y[rows]), noise.restart(restart)[rows])
            alive[rows] = classified(model, x_adv, y[rows])
    return alive


def classified(model: Model, x: Tensor, y: Tensor) -> Tensor:
    """Returns (B,) bool, which images (B, C, H, W) the model gives their labels (B,)."""
    with torch.no_grad():
        logits = full_precision(model(x))
    return (logits.argmax(1) == y) & ~logits.isnan().any(1)


def share(flags: Tensor) -> float:
    """Returns the share of (n,) bool that is true; 0 of none."""
    return int(flags.sum()) / max(1, len(flags))


def _settings(config: Table) -> dict[str, Any]:
    """Returns an attack's options without the list of radii, which each have a file of their own."""
    return {key: value for key, value in dict(config).items() if key != "epsilons"}


def _identity(model: nn.Module, data: Images, numbers: Tensor) -> dict[str, Any]:
    """Returns what tells this model and these images from others."""
    weights = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    return {"robustcords": __version__, "weights": _sha256(weights), "images": data.digest(numbers)}


def _sha256(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
