from __future__ import annotations

import sys
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from support.cases import cases
from torch import nn

from robustcords.errors import UserError
from robustcords.models import MODELS, source
from robustcords.models.base import Classifier, Normalize
from robustcords.models.external import TimmModel, TorchvisionModel, replace_head, replace_stem
from robustcords.models.resnet import ResNet

OWN = """
from __future__ import annotations
import dataclasses
import torch
from torch import nn
from robustcords.models.base import ModelConfig, ModelSource

class Net(nn.Module):
    def __init__(self, num_classes, hidden: int = 8, *, act=nn.ReLU, slope: float | None = None, **unused):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.LazyLinear(hidden), act(), nn.Linear(hidden, num_classes))
    def forward(self, x):
        return self.body(x)

class Needy(Net):
    def __init__(self, num_classes: int, hidden: int):
        super().__init__(num_classes, hidden)

def factory(num_classes, depth=1):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes + depth - 1))

class Source(ModelSource):
    class Config(ModelConfig):
        share: float = 1.0
    def network(self, channels, image_size, num_classes):
        inputs = channels * image_size[0] * image_size[1]
        return nn.Sequential(nn.Flatten(), nn.Dropout(self.config.share), nn.Linear(inputs, num_classes))

class NoClasses(nn.Module):
    def __init__(self, classes): pass

class Wrong:
    def __init__(self, num_classes): pass

class Net2(nn.Module):
    def __init__(self, num_classes, kind="tuple"):
        super().__init__()
        self.norm, self.kind = nn.BatchNorm2d(1), kind
        self.head, self.aux = nn.LazyLinear(num_classes), nn.LazyLinear(num_classes)
    def forward(self, x):
        x = self.norm(x).flatten(1)
        logits, other = self.head(x), self.aux(x)
        if not self.training:
            return logits
        return {
            "features": (x, logits), "named": {"other": other, "logits": logits}, "field": Output(other, logits),
            "auxiliary": (logits, other), "text": "logits", "transposed": logits.T,
        }[self.kind]

@dataclasses.dataclass
class Output:
    other: object
    logits: object

def not_a_module(num_classes): return 3
def broken(num_classes): raise RuntimeError("first line\\nsecond line")
def wants_large(num_classes): return nn.Sequential(nn.Conv2d(1, 4, 64), nn.Flatten(), nn.Linear(4, num_classes))
VALUE = 3
"""


@pytest.fixture
def own(importable: Path) -> str:
    """The name of a module of a user's own nets."""
    (importable / "own_nets.py").write_text(OWN)
    return "own_nets"


def build(
    name: str, channels: int = 1, size: int | tuple[int, int] = 8, classes: int = 4, seed: int = 0, **options: Any
) -> Classifier:
    return source(name)(name=name, **options).build(channels, size, classes, [0.4] * channels, [0.2] * channels, seed)


