"""ATAS: FGSM from stored perturbations, with a step size for each example."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from robustcords.attacks.base import default_step_size, first_gradient
from robustcords.attacks.gradient import GradientAttackConfig
from robustcords.attacks.perturbations import Perturbations, Stored
from robustcords.attacks.single_step import SingleStepAttack
from robustcords.config.requirements import GEOMETRY, ONE_RADIUS
from robustcords.config.schema import Positive, Radius, filled_in, format_radius, with_defaults
from robustcords.data.augmentations.geometry import Geometry
from robustcords.data.images import Images
from robustcords.engine.contracts import title
from robustcords.engine.modes import Model
from robustcords.errors import UserError
from robustcords.losses.context import Moment
from robustcords.losses.objective import Objective
from robustcords.rng import Noise
from robustcords.threats.base import ThreatModel


class ATAS(SingleStepAttack):
    """ATAS: one step from the perturbation of the last epoch, shorter where gradients are long (Huang et al. 2023).

    For each example, with g the gradient at its start, ``v <- decay * v + (1 - decay) * ||g||_2^2`` and the step is
    ``step_size / (1 + sqrt(v) / scale)``, at least ``smallest_step`` and at most ``largest_step``. Perturbations move
    with the augmentation's crop and flip. They are drawn anew, uniform in the ball, every ``redraw_every`` epochs; in
    the first ``warmup`` epochs steps are epsilon, and v stays 0. https://arxiv.org/abs/2206.02417

    Outside of training steps, as in a selection or a callback, the stored perturbations are neither read nor written:
    an example starts from a uniform draw, and v is the squared length of its gradient there.

    Example:
        >>> method = AdversarialTraining(SAT(), ATAS(threat))
    """

    class Config(GradientAttackConfig):
        """Options of ATAS.

        Attributes:
            step_size: length of the step where the gradient is zero, in the threat's norm; left out, 2 epsilon.
            scale: gradient length of an example's own loss at which the step is half of ``step_size``. The authors'
                0.01 refers to the mean loss over a batch of 128, for which 1.28 is the same.
            smallest_step: lower limit of the step; left out, epsilon / 2.
            largest_step: upper limit of the step; left out, 1.75 epsilon.
            decay: how much of the running mean of the gradient's squared length is kept from epoch to epoch.
            redraw_every: number of epochs between random starts.
            warmup: number of epochs, at the beginning, in which every step is epsilon.
        """

        name: str = "atas"
        step_size: Radius | None = None
        scale: Positive = 1.28
        smallest_step: Radius | None = None
        largest_step: Radius | None = None
        decay: Annotated[float, Field(ge=0, lt=1)] = 0.5
        redraw_every: Annotated[int, Field(ge=1)] = 10
        warmup: Annotated[int, Field(ge=0)] = 5

        @model_validator(mode="after")
        def _in_order(self) -> Self:
            smallest, largest = self.smallest_step, self.largest_step
            if smallest is not None and largest is not None and smallest > largest:
                raise ValueError(f"smallest_step = {format_radius(smallest)} is longer than largest_step")
            return self

    requires: ClassVar[frozenset[str]] = frozenset({GEOMETRY, ONE_RADIUS})
    config: ATAS.Config

    def __init__(self, threat: ThreatModel, **options: Any) -> None:
        super().__init__(threat, **options)
        self.stored: Perturbations | None = None

    @classmethod
    def resolved(cls, config: ATAS.Config, threat: ThreatModel) -> ATAS.Config:
        """Returns the options with step sizes."""
        radii = {"step_size": 2.0, "smallest_step": 0.5, "largest_step": 1.75}
        return with_defaults(config, **{key: default_step_size(threat, 1, value) for key, value in radii.items()})

    def prepare(self, train: Images, device: torch.device) -> None:
        """Allocates the perturbations of all training images.

        Raises:
            UserError: there is not enough memory.
        """
        self.stored = Perturbations(title(self), train, device)

    @contextmanager
    def training_step(self, moment: Moment, geometry: Geometry | None) -> Iterator[None]:
        """Context that reads the stored perturbations and writes them back on exit.

        Raises:
            UserError: there is no geometry, or `prepare` has not been called.
        """
        if geometry is None or self.stored is None:
            missing = "the batch's geometry" if geometry is None else "a call of prepare(train, device) before training"
            raise UserError(f"attack {title(self)} keeps perturbations, for which it needs {missing}")
        self.stored.begin(moment, geometry)
        try:
            yield
        except BaseException:
            self.stored.abandon()
            raise
        self.stored.end()

    def search(self, model: Model, x: Tensor, objective: Objective, noise: Noise) -> Tensor:
        """Returns the images after the one step."""
        start = self.threat.uniform_start(x, noise)
        if self.stored is None or self.stored.moment is None:
            gradient, squared = self._gradient(model, objective, start)
            return self.threat.ascend(start, gradient, self._step(squared))
        epoch, every = self.stored.moment.epoch, self.config.redraw_every
        stored, geometry = self.stored.of(noise.keys)
        anew = (stored.epoch // every != epoch // every).view(-1, 1, 1, 1)
        start = torch.where(anew, start, self.threat.project(x + geometry.apply(stored.delta), x))
        gradient, squared = self._gradient(model, objective, start)
        warm = epoch < self.config.warmup
        value = stored.value if warm else torch.lerp(squared, stored.value, self.config.decay)
        step = self.threat.epsilon if warm else self._step(value)
        x_adv = self.threat.project(self.threat.ascend(start, gradient, step), x)
        # Pixels outside the crop keep their perturbation, unless it is redrawn.
        delta = geometry.undo(x_adv - x, into=torch.where(anew, 0.0, stored.delta))
        self.stored.note(Stored(stored.rows, delta, value, torch.full_like(stored.epoch, epoch)))
        return x_adv

    def state_dict(self) -> dict[str, Any]:
        """Returns the perturbations, the running squared gradient norms, and the epoch of each one's last attack."""
        return self.stored.state_dict() if self.stored else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        if self.stored:
            self.stored.load_state_dict(state)

    def _gradient(self, model: Model, objective: Objective, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the gradient (B, C, H, W) and its squared norm (B,); 0 where float16 overflowed."""
        gradient = first_gradient(model, objective, x).nan_to_num(0.0, 0.0, 0.0)
        return gradient, gradient.flatten(1).square().sum(dim=1)

    def _step(self, squared: Tensor) -> Tensor:
        """Returns step sizes (B, 1, 1, 1) for running squared gradient norms (B,)."""
        config = self.config
        size = filled_in(config.step_size) / (1 + squared.sqrt() / config.scale)
        return size.clamp(config.smallest_step, config.largest_step).view(-1, 1, 1, 1)
