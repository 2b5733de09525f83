"""A callback: the length of all weights together after every epoch, and how many steps led there."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from robustcords import Callback, ComponentConfig, EpochEnd


class WeightNorm(Callback):
    """Notes the l2 norm of the weights."""

    class Config(ComponentConfig):
        """Its options.

        Attributes:
            every: epochs from one note to the next.
        """

        every: Annotated[int, Field(ge=1)] = 1

    config: WeightNorm.Config

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.steps = 0

    def after_step(self, loss: float, model: Any) -> None:
        """Counts."""
        self.steps += 1

    def after_epoch(self, end: EpochEnd) -> dict[str, float] | None:
        """Returns the norm and the count."""
        if (end.epoch + 1) % self.config.every:
            return None
        norm = sum(float(weight.square().sum()) for weight in end.model.parameters()) ** 0.5
        return {"norm": norm, "steps": self.steps}

    def state_dict(self) -> dict[str, int]:
        """Returns the count."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Takes the count back."""
        self.steps = state["steps"]