def assert_one_line(error: pytest.ExceptionInfo[UserError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_registered_names() -> None:
    assert source("resnet8") is ResNet
    for name in MODELS:
        assert source(name)(name=name).config.name == name


@cases(
    ("name", "parts"),
    [
        ("resnet9", ["unknown model 'resnet9'", "did you mean 'resnet"]),
        ("resnet50", [", or robustbench:NAME, timm:NAME, torchvision:NAME, or package.module:Class"]),
        ("torchvision:resnet1", ["'torchvision:resnet1'", "did you mean 'torchvision:resnet"]),
        ("torchvision:", ["'torchvision:'"]),
        ("torchvision:fcn_resnet50", ["'torchvision:fcn_resnet50'"]),
        ("timm:tset_vit", ["'timm:tset_vit'", "did you mean 'timm:test_vit"]),
        ("no_such_module_here:Net", ["no_such_module_here", "in the current folder and on PYTHONPATH"]),
        ("./folder/mine.py:Net", ["'./folder/mine.py' is a file; name a module, such as mine:Net"]),
        ("torchvision.models:resnet1", ["has no 'resnet1'"]),
    ],
)
def test_unknown_names(name: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        source(name)
    assert_one_line(error, *parts)


@pytest.mark.parametrize(("component", "name"), [(TorchvisionModel, "torchvision:resnet1"), (TimmModel, "timm:none")])
def test_a_bad_name_is_an_error_without_source_as_well(component: type, name: str) -> None:
    with pytest.raises(UserError, match="unknown model"):
        component(name=name)


@cases(
    ("name", "channels", "size"),
    [
        ("torchvision:resnet18", 3, 32),
        ("torchvision:mobilenet_v3_small", 1, 28),
        ("torchvision:googlenet", 1, 32),
        ("torchvision:squeezenet1_1", 2, 32),
        ("timm:test_vit", 3, 32),
        ("timm:test_vit", 1, 48),
        ("timm:test_resnet", 1, 16),
        ("torchvision:swin_t", 3, (32, 64)),
        ("timm:test_vit", 3, (32, 64)),
        ("timm:test_resnet.r160_in1k", 4, 32),
    ],
)
def test_other_libraries_models_take_any_channels_size_and_classes(
    name: str, channels: int, size: int | tuple[int, int]
) -> None:
    model = build(name, channels, size, classes=7)
    assert isinstance(next(model.children()), Normalize)
    assert all(module.training for module in model.modules())
    height, width = (size, size) if isinstance(size, int) else size
    logits = model(torch.rand(2, channels, height, width))  # train mode, in which GoogLeNet would return three tensors
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (2, 7)


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "timm:test_vit"])
def test_other_libraries_weights_depend_on_the_seed_alone(name: str) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = build(name, 1, 32, seed=5).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = (build(name, 1, 32, seed=seed).state_dict() for seed in (5, 6))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@cases(
    ("name", "size", "part"),
    [
        ("torchvision:alexnet", 8, "images of 3 x 8 x 8"),
        ("torchvision:maxvit_t", (30, 20), "images of 3 x 30 x 20"),
        ("torchvision:vit_b_32", (32, 64), "takes square images"),
        ("torchvision:vit_b_32", 40, "takes images whose side is a multiple of 32 pixels"),
    ],
)
def test_images_that_a_model_cannot_take(name: str, size: int | tuple[int, int], part: str) -> None:
    with pytest.raises(UserError) as error:
        build(name, 3, size)
    assert_one_line(error, name, part)


def test_a_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no\nnetwork")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(UserError) as error:
        build("torchvision:resnet18", 3, 32, pretrained=True)
    assert_one_line(error, "torchvision:resnet18", "pretrained = true", "no")


def test_pretrained_weights_come_with_their_normalisation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torchvision

    published = torchvision.models.mobilenet_v3_small()  # stands in for the file that would be downloaded
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    weights = torchvision.models.get_model_weights("mobilenet_v3_small").DEFAULT
    torch.save(published.state_dict(), tmp_path / "hub/checkpoints" / weights.url.rpartition("/")[2])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.HASH_REGEX", None, raising=False)
    model = build("torchvision:mobilenet_v3_small", 3, 32, pretrained=True)
    torch.testing.assert_close(model.normalize.mean, torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(model.normalize.std, torch.tensor([0.229, 0.224, 0.225]))
    torch.testing.assert_close(model.network.features[0][0].weight, published.features[0][0].weight)
    assert model.network.classifier[-1].out_features == 4
    grey = build("torchvision:mobilenet_v3_small", 1, 32, pretrained=True)
    torch.testing.assert_close(grey.normalize.mean, torch.tensor([0.4]))
    x = torch.rand(2, 1, 32, 32)
    expected = published.features[0][0](x.expand(-1, 3, -1, -1))
    torch.testing.assert_close(grey.network.features[0][0](x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["features", "named", "field"])
def test_logits_are_taken_from_what_a_network_returns_in_train_mode(own: str, kind: str) -> None:
    model = build(f"{own}:Net2", kind=kind)
    x, network = torch.rand(3, 1, 8, 8), model.network.network
    assert model.training and network.norm.num_batches_tracked == 0
    assert torch.equal(network.norm.running_mean, torch.zeros(1))
    expected = nn.functional.batch_norm(model.normalize(x), None, None, training=True).flatten(1)
    torch.testing.assert_close(model(x), network.head(expected), rtol=1e-4, atol=1e-5)
    assert model.eval()(x).shape == (3, 4)


@pytest.mark.parametrize(
    ("kind", "summary"),
    [
        ("auxiliary", "a tuple of tensors (2, 4), (2, 4)"),
        ("text", "a str"),
        ("transposed", "a tensor (4, 2)"),
    ],
)
def test_an_output_whose_logits_are_not_clear(own: str, kind: str, summary: str) -> None:
    with pytest.raises(UserError) as error:
        build(f"{own}:Net2", kind=kind)
    assert_one_line(error, "Net2", f"returns {summary} for two images in train mode", "logits (2, 4)")


def published(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path, **options: Any) -> nn.Module:
    """Puts new weights where torchvision expects its download; returns the network that has them."""
    import torchvision

    network: nn.Module = torchvision.models.get_model(name, **options)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    (folder / "hub/checkpoints").mkdir(parents=True)
    torch.save(network.state_dict(), folder / "hub/checkpoints" / weights.url.rpartition("/")[2])
    monkeypatch.setenv("TORCH_HOME", str(folder))
    return network


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("googlenet", {"aux_logits": True, "init_weights": False}, 64),
        ("inception_v3", {"aux_logits": True, "init_weights": False}, 80),
        ("squeezenet1_1", {}, 32),
    ],
)
def test_pretrained_networks_with_other_heads(
    name: str, options: dict[str, Any], size: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source_network = published(name, monkeypatch, tmp_path, **options)
    for channels in (3, 1):
        model = build(f"torchvision:{name}", channels, size, pretrained=True)
        assert model(torch.rand(2, channels, size, size)).shape == (2, 4)
    features = dict(source_network.named_parameters())
    kept = [key for key, value in model.network.named_parameters() if value.shape == features[key].shape]
    assert len(kept) >= len(list(model.network.parameters())) - 3  # the stem and the head are new
    assert all(torch.equal(model.network.get_parameter(key), features[key]) for key in kept)


def test_a_pretrained_vision_transformer_takes_other_sizes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    transformer = published("vit_b_32", monkeypatch, tmp_path)
    model = build("torchvision:vit_b_32", 3, 64, pretrained=True)
    embedding = model.network.encoder.pos_embedding
    assert embedding.shape == (1, 1 + 2 * 2, 768)
    grid = transformer.encoder.pos_embedding[:, 1:].reshape(1, 7, 7, 768).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(grid, size=2, mode="bicubic", align_corners=True)
    torch.testing.assert_close(embedding[:, 1:], expected.flatten(2).transpose(1, 2))


def test_a_head_of_the_right_size_is_kept() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 10, bias=False))
    head = network[2]
    replace_head(network, 10)
    assert network[2] is head
    replace_head(network, 4)
    assert (network[2].in_features, network[2].out_features, network[2].bias) == (8, 4, None)


