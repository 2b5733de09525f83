"""The base class of models: normalisation first, reproducible initial weights, and construction."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from robustcords import rng
from robustcords.config.schema import Component, ComponentConfig
from robustcords.engine.inference import Inference
from robustcords.errors import UserError

Statistics = Sequence[float] | Tensor
"""One number per channel, (C,)."""

ImageSize = tuple[int, int]
"""Height and width of the images in pixels."""


class Normalize(nn.Module):
    """``(x - mean) / std`` per channel: the first layer of every model, so that attacks see pixels in [0, 1].

    Args:
        mean: (C,) in pixel space.
        std: (C,) in pixel space, > 0.

    Raises:
        UserError: a standard deviation is 0, negative or not finite.
        ValueError: ``mean`` and ``std`` differ in length.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Statistics, std: Statistics) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).detach().clone())
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).detach().clone())
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape:
            raise ValueError(f"mean and std need one number per channel: {self.mean.shape} and {self.std.shape}")
        for channel, deviation in enumerate(self.std.tolist()):
            if not (deviation > 0 and math.isfinite(deviation)):
                raise UserError(f"channel {channel} of the images has standard deviation {deviation}; it must be > 0")

    def forward(self, x: Tensor) -> Tensor:
        """Returns normalised images (B, C, H, W)."""
        return (x - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)


class Classifier(nn.Module):
    """Images (B, C, H, W) in [0, 1] to logits (B, classes): ``normalize``, then ``network``.

    Args:
        normalize: the first layer.
        network: normalised images to logits.
        name: in the recipe; left out, the network's class.
    """

    def __init__(self, normalize: Normalize, network: nn.Module, name: str = "") -> None:
        super().__init__()
        self.normalize = normalize
        self.network = network
        self.name = name or type(network).__name__

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, classes)."""
        logits: Tensor = self.network(self.normalize(x))
        return logits


def name_of(model: nn.Module) -> str:
    """Returns a model's name in messages: that of the recipe, else its class, without wrappers."""
    while isinstance(model, Inference):
        model = model.model
    return f"model {model.name if isinstance(model, Classifier) else type(model).__name__!r}"


class ModelConfig(ComponentConfig):
    """Options of every model: its name."""


class ModelSource(Component, ABC):
    """A kind of model that a recipe names. Subclasses implement `network`; `build` does the rest."""

    Config = ModelConfig
    config: ModelConfig

    def build(
        self,
        channels: int,
        image_size: int | ImageSize,
        num_classes: int,
        mean: Statistics,
        std: Statistics,
        seed: int,
    ) -> Classifier:
        """Returns the model on the CPU, in train mode. The same seed gives the same weights.

        Global random states are unchanged.

        Args:
            channels: of the images, >= 1.
            image_size: (height, width) of the images in pixels; one number for square ones.
            num_classes: number of logits, >= 2.
            mean: (channels,) mean of the training pixels.
            std: (channels,) standard deviation of the training pixels, > 0.
            seed: the run's seed.

        Raises:
            UserError: the model cannot be built for such images.
            ValueError: ``mean`` does not have one number per channel.
        """
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.refuse_too_large(channels, size, num_classes)
        # The default generator alone is seeded: torch.manual_seed would reseed the accelerators' as well.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(rng.derive(seed, "weights"))
            network = self.network(channels, size, num_classes)
            normalize = Normalize(*self.statistics(network, mean, std))
        if len(normalize.mean) != channels:
            raise ValueError(f"mean and std have {len(normalize.mean)} numbers for images of {channels} channels")
        return Classifier(normalize, network, self.config.name)

    def refuse_too_large(self, channels: int, image_size: ImageSize, num_classes: int) -> None:
        """Checks that the weights fit into memory, if that can be determined without allocating them."""
        del channels, image_size, num_classes

    @abstractmethod
    def network(self, channels: int, image_size: ImageSize, num_classes: int) -> nn.Module:
        """Returns the module from normalised images (B, C, H, W) to logits (B, classes), freshly initialised.

        Args:
            channels: C, >= 1.
            image_size: (H, W) in pixels.
            num_classes: >= 2.
        """

    def statistics(self, network: nn.Module, mean: Statistics, std: Statistics) -> tuple[Statistics, Statistics]:
        """Returns the mean and standard deviation for normalisation: by default the data's.

        Networks with pretrained weights return those of their training.
        """
        del network
        return mean, std


class OwnModel(ModelSource):
    """A model whose network is implemented in this package."""

    @abstractmethod
    def made_of(self, channels: int, num_classes: int) -> tuple[type[nn.Module], dict[str, Any]]:
        """Returns the network's class, and the arguments that it is made with.

        Args:
            channels: of the images.
            num_classes: number of logits.
        """

    def network(self, channels: int, image_size: ImageSize, num_classes: int) -> nn.Module:
        """Returns the network; it takes images of any size."""
        del image_size
        kind, arguments = self.made_of(channels, num_classes)
        return kind(**arguments)

    def refuse_too_large(self, channels: int, image_size: ImageSize, num_classes: int) -> None:
        """Checks the weights' size on torch's meta device, which allocates no memory.

        Raises:
            UserError: they need more memory than the machine has.
        """
        try:
            with torch.device("meta"):
                network = self.network(channels, image_size, num_classes)
            size = sum(value.nbytes for value in network.state_dict().values())
        except (RuntimeError, OverflowError, TypeError):  # sizes beyond 64 bits
            size = 2**63
        memory = psutil.virtual_memory().total
        if size > memory:
            needs = f"{size / 2**30:,.0f} GiB" if size < 2**63 else "more than 64 bits can count"
            raise UserError(
                f"model {self.config.name!r}: the weights need {needs}, and this machine has {memory / 2**30:,.0f} GiB"
            )


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Returns a convolution that keeps the image size at stride 1 and has no bias, as BatchNorm follows it."""
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


def initialise(network: nn.Module) -> None:
    """Draws convolution weights from ``N(0, 2 / fan_out)`` (He et al. 2015, section 2.2) and zeroes linear biases.

    The rest keeps torch's defaults: BatchNorm starts at scale 1 and shift 0, linear weights are uniform in
    ``+-1 / sqrt(inputs)``.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


def reason(error: BaseException) -> str:
    """Returns an exception's type and the first line of its message, for a one-line error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def described(channels: int, image_size: ImageSize) -> str:
    """Returns a description of the images for messages, such as ``"images of 3 x 32 x 64"``."""
    return f"images of {channels} x {image_size[0]} x {image_size[1]}"
