"""Classifiers of torchvision and timm."""

from __future__ import annotations

import difflib
import importlib
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn

from robustcords.errors import UserError
from robustcords.models.base import ImageSize, ModelConfig, ModelSource, Statistics, described, reason
from robustcords.models.last_layer import find_head
from robustcords.models.outputs import as_classifier


class ExternalModel(ModelSource):
    """A classifier of another library.

    Attributes:
        prefix: of its names.
        package: to install.
        hint: how to install it.

    Raises:
        UserError: the name is not one of the library's, or the library is missing.
    """

    class Config(ModelConfig):
        """Options of torchvision's and timm's models.

        Attributes:
            pretrained: start from the library's published weights, which are downloaded once, and use the normalisation
                they were trained with if images have 3 channels. The linear head is new unless the number of classes is
                the same.
        """

        pretrained: bool = False

    config: ExternalModel.Config
    prefix: ClassVar[str]
    package: ClassVar[str]
    hint: ClassVar[str]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.check(self.config.name)

    @classmethod
    def library(cls) -> Any:
        """Returns the library's module.

        Raises:
            UserError: it is not installed, or cannot be imported.
        """
        try:
            return importlib.import_module(cls.package)
        except ImportError as error:
            raise UserError(f"models named '{cls.prefix}...' need {cls.hint} ({reason(error)})") from error

    @classmethod
    def check(cls, name: str) -> None:
        """Checks that the library has a model of this name, including the prefix.

        Raises:
            UserError: it does not; the message names the nearest one.
        """
        wanted = name.removeprefix(cls.prefix)
        if cls.knows(wanted):
            return
        names = cls.available()
        close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.5)
        guess = f"; did you mean '{cls.prefix}{close[0]}'?" if close else ""
        raise UserError(f"unknown model {name!r}{guess} ({cls.package} lists {len(names)} classifiers)")

    @classmethod
    @abstractmethod
    def available(cls) -> list[str]:
        """Returns the library's names, without the prefix."""

    @classmethod
    def knows(cls, name: str) -> bool:
        """Returns whether the library has a classifier of this name, without the prefix."""
        return name in cls.available()

    @abstractmethod
    def create(self, name: str, channels: int, image_size: ImageSize, num_classes: int) -> nn.Module:
        """Returns the library's model; its exceptions become one-line errors."""

    def network(self, channels: int, image_size: ImageSize, num_classes: int) -> nn.Module:
        """Returns the library's model for these images.

        Raises:
            UserError: the weights are unavailable, or the model does not support such images.
        """
        name = self.config.name
        try:
            network = self.create(name.removeprefix(self.prefix), channels, image_size, num_classes)
        except UserError:
            raise
        except Exception as error:
            what = "cannot be built with pretrained = true" if self.config.pretrained else "cannot be built"
            images = described(channels, image_size)
            raise UserError(f"model {name!r} {what} for {images}: {reason(error)}") from error
        return as_classifier(name, network, channels, image_size, num_classes)


class TorchvisionModel(ExternalModel):
    """``torchvision:NAME``: a classifier of torchvision.

    Auxiliary heads (GoogLeNet, Inception) are removed, so that the output is plain logits in train mode too. For images
    without 3 channels the first convolution is replaced. A vision transformer's published weights are used for other
    image sizes with interpolated position embeddings.
    """

    prefix = "torchvision:"
    package = "torchvision"
    hint = "torchvision: pip install torchvision"

    @classmethod
    def available(cls) -> list[str]:
        """Returns the names of torchvision's classifiers."""
        models = cls.library().models
        names: list[str] = models.list_models(module=models)
        return names

    def create(self, name: str, channels: int, image_size: ImageSize, num_classes: int) -> nn.Module:
        """Returns torchvision's model with its first and last layer made for these images and classes."""
        models, pretrained = self.library().models, self.config.pretrained
        options: dict[str, Any] = {}
        if name in _AUXILIARY and not pretrained:
            options = {"aux_logits": False, "init_weights": True}
        elif name.startswith("vit_"):
            if image_size[0] != image_size[1]:
                raise UserError(f"model {self.config.name!r} takes square images; timm:vit_... takes others too")
            if image_size[0] % (patch := int(name.rpartition("_")[2])):
                raise UserError(f"model {self.config.name!r} takes images whose side is a multiple of {patch} pixels")
            options = {"image_size": image_size[0]}
        elif name.startswith("maxvit"):
            options = {"input_size": image_size}
        if not pretrained:
            network: Any = models.get_model(name, weights=None, num_classes=num_classes, **options)
        elif name.startswith("vit_"):
            network = models.get_model(name, weights=None, **options)
            published = models.get_model_weights(name).DEFAULT.get_state_dict(progress=True)
            fitted = models.vision_transformer.interpolate_embeddings(image_size[0], network.patch_size, published)
            network.load_state_dict(fitted)
        else:
            network = models.get_model(name, weights="DEFAULT", **options)
        if pretrained:
            drop_auxiliary_heads(network)
            replace_head(network, num_classes)
        if channels != 3:
            replace_stem(network, channels, pretrained)
            if hasattr(network, "transform_input"):
                network.transform_input = False  # which would read the colours of images that have none
        built: nn.Module = network
        return built

    def statistics(self, network: nn.Module, mean: Statistics, std: Statistics) -> tuple[Statistics, Statistics]:
        """Returns the data's, or for pretrained weights on images of 3 channels those of their training."""
        if not self.config.pretrained or len(mean) != 3:
            return mean, std
        name = self.config.name.removeprefix(self.prefix)
        transforms = self.library().models.get_model_weights(name).DEFAULT.transforms()
        return transforms.mean, transforms.std