def test_a_new_stem_has_the_old_ones_shape_and_scale() -> None:
    network = nn.Sequential(nn.Sequential(nn.Conv2d(3, 64, 7, stride=2, padding=3)), nn.Conv2d(64, 3, 1))
    old = network[0][0]
    replace_stem(network, 5, keep=False)
    new = network[0][0]
    assert new.weight.shape == (64, 5, 7, 7)
    assert (new.stride, new.padding) == (old.stride, old.padding)
    assert new.weight.std().item() == pytest.approx(old.weight.std().item(), rel=0.05)
    with pytest.raises(UserError, match="no convolution"):
        replace_stem(nn.Linear(2, 2), 1, keep=False)


def test_missing_timm_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError) as error:
        source("timm:test_vit")
    assert_one_line(error, "timm", "pip install timm")


def test_own_module_class(own: str) -> None:
    name = f"{own}:Net"
    model = build(name, hidden=5)
    assert isinstance(next(model.children()), Normalize)
    assert model.network.body[1].weight.shape == (5, 64)
    assert model(torch.rand(3, 1, 8, 8)).shape == (3, 4)
    assert model.network.training
    torch.manual_seed(9)
    again = build(name, hidden=5).state_dict()
    assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())


def test_options_of_an_own_class_are_its_parameters(own: str) -> None:
    config = source(f"{own}:Net")(name=f"{own}:Net").config
    assert config.options() == {"hidden": 8, "slope": None}  # a recipe cannot hold act = nn.ReLU
    assert source(f"{own}:factory").Config(name="f", depth=2).options() == {"depth": 2}


@pytest.mark.parametrize("options", [{"hiden": 5}, {"hidden": "5"}, {"act": "relu"}, {"num_classes": 3}])
def test_options_that_an_own_class_does_not_take(own: str, options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        source(f"{own}:Net")(name=f"{own}:Net", **options)


def test_own_class_with_a_parameter_that_has_no_default(own: str) -> None:
    with pytest.raises(ValidationError, match="hidden"):
        source(f"{own}:Needy")(name="needy")
    assert build(f"{own}:Needy", hidden=3).network.body[1].out_features == 3


def test_own_factory_and_own_source(own: str) -> None:
    assert build(f"{own}:factory")(torch.rand(2, 1, 8, 8)).shape == (2, 4)
    model = build(f"{own}:Source", share=0.25)
    assert model.network[1].p == 0.25
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 4)


def test_a_function_of_another_library(own: str) -> None:
    del own
    with pytest.raises(UserError) as error:
        build("torch.nn.functional:relu")
    assert_one_line(error, "must take num_classes", "input")


@pytest.mark.parametrize(
    ("attribute", "part"),
    [
        ("NoClasses", "must take num_classes"),
        ("Wrong", "neither an nn.Module class"),
        ("VALUE", "neither an nn.Module class"),
        ("not_a_module", "returns a int"),
        ("broken", "RuntimeError: first line"),
        ("wants_large", "cannot take images of 1 x 8 x 8"),
        ("Nett", "did you mean 'Net'"),
    ],
)
def test_own_modules_that_do_not_fit(own: str, attribute: str, part: str) -> None:
    with pytest.raises(UserError) as error:
        build(f"{own}:{attribute}")
    assert_one_line(error, attribute, part)


def test_output_that_is_no_logits(own: str) -> None:
    with pytest.raises(UserError) as error:
        build(f"{own}:factory", depth=3)
    assert_one_line(error, "returns a tensor (2, 6)", "logits (2, 4)")
