"""A curriculum of attack steps (Cai et al. 2018), from outside the package."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from robustcords import Attack, Effort, EffortConfig, Kinds, Moment, Noise, Plan


class Curriculum(Effort):
    """All examples get the same steps, and one more after each validation in which the model is robust enough."""

    class Config(EffortConfig):
        """Options of the curriculum.

        Attributes:
            most: steps that it ends with, >= 1; it begins with one.
            enough: robust accuracy that it goes on at, in [0, 1].
        """

        name: str = "curriculum"
        most: Annotated[int, Field(ge=1)] = 10
        enough: Annotated[float, Field(ge=0, le=1)] = 0.2

    config: "Curriculum.Config"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.steps = 1

    def plan(self, attack: Attack, clean: Callable[[], Tensor], y: Tensor, moment: Moment, generator: Noise) -> Plan:
        """Returns as many steps as there are now; the kinds of examples are those that got so many."""
        names = tuple(f"{number} steps" for number in range(1, self.config.most + 1))
        steps = torch.full((len(y),), self.steps)
        return Plan(steps, kinds=Kinds(names, steps - 1))

    def on_validation(self, result: Mapping[str, float]) -> None:
        """Goes on where the model is robust enough."""
        if result["robust"] >= self.config.enough:
            self.steps = min(self.steps + 1, self.config.most)

    def attacks(self, attack: Attack) -> dict[str, Attack]:
        """Returns the first attack and the last."""
        return {f"{number}-step": attack.with_effort(number) for number in (1, self.config.most)}

    def state_dict(self) -> dict[str, Any]:
        """Returns how far it is."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.steps = state["steps"]
