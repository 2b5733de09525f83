"""Residual networks for small images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from robustcords.models.base import ModelConfig, OwnModel, convolution, initialise

Depths = Annotated[tuple[Annotated[int, Field(ge=1, le=200)], ...], Field(min_length=1, max_length=6, strict=False)]
"""Number of blocks in each stage; a list in a recipe."""

Width = Annotated[int, Field(ge=1, le=1024)]
"""Channels of the first stage."""

PRESETS: dict[str, dict[str, Any]] = {
    **{f"resnet{6 * blocks + 2}": {"width": 16, "depths": (blocks,) * 3} for blocks in (1, 2, 3, 5, 9)},
    "resnet10": {"width": 64, "depths": (1, 1, 1, 1)},
    "resnet18": {"width": 64, "depths": (2, 2, 2, 2)},
    "resnet34": {"width": 64, "depths": (3, 4, 6, 3)},
}
"""Name -> what it stands for, unless an option says otherwise."""


class ResNet(OwnModel):
    """Residual network for small images (He et al. 2016): 3x3 stem, no max-pooling, basic blocks.

    ``resnet8``, ``14``, ``20``, ``32`` and ``56`` are the paper's CIFAR networks (section 4.2: three stages, width 16).
    ``resnet10``, ``18`` and ``34`` have the stages of its ImageNet networks (four, width 64) behind the small stem, as
    in TRADES' and MART's scripts. Where a block changes the shape its shortcut is a 1x1 convolution with BatchNorm.
    """

    class Config(ModelConfig):
        """Options of ResNet.

        Attributes:
            width: channels of the first stage; each following stage has twice as many. Left out, the value of the name;
                the default is that of ``resnet18``.
            depths: blocks in each stage; every stage but the first halves the height and width. Left out, the value of
                the name; the default is that of ``resnet18``.
        """

        name: str = "resnet18"
        width: Width = 64
        depths: Depths = (2, 2, 2, 2)

        @model_validator(mode="before")
        @classmethod
        def _fill(cls, values: dict[str, Any]) -> dict[str, Any]:
            return fill(values, PRESETS, "depths")

    config: ResNet.Config

    def made_of(self, channels: int, num_classes: int) -> tuple[type[nn.Module], dict[str, Any]]:
        """Returns the network's class, and the arguments that it is made with."""
        options = {"width": self.config.width, "depths": self.config.depths}
        return ResNetNetwork, {"channels": channels, "num_classes": num_classes, **options}


def fill(values: dict[str, Any], presets: dict[str, dict[str, Any]], needed: str) -> dict[str, Any]:
    """Returns a model table's values, completed with what its name stands for.

    Args:
        values: as the user wrote them.
        presets: name -> options.
        needed: the option without which a name outside ``presets`` has no meaning.

    Raises:
        ValueError: the name is not a preset's and the needed option is missing.
    """
    name = values.get("name", next(iter(presets)))
    if name not in presets and needed not in values:
        raise ValueError(f"{name!r} is not one of {', '.join(presets)}: {needed} must be given")
    return {**presets.get(name, {}), **values}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, and a shortcut around them.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        stride: of the first convolution and the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = convolution(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, outputs, H / stride, W / stride)."""
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(residual + self.shortcut(x))


def stages(
    block: Callable[[int, int, int], nn.Module], inputs: int, widths: Sequence[int], depths: Sequence[int]
) -> nn.Sequential:
    """Returns stages of blocks; the first block of every stage but the first has stride 2.

    Args:
        block: built as ``block(inputs, outputs, stride)``.
        inputs: channels that come in.
        widths: channels of each stage.
        depths: blocks of each stage.
    """
    built = []
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        first = block(inputs, width, 2 if stage else 1)
        built.append(nn.Sequential(first, *(block(width, width, 1) for _ in range(depth - 1))))
        inputs = width
    return nn.Sequential(*built)


class ResNetNetwork(nn.Module):
    """The network of `ResNet`.

    Args:
        channels: of the images.
        num_classes: number of logits.
        width: channels of the first stage.
        depths: blocks of each stage.
    """

    def __init__(self, channels: int, num_classes: int, width: int, depths: Sequence[int]) -> None:
        super().__init__()
        widths = [width * 2**stage for stage in range(len(depths))]
        self.conv1 = convolution(channels, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.layers = stages(BasicBlock, width, widths, depths)
        self.fc = nn.Linear(widths[-1], num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, classes)."""
        features = self.layers(F.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(features.mean(dim=(2, 3)))
        return logits
