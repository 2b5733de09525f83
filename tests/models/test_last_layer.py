from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from support.cases import cases
from torch import Tensor, nn

from robustcords.errors import UserError
from robustcords.models import source
from robustcords.models.last_layer import CordsModel, LastLayer, find_head


def model_of(kind: str) -> tuple[nn.Module, nn.Linear]:
    """A small model and the layer that is its head."""
    if kind == "sequential":
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 6), nn.ReLU(), nn.Linear(6, 5))
        return model, model[3]
    if kind == "no bias":
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 6), nn.ReLU(), nn.Linear(6, 5, bias=False))
        return model, model[3]
    options = {"width": 4} if kind == "resnet8" else {}
    built = source(kind)(name=kind, **options).build(3, 32, 5, [0.5] * 3, [0.2] * 3, 0)
    network = built.network
    path = {"resnet8": "fc", "torchvision:resnet18": "fc", "torchvision:mobilenet_v3_small": "classifier.3"}
    return built, network.get_submodule(path.get(kind, "head"))


KINDS = ["sequential", "no bias", "resnet8", "torchvision:resnet18", "torchvision:mobilenet_v3_small", "timm:test_vit"]


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Linear]:
    torch.manual_seed(0)
    model, head = model_of(request.param)
    return model.eval(), head


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def affine(head: nn.Linear, h: Tensor) -> np.ndarray:
    z = h.detach().double().numpy() @ head.weight.detach().double().numpy().T
    return z if head.bias is None else z + head.bias.detach().double().numpy()


def test_the_head_is_found(model: tuple[nn.Module, nn.Linear]) -> None:
    assert find_head(model[0]) is model[1]
    assert find_head(model[0], 5) is model[1]


def test_features_times_weights_are_the_logits(model: tuple[nn.Module, nn.Linear], x: Tensor) -> None:
    module, head = model
    h, z = LastLayer(module, 5).features_and_logits(x)
    assert h.shape == (4, head.in_features)
    assert h.dtype == z.dtype == torch.float32
    torch.testing.assert_close(z, module(x))
    np.testing.assert_allclose(z.detach().numpy(), affine(head, h), rtol=1e-4, atol=1e-5)
    assert z.requires_grad
    assert not head._forward_hooks
    assert not head._forward_pre_hooks


def test_features_are_float32_under_autocast(model: tuple[nn.Module, nn.Linear], x: Tensor) -> None:
    module, head = model
    with torch.autocast("cpu", torch.bfloat16):
        h, z = LastLayer(module).features_and_logits(x)
        low = module(x)
    assert low.dtype == torch.bfloat16
    assert h.dtype == z.dtype == torch.float32
    np.testing.assert_allclose(z.detach().numpy(), affine(head, h), rtol=0.05, atol=0.05)


def test_float64_stays(x: Tensor) -> None:
    module, head = model_of("resnet8")
    h, z = LastLayer(module.double().eval()).features_and_logits(x.double())
    assert h.dtype == z.dtype == torch.float64
    np.testing.assert_allclose(z.detach().numpy(), affine(head, h), rtol=1e-12)


@pytest.mark.parametrize("in_place", [True, False])
def test_compiled_models_are_read_too(x: Tensor, in_place: bool) -> None:
    module, head = model_of("sequential")
    expected = module(x)
    if in_place:
        module.compile(backend="eager")
    model = module if in_place else torch.compile(module, backend="eager")
    torch.testing.assert_close(model(x), expected)  # compiled before the hook is there
    h, z = LastLayer(nn.Sequential(model)).features_and_logits(x)
    assert h.shape == (4, head.in_features)
    torch.testing.assert_close(z, expected)


def test_mode_is_the_callers() -> None:
    module, _ = model_of("resnet8")
    last = LastLayer(module.train())
    before = module.network.bn1.running_mean.clone()
    last.features_and_logits(torch.rand(2, 3, 8, 8))
    assert module.training
    assert not torch.equal(module.network.bn1.running_mean, before)


def test_an_empty_batch_has_empty_features() -> None:
    module, _ = model_of("sequential")
    h, z = LastLayer(module).features_and_logits(torch.empty(0, 3, 32, 32))
    assert (h.shape, z.shape) == ((0, 6), (0, 5))


