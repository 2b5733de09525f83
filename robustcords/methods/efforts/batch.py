"""From a training batch to its adversarial examples: the effort's plan, the loss's objective, the attack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from pydantic import ValidationError
from torch import Tensor

from robustcords.attacks.base import Attack, CleanLogits, clean_logits
from robustcords.engine import contracts
from robustcords.engine.modes import Model
from robustcords.errors import UserError
from robustcords.losses.base import Loss
from robustcords.losses.check import objective
from robustcords.losses.context import Moment
from robustcords.methods.efforts.base import Effort, Plan
from robustcords.methods.efforts.uniform import Uniform
from robustcords.rng import Noise, derive


@dataclass(frozen=True)
class AdversarialBatch:
    """Adversarial examples and what was learnt about them on the way.

    Attributes:
        images: (B, C, H, W) in [0, 1], inside the threat model.
        counts: how many examples of this process's share were of each kind; empty where the effort does not tell them
            apart.
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
) -> AdversarialBatch:
    """Returns adversarial examples for a process's share of a global batch, and lets the effort learn from them.

    Args:
        model: maps images to logits; run in eval mode and given back in the mode it had.
        x: (B, C, H, W) in [0, 1].
        y: (B,) int64 labels.
        noise: keyed by example.
        attack: what is varied.
        loss: says what the attack maximises.
        effort: decides how hard each example is attacked; None for all alike.
        moment: where training is; None for its beginning.

    Raises:
        UserError: the effort's plan or the attack's images are not what they have to be.
    """
    effort, moment = effort or Uniform(), moment or Moment(0, 0, 0.0)
    clean = CleanLogits(model, x, exact=loss.anchored)
    generator = Noise(derive(noise.seed, "effort"), noise.keys)
    plan = contracts.plan(effort, effort.plan(attack, clean, y, moment, generator), len(y))
    try:
        images, rows = attack_by_plan(model, x, y, noise, plan, attack=attack, loss=loss, clean=clean)
    except ValidationError as error:  # of the attack's own options
        problem = error.errors(include_url=False)[0]
        name, value = ".".join(map(str, problem["loc"])), problem["input"]
        raise UserError(
            f"effort {contracts.title(effort)} planned {name} = {value} for attack {contracts.title(attack)}: "
            f"{problem['msg'][:1].lower()}{problem['msg'][1:]}"
        ) from error
    if moment.step == 0:  # an accelerator has to be waited for
        contracts.in_range(attack, images)
    if effort.observes:
        correct = clean().argmax(dim=1) == y
        if len(rows):
            correct[rows] = clean_logits(model, images[rows]).argmax(dim=1) == y[rows]
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
    """Attacks a batch as planned; returns its images (B, C, H, W), and the rows (k,) of those that were attacked.

    Examples with the same steps and step size are a batch of their own, so that fewer steps take less time.

    Args:
        model: as for `attack_batch`, as are the next three and the attack and loss.
        x: (B, C, H, W).
        y: (B,).
        noise: keyed by example.
        plan: for these examples.
        attack: what is varied.
        loss: says what the attack maximises.
        clean: returns the images' own logits (B, classes).
    """
    made, attacked = x, []
    for number, size, chosen in _alike(plan):
        own = size is None and number == attack.passes
        varied = attack if own else attack.with_effort(number, size)
        if not varied.passes:
            continue
        # All of a batch is taken as it is, and not copied.
        rows = slice(None) if len(chosen) == len(y) else torch.tensor(chosen, device=x.device)
        wanted = objective(loss, y[rows], partial(_some, clean, rows))
        found = contracts.candidates(varied, varied(model, x[rows], wanted, noise[rows]), x[rows])
        if isinstance(rows, slice):
            return found, torch.arange(len(y), device=x.device)
        made = x.clone() if made is x else made
        made[rows] = found
        attacked.append(rows)
    return made, torch.cat(attacked).sort().values if attacked else torch.zeros(0, dtype=torch.int64, device=x.device)


def _some(clean: Callable[[], Tensor], rows: slice | Tensor) -> Tensor:
    """Returns some rows of what is computed when it is first asked for."""
    return clean()[rows]


def _alike(plan: Plan) -> list[tuple[int, float | None, list[int]]]:
    """Returns the steps, the step size and the rows of examples that are attacked alike, in the order of kinds."""
    steps: list[int] = plan.steps.tolist()
    sizes: list[float | None] = [None] * len(steps) if plan.step_size is None else plan.step_size.tolist()
    kinds = plan.kinds.index.tolist() if plan.kinds else steps
    groups: dict[tuple[int, float | None], list[int]] = {}
    for row in sorted(range(len(steps)), key=kinds.__getitem__):
        groups.setdefault((steps[row], sizes[row]), []).append(row)
    return [(number, size, sorted(rows)) for (number, size), rows in groups.items()]
