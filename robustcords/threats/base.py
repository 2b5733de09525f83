"""The base class of threat models: a radius, the ball around an image, and steps within it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import torch
from pydantic import ModelWrapValidatorHandler, field_validator, model_validator
from torch import Tensor

from robustcords.config import registry
from robustcords.config.requirements import L2_DISTANCES, words
from robustcords.config.schema import Radius, Table, rounded_radius
from robustcords.errors import UserError
from robustcords.rng import Noise

_Method = TypeVar("_Method")

if TYPE_CHECKING:

    def _required(method: _Method) -> _Method:
        """Returns a method as it is: ``ThreatModel(norm=...)`` gives a subclass, which no type checker can know."""
        return method
else:
    _required = abstractmethod


class ThreatModel(Table, ABC):
    """The allowed perturbations: ``||delta||_p <= epsilon`` with ``x + delta`` in [0, 1] (Li et al. 2023, Eq. 1).

    ``ThreatModel(norm="l2", epsilon=0.5)`` is the same as ``L2(epsilon=0.5)``: a norm is a subclass, found by the name
    that ``threat.norm`` has in a recipe. Subclasses implement `project`, `ascend` and `uniform_start`.

    Attributes:
        norm: the norm of a perturbation over all pixels and channels of one image: ``"linf"``, ``"l2"``, ``"l1"``,
            ``"l0"`` or ``"package.module:Class"``.
        epsilon: the radius: the largest norm of a perturbation, in pixel space, where 1 is the whole range of a pixel.
        bounds: the range of a pixel. Normalisation is the model's first layer, so this is always [0, 1].
        largest: the largest meaningful radius or step, whatever the size of images.
        autoattack_norm: AutoAttack's name of the norm; None if it does not support it.
        provides: what methods and evaluation attacks may require, in the words of `robustcords.config.requirements`.

    Raises:
        UserError: there is no such norm.

    Example:
        >>> threat = ThreatModel(norm="l2", epsilon=0.5)
    """

    norm: str = ""
    epsilon: Radius = 8 / 255
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    largest: ClassVar[float] = math.inf
    autoattack_norm: ClassVar[str | None] = None
    provides: ClassVar[frozenset[str]] = frozenset()

    def __new__(cls, **values: Any) -> Self:
        """Creates an instance of the subclass that ``norm`` names, unless called on a subclass."""
        return super().__new__(cls._of(values.get("norm", "linf")) if cls is ThreatModel else cls)

    def __init_subclass__(cls, **options: Any) -> None:
        """Clears what describes the base's ball in a class that defines its own."""
        super().__init_subclass__(**options)
        if "project" in vars(cls):
            cls.autoattack_norm = vars(cls).get("autoattack_norm")
            if "provides" not in vars(cls):
                cls.provides = words(cls.provides) - {L2_DISTANCES}

    @classmethod
    def _of(cls, norm: object) -> type[Self]:
        """Returns the class of a norm.

        Raises:
            UserError: there is no such norm.
        """
        subclass = registry.find("threat", norm) if isinstance(norm, str) else None
        if not (isinstance(subclass, type) and issubclass(subclass, cls)):
            raise UserError(f"threat.norm = {norm!r}: not a subclass of robustcords.threats.base:ThreatModel")
        return subclass

    @model_validator(mode="wrap")
    @classmethod
    def _dispatched(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Validates what is given as the base class against the class that its norm names."""
        if cls is ThreatModel and isinstance(values, dict):
            return cls._of(values.get("norm", "linf")).model_validate(values)
        return handler(values)

    @field_validator("norm")
    @classmethod
    def _named(cls, norm: str) -> str:
        path = f"{cls.__module__}:{cls.__qualname__}"
        if norm in registry.names("threat") and registry.names("threat")[norm] != path:
            raise ValueError(f"{norm!r} is the norm of {registry.names('threat')[norm]}, not of {path}")
        return norm or path

    @field_validator("epsilon")
    @classmethod
    def _in_range(cls, epsilon: float) -> float:
        cls.check_radius(epsilon)
        return epsilon

    @classmethod
    def check_radius(cls, value: float) -> None:
        """Checks that a radius exists in this norm and is plausible.

        Raises:
            ValueError: it is not; see `check_length`.
        """
        cls.check_length(value)

    @classmethod
    def check_length(cls, value: float) -> None:
        """Checks that a radius or step is plausible.

        Raises:
            ValueError: it is longer than `largest`, most likely as it was given in levels of 255.
        """
        if value > cls.largest:
            guess = f'; did you mean "{value:.12g}/255"?' if value <= 255 else ""
            raise ValueError(f"{cls.radius_name()} is at most {cls.largest:g}, the whole range of a pixel{guess}")

    @classmethod
    def nearest_radius(cls, value: float) -> float:
        """Returns the valid radius nearest to a computed one, without rounding errors in its digits."""
        return min(rounded_radius(value), cls.largest)

    @classmethod
    def radius_name(cls) -> str:
        """Returns how messages call a radius or step in this norm."""
        return f"a radius or step of {cls.__name__}"

    def with_epsilon(self, epsilon: float) -> Self:
        """Returns the same threat model, its other options included, with another radius."""
        return type(self)(**{**dict(self), "epsilon": epsilon})

    def diameter(self, shape: Sequence[int]) -> float:
        """Returns the distance between an all-black and an all-white image; infinite if unknown.

        Args:
            shape: (C, H, W) of an image.
        """
        del shape
        return math.inf

    @_required
    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Returns the projection of ``x_adv`` onto the allowed set around ``x``.

        Args:
            x_adv: (B, C, H, W) any values.
            x: (B, C, H, W) in [0, 1].
        """
        raise NotImplementedError

    @_required
    def ascend(self, x_adv: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """Returns ``x_adv`` moved by one step of steepest ascent in this norm, not projected.

        Args:
            x_adv: (B, C, H, W).
            gradient: (B, C, H, W) of the attack's objective.
            step_size: length of the step in this norm, in pixel space: one number, or (B, 1, 1, 1) where it differs
                from example to example.
        """
        raise NotImplementedError

    @_required
    def uniform_start(self, x: Tensor, noise: Noise) -> Tensor:
        """Returns (B, C, H, W) points drawn uniformly from the ball around ``x``, inside [0, 1]."""
        raise NotImplementedError

    def random_start(self, kind: str, x: Tensor, noise: Noise) -> Tensor:
        """Returns the point (B, C, H, W) that an attack starts from.

        Args:
            kind: ``"uniform"``, ``"gaussian"`` or ``"signs"``, as `robustcords.losses.objective.Objective` has it;
                ``"none"`` for ``x`` itself.
            x: (B, C, H, W) in [0, 1].
            noise: keyed by example.
        """
        if kind == "none":
            return x
        starts = {"uniform": self.uniform_start, "gaussian": self.gaussian_start, "signs": self.signs_start}
        return starts[kind](x, noise)

    def gaussian_start(self, x: Tensor, noise: Noise, deviation: float = 0.001) -> Tensor:
        """Returns ``x + deviation * N(0, 1)``, projected: the start of TRADES (Zhang et al. 2019) and MART."""
        return self.project(x + deviation * noise.normal(x.shape[1:]).to(x.dtype), x)

    def signs_start(self, x: Tensor, noise: Noise, share: float = 0.5) -> Tensor:
        """Returns ``x`` moved by half the radius up or down in every pixel, projected (Sriramanan et al. 2021)."""
        signs = (noise.uniform(x.shape[1:]) < 0.5).to(x.dtype) * 2 - 1
        return self.project(x + share * self.epsilon * signs, x)


def moved(x: Tensor, delta: Tensor) -> Tensor:
    """Returns ``x + delta`` rounded towards ``x``, so that rounding does not leave the ball.

    Args:
        x: (B, C, H, W) of any floating-point type.
        delta: (B, C, H, W) float64, with ``x + delta`` in [0, 1].
    """
    near = (x.double() + delta).to(x.dtype)
    return torch.where((near.double() - x.double()).abs() > delta.abs(), torch.nextafter(near, x), near)