class Around(nn.Module):
    """A linear layer with something after it, or called in an odd way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:  # noqa: PLR0911
        flat = x.flatten(1)[:, :4]
        if self.how == "softmax":
            return self.fc(flat).softmax(1)
        if self.how == "in place":
            return self.fc(flat).mul_(2)
        if self.how == "twice":
            return self.fc(self.fc(flat))
        if self.how == "never":
            return flat
        if self.how == "tokens":
            return self.fc(flat.unsqueeze(1).expand(-1, 3, -1)).mean(1)
        if self.how == "tuple":
            return self.fc(flat), flat  # type: ignore[return-value]
        if self.how == "raises":
            self.fc(flat)
            raise RuntimeError("no")
        return self.fc(input=flat)


@cases(
    ("how", "part"),
    [
        ("softmax", "something follows it"),
        ("in place", "something follows it"),
        ("twice", "2 times"),
        ("never", "calls 'fc', its last nn.Linear, 0 times"),
        ("tokens", r"\(4, 3, 4\)"),
        ("tuple", "tuple"),
    ],
)
def test_models_whose_last_operation_is_another(x: Tensor, how: str, part: str) -> None:
    model = Around(how)
    with pytest.raises(UserError, match=part) as error:
        LastLayer(model).features_and_logits(x)
    assert "\n" not in str(error.value)
    assert not model.fc._forward_hooks


def test_no_hook_is_left_when_the_model_raises(x: Tensor) -> None:
    model = Around("raises")
    with pytest.raises(RuntimeError, match="no"):
        LastLayer(model).features_and_logits(x)
    assert not model.fc._forward_hooks


def test_a_keyword_call_is_read_too(x: Tensor) -> None:
    h, _ = LastLayer(Around("keyword")).features_and_logits(x)
    torch.testing.assert_close(h, x.flatten(1)[:, :4])


def test_models_without_a_head() -> None:
    with pytest.raises(UserError, match=r"no nn\.Linear"):
        find_head(nn.Conv2d(1, 1, 1))
    with pytest.raises(UserError, match=r"with 3 outputs \(its linear layers have 5, 6\)"):
        find_head(model_of("sequential")[0], 3)


def test_the_head_is_the_last_layer_with_one_output_per_class() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    assert find_head(model, 3) is model[1]


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`")
@pytest.mark.parametrize("normalised", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.parametrize("grad", [True, False])
def test_whether_a_normalised_head_is_trained_does_not_depend_on_grad_mode(normalised: Any, grad: bool) -> None:
    head = nn.Linear(3, 2)
    last = LastLayer(nn.Sequential(normalised(normalised(head), "bias", dim=None)))
    for trained in (True, False):
        head.requires_grad_(trained)
        with torch.set_grad_enabled(grad):
            head(torch.zeros(1, 3))
            assert (last.trains_weight, last.trains_bias) == (trained, trained)


def test_a_frozen_half_of_a_head_is_not_the_other() -> None:
    last = LastLayer(nn.Sequential(nn.Linear(3, 2)))
    last.head.weight.requires_grad_(False)
    assert (last.trains_weight, last.trains_bias) == (False, True)
    last.head.requires_grad_(True).bias.requires_grad_(False)
    assert (last.trains_weight, last.trains_bias) == (True, False)


# CordsModel: what CORDS' own networks do (cords 0.0.4, cords/utils/models/resnet.py).


def test_cords_interface(model: tuple[nn.Module, nn.Linear], x: Tensor) -> None:
    module, head = model
    cords = CordsModel(module)
    assert cords.get_embedding_dim() == head.in_features
    expected = module(x)
    torch.testing.assert_close(cords(x), expected)
    torch.testing.assert_close(cords(x, freeze=True), expected)
    for freeze in (False, True):
        logits, features = cords(x, last=True, freeze=freeze)
        torch.testing.assert_close(logits, expected)
        assert features.requires_grad is not freeze
        # GLISTER and GRAD-MATCH take the gradient of the summed loss with respect to the logits.
        loss = nn.functional.cross_entropy(logits, torch.arange(4), reduction="sum")
        gradient = torch.autograd.grad(loss, logits)[0]
        one_hot = torch.eye(5)[torch.arange(4)]
        torch.testing.assert_close(gradient, (expected.softmax(1) - one_hot).detach())


def test_cords_freeze_builds_a_graph_of_the_head_alone(x: Tensor) -> None:
    module, head = model_of("resnet8")
    logits, _ = CordsModel(module)(x, last=True, freeze=True)
    logits.sum().backward()
    assert head.weight.grad is not None
    assert module.network.conv1.weight.grad is None


def test_cords_state_dictionaries_are_the_wrapped_models() -> None:
    module, _ = model_of("resnet8")
    cords = CordsModel(module)
    saved = copy.deepcopy(module.state_dict())
    assert list(cords.state_dict()) == list(saved)
    with torch.no_grad():
        module.network.fc.bias.fill_(7)
    cords.load_state_dict(saved)
    torch.testing.assert_close(module.network.fc.bias, saved["network.fc.bias"])
    cords.eval()
    assert not module.training


def test_cords_features_are_float32_under_autocast(x: Tensor) -> None:
    module, _ = model_of("resnet8")
    with torch.autocast("cpu", torch.bfloat16):
        for freeze in (False, True):
            logits, features = CordsModel(module.eval())(x, last=True, freeze=freeze)
            assert logits.dtype == features.dtype == torch.float32
