"""Wide residual networks."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator
from torch import nn

from robustcords.models.base import ModelConfig, OwnModel
from robustcords.models.preact_resnet import PreActNetwork
from robustcords.models.resnet import fill

PRESETS: dict[str, dict[str, Any]] = {
    "wrn-28-10": {"depth": 28, "widen_factor": 10},
    "wrn-34-10": {"depth": 34, "widen_factor": 10},
}
"""Name -> what it stands for, unless an option says otherwise."""


class WideResNet(OwnModel):
    """Wide residual network (Zagoruyko and Komodakis 2016) of pre-activation blocks.

    The stem has 16 channels, the three stages 16, 32 and 64 times the widening factor. TRADES and MART report on
    ``wrn-34-10``; their scripts hold one more stage of weights that no image passes through, which is left out here.
    """

    class Config(ModelConfig):
        """Options of WideResNet.

        Attributes:
            depth: number of layers, 6 n + 4 for n blocks in each stage. Left out, the value of the name; the default is
                that of ``wrn-28-10``.
            widen_factor: ratio of the width to that of a ResNet of width 16. Left out, the value of the name.
            dropout: probability of dropping an activation between a block's convolutions in train mode; drawn from
                torch's global generator.
        """

        name: str = "wrn-28-10"
        depth: Annotated[int, Field(ge=10, le=1000)] = 28
        widen_factor: Annotated[int, Field(ge=1, le=64)] = 10
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

        @model_validator(mode="before")
        @classmethod
        def _fill(cls, values: dict[str, Any]) -> dict[str, Any]:
            return fill(values, PRESETS, "depth")

        @field_validator("depth")
        @classmethod
        def _whole_blocks(cls, depth: int) -> int:
            if (depth - 4) % 6:
                raise ValueError(f"must be 6 n + 4 for n blocks in a stage: 10, 16, 22, 28, 34, ..., not {depth}")
            return depth

    config: WideResNet.Config

    def made_of(self, channels: int, num_classes: int) -> tuple[type[nn.Module], dict[str, Any]]:
        """Returns the network's class, and the arguments that it is made with."""
        blocks = (self.config.depth - 4) // 6
        widths = [16 * self.config.widen_factor * 2**stage for stage in range(3)]
        options = {"stem": 16, "widths": widths, "depths": [blocks] * 3, "dropout": self.config.dropout}
        return PreActNetwork, {"channels": channels, "num_classes": num_classes, **options}
