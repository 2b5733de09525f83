"""Convolutions on a CPU are torch's, without the geometries that torch computes wrongly."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from support.cases import cases
from support.convolution_watch import Watch, live
from torch import Tensor, nn
from torch.nn import functional as F

from robustcords.engine import convolution
from robustcords.engine.convolution import live_taps, sound_convolutions
from robustcords.engine.inference import Inference
from robustcords.engine.modes import evaluation_mode


def test_the_taps_that_meet_a_pixel_are_those_that_trying_all_of_them_finds():
    for size, kernel, stride, padding, dilation in product((1, 2, 3, 7), (1, 2, 3, 5), (1, 2, 3, 5), range(8), (1, 2)):
        outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        found = live_taps(size, kernel, stride, padding, dilation, outputs)
        assert found == sorted(live(size, kernel, stride, padding, dilation)), (size, kernel, stride, padding, dilation)


def geometry(source: random.Random) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """Returns a convolution's arguments: random ones, most of them small images."""
    groups = source.choice([1, 1, 2])

    def pair(*values: int) -> tuple[int, int]:
        return source.choice(values), source.choice(values)

    inputs, outputs = groups * source.choice([1, 2, 3]), groups * source.choice([1, 2])
    options: dict[str, Any] = {"stride": pair(1, 2, 3), "padding": pair(0, 1, 2, 4), "dilation": pair(1, 1, 2)}
    options |= {"groups": groups}
    if source.random() < 0.2:
        options |= {"padding": "same", "stride": 1}
    kernel, numbers = pair(1, 1, 2, 3, 5), torch.Generator().manual_seed(source.randrange(2**32))
    shapes = (2, inputs, *pair(1, 2, 3, 5, 8)), (outputs, inputs // groups, *kernel), (outputs,)
    x, weight, bias = (torch.randn(shape, generator=numbers, dtype=torch.float64) for shape in shapes)
    return x, weight, bias, options


def results(operator: Callable[..., Tensor], *tensors: Tensor, **options: Any) -> list[Tensor]:
    """Returns a convolution's result and its gradients by images, weight and bias."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    result = operator(*leaves, **options)
    weigh = torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [result, *torch.autograd.grad((result * weigh.to(result.dtype)).sum(), leaves)]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_results_and_gradients_are_those_of_torchs_operator_and_its_refusals_too():
    # In float64 torch has code of its own, which none of the faults is in.
    source, changed = random.Random(0), 0
    for _ in range(200):
        *tensors, options = geometry(source)
        try:
            expected = results(torch.conv2d, *tensors, **options)
        except RuntimeError:
            with pytest.raises(RuntimeError):
                results(convolution.conv2d, *tensors, **options)
            continue
        with Watch() as watch:
            found = results(convolution.conv2d, *tensors, **options)
        assert not watch.unsound, options
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10, msg=str(options))
        with Watch() as watch:
            results(torch.conv2d, *tensors, **options)
        changed += bool(watch.unsound)
    assert changed > 80


@cases("layout", [torch.contiguous_format, torch.channels_last])
@cases("options", [{"stride": 2, "padding": 1}, {"stride": 1, "padding": 1}, {"groups": 4}])
def test_what_torch_computes_right_is_torchs_to_the_byte(options: dict[str, int], layout: torch.memory_format):
    numbers = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(shape, generator=numbers) for shape in ((4, 8, 9, 9), (8, 8 // options.get("groups", 1), 3, 3))
    )
    tensors = (
        x.contiguous(memory_format=layout),
        weight.contiguous(memory_format=layout),
        torch.randn(8, generator=numbers),
    )
    for ours, theirs in zip(
        results(convolution.conv2d, *tensors, **options), results(torch.conv2d, *tensors, **options), strict=True
    ):
        assert torch.equal(ours, theirs)


@cases("layout", [torch.contiguous_format, torch.channels_last])
@cases("dtype", [torch.float32, torch.bfloat16])
@cases(
    ("size", "channels", "options"),
    [
        ((32, 32), (4, 1), {"stride": 2}),
        ((1, 1), (12, 3), {"stride": 2, "padding": 1}),
        ((2, 3), (8, 7), {"padding": 3}),
    ],
)
def test_in_lower_precision_it_is_the_same_up_to_rounding(
    size: tuple[int, int], channels: tuple[int, int], options: dict[str, int], dtype: torch.dtype, layout: Any
):
    numbers = torch.Generator().manual_seed(0)
    shapes = (18, channels[0], *size), (16, channels[0], channels[1], channels[1]), (16,)
    exact = [torch.randn(shape, generator=numbers).to(dtype).double() for shape in shapes]
    lower = [tensor.to(dtype, memory_format=layout) if tensor.ndim == 4 else tensor.to(dtype) for tensor in exact]
    expected = results(torch.conv2d, *exact, **options)
    for ours, theirs in zip(results(convolution.conv2d, *lower, **options), expected, strict=True):
        error = (ours.double() - theirs).norm() / theirs.norm()
        assert error < 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_dtype_that_torch_takes_is_taken(dtype: torch.dtype):
    x, weight, bias = (torch.ones(shape, dtype=dtype) for shape in ((2, 4, 5, 5), (4, 4, 1, 1), (4,)))
    ours, theirs = (results(operator, x, weight, bias, stride=2) for operator in (convolution.conv2d, torch.conv2d))
    assert [tensor.dtype for tensor in ours] == [dtype] * 4
    assert torch.equal(ours[0], theirs[0])


@cases("layout", [torch.contiguous_format, torch.channels_last])
@cases("dtype", [torch.float32, torch.bfloat16, torch.float16])
@cases(("size", "kernel"), [((3, 3), 3), ((3, 5), 3), ((6, 9), 2)])
def test_one_image_whose_pixels_are_left_out_has_right_gradients(
    size: tuple[int, int], kernel: int, dtype: torch.dtype, layout: torch.memory_format
):
    numbers = torch.Generator().manual_seed(0)
    shapes = (1, 16, *size), (32, 8, kernel, kernel), (32,)  # 16 channels to 32, in two groups
    exact = [torch.randn(shape, generator=numbers).to(dtype).double() for shape in shapes]
    lower = [tensor.to(dtype, memory_format=layout) if tensor.ndim == 4 else tensor.to(dtype) for tensor in exact]
    expected = results(torch.conv2d, *exact, stride=4, groups=2)
    found = results(convolution.conv2d, *lower, stride=4, groups=2)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.double() - theirs).norm() < 16 * torch.finfo(dtype).eps * theirs.norm()


def test_taps_in_the_padding_get_a_gradient_of_zero():
    weight = torch.randn(4, 4, 3, 3, requires_grad=True)
    convolution.conv2d(torch.randn(2, 4, 1, 1), weight, None, 2, 1).sum().backward()
    assert weight.grad is not None
    assert weight.grad[..., 1, 1].count_nonzero() == 16
    assert weight.grad.count_nonzero() == 16


def test_folded_networks_are_run_without_the_geometries():
    layers = [nn.Conv2d(1, 4, 1, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=4, padding=1)]
    model = nn.Sequential(*layers, nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3)).eval()
    x, inference = torch.rand(5, 1, 8, 8), Inference(model)
    expected = model(x)
    with Watch() as watch, evaluation_mode(model), inference.folded():
        assert inference._folded is not None
        torch.testing.assert_close(inference(x), expected)
    assert watch.seen == 2
    assert watch.unsound == []


def test_torch_and_the_model_are_afterwards_what_they_were():
    model, theirs = nn.Sequential(nn.Conv2d(1, 4, 1, 2), nn.BatchNorm2d(4)), F.conv2d
    assert theirs is torch.conv2d
    before = list(model.state_dict())
    with sound_convolutions():
        with pytest.raises(KeyError), evaluation_mode(model):
            raise KeyError
        assert F.conv2d is torch.conv2d is convolution.conv2d
        copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert F.conv2d is torch.conv2d is theirs
    assert list(copied.state_dict()) == before
    assert copied(torch.rand(2, 1, 8, 8)).shape == (2, 4, 4, 4)


def test_a_function_that_somebody_has_put_in_torchs_place_stays(monkeypatch: pytest.MonkeyPatch):
    calls: list[Any] = []
    genuine = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *args: calls.append(args) or genuine(*args))
    with sound_convolutions():
        nn.Conv2d(1, 1, 1)(torch.zeros(1, 1, 2, 2))
    assert len(calls) == 1


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_scripted_network_has_torchs_operator():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 1, stride=2))
    x = torch.rand(2, 1, 8, 8)
    expected = network(x)
    with sound_convolutions():
        assert torch.equal(torch.jit.script(network)(x), expected)
