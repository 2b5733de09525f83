from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.cases import cases
from torch import nn

from robustcords.errors import UserError
from robustcords.models import MODELS, source
from robustcords.models.base import Classifier, Normalize
from robustcords.models.preact_resnet import PreActResNet
from robustcords.models.resnet import ResNet
from robustcords.models.wide_resnet import WideResNet

MEAN, STD = {1: [0.3], 3: [0.49, 0.48, 0.45]}, {1: [0.4], 3: [0.25, 0.24, 0.26]}


def build(
    name: str, channels: int = 3, size: int = 32, classes: int = 10, seed: int = 0, **options: object
) -> Classifier:
    return source(name)(name=name, **options).build(channels, size, classes, MEAN[channels], STD[channels], seed)


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def basic_count(channels: int, classes: int, width: int, depths: list[int]) -> int:
    """He et al. 2016 with 1x1 convolution shortcuts: 9ab or ab weights each, BatchNorm 2b, linear (a + 1) b."""
    total, inputs = 9 * channels * width + 2 * width, width
    for stage, depth in enumerate(depths):
        outputs = width * 2**stage
        for block in range(depth):
            a = inputs if block == 0 else outputs
            total += 9 * a * outputs + 2 * outputs + 9 * outputs**2 + 2 * outputs
            total += a * outputs + 2 * outputs if a != outputs else 0
        inputs = outputs
    return total + (inputs + 1) * classes


