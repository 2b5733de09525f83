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

    Parameters get no gradient. None is computed for them either: not by eager models, and inside a call of an `Attack`
    not by compiled ones.

    Args:
        model: as `Model`.
        objective: of the logits, which are handed over in float32 whatever precision the model runs in.
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
    """Returns (B, classes) float32 logits of the images as they are, in eval mode and without a graph.

    Args:
        model: as `Model`.
        x: (B, C, H, W) in [0, 1].
        exact: compute in float32, as for an objective that compares with them: the first step of an attack sees little
            but the difference of two passes' rounding otherwise.
    """
    with in_float32(model, x.device) if exact else nullcontext(model) as run, evaluation_mode(run), torch.no_grad():
        return full_precision(run(x))


class CleanLogits:
    """The logits of images as they are, for `robustcords.losses.base.Loss.objective`: computed when first asked for.

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

    Subclasses write `search`, and `search_each` too where each example may have steps of its own: those provide
    `robustcords.config.requirements.STEPS_BY_EXAMPLE`. Calling an attack keeps these promises:

    the result is inside the ball (unless ``contained`` is False) and inside [0, 1]; it carries no graph; the model's
    train and eval modes, its BatchNorm buffers and its parameters' ``.grad`` and ``requires_grad`` are what they were,
    and no gradient of a parameter is computed; the same noise gives the same result; at epsilon 0 and for an empty
    batch the result is the input.

    Args:
        threat: the allowed perturbations.
        options: the fields of the attack's ``Config``.

    Attributes:
        contained: whether the result is projected onto the ball. An attack that trains with more, such as N-FGSM, says
            False; evaluation refuses it.
    """

    contained: ClassVar[bool] = True

    def __init__(self, threat: ThreatModel, **options: Any) -> None:
        super().__init__(**options)
        self.threat, self.config = threat, self.resolved(self.config, threat)

    def __init_subclass__(cls, **options: Any) -> None:
        """Has a search of its own stand for a base's `search_each` only where the class writes that too."""
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
            return self._kept(self.search(model, x.detach().clone(), objective, noise), x)

    def run_per_example(self, model: Model, x: Tensor, objectives: Objectives, noise: Noise, pace: Pace) -> Tensor:
        """Returns what calling returns for examples (B, C, H, W) one by one, each with steps of its own.

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
            return self._kept(self.search_each(model, x.detach().clone(), objectives, noise, pace), x)

    def _kept(self, found: Any, x: Tensor) -> Tensor:
        """Returns what a search found for images (B, C, H, W), inside the ball and [0, 1]."""
        found = contracts.candidates(self, found, x)
        return (self.threat.project(found, x) if self.contained else found.clamp(*self.threat.bounds)).detach()

    def objective_for(self, loss: Loss, y: Tensor, clean: Callable[[], Tensor]) -> Objective:
        """Returns what to maximise on a batch: here what the loss says.

        Args:
            loss: the training loss.
            y: (B,) int64 labels.
            clean: gives (B, classes) logits of the images as they are, as for `Loss.objective`.
        """
        return objective(loss, y, clean)

    def prepare(self, train: Images, device: torch.device) -> None:
        """Receives, before training, what is trained on, and where. One that keeps something per image makes room.

        Args:
            train: the training split; `Noise.keys` are its ``numbers``.
            device: where batches are.
        """

    def training_step(self, moment: Moment, geometry: Geometry | None) -> AbstractContextManager[None]:
        """Returns a block in which training examples are attacked, once a batch, in all processes at the same time.

        An attack that keeps something from one epoch to the next keeps it then, and in its `state_dict`; calls outside
        of such blocks, as of a selection, change nothing.

        Args:
            moment: where training is.
            geometry: where the augmentation has moved pixels; None where that cannot be said. An attack that needs it
                requires `robustcords.config.requirements.GEOMETRY`.
        """
        del moment, geometry
        return nullcontext()

    @property
    def total_step_length(self) -> float | None:
        """How far all steps together can move an image, in the threat's norm; None where that is not known."""
        return None

    @property
    @abstractmethod
    def num_gradient_steps(self) -> int:
        """How many forward and backward passes one call takes; 0 leaves the images as they are."""

    @abstractmethod
    def search(self, model: Model, x: Tensor, objective: Objective, noise: Noise) -> Tensor:
        """Returns candidates (B, C, H, W), which the caller projects once more."""

    def search_each(self, model: Model, x: Tensor, objectives: Objectives, noise: Noise, pace: Pace) -> Tensor:
        """Returns candidates (B, C, H, W) for examples with steps of their own, as `Remaining` keeps them apart.

        An attack that has this has a ``step_size`` too, which `with_effort` gives it.
        """
        raise NotImplementedError

    @abstractmethod
    def with_effort(self, steps: int, step_size: float | None = None) -> Attack:
        """Returns the same attack with another number of steps, and a step size given or following from that number.

        This is what an effort varies from example to example. 0 steps return the image unchanged. An attack that
        has no steps to vary (a single-step one) returns itself for any other number.
        """

    def with_epsilon(self, epsilon: float) -> Attack:
        """Returns the same attack at another radius, its step size and all radii among its options in proportion.

        It is built as a recipe builds it, of a threat model and its options; an attack that takes more writes this.

        Raises:
            UserError: the attack keeps something from epoch to epoch, which is of one radius.
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
        """One sentence where the steps together cannot cross the radius, and so leave part of the ball unseen."""
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
    """Returns the step size with which so many steps go 2.5 times as far as the radius (Madry et al. 2018).

    With 10 steps that is a quarter of the radius: 2/255 at 8/255, as in Li et al. 2023. Under l-infinity it is at most
    1, which crosses everything.

    Args:
        threat: norm and radius.
        steps: that are taken; none counts as one.
        radii: how far all steps go together, in radii.
    """
    size = rounded_radius(radii * threat.epsilon / max(1, steps))
    return min(size, threat.largest)
