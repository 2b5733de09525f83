from contextlib import nullcontext

import pytest
import torch
from support.cases import cases
from support.recordings import Again
from torch import Tensor, nn
from torch.nn import functional as F

from robustcords.attacks.base import Attack, input_gradient
from robustcords.attacks.fgsm import FGSM
from robustcords.attacks.pgd import PGD
from robustcords.engine import folding
from robustcords.engine import inference as inference_module
from robustcords.engine.folding import fold
from robustcords.engine.inference import Inference
from robustcords.engine.modes import evaluation_mode, without_parameter_gradients
from robustcords.losses.objective import Objective
from robustcords.losses.trades import TRADES
from robustcords.methods.efforts.batch import attack_batch
from robustcords.methods.efforts.bullet import Bullet
from robustcords.models.preact_resnet import PreActResNet
from robustcords.models.resnet import ResNet
from robustcords.models.wide_resnet import WideResNet
from robustcords.rng import Noise
from robustcords.threats.base import ThreatModel


def used(model: nn.Module) -> nn.Module:
    """Gives BatchNorms statistics and parameters of their own, and the model float64."""
    source = torch.Generator().manual_seed(0)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean = torch.randn(norm.num_features, generator=source)
        norm.running_var = torch.rand(norm.num_features, generator=source) + 0.5
        if norm.affine:
            norm.weight.data = torch.randn(norm.num_features, generator=source)
            norm.bias.data = torch.randn(norm.num_features, generator=source)
    return model.double()


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    sources = {
        "resnet": ResNet(name="resnet8", width=4),
        "preact": PreActResNet(width=4, depths=(1, 1)),
        "wide": WideResNet(depth=10, widen_factor=1),
    }
    plain = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3, dilation=2),
        nn.BatchNorm2d(6, affine=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(10),
    )
    plain(torch.zeros(1, 3, 16, 16))
    return {**{name: source.network(3, 16, 10) for name, source in sources.items()}, "sequential": plain}


IMAGES = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
OBJECTIVE = Objective(lambda logits: logits.square().sum(1))


