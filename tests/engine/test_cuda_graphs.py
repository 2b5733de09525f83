"""Recorded passes: their bookkeeping, with recordings that run the code again."""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from support.recordings import Again
from torch import Tensor, nn

from robustcords.attacks.pgd import PGD
from robustcords.data.images import ImageSet
from robustcords.engine import inference
from robustcords.engine.cuda_graphs import Replays, Work
from robustcords.engine.inference import Inference
from robustcords.engine.modes import without_parameter_gradients
from robustcords.engine.precision import exact_float32
from robustcords.errors import UserError
from robustcords.losses.base import Loss
from robustcords.losses.mart import MART
from robustcords.losses.sat import SAT
from robustcords.losses.trades import TRADES
from robustcords.models.resnet import ResNet
from robustcords.selection.gradients.adversarial_pass import adversarial_pass
from robustcords.threats.base import ThreatModel


class Network(nn.Module):
    """Counts how often its code runs, and on how many images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(12, 5)
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        logits: Tensor = self.layer(x.flatten(1).sin())
        return logits


@pytest.fixture
def network() -> Iterator[Network]:
    yield Network()


def images(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(seed))


def gradient(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x).square().sum(), x)[0]


@pytest.mark.parametrize("count", [1, 31, 32, 33, 70])
def test_logits_and_gradients_are_those_of_the_network_whatever_the_batch(network: Network, count: int) -> None:
    replays = Replays(network, Again())
    for seed in (1, 2):
        x = images(count, seed)
        torch.testing.assert_close(replays(x), network(x))
        torch.testing.assert_close(gradient(replays, x), gradient(network, x))


def test_sizes_up_to_the_same_multiple_share_a_recording(network: Network) -> None:
    again = Again()
    replays = Replays(network, again)
    for count in (3, 17, 32):
        replays(images(count))
    assert [len(each) for each in again.recorded] == [32, 32], "logits and gradients of one size"
    replays(images(33))
    assert [len(each) for each in again.recorded] == [32, 32, 64, 64]
    assert set(network.sizes) == {32, 64}


@pytest.mark.parametrize(
    "other",
    [
        torch.zeros(5, 3, 1, 4),
        torch.zeros(5, 3, 2, 2, dtype=torch.float64),
        torch.zeros(5, 3, 2, 2).contiguous(memory_format=torch.channels_last),
    ],
    ids=["shape", "dtype", "layout"],
)
def test_images_of_another_kind_have_recordings_of_their_own(network: Network, other: Tensor) -> None:
    again = Again()
    replays = Replays(lambda x: network(x.float()), again)
    replays(images(5))
    replays(other)
    replays(images(5))
    assert len(again.recorded) == 4


def test_tf32_has_recordings_of_its_own(network: Network) -> None:
    again = Again()
    replays = Replays(network, again)
    with exact_float32(torch.device("cpu")):
        replays(images(5))
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    replays(images(5))
    torch.backends.cudnn.allow_tf32 = before
    assert len(again.recorded) == 4


def test_weights_are_those_of_the_time(network: Network) -> None:
    replays = Replays(network, Again())
    x = images(4)
    replays(x)
    with torch.no_grad():
        network.layer.weight.mul_(2)
    torch.testing.assert_close(replays(x), network(x))
    torch.testing.assert_close(gradient(replays, x), gradient(network, x))


def test_a_gradient_is_right_whatever_has_run_since_its_forward_pass(network: Network) -> None:
    replays = Replays(network, Again())
    first, second = images(4, 1).requires_grad_(), images(4, 2).requires_grad_()
    one, two = replays(first), replays(second)
    with torch.no_grad():
        replays(images(40, 3))
    expected = gradient(network, first), gradient(network, second)
    for _ in range(2):
        torch.testing.assert_close(torch.autograd.grad(one.square().sum(), first, retain_graph=True)[0], expected[0])
    torch.testing.assert_close(torch.autograd.grad(two.square().sum(), second)[0], expected[1])
    torch.testing.assert_close(torch.autograd.grad(one.square().sum(), first)[0], expected[0])


def test_a_gradient_may_be_asked_for_twice(network: Network) -> None:
    x = images(4).requires_grad_()
    total = Replays(network, Again())(x).square().sum()
    expected = gradient(network, x)
    torch.testing.assert_close(torch.autograd.grad(total, x, retain_graph=True)[0], expected)
    torch.testing.assert_close(torch.autograd.grad(total, x)[0], expected)


def test_of_logits_from_before_the_weights_changed_there_is_no_gradient(network: Network) -> None:
    replays = Replays(network, Again())
    x = images(4).requires_grad_()
    logits = replays(x)
    replays.renew()
    with pytest.raises(RuntimeError, match="weights have changed"):
        logits.sum().backward()


def test_a_gpu_without_memory_for_a_recording_is_told_of(network: Network) -> None:
    class Full(Again):
        def record(self, work: Work) -> tuple[Callable[[], object], Tensor]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match=r"^not enough GPU memory to record passes of 32 images; set"):
        Replays(network, Full())(images(4))


def test_what_was_returned_stays_as_it_was(network: Network) -> None:
    replays = Replays(network, Again())
    logits, by_images = replays(images(4, 1)), gradient(replays, images(4, 1))
    kept = logits.clone(), by_images.clone()
    gradient(replays, images(4, 2))
    assert torch.equal(logits, kept[0])
    assert torch.equal(by_images, kept[1])


def test_without_a_gradient_to_give_there_is_no_graph(network: Network) -> None:
    replays = Replays(network, Again())
    assert replays(images(4)).grad_fn is None
    with torch.no_grad():
        assert replays(images(4).requires_grad_()).grad_fn is None


def test_a_second_derivative_is_refused(network: Network) -> None:
    replays = Replays(network, Again())
    x = images(4).requires_grad_()
    (first,) = torch.autograd.grad(replays(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.fixture
def again() -> Again:
    return Again()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch, again: Again) -> None:
    """Has frozen models run from recordings here too."""
    monkeypatch.setattr(inference, "recorder_for", lambda device: again)


def convolutional(size: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return ResNet(name="resnet8", width=4).network(3, size, 5).double().eval()


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("loss", [TRADES(), MART(), SAT()], ids=["trades", "mart", "sat"])
def test_a_selection_has_the_same_gradients_from_recordings(loss: Loss) -> None:
    x = torch.rand(70, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    images = ImageSet(x, torch.arange(70) % 5, tuple("abcde"))
    found = [
        adversarial_pass(
            Inference(convolutional(), replay=replay),
            images,
            [list(range(40)), list(range(40, 70))],
            loss,
            PGD(ThreatModel(norm="linf", epsilon=8 / 255), steps=3),
            seed=0,
            num_classes=5,
            device="cpu",
        )
        for replay in (True, False)
    ]
    for name in ("deltas", "features"):
        torch.testing.assert_close(*(getattr(each, name) for each in found))


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_pass_that_a_hook_sees_is_not_replayed(kind: str) -> None:
    frozen, x = Inference(convolutional()), torch.rand(4, 3, 8, 8, dtype=torch.float64)
    seen: list[int] = []
    with frozen.folded(), torch.no_grad():
        handle = getattr(frozen.model.get_submodule("fc"), kind)(lambda _, args, *rest: seen.append(len(args[0])))
        logits = frozen(x)
        handle.remove()
        torch.testing.assert_close(frozen(x), logits)
    assert seen == [4], "neither filled up nor passed by"


@pytest.mark.usefixtures("recorded")
def test_recordings_are_kept_while_the_weights_stay_where_they_are() -> None:
    model = convolutional()
    frozen, x = Inference(model), torch.rand(4, 3, 8, 8, dtype=torch.float64)
    changes: dict[str, Callable[[], object]] = {
        "values": lambda: [parameter.data.mul_(1.1) for parameter in model.parameters()],
        "the head": lambda: model.get_submodule("fc").register_parameter("weight", parameter_like(model)),
        "the network": lambda: setattr(model.get_submodule("conv1"), "stride", (2, 2)),
    }
    kept = []
    for change in changes.values():
        with frozen.folded(), without_parameter_gradients(frozen):
            frozen(x)
            before = frozen._replays
        change()
        with frozen.folded(), without_parameter_gradients(frozen):
            torch.testing.assert_close(frozen(x), model(x))
        kept.append(frozen._replays is before)
    assert kept == [True, False, False]


def parameter_like(model: nn.Module) -> nn.Parameter:
    return nn.Parameter(torch.full_like(model.get_parameter("fc.weight"), 0.1))


@pytest.mark.usefixtures("recorded")
def test_only_the_images_have_a_gradient_in_what_is_recorded(again: Again) -> None:
    model = convolutional().float()
    frozen = Inference(model, lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    with frozen.folded(), torch.no_grad():
        frozen(torch.rand(4, 3, 8, 8))
    assert leaves(again.recorded[0].grad_fn) == {torch.Size((32, 3, 8, 8))}
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def leaves(node: Any) -> set[torch.Size]:
    """Returns the shapes of the leaves that a backward pass from a node would come to."""
    if hasattr(node, "variable"):
        return {node.variable.shape}
    return set().union(*(leaves(each) for each, _ in node.next_functions if each))


@pytest.mark.usefixtures("recorded")
def test_a_model_that_nobody_uses_any_more_is_gone_with_its_recordings() -> None:
    frozen = Inference(convolutional())
    with frozen.folded(), torch.no_grad():
        frozen(torch.rand(4, 3, 8, 8, dtype=torch.float64))
    replays = weakref.ref(frozen._replays)
    gc.disable()
    try:
        del frozen
        assert replays() is None
    finally:
        gc.enable()


@pytest.mark.usefixtures("recorded")
def test_a_network_that_looks_at_the_whole_batch_is_not_recorded() -> None:
    parts = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4, track_running_stats=False)]
    model = nn.Sequential(*parts, nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    frozen, x = Inference(model), torch.rand(4, 3, 8, 8)
    with frozen.folded(), without_parameter_gradients(frozen):
        assert frozen._folded is not None
        torch.testing.assert_close(frozen(x), model(x))
    assert frozen._replays is None


@pytest.mark.usefixtures("recorded")
def test_empty_batches_and_inference_mode_are_run_as_they_are(again: Again) -> None:
    model = convolutional()
    frozen, x = Inference(model), torch.rand(4, 3, 8, 8, dtype=torch.float64)
    for mode in (torch.inference_mode(), nullcontext(), torch.inference_mode()):
        with mode, frozen.folded(), without_parameter_gradients(frozen):
            assert frozen(x[:0]).shape == (0, 5)
            if torch.is_inference_mode_enabled():
                torch.testing.assert_close(frozen(x), model(x))
    assert again.recorded == []


@pytest.mark.usefixtures("recorded")
def test_a_late_backward_pass_is_refused() -> None:
    frozen, x = Inference(convolutional()), torch.rand(4, 3, 8, 8, dtype=torch.float64).requires_grad_()
    with frozen.folded(), without_parameter_gradients(frozen):
        logits = frozen(x)
    with frozen.folded(), pytest.raises(RuntimeError, match="weights have changed"):
        logits.sum().backward()


@pytest.mark.usefixtures("recorded")
def test_without_recordings_a_late_backward_pass_is_what_it_was() -> None:
    frozen, x = Inference(convolutional(), replay=False), torch.rand(4, 3, 8, 8, dtype=torch.float64).requires_grad_()
    with frozen.folded(), without_parameter_gradients(frozen):
        logits = frozen(x)
    with frozen.folded(), without_parameter_gradients(frozen):
        frozen(x)
    assert torch.autograd.grad(logits.sum(), x)[0].shape == x.shape


@pytest.mark.usefixtures("recorded")
def test_precision_may_change_from_one_block_to_the_next() -> None:
    model = convolutional().float()
    frozen, x = Inference(model), torch.rand(4, 3, 8, 8)
    for dtype in (None, torch.bfloat16, None):
        context = torch.autocast("cpu", dtype=dtype, enabled=dtype is not None)
        with context, frozen.folded(), without_parameter_gradients(frozen):
            torch.testing.assert_close(frozen(x), model(x).float(), rtol=0.1, atol=0.1)


def test_on_a_cpu_nothing_is_recorded() -> None:
    frozen = Inference(convolutional())
    with frozen.folded(), without_parameter_gradients(frozen):
        frozen(torch.rand(2, 3, 8, 8, dtype=torch.float64))
    assert frozen._folded is not None
    assert frozen._replays is None
