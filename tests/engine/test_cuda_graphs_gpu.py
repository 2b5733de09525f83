"""CUDA graphs beside the network itself; run with ``-m gpu``."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustcords.attacks.base import input_gradient
from robustcords.attacks.pgd import PGD
from robustcords.engine.inference import Inference
from robustcords.engine.precision import exact_float32
from robustcords.engine.training_graphs import training_replays
from robustcords.losses.objective import Objective
from robustcords.models.resnet import ResNet
from robustcords.rng import Noise
from robustcords.threats.base import ThreatModel


def gpu_network() -> nn.Module:
    torch.manual_seed(0)
    model = ResNet(name="resnet8", width=8).network(3, 16, 10).cuda().to(memory_format=torch.channels_last)
    for _ in range(3):
        model(torch.rand(64, 3, 16, 16, device="cuda"))
    return model.eval()


def gpu_images(count: int) -> Tensor:
    x = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(count)).cuda()
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 32, 50, 128])
def test_graphs_give_what_the_folded_network_gives(count: int) -> None:
    model, x = gpu_network(), gpu_images(count)
    objective = Objective(lambda logits: logits.square().sum(1))
    with exact_float32(x.device):
        replayed, plain = Inference(model), Inference(model, replay=False)
        for _ in range(2):
            with replayed.folded(), plain.folded():
                assert replayed._replays is not None
                assert plain._replays is None
                torch.testing.assert_close(replayed(x), plain(x), rtol=1e-5, atol=1e-5)
                found, expected = (input_gradient(each, objective, x) for each in (replayed, plain))
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.1)
            kept = replayed._replays
        with replayed.folded():
            assert replayed._replays is kept


@pytest.mark.gpu
def test_graphs_follow_weights_in_mixed_precision() -> None:
    model, x = gpu_network(), gpu_images(100)

    def autocast() -> torch.autocast:
        return torch.autocast("cuda", dtype=torch.bfloat16)

    replayed, plain = Inference(model, autocast), Inference(model, autocast, replay=False)
    objective = Objective(lambda logits: logits.square().sum(1))
    for _ in range(3):
        with autocast(), replayed.folded(), plain.folded():
            torch.testing.assert_close(replayed(x), plain(x), rtol=2e-2, atol=2e-2)
            found, expected = (input_gradient(each, objective, x) for each in (replayed, plain))
            assert (found - expected).norm() < 0.02 * expected.norm()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))


@pytest.mark.gpu
def test_what_graphs_have_returned_stays_as_it_was() -> None:
    frozen, x = Inference(gpu_network()), gpu_images(40)
    with frozen.folded(), torch.no_grad():
        logits = frozen(x)
        kept = logits.clone()
        frozen(1 - x)
    assert torch.equal(logits, kept)


@pytest.mark.gpu
def test_an_attack_finds_what_it_finds_without_graphs() -> None:
    model, x = gpu_network(), gpu_images(96)
    y = torch.arange(96, device="cuda") % 10
    objective = Objective(lambda logits: cross_entropy(logits, y, reduction="none"))
    attack = PGD(ThreatModel(norm="linf", epsilon=8 / 255), steps=10)
    found = []
    with exact_float32(x.device):
        for replay in (True, False):
            frozen = Inference(model, nullcontext, replay=replay)
            with frozen.folded():
                found.append(attack(frozen, x, objective, Noise(0, torch.arange(96, device="cuda"))))
    # Where a gradient is rounding error its sign is, too.
    assert (found[0] - found[1]).abs().gt(1e-6).float().mean() < 0.01


@pytest.mark.gpu
def test_recorded_updates_follow_the_network_itself() -> None:
    models = [gpu_network().train() for _ in range(2)]
    replays = training_replays(models[1], torch.device("cuda"))
    assert replays is not None
    with exact_float32(torch.device("cuda")):
        for size in (64, 64, 48, 64):
            x = gpu_images(size)
            replays.begin()
            for model, trained in zip((models[0], replays), models, strict=True):
                clean, moved = model(x), model((x + 0.1).contiguous(memory_format=torch.channels_last))
                (clean.square().mean() - (clean * moved).mean()).backward()
                with torch.no_grad():
                    for parameter in trained.parameters():
                        assert parameter.grad is not None
                        parameter.sub_(parameter.grad, alpha=0.01)
                        parameter.grad = None
    for name, value in models[0].state_dict().items():
        torch.testing.assert_close(models[1].state_dict()[name], value, rtol=1e-3, atol=1e-4)