@cases("name", ["resnet", "preact", "wide", "sequential"])
def test_a_frozen_model_gives_the_plain_models_logits_and_gradients(name: str) -> None:
    model = used(networks()[name]).eval()
    inference = Inference(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with inference.folded(), without_parameter_gradients(model):
        assert inference._folded is not None
        torch.testing.assert_close(inference(IMAGES), model(IMAGES), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(
            input_gradient(inference, OBJECTIVE, IMAGES), input_gradient(model, OBJECTIVE, IMAGES), rtol=1e-9, atol=1e-9
        )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert list(inference.state_dict()) == [f"model.{key}" for key in before]


def test_in_bfloat16_folding_errs_about_as_much_as_the_plain_model_does() -> None:
    # Rounding is a matter of luck for one network: folded or plain errs more, so the errors of eight are compared.
    errors = {"plain": 0.0, "folded": 0.0}
    for seed in range(8):
        torch.manual_seed(seed)
        exact = used(ResNet(name="resnet8", width=4).network(3, 16, 10)).eval()
        model = ResNet(name="resnet8", width=4).network(3, 16, 10).eval()
        model.load_state_dict(exact.state_dict())
        inference = Inference(model, lambda: torch.autocast("cpu", torch.bfloat16))
        with torch.no_grad():
            logits = {"plain": inference(IMAGES.float())}
            with inference.folded(), without_parameter_gradients(model):
                logits["folded"] = inference(IMAGES.float())
                assert inference._folded._graph.folded_weight_0.dtype is torch.bfloat16
            wanted = exact(IMAGES)
        for name, values in logits.items():
            errors[name] += ((values - wanted).norm() / wanted.norm()).item() / 8
    assert errors["plain"] != errors["folded"]
    assert errors["folded"] < 1.5 * errors["plain"] < 1.5 * 4 * torch.finfo(torch.bfloat16).eps


def test_every_batchnorm_behind_a_convolution_is_folded() -> None:
    model = networks()["resnet"]
    folded = fold(model.eval())
    assert folded is not None
    kept = [
        folded._graph.get_submodule(str(node.target)) for node in folded._graph.graph.nodes if node.op == "call_module"
    ]
    assert [type(module) for module in kept] == [nn.Linear]


def test_weights_that_change_between_two_blocks_are_folded_anew() -> None:
    model = used(networks()["resnet"]).eval()
    inference = Inference(model)
    with inference.folded(), without_parameter_gradients(model):
        before = inference(IMAGES)
    for parameter in model.parameters():
        parameter.data.mul_(1.1)
    model.bn1.running_var.mul_(2)
    with inference.folded(), without_parameter_gradients(model):
        after = inference(IMAGES)
    torch.testing.assert_close(after, model(IMAGES))
    assert not torch.allclose(before, after)


def test_training_mode_and_what_comes_after_the_block_are_those_of_the_plain_model() -> None:
    model = used(networks()["resnet"])
    inference = Inference(model.train())
    with inference.folded(), without_parameter_gradients(model):
        with evaluation_mode(inference):
            torch.testing.assert_close(inference(IMAGES), model(IMAGES))
        statistics = model.bn1.running_mean.clone()
        inference(IMAGES)
        assert not torch.equal(model.bn1.running_mean, statistics)
    with evaluation_mode(inference):
        assert torch.equal(inference(IMAGES), model(IMAGES))


def perturbed(model: nn.Module, gradients: list[Tensor], how: str) -> None:
    """Steps weights along their gradients, in one of the ways that code in the wild does."""
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        step = 0.1 * parameter.detach().norm() / (gradient.norm() + 1e-12) * gradient
        if how == "in place":
            with torch.no_grad():
                parameter.add_(step)
        elif how == "through .data":
            parameter.data.add_(step)
        else:
            parameter.data = parameter.data + step


@pytest.mark.parametrize("replay", [True, False])
@pytest.mark.parametrize("how", ["in place", "through .data", "other memory"])
def test_an_adversary_that_steps_weights_gets_all_gradients_and_attacks_the_stepped_weights(
    how: str, replay: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As adversarial weight perturbation does (Wu et al. 2020, arXiv 2004.05884), between two attacks."""
    monkeypatch.setattr(inference_module, "recorder_for", lambda device: Again())
    model, expected = used(networks()["resnet"]).train(), used(networks()["resnet"]).train()
    inference, y = Inference(model, replay=replay), torch.arange(5)
    objective = Objective(lambda logits: F.cross_entropy(logits, y, reduction="none"))
    attack = PGD(ThreatModel(norm="l2", epsilon=1.0), steps=2, step_size=0.5)
    found = []
    for network, block in ((inference, inference.folded()), (expected, nullcontext())):
        with block, evaluation_mode(network):
            x = attack(network, IMAGES, objective, Noise(0, y))
            loss = F.cross_entropy(network(x), y)
            gradients = torch.autograd.grad(loss, list(network.parameters()))
            perturbed(network, list(gradients), how)
            with torch.no_grad():
                found.append([x, *gradients, network(x), attack(network, IMAGES, objective, Noise(0, y))])
    assert len(found[0]) == 3 + len(list(model.parameters()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)
    assert (found[0][-1] - found[0][0]).abs().max() > 0.01, "the step has moved the attack"
    assert all(module.training for module in model.modules())


def test_weights_and_statistics_that_change_inside_a_block_are_seen_at_once() -> None:
    model = used(networks()["resnet"]).eval()
    inference = Inference(model)
    with inference.folded(), torch.no_grad():
        before = inference(IMAGES)
        model.conv1.weight.mul_(1.5)
        torch.testing.assert_close(inference(IMAGES), model(IMAGES))
        assert not torch.allclose(inference(IMAGES), before)
    with inference.folded(), torch.no_grad():
        model.train()(IMAGES)
        model.eval()
        torch.testing.assert_close(inference(IMAGES), model(IMAGES))


class Doubled(nn.Module):
    """Makes twice the weight of one."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


@cases("how", ["functional_call", "functional_call of a buffer", "parametrization", "other tensor", "other layer"])
def test_weights_that_are_exchanged_inside_a_block_are_seen_at_once(how: str) -> None:
    model, expected = (used(networks()["resnet"]).eval() for _ in range(2))
    inference = Inference(model)
    name = "bn1.running_var" if how == "functional_call of a buffer" else "conv1.weight"
    value = 2 * model.state_dict()[name]
    expected.load_state_dict({**model.state_dict(), name: value})
    with inference.folded(), torch.no_grad():
        before = inference(IMAGES)
        if how == "parametrization":
            nn.utils.parametrize.register_parametrization(model.conv1, "weight", Doubled())
        elif how == "other tensor":
            model.conv1.weight = nn.Parameter(value)
        elif how == "other layer":
            model.conv1 = expected.conv1
        given = {f"model.{name}": value} if "call" in how else {}
        found = torch.func.functional_call(inference, given, (IMAGES,))
    assert torch.equal(found, expected(IMAGES))
    assert not torch.allclose(found, before)


@pytest.mark.parametrize("attack", [PGD, FGSM])
def test_an_attack_is_no_reason_to_leave_the_folded_network(attack: type[Attack]) -> None:
    model = used(networks()["resnet"]).train()
    plain: list[int] = []
    inference, y = Inference(model), torch.arange(5)
    made = attack(ThreatModel(epsilon=0.1))
    loss = TRADES()
    with inference.folded():
        model.forward = lambda x: plain.append(len(x)) or type(model).forward(model, x)
        for effort in (None, Bullet()):
            attack_batch(inference, IMAGES, y, Noise(0, y), attack=made, loss=loss, effort=effort)
        assert plain == []
        inference(IMAGES)
        assert plain == [5]


class Annealed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10)
        self.temperature = 1.0

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(F.relu(self.norm(self.convolution(x))).mean((2, 3)))
        return logits / self.temperature


def test_a_setting_that_changes_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "KNOWN", (*folding.KNOWN, __name__))
    model = Annealed().double().eval()
    inference = Inference(model)
    for model.temperature in (1.0, 4.0):
        with inference.folded(), without_parameter_gradients(model):
            assert inference._folded is not None
            torch.testing.assert_close(inference(IMAGES), model(IMAGES))


class Branching(Annealed):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.mean() > 0.25 else super().forward(-x)


class Shared(Annealed):
    """Reads the convolution's result and not only the BatchNorm's."""

    def forward(self, x: Tensor) -> Tensor:
        raw = self.convolution(x)
        both = self.norm(raw) + raw
        logits: Tensor = self.head(F.relu(both).mean((2, 3)) + both.mean((2, 3)))
        return logits


class Broadcast(Annealed):
    """Adds something larger to a convolution's result."""

    def forward(self, x: Tensor) -> Tensor:
        small = self.norm(self.convolution(x)).mean((2, 3), keepdim=True)
        large = self.norm(self.convolution(x[..., :3, :3])) + small.expand(-1, -1, 4, 4)
        logits: Tensor = self.head(large.mean((2, 3)))
        return logits


@pytest.mark.parametrize(("kind", "folds"), [(Branching, False), (Shared, False), (Broadcast, True)])
def test_code_that_does_unusual_things_runs_as_it_is_meant_to(
    kind: type[nn.Module], folds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "KNOWN", (*folding.KNOWN, __name__))
    model = used(kind()).eval()
    inference = Inference(model)
    with inference.folded(), without_parameter_gradients(model):
        assert (inference._folded is not None) == folds
        torch.testing.assert_close(inference(IMAGES), model(IMAGES), rtol=1e-12, atol=1e-12)


def test_hooks_and_patched_forwards_are_not_passed_by() -> None:
    model = networks()["resnet"].eval()
    handle = model.layers.register_forward_hook(lambda *_: None)
    assert fold(model) is None
    handle.remove()
    assert fold(model) is not None
    model.layers.forward = model.layers.forward
    assert fold(model) is None


class StraightThrough(torch.autograd.Function):
    """Rounds, and hands the gradient on as if it did not."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.round(x * 8) / 8

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


class Rounded(Annealed):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(StraightThrough.apply(F.relu(self.norm(self.convolution(x)))).mean((2, 3)))


def test_gradients_of_somebodys_own_are_kept() -> None:
    """A trace would lose them without a word, so networks of unknown code are run as they are."""
    model = used(Rounded()).eval()
    inference = Inference(model)
    with inference.folded(), without_parameter_gradients(model):
        found = input_gradient(inference, OBJECTIVE, IMAGES)
    assert found.abs().max() > 0
    assert torch.equal(found, input_gradient(model, OBJECTIVE, IMAGES))
