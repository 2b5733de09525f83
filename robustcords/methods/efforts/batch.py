"""Adversarial examples of a training batch: the effort's plan, the loss's objective, the attack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from robustcords.attacks.base import Attack, CleanLogits, clean_logits
from robustcords.attacks.pace import Objectives, Pace
from robustcords.config.requirements import STEPS_BY_EXAMPLE
from robustcords.data.augmentations.geometry import Geometry
from robustcords.engine import contracts
from robustcords.engine.modes import Model
from robustcords.errors import UserError
from robustcords.losses.base import Loss
from robustcords.losses.check import check_labels
from robustcords.losses.context import Moment
from robustcords.losses.objective import Objective, classes_of
from robustcords.methods.efforts.base import Effort, Plan
from robustcords.methods.efforts.uniform import Uniform
from robustcords.rng import Noise, derive

_Group = tuple[Any, list[int]]
"""An attack, and the rows of a batch that it is for."""

_Search = Callable[[Model, Tensor, Objectives, Noise], Tensor]


@dataclass(frozen=True)
class AdversarialBatch:
    """Adversarial examples, and the counts of their kinds.

    Attributes:
        images: (B, C, H, W) in [0, 1], inside the threat model.
        counts: number of examples of each kind in this process's share; empty if the effort has no kinds.
    """

    images: Tensor
    counts: dict[str, int]


def attack_batch(
    model: Model,
    x: Tensor,
    y: Tensor,
    noise: Noise,
    *,
    attack: Attack,
    loss: Loss,
    effort: Effort | None = None,
    moment: Moment | None = None,
    geometry: Geometry | None = None,
) -> AdversarialBatch:
    """Returns adversarial examples for a process's share of a global batch, and lets the effort observe them.

    Args:
        model: maps images to logits; run in eval mode, its mode is restored.
        x: (B, C, H, W) in [0, 1].
        y: (B,) int64 labels, or (B, classes) shares of the classes.
        noise: keyed by example.
        attack: whose steps are varied.
        loss: defines the attack's objective.
        effort: decides how hard each example is attacked; None for all alike.
        moment: where training is; None for the beginning.
        geometry: how the images were cropped and flipped, for attacks that keep perturbations.

    Raises:
        UserError: the effort's plan or the attack's images are invalid.
    """
    effort, moment = effort or Uniform(), moment or Moment(0, 0, 0.0)
    check_labels("effort", effort, y)
    loss = loss.at(moment)
    clean = CleanLogits(model, x, exact=loss.relative_to_clean)
    generator = Noise(derive(noise.seed, "effort"), noise.keys)
    source = f"effort {contracts.title(effort)}"
    plan = contracts.instance(f"{source}: plan", effort.plan(attack, clean, y, moment, generator), Plan)
    plan.check(source, len(y))
    try:
        with attack.training_step(moment, geometry):
            images, rows = attack_by_plan(model, x, y, noise, plan, attack=attack, loss=loss, clean=clean)
    except ValidationError as error:  # of the attack's own options, or its radius
        problem = error.errors(include_url=False)[0]
        name, value = ".".join(map(str, problem["loc"])), problem["input"]
        reason = problem["msg"].removeprefix("Value error, ")
        raise UserError(
            f"{source} planned {name} = {value} for attack {contracts.title(attack)}: {reason[:1].lower()}{reason[1:]}"
        ) from error
    if moment.step == 0:  # an accelerator has to be waited for
        contracts.in_range(attack, images)
    if effort.observes:
        true = classes_of(y)
        correct = clean().argmax(dim=1) == true
        if len(rows):
            correct[rows] = clean_logits(model, images[rows]).argmax(dim=1) == true[rows]
        effort.observe(correct)
    return AdversarialBatch(images, plan.kinds.counts() if plan.kinds else {})


def attack_by_plan(
    model: Model,
    x: Tensor,
    y: Tensor,
    noise: Noise,
    plan: Plan,
    *,
    attack: Attack,
    loss: Loss,
    clean: Callable[[], Tensor],
) -> tuple[Tensor, Tensor]:
    """Attacks a batch as planned; returns the images (B, C, H, W), and the rows (k,) of the attacked ones.

    If the attack supports it, all examples form one batch, which each leaves when its steps are done; otherwise those
    with the same steps and step size form a batch each. Either way fewer steps take less time.

    Args:
        model: as for `attack_batch`, like the other arguments.
        x: (B, C, H, W).
        y: (B,).
        noise: keyed by example.
        plan: for these examples.
        attack: whose steps are varied.
        loss: defines the attack's objective.
        clean: returns the clean logits (B, classes).

    Raises:
        UserError: the plan ends an example's attack early, and the attack cannot stop between its steps.
    """
    attack = attack if plan.epsilon is None else attack.with_epsilon(plan.epsilon)
    together = STEPS_BY_EXAMPLE in attack.provides
    early = plan.patience is not None or plan.rise is not None
    if early and not together:
        raise UserError(f"attack {contracts.title(attack)}: no {STEPS_BY_EXAMPLE}, and the effort plans an early end")
    groups = _groups(attack, plan)
    if together and groups and (len(groups) > 1 or early):
        batches = [_in_one(attack, groups, plan, y)]
    else:
        batches = [(rows, partial(_all_alike, varied)) for varied, rows in groups]
    images, attacked = x, []
    for chosen, search in batches:
        # All of a batch is taken as it is, and not copied.
        rows = slice(None) if len(chosen) == len(y) else torch.tensor(chosen, device=x.device)
        objectives = partial(_objective, attack, loss, y[rows], partial(_some, clean, rows))
        candidates = contracts.candidates(attack, search(model, x[rows], objectives, noise[rows]), x[rows])
        if isinstance(rows, slice):
            return candidates, torch.arange(len(y), device=x.device)
        images = x.clone() if images is x else images
        images[rows] = candidates
        attacked.append(rows)
    return images, torch.cat(attacked).sort().values if attacked else torch.zeros(0, dtype=torch.int64, device=x.device)


def _groups(attack: Attack, plan: Plan) -> list[_Group]:
    """Returns the attacks that differ in steps or step size, and the rows of each; none with 0 steps."""
    steps: list[int] = plan.steps.tolist()
    sizes: list[float | None] = [None] * len(steps) if plan.step_size is None else plan.step_size.tolist()
    rows: dict[tuple[int, float | None], list[int]] = {}
    for row, key in enumerate(zip(steps, sizes, strict=True)):
        rows.setdefault(key, []).append(row)
    own = (attack.num_gradient_steps, None)
    varied = [(attack if key == own else attack.with_effort(*key), alike) for key, alike in rows.items()]
    return [(each, alike) for each, alike in varied if each.num_gradient_steps]


def _in_one(attack: Attack, groups: list[_Group], plan: Plan, y: Tensor) -> tuple[list[int], _Search]:
    """Returns the rows of all groups, and their attack as one batch."""
    steps, sizes = torch.zeros(len(y), dtype=torch.int64), torch.zeros(len(y), dtype=torch.float64)
    for varied, alike in groups:
        steps[alike], sizes[alike] = varied.num_gradient_steps, varied.step_size
    rows = steps.nonzero().flatten()
    patience = None if plan.patience is None else plan.patience.cpu()[rows]
    pace = Pace(steps[rows], sizes[rows], patience, classes_of(y)[rows.to(y.device)], plan.rise)
    return rows.tolist(), partial(attack.run_per_example, pace=pace)


def _all_alike(attack: Attack, model: Model, x: Tensor, objectives: Objectives, noise: Noise) -> Tensor:
    """Returns the attacked batch (B, C, H, W)."""
    return attack(model, x, objectives(slice(None)), noise)


def _objective(attack: Attack, loss: Loss, y: Tensor, clean: Callable[[], Tensor], rows: Tensor | slice) -> Objective:
    """Returns what an attack maximises for some rows of a batch."""
    return attack.objective_for(loss, y[rows], partial(_some, clean, rows))


def _some(clean: Callable[[], Tensor], rows: Tensor | slice) -> Tensor:
    """Returns some rows of the lazily computed clean logits."""
    return clean()[rows]