@cases(
    ("name", "count"),
    [
        # Published: ResNet-18 and 34 of kuangliu/pytorch-cifar, WRN-28-10 (36.5 M in the paper) and WRN-34-10.
        ("resnet18", 11_173_962),
        ("resnet34", 21_282_122),
        ("wrn-28-10", 36_479_194),
        ("wrn-34-10", 46_160_474),
        # The same repository's PreActResNet-18 has 11,171,146 and lacks the paper's last BatchNorm of 512 channels.
        ("preactresnet18", 11_171_146 + 2 * 512),
        # The paper's parameter-free shortcuts give 0.27 M and 0.85 M; 1x1 shortcuts with BatchNorm add these.
        ("resnet20", 269_722 + (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)),
        ("resnet56", 853_018 + (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, count: int) -> None:
    with torch.device("meta"):
        component = source(name)(name=name)
        assert parameter_count(component.network(3, 32, 10)) == count


@cases(
    ("name", "width", "depths"),
    [
        ("resnet8", 16, [1] * 3),
        ("resnet14", 16, [2] * 3),
        ("resnet32", 16, [5] * 3),
        ("resnet10", 64, [1] * 4),
    ],
)
def test_names_stand_for_depths_and_widths(name: str, width: int, depths: list[int]) -> None:
    assert parameter_count(build(name)) == basic_count(3, 10, width, depths)


def test_width_and_depths_overrule_the_name() -> None:
    model = build("resnet8", channels=1, classes=7, width=5, depths=[1, 2])
    assert parameter_count(model) == basic_count(1, 7, 5, [1, 2])


@cases("name", MODELS)
@cases(("channels", "size", "classes"), [(1, 8, 2), (3, 33, 10)])
def test_every_name_gives_logits_for_any_image(name: str, channels: int, size: int, classes: int) -> None:
    narrow = {"widen_factor": 1, "depth": 10} if name.startswith("wrn") else {"width": 4}
    model = build(name, channels, size, classes, **narrow)
    for mode in (True, False):
        logits = model.train(mode)(torch.rand(3, channels, size, size))
        assert logits.shape == (3, classes)
        assert logits.isfinite().all()


def test_each_stage_but_the_first_halves_the_image_and_doubles_the_channels() -> None:
    network = build("resnet18", width=4).network
    shapes, x = [], torch.rand(1, 4, 32, 32)
    for stage in network.layers:
        x = stage(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(4, 32, 32), (8, 16, 16), (16, 8, 8), (32, 4, 4)]


def test_state_dict_names() -> None:
    names = list(build("resnet8", width=4).state_dict())
    assert names[:3] == ["normalize.mean", "normalize.std", "network.conv1.weight"]
    assert names[-2:] == ["network.fc.weight", "network.fc.bias"]
    assert {"network.layers.1.0.conv1.weight", "network.layers.1.0.shortcut.0.weight"} <= set(names)
    for name in ("preactresnet18", "wrn-28-10"):
        narrow = {"widen_factor": 1} if name.startswith("wrn") else {"width": 4}
        names = list(build(name, **narrow).state_dict())
        assert names[:3] == ["normalize.mean", "normalize.std", "network.conv1.weight"]
        assert names[-2:] == ["network.fc.weight", "network.fc.bias"]


def test_basic_block_is_the_papers() -> None:
    block = build("resnet8", width=3).network.layers[1][0].eval()
    x = torch.rand(2, 3, 6, 6)

    def conv_bn(x: torch.Tensor, conv: nn.Conv2d, bn: nn.BatchNorm2d) -> torch.Tensor:
        y = torch.conv2d(x, conv.weight, stride=conv.stride, padding=conv.weight.shape[-1] // 2)
        return y / math.sqrt(1 + bn.eps)

    residual = conv_bn(conv_bn(x, block.conv1, block.bn1).relu(), block.conv2, block.bn2)
    expected = (residual + conv_bn(x, *block.shortcut)).relu()
    torch.testing.assert_close(block(x), expected)
    assert block(x).shape == (2, 6, 3, 3)


@pytest.mark.parametrize("name", ["preactresnet18", "wrn-28-10"])
def test_preactivation_block_is_the_papers(name: str) -> None:
    narrow = {"widen_factor": 2} if name.startswith("wrn") else {"width": 4}
    first, second = build(name, **narrow).network.layers[1].eval()[:2]
    x = torch.randn(2, first.bn1.num_features, 6, 6, generator=torch.Generator().manual_seed(0))

    def activate(x: torch.Tensor) -> torch.Tensor:
        return (x / math.sqrt(1 + 1e-5)).relu()

    def residual(x: torch.Tensor, block: nn.Module, stride: int) -> torch.Tensor:
        y = torch.conv2d(activate(x), block.conv1.weight, stride=stride, padding=1)
        return torch.conv2d(activate(y), block.conv2.weight, padding=1)

    around = torch.conv2d(activate(x), first.shortcut.weight, stride=2)
    torch.testing.assert_close(first(x), around + residual(x, first, 2))
    y = first(x)
    torch.testing.assert_close(second(y), y + residual(y, second, 1))


def test_normalisation_comes_first() -> None:
    model = build("resnet8", width=4).eval()
    x = torch.rand(2, 3, 8, 8)
    assert isinstance(next(model.children()), Normalize)
    pixels = (x.double().numpy() - np.reshape(MEAN[3], (1, 3, 1, 1))) / np.reshape(STD[3], (1, 3, 1, 1))
    np.testing.assert_allclose(model.normalize(x).numpy(), pixels, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(x), model.network(torch.as_tensor(pixels).float()))


@cases(("std", "error"), [([0.2, 0.0], UserError), ([0.2, math.nan], UserError), ([0.2], ValueError)])
def test_impossible_statistics(std: list[float], error: type[Exception]) -> None:
    with pytest.raises(error):
        Normalize([0.5, 0.5], std)


def test_statistics_need_one_number_per_channel() -> None:
    with pytest.raises(ValueError, match="2 numbers for images of 3 channels"):
        ResNet(name="resnet8").build(3, 8, 10, [0.5, 0.5], [0.2, 0.2], 0)


@cases("name", ["resnet8", "preactresnet18", "wrn-28-10"])
def test_weights_depend_on_the_seed_alone(name: str) -> None:
    narrow = {"widen_factor": 1} if name.startswith("wrn") else {"width": 4}
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = build(name, seed=3, **narrow).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = build(name, seed=3, **narrow).state_dict(), build(name, seed=4, **narrow).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["network.conv1.weight"], other["network.conv1.weight"])


@cases("name", ["resnet18", "preactresnet18", "wrn-28-10"])
def test_convolutions_start_normal_with_he_deviation(name: str) -> None:
    narrow = {"widen_factor": 4, "depth": 10} if name.startswith("wrn") else {"width": 32}
    convolutions = [module for module in build(name, **narrow).modules() if isinstance(module, nn.Conv2d)]
    for conv in convolutions:
        if conv.weight.numel() >= 10_000:
            expected = math.sqrt(2 / (conv.out_channels * conv.kernel_size[0] ** 2))
            assert conv.weight.std().item() == pytest.approx(expected, rel=0.05)
            assert abs(conv.weight.mean().item()) < 0.05 * expected


def test_dropout_acts_in_train_mode_only() -> None:
    x = torch.rand(4, 3, 8, 8)
    model = build("wrn-28-10", depth=10, widen_factor=1, dropout=0.5)
    plain = build("wrn-28-10", depth=10, widen_factor=1)
    assert list(model.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(model.eval()(x), plain.eval()(x))
    assert not torch.allclose(model.train()(x), plain.train()(x))


@cases(
    ("component", "options"),
    [
        (ResNet, {"name": "resnet8", "width": 0}),
        (ResNet, {"name": "resnet8", "width": 1025}),
        (ResNet, {"name": "resnet8", "width": 16.0}),
        (ResNet, {"name": "resnet8", "depths": []}),
        (ResNet, {"name": "resnet8", "depths": [1, 0]}),
        (ResNet, {"name": "resnet8", "depth": 8}),
        (ResNet, {"name": "resnet9"}),
        (PreActResNet, {"name": "preactresnet18", "width": "64"}),
        (WideResNet, {"name": "wrn-28-10", "depth": 30}),
        (WideResNet, {"name": "wrn-28-10", "dropout": 1.0}),
        (WideResNet, {"name": "wrn-28-10", "widen_factor": 0}),
    ],
)
def test_impossible_options(component: type, options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        component(**options)


def test_a_resolved_table_says_what_the_name_stands_for() -> None:
    assert ResNet(name="resnet8").config.options() == {"width": 16, "depths": (1, 1, 1)}
    assert WideResNet(name="wrn-34-10").config.options() == {"depth": 34, "widen_factor": 10, "dropout": 0.0}
