"""The base class of attacks: the template that enforces their invariants, and how they request a gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustcords.attacks.pace import Objectives, Pace
from robustcords.config import registry
from robustcords.config.requirements import STEPS_BY_EXAMPLE, words
from robustcords.config.schema import Component, Stateful, format_radius, is_radius, rounded_radius
from robustcords.data.augmentations.geometry import Geometry
from robustcords.data.images import Images
from robustcords.engine import contracts
from robustcords.engine.modes import Model, evaluation_mode, in_float32, without_parameter_gradients
from robustcords.engine.precision import full_precision
from robustcords.errors import UserError
from robustcords.losses.base import Loss
from robustcords.losses.check import objective
from robustcords.losses.context import Moment
from robustcords.losses.objective import Objective
from robustcords.rng import Noise
from robustcords.threats.base import ThreatModel


def logits_and_gradient(model: Model, objective: Objective, x: Tensor, *, first: bool) -> tuple[Tensor, Tensor]:
    """Returns the logits (B, classes) at x, without a graph, and d(sum of objective)/dx, (B, C, H, W).

    No gradient of a parameter is accumulated, nor computed by eager models; inside a call of an `Attack` compiled
    models compute none either.

    Args:
        model: as `Model`.
        objective: of the logits, which it gets in float32 whatever precision the model runs in.
        x: (B, C, H, W).
        first: whether it is the point that an attack starts from, which takes float32 where the objective is
            `Objective.relative_to_clean`.
    """
    x = x.detach().requires_grad_()
    exact = first and objective.relative_to_clean
    with in_float32(model, x.device) if exact else nullcontext(model) as run:
        with torch.enable_grad():
            logits = full_precision(run(x))
            total = objective.value(logits).sum()
        return logits.detach(), torch.autograd.grad(total, x)[0]


def input_gradient(model: Model, objective: Objective, x: Tensor) -> Tensor:
    """Returns d(sum of objective)/dx, (B, C, H, W); see `logits_and_gradient`."""
    return logits_and_gradient(model, objective, x, first=False)[1]


def first_gradient(model: Model, objective: Objective, x: Tensor) -> Tensor:
    """Returns `input_gradient` at the point that an attack starts from; see `logits_and_gradient`."""
    return logits_and_gradient(model, objective, x, first=True)[1]


def clean_logits(model: Model, x: Tensor, *, exact: bool = False) -> Tensor:
    """Returns (B, classes) float32 logits of clean images, in eval mode and without a graph.

    Args:
        model: as `Model`.
        x: (B, C, H, W) in [0, 1].
        exact: compute in float32, for an objective that compares with them; otherwise the first step of an attack would
            mostly see the difference of two passes' rounding.
    """
    with in_float32(model, x.device) if exact else nullcontext(model) as run, evaluation_mode(run), torch.no_grad():
        return full_precision(run(x))


class CleanLogits:
    """Lazily computed logits of clean images, for `robustcords.losses.base.Loss.objective`.

    Args:
        model: as `Model`.
        x: (B, C, H, W) in [0, 1].
        exact: as for `clean_logits`.

    Example:
        >>> x_adv = attack(model, x, loss.objective(y, CleanLogits(model, x)), noise)
    """

    def __init__(self, model: Model, x: Tensor, *, exact: bool = True) -> None:
        self.model, self.x, self.exact = model, x, exact
        self._logits: Tensor | None = None

    def __call__(self) -> Tensor:
        """Returns (B, classes) float32 logits in eval mode, without a graph; the same tensor every time."""
        if self._logits is None:
            self._logits = clean_logits(self.model, self.x, exact=self.exact)
        return self._logits


class Attack(Component, Stateful, ABC):
    """Finds a perturbation inside a threat model.

    Subclasses implement `search`, and `search_each` if the number of steps may differ from example to example: those
    provide `robustcords.config.requirements.STEPS_BY_EXAMPLE`. Calling an attack guarantees:

    the result is inside the ball (unless ``contained`` is False) and inside [0, 1]; it carries no graph; the model's
    train and eval modes, its BatchNorm buffers and its parameters' ``.grad`` and ``requires_grad`` are unchanged, and
    no gradient of a parameter is computed; the same noise gives the same result; at epsilon 0 and for an empty batch
    the result is the input.

    Args:
        threat: the allowed perturbations.
        options: the fields of the attack's ``Config``.

    Attributes:
        contained: whether the result is projected onto the ball. False for a training attack that leaves it, such as
            N-FGSM; evaluation refuses these.
    """

    contained: ClassVar[bool] = True

    def __init__(self, threat: ThreatModel, **options: Any) -> None:
        super().__init__(**options)
        self.threat, self.config = threat, self.resolved(self.config, threat)

    def __init_subclass__(cls, **options: Any) -> None:
        """Drops an inherited `search_each` from what is provided where the class overrides `search` alone."""
        super().__init_subclass__(**options)
        if {"search", "__call__", "with_effort"} & vars(cls).keys() and "search_each" not in vars(cls):
            cls.provides = words(cls.provides) - {STEPS_BY_EXAMPLE}

    def __call__(self, model: Model, x: Tensor, objective: Objective, noise: Noise) -> Tensor:
        """Returns adversarial examples (B, C, H, W) of the dtype and device of ``x``.

        Args:
            model: as `Model`; run in eval mode.
            x: (B, C, H, W) in [0, 1].
            objective: what to maximise; it knows the batch's labels.
            noise: for random starts, keyed by example.
        """
        if len(x) == 0 or self.threat.epsilon == 0 or self.num_gradient_steps == 0:
            return x.detach()
        with evaluation_mode(model), without_parameter_gradients(model):
            return self._projected(self.search(model, x.detach().clone(), objective, noise), x)

    def run_per_example(self, model: Model, x: Tensor, objectives: Objectives, noise: Noise, pace: Pace) -> Tensor:
        """Attacks a batch (B, C, H, W) in which each example has its own number of steps; otherwise like calling.

        Args:
            model: as for calling, as are the images and the noise.
            x: (B, C, H, W) in [0, 1].
            objectives: what to maximise, for any rows of the batch.
            noise: for random starts, keyed by example.
            pace: the steps of each example, in place of the attack's own.
        """
        if len(x) == 0 or self.threat.epsilon == 0:
            return x.detach()
        with evaluation_mode(model), without_parameter_gradients(model):
            return self._projected(self.search_each(model, x.detach().clone(), objectives, noise, pace), x)

    def _projected(self, candidates: Any, x: Tensor) -> Tensor:
        """Returns the candidates for images (B, C, H, W), projected onto the ball and [0, 1]."""
        candidates = contracts.candidates(self, candidates, x)
        x_adv = self.threat.project(candidates, x) if self.contained else candidates.clamp(*self.threat.bounds)
        return x_adv.detach()

    def objective_for(self, loss: Loss, y: Tensor, clean: Callable[[], Tensor]) -> Objective:
        """Returns what to maximise on a batch; by default the loss's objective.

        Args:
            loss: the training loss.
            y: (B,) int64 labels.
            clean: returns (B, classes) logits of the clean images, as for `Loss.objective`.
        """
        return objective(loss, y, clean)

    def prepare(self, train: Images, device: torch.device) -> None:
        """Called before training with the training set; an attack with state per image allocates it here.

        Args:
            train: the training split; `Noise.keys` are its ``numbers``.
            device: of the batches.
        """

    def training_step(self, moment: Moment, geometry: Geometry | None) -> AbstractContextManager[None]:
        """Context around the attack on a training batch, entered once a batch by all processes together.

        An attack with state from epoch to epoch updates it here, and saves it in its `state_dict`; calls outside of
        this context, as in a selection, leave the state alone.

        Args:
            moment: where training is.
            geometry: where the augmentation moved pixels; None if it is unknown. An attack that needs it requires
                `robustcords.config.requirements.GEOMETRY`.
        """
        del moment, geometry
        return nullcontext()

    @property
    def total_step_length(self) -> float | None:
        """The most that all steps together move an image, in the threat's norm; None if unknown."""
        return None

    @property
    @abstractmethod
    def num_gradient_steps(self) -> int:
        """Number of forward and backward passes of one call; with 0 the images are returned unchanged."""

    @abstractmethod
    def search(self, model: Model, x: Tensor, objective: Objective, noise: Noise) -> Tensor:
        """Returns candidates (B, C, H, W), which the caller projects again."""

    def search_each(self, model: Model, x: Tensor, objectives: Objectives, noise: Noise, pace: Pace) -> Tensor:
        """Returns candidates (B, C, H, W) where the number of steps differs by example; see `Remaining`.

        Such an attack has a ``step_size`` attribute too, which `with_effort` sets.
        """
        raise NotImplementedError

    @abstractmethod
    def with_effort(self, steps: int, step_size: float | None = None) -> Attack:
        """Returns the same attack with another number of steps, and a step size that is given or follows from it.

        Efforts vary these from example to example. 0 steps return the image unchanged. A single-step attack returns
        itself for any other number.
        """

    def with_epsilon(self, epsilon: float) -> Attack:
        """Returns the same attack at another radius, with its step size and all radii among its options scaled alike.

        It is built from a threat model and its options, as from a recipe; an attack that takes more overrides this.

        Raises:
            UserError: the attack stores perturbations from epoch to epoch, which are of one radius.
        """
        if epsilon == self.threat.epsilon:
            return self
        if type(self).state_dict is not Stateful.state_dict:
            name = contracts.title(self)
            raise UserError(
                f"attack {name} keeps perturbations of one radius, and the effort varies it; use pgd or fgsm"
            )
        threat, config = self.threat.with_epsilon(epsilon), type(self.config)
        options = dict(self.config)
        for key, field in config.model_fields.items():
            if isinstance(options[key], float) and is_radius(field.annotation, field.metadata):
                options[key] *= epsilon / self.threat.epsilon
        varied: Attack = registry.constructed("attack", type(self), threat, **options)
        return varied

    @property
    def falls_short(self) -> str | None:
        """A warning if the steps together are shorter than the radius, and leave part of the ball out; else None."""
        length, epsilon, steps = self.total_step_length, self.threat.epsilon, self.num_gradient_steps
        if not steps or length is None or length >= epsilon * (1 - 1e-9):
            return None
        size = format_radius(rounded_radius(length / steps))
        return (
            f"its {steps} step{'s' if steps > 1 else ''} of {size} "
            f"move an image by {length:.3g} at most, less than the radius {format_radius(epsilon)}; steps of "
            f"{format_radius(default_step_size(self.threat, steps))} would do"
        )


def default_step_size(threat: ThreatModel, steps: int, radii: float = 2.5) -> float:
    """Returns the step size whose total length is 2.5 times the radius (Madry et al. 2018).

    With 10 steps that is a quarter of the radius: 2/255 at 8/255, as in Li et al. 2023. It is at most
    `ThreatModel.largest`.

    Args:
        threat: norm and radius.
        steps: number of steps; 0 counts as 1.
        radii: total length of all steps, in radii.
    """
    size = rounded_radius(radii * threat.epsilon / max(1, steps))
    return min(size, threat.largest)
