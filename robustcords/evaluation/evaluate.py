"""Clean accuracy and accuracy under attacks.

An example counts as robust only if the model classifies it correctly as it is and after every attack; one that is
misclassified as it is counts as broken, and no attack is spent on it. Logits that are no numbers are a wrong answer.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcords.attacks.base import Attack, CleanLogits
from robustcords.data.images import Images, check_images
from robustcords.engine import contracts
from robustcords.engine.foreign_calls import left_alone
from robustcords.engine.inference import Autocast, Inference
from robustcords.engine.modes import evaluation_mode
from robustcords.errors import UserError, kind_of
from robustcords.evaluation import ledger
from robustcords.evaluation.attacks.base import EvaluationAttack
from robustcords.evaluation.config import EvaluationConfig
from robustcords.evaluation.evaluator import (
    Evaluator,
    classified,
    refuse_uncontained,
    share,
    survivors,
)
from robustcords.evaluation.majority import classes_right, largest_share
from robustcords.evaluation.results import Evaluation, Measurement
from robustcords.losses.sat import SAT
from robustcords.rng import Noise, derive
from robustcords.runtime import collectives
from robustcords.threats.base import ThreatModel


def evaluate(
    model: nn.Module,
    data: Images,
    config: EvaluationConfig,
    threat: ThreatModel,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    store: Path | None = None,
    on_progress: ledger.Progress | None = None,
    on_measured: Callable[[Evaluation], None] | None = None,
) -> Evaluation:
    """Measures clean accuracy, and robust accuracy under the attacks of ``config``, in float32.

    The work is distributed over the processes in chunks that depend on the number of examples only, so any number of
    processes gives the same result (with the same number of threads in each).

    Args:
        model: images in [0, 1] to logits, on ``device``, not wrapped for data parallelism; run in eval mode.
        data: the test set; ``config.limit`` images of it are evaluated, taken by `robustcords.data.split.sample`.
        config: which attacks, at which radii.
        threat: the norm, and the radius that step sizes and radii follow from where ``config`` leaves them out.
        seed: of the random starts, which are keyed by an example's number in ``data``.
        device: of the model.
        store: folder for finished chunks. A second call with the same weights, images and settings resumes from there;
            chunks of others are ignored.
        on_progress: called as ``on_progress(what, done, total)`` in every process.
        on_measured: called before each attack with the results so far.

    Returns:
        The accuracies, as fractions in [0, 1]; its ``to_json()`` is the entry in report.json.

    Raises:
        UserError: ``data`` is not `Images` or has none, an attack's steps cannot reach a radius, or an attack changed
            the model.
    """
    check_images("data", data)
    try:
        config = config.resolved(threat)
        config.check_lengths(threat)
    except ValueError as error:
        raise UserError(f"evaluation: {error}") from error
    for key, chosen in config.chosen.items():
        if reason := chosen.options.falls_short:
            raise UserError(f"evaluation: {key}.{chosen.options.blamed[0]}: {reason}")
    evaluator = Evaluator.start(model, data, config.limit, threat, seed, device, store, on_progress)
    with evaluator.measuring():
        clean = evaluator.clean()
        around: dict[str, Any] = {
            "clean": share(clean),
            "examples": evaluator.count,
            "sample": evaluator.kind,
            "largest_class": largest_share(evaluator.labels),
            "classes_right": classes_right(evaluator.labels, clean),
        }
        measured: dict[str, list[Measurement]] = {}
        for key, attack in config.build(threat).items():
            if on_measured:
                on_measured(Evaluation.of(measured, **around))
            measured[key] = measured_by(attack, evaluator, clean)
    return Evaluation.of(measured, **around, per_class=evaluator.per_class())


def measured_by(attack: EvaluationAttack, evaluator: Evaluator, clean: Tensor) -> list[Measurement]:
    """Returns an attack's measurements after checking that it left the model unchanged.

    Args:
        attack: any.
        evaluator: of the model and the images.
        clean: (count,) bool, which images are classified correctly as they are.

    Raises:
        UserError: it changed the model, or returned no measurements.
    """
    source = f"attack {contracts.title(attack)}"
    with left_alone(evaluator.model.model, source):
        measurements = attack.run(evaluator, clean)
    if not isinstance(measurements, list) or not all(isinstance(each, Measurement) for each in measurements):
        raise UserError(f"{source}: run returned {kind_of(measurements)}, expected a list of Measurement")
    return measurements


def robust_accuracy(
    model: nn.Module,
    data: Images,
    attack: Attack,
    *,
    seed: int,
    batch_size: int = 256,
    autocast: Autocast = nullcontext,
    of_training: bool = False,
) -> tuple[float, float]:
    """Returns clean and robust accuracy under one attack on cross-entropy, for choosing among checkpoints.

    Batches are distributed over the processes; every process returns the same two fractions.

    Args:
        model: images in [0, 1] to logits, not wrapped for data parallelism; run in eval mode.
        data: the validation set.
        attack: for example PGD-10 at the training radius.
        seed: of random starts, keyed by an example's number in ``data``. The same seed gives every checkpoint the same.
        batch_size: images per forward pass.
        autocast: makes the context of forward passes.
        of_training: whether this is about the training attack, which may leave the ball, and not about the model.

    Raises:
        UserError: there are no images, or the attack may leave the ball.
    """
    if len(data) == 0:
        raise UserError("validation: the validation set has no images")
    if not of_training:
        refuse_uncontained(attack)
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    inference = Inference(model, autocast, replay=False)  # it is over before recordings of all its sizes pay
    plain, clean, robust = SAT(), 0, 0

    def attacked(x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        return attack(inference, x, attack.objective_for(plain, y, CleanLogits(inference, x)), noise)

    with evaluation_mode(model), inference.folded():
        mine = torch.arange(len(data)).split(batch_size)[collectives.rank() :: collectives.world_size()]
        batches = data.batches([rows.tolist() for rows in mine], device)
        for rows, (x, y) in zip(mine, batches, strict=True):
            noise = Noise(derive(seed, "validation"), rows.to(device))
            correct = classified(inference, x, y)
            clean += int(correct.sum())
            robust += int(survivors(inference, x, y, noise, correct, attacked).sum())
    total = collectives.sum_over([clean, robust], device if collectives.world_size() > 1 else "cpu")
    return total[0] / len(data), total[1] / len(data)