class TimmModel(ExternalModel):
    """``timm:NAME``: a classifier of timm. Models of a fixed image size are built for the data's."""

    prefix = "timm:"
    package = "timm"
    hint = "timm: pip install timm"

    @classmethod
    def available(cls) -> list[str]:
        """Returns the names of timm's architectures."""
        names: list[str] = cls.library().list_models()
        return names

    @classmethod
    def knows(cls, name: str) -> bool:
        """Returns whether timm has this architecture; a tag after a dot selects pretrained weights."""
        known: bool = cls.library().is_model(name)
        return known

    def create(self, name: str, channels: int, image_size: ImageSize, num_classes: int) -> nn.Module:
        """Returns timm's model for these channels, classes and, where it matters to the model, image size."""
        options = {"pretrained": self.config.pretrained, "in_chans": channels, "num_classes": num_classes}
        try:
            network: nn.Module = self.library().create_model(name, img_size=image_size, **options)
        except TypeError as error:
            # timm has no list of the architectures that are built for one size; the others refuse the argument.
            if "img_size" not in str(error):
                raise
            network = self.library().create_model(name, **options)
        return network

    def statistics(self, network: nn.Module, mean: Statistics, std: Statistics) -> tuple[Statistics, Statistics]:
        """Returns the data's, or for pretrained weights on images of 3 channels those of their training."""
        if not self.config.pretrained or len(mean) != 3:
            return mean, std
        trained: Any = network.pretrained_cfg
        return trained["mean"], trained["std"]


_AUXILIARY = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}
"""torchvision's networks that have classifiers on the way, and what these are called."""


def drop_auxiliary_heads(network: Any) -> None:
    """Removes a torchvision network's auxiliary classifiers, if it has any."""
    for names in _AUXILIARY.values():
        for name in names:
            if getattr(network, name, None) is not None:
                setattr(network, name, None)
                network.aux_logits = False


def replace_head(network: nn.Module, num_classes: int) -> None:
    """Replaces the last layer, unless it has this number of classes already.

    It is the last linear layer that the network registers, or without any (SqueezeNet) the last convolution.

    Raises:
        UserError: the network has neither.
    """
    if not any(isinstance(module, nn.Linear) for module in network.modules()):
        convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
        if convolutions and convolutions[-1].out_channels != num_classes:
            _replace(network, convolutions[-1], _like(convolutions[-1], convolutions[-1].in_channels, num_classes))
        if convolutions:
            return
    head = find_head(network)
    if head.out_features != num_classes:
        _replace(network, head, nn.Linear(head.in_features, num_classes, bias=head.bias is not None))


def replace_stem(network: nn.Module, channels: int, keep: bool) -> None:
    """Puts a convolution for another number of channels in place of the network's first.

    Args:
        network: its first convolution is the first that it registers.
        channels: of the images.
        keep: spread the old weights' sum over the new channels, so that a grey image gives what three equal channels
            gave; otherwise the weights are new, normal with the old ones' standard deviation.

    Raises:
        UserError: the network has no convolution.
    """
    old = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    if old is None:
        raise UserError(f"{type(network).__name__} has no convolution to adapt to {channels} channels; use timm:NAME")
    new = _like(old, channels, old.out_channels)
    with torch.no_grad():
        if keep:
            new.weight.copy_(old.weight.sum(dim=1, keepdim=True) / channels)
        else:
            new.weight.normal_(std=float(old.weight.std()))
        if new.bias is not None and old.bias is not None:
            new.bias.copy_(old.bias)
    _replace(network, old, new)


def _like(old: nn.Conv2d, inputs: int, outputs: int) -> nn.Conv2d:
    """Returns a new convolution of the same shape between other numbers of channels."""
    shape: dict[str, Any] = {key: getattr(old, key) for key in ("kernel_size", "stride", "padding", "dilation")}
    return nn.Conv2d(inputs, outputs, **shape, bias=old.bias is not None)


def _replace(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    path = next(path for path, module in network.named_modules() if module is old)
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, new)
