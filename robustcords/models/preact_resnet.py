"""Residual networks with pre-activation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from robustcords.models.base import ModelConfig, OwnModel, convolution, initialise
from robustcords.models.resnet import Depths, Width, fill, stages

PRESETS: dict[str, dict[str, Any]] = {"preactresnet18": {"width": 64, "depths": (2, 2, 2, 2)}}
"""Name -> what it stands for, unless an option says otherwise."""


class PreActResNet(OwnModel):
    """Pre-activation residual network for small images (He et al. 2016b).

    BatchNorm and ReLU come before each convolution. Shortcuts that change the shape are 1x1 convolutions of the
    activated input, and the last block is followed by BatchNorm and ReLU (their appendix, "Implementation Details").
    """

    class Config(ModelConfig):
        """Options of PreActResNet.

        Attributes:
            width: channels of the first stage; each following stage has twice as many.
            depths: blocks in each stage; every stage but the first halves the height and width.
        """

        name: str = "preactresnet18"
        width: Width = 64
        depths: Depths = (2, 2, 2, 2)

        @model_validator(mode="before")
        @classmethod
        def _fill(cls, values: dict[str, Any]) -> dict[str, Any]:
            return fill(values, PRESETS, "depths")

    config: PreActResNet.Config

    def made_of(self, channels: int, num_classes: int) -> tuple[type[nn.Module], dict[str, Any]]:
        """Returns the network's class, and the arguments that it is made with."""
        width, depths = self.config.width, self.config.depths
        widths = [width * 2**stage for stage in range(len(depths))]
        options = {"stem": width, "widths": widths, "depths": depths}
        return PreActNetwork, {"channels": channels, "num_classes": num_classes, **options}


class PreActBlock(nn.Module):
    """BatchNorm, ReLU and 3x3 convolution, twice, and a shortcut around them.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        stride: of the first convolution and the shortcut.
        dropout: probability of dropping an activation between the convolutions in train mode; drawn from torch's
            global generator.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = convolution(inputs, outputs, 3, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = convolution(outputs, outputs, 3)
        changes = stride != 1 or inputs != outputs
        self.shortcut = convolution(inputs, outputs, 1, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, outputs, H / stride, W / stride)."""
        active = F.relu(self.bn1(x))
        around = x if self.shortcut is None else self.shortcut(active)
        residual: Tensor = self.conv2(self.dropout(F.relu(self.bn2(self.conv1(active)))))
        return around + residual


class PreActNetwork(nn.Module):
    """The network of `PreActResNet` and of wide residual networks.

    Args:
        channels: of the images.
        num_classes: number of logits.
        stem: channels of the first convolution.
        widths: channels of each stage.
        depths: blocks of each stage.
        dropout: see `PreActBlock`.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        stem: int,
        widths: Sequence[int],
        depths: Sequence[int],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.conv1 = convolution(channels, stem, 3)
        self.layers = stages(partial(PreActBlock, dropout=dropout), stem, widths, depths)
        self.bn = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1], num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, classes)."""
        features = F.relu(self.bn(self.layers(self.conv1(x))))
        logits: Tensor = self.fc(features.mean(dim=(2, 3)))
        return logits
