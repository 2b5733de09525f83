"""Which convolutions torch computes wrongly on this machine's CPU, and whether training here avoids them.

    python benchmarks/cpu_convolutions.py search [--seconds 300] [--seed 0] [--operator torch]
    python benchmarks/cpu_convolutions.py cost     a training pass with and without what is done about them

The search draws geometries (kernel, stride, padding, dilation, groups, channels, image and batch size, layout, float32
or bfloat16) and runs each in a child process: forward, then the gradients by the images, the weight and the bias. A
child that dies is a result like any other. They are compared with convolutions written as sums of products in float64,
and two repeats with each other, for which the C library fills the memory that it hands out with two different values
(glibc only), so that what nobody has written is neither right nor repeatable.

``--operator robustcords`` runs the same geometries as networks run here, see `robustcords.engine.convolution`. With
``LD_PRELOAD=libc_malloc_debug.so.0 MALLOC_CHECK_=3`` glibc checks its blocks more closely.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import math
import multiprocessing
import platform
import random
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from attack_engine import SIZES, network
from torch import Tensor
from torch.nn import functional as F

from robustcords.engine.convolution import sound_convolutions

RESULTS = ("forward", "input gradient", "weight gradient", "bias gradient")
LARGEST = 3e7
"""Products of a geometry's forward."""

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest difference over largest value. What is wrong is wrong by far more."""

FILLINGS = (0x80, 0x85)
"""The C library fills new memory with the complement: 0x7f7f7f7f is 3e38 as a number, 0x7a7a7a7a 3e35."""

_M_PERTURB = -6


@dataclass(frozen=True)
class Geometry:
    """One call of a convolution; tuples have an entry for each dimension of the image."""

    images: int
    inputs: int
    outputs: int
    groups: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    channels_last: bool
    dtype: torch.dtype

    @property
    def kind(self) -> str:
        """What the table counts it as."""
        if max(self.kernel) == 1 < max(self.stride):
            return "1x1 with a stride"
        if self.gaps:
            return "another stride larger than the kernel"
        return "taps in the padding alone" if self.dead else "any other"

    @property
    def gaps(self) -> bool:
        """Whether some pixels are between the places of the kernel."""
        return any(s > d * (k - 1) + 1 for k, s, d in zip(self.kernel, self.stride, self.dilation, strict=True))

    @property
    def dead(self) -> bool:
        """Whether some tap of the kernel meets nothing but padding."""
        sides = self.size, self.out, self.kernel, self.stride, self.padding, self.dilation
        return any(
            not any(0 <= out * s - p + tap * d < into for out in range(outs))
            for into, outs, k, s, p, d in zip(*sides, strict=True)
            for tap in range(k)
        )

    @property
    def out(self) -> tuple[int, ...]:
        """The size of the result, below 1 where there is none."""
        ways = zip(self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in ways)

    @property
    def products(self) -> float:
        """How many its forward takes."""
        return self.images * math.prod(self.out) * math.prod(self.kernel) * self.inputs * self.outputs / self.groups

    def __str__(self) -> str:
        def text(values: tuple[int, ...]) -> str:
            return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))

        layout = "channels_last" if self.channels_last else "contiguous"
        return (
            f"{self.images} images of {'x'.join(map(str, self.size))}, {self.inputs} to {self.outputs} channels in "
            f"{self.groups} groups, kernel {text(self.kernel)}, stride {text(self.stride)}, padding "
            f"{text(self.padding)}, dilation {text(self.dilation)}, {str(self.dtype).removeprefix('torch.')}, {layout}"
        )


def drawn(source: random.Random) -> Geometry:
    """Returns a geometry of which torch accepts the sizes and which is computed in well under a second.

    A quarter each have a 1x1 kernel and a stride, small images, which padding exceeds, or one image in groups and a
    stride larger than a kernel that is larger than 1x1; the rest are like any.
    """
    while True:
        theme = source.choice(("thin", "small", "gaps", "any"))
        groups, alike = source.choice([1, 1, 1, 1, 2, 4, 16]), source.random() < 0.7

        def pair(values: Sequence[int], alike: bool = alike) -> tuple[int, int]:
            first, second = source.choice(values), source.choice(values)
            return first, first if alike else second

        inputs, outputs = (groups * source.choice([1, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64]) for _ in range(2))
        kernel = pair({"thin": [1], "gaps": [2, 3]}.get(theme, [1, 2, 3, 3, 4, 5, 7]))
        geometry = Geometry(
            1 if theme == "gaps" else source.choice([1, 2, 3, 5, 8, 18, 33]),
            inputs,
            outputs,
            groups,
            pair([1, 1, 2, 3, 4, 5, 7] if theme in {"small", "gaps"} else [1, 2, 3, 5, 8, 13, 16, 28, 32, 64, 128]),
            kernel,
            pair({"thin": [2, 2, 3, 4], "gaps": [4, 5]}.get(theme, [1, 2, 2, 3, 4])),
            pair([0, 0, 0, 1] if theme in {"thin", "gaps"} else [0, kernel[0] // 2, 1, 2, 3]),
            pair([1] if theme == "gaps" else [1, 1, 1, 2, 3]),
            source.random() < 0.6,
            source.choice([torch.float32, torch.bfloat16]),
        )
        fits = max(inputs, outputs) <= 64 and min(geometry.out) >= 1 and max(geometry.out) <= 260
        if fits and geometry.products <= LARGEST:
            return geometry


def reference(x: Tensor, weight: Tensor, g: Geometry) -> Tensor:
    """Returns a convolution of x (B, C, ...) as a sum of products over windows, without any convolution of torch's."""
    windows = F.pad(x, [pad for p in reversed(g.padding) for pad in (p, p)])
    for axis, (k, s, d) in enumerate(zip(g.kernel, g.stride, g.dilation, strict=True)):
        windows = windows.unfold(axis + 2, d * (k - 1) + 1, s)[..., ::d]
    windows = windows.unflatten(1, (g.groups, -1))
    filters = weight.unflatten(0, (g.groups, -1))
    return torch.einsum("bgcxyij,gncij->bgnxy", windows, filters).flatten(1, 2)


def expected(x: Tensor, weight: Tensor, bias: Tensor, weigh: Tensor, g: Geometry) -> list[Tensor]:
    """Returns the four results in float64 for ``sum(weigh * result)``."""
    x, weight, bias, weigh = (t.detach().double().contiguous().requires_grad_() for t in (x, weight, bias, weigh))
    result = reference(x, weight, g) + bias.view(-1, 1, 1)
    return [result.detach(), *torch.autograd.grad((result * weigh.detach()).sum(), (x, weight, bias))]


def computed(x: Tensor, weight: Tensor, bias: Tensor, weigh: Tensor, g: Geometry) -> list[Tensor]:
    """Returns the four results as torch's operator, or what stands in its place, computes them."""
    x, weight, bias = (tensor.detach().clone().requires_grad_() for tensor in (x, weight, bias))
    options: dict[str, Any] = {"stride": g.stride, "padding": g.padding, "dilation": g.dilation, "groups": g.groups}
    result = F.conv2d(x, weight, bias, **options)
    return [result.detach(), *torch.autograd.grad((result * weigh).sum(), (x, weight, bias))]


def tensors(g: Geometry, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns images, weight, bias and the gradient of the result, random, in the geometry's dtype and layout."""
    source = torch.Generator().manual_seed(seed)
    shapes = (
        (g.images, g.inputs, *g.size),
        (g.outputs, g.inputs // g.groups, *g.kernel),
        (g.outputs,),
        (g.images, g.outputs, *g.out),
    )
    x, weight, bias, weigh = (torch.randn(shape, generator=source).to(g.dtype) for shape in shapes)
    if g.channels_last:
        x, weight, weigh = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, weight, weigh))
    return x, weight, bias, weigh


def fill_new_memory(value: int) -> None:
    """Lets glibc fill every block that it hands out; 0 ends it."""
    getattr(ctypes.CDLL(None), "mallopt", lambda *_: None)(_M_PERTURB, value)


def examine(pipe: Connection, g: Geometry, operator: str, seed: int) -> None:
    """Sends what is wrong with a geometry, in a process of its own."""
    torch.set_num_threads(1)
    made = tensors(g, seed)
    wanted = expected(*made, g)
    rounds = []
    for filling in FILLINGS:
        fill_new_memory(filling)
        if operator == "torch":
            rounds.append(computed(*made, g))
        else:
            with sound_convolutions():
                rounds.append(computed(*made, g))
        # What has been written where it does not belong shows when blocks beside it are given back.
        del [torch.empty(2**power) for power in range(4, 22)][:]
    fill_new_memory(0)
    wrong = []
    for name, right, once, again in zip(RESULTS, wanted, *rounds, strict=True):
        error = (once.double() - right).abs().max() / right.abs().max().clamp(min=1e-3)
        if not error <= TOLERANCE[g.dtype]:
            wrong.append(f"{name} wrong")
        elif not torch.equal(once, again):
            wrong.append(f"{name} not repeatable")
    pipe.send(wrong)


def verdict(g: Geometry, operator: str, seed: int) -> list[str]:
    """Returns what is wrong with a geometry, or how the process died that tried it."""
    context: Any = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=examine, args=(there, g, operator, seed))
    child.start()
    there.close()
    try:
        wrong: list[str] | None = here.recv() if here.poll(60) else ["takes more than a minute"]
    except EOFError:
        wrong = None
    child.join(5)
    if child.exitcode is None:
        child.kill()
        child.join()
    elif child.exitcode:
        died = signal.Signals(-child.exitcode).name if child.exitcode < 0 else f"status {child.exitcode}"
        wrong = [*(wrong or []), f"the process dies ({died})"]
    return wrong if wrong is not None else ["the process ends"]


def search(options: argparse.Namespace) -> None:
    """Prints what is wrong with which geometries."""
    source, end = random.Random(options.seed), time.monotonic() + options.seconds
    tried, shown = collections.Counter[tuple[str, str]](), collections.Counter[tuple[str, str]]()
    faults: dict[tuple[str, str], collections.Counter[str]] = collections.defaultdict(collections.Counter)
    while time.monotonic() < end:
        geometry = drawn(source)
        where = geometry.kind, str(geometry.dtype).removeprefix("torch.")
        tried[where] += 1
        wrong = verdict(geometry, options.operator, sum(tried.values()))
        faults[where].update(wrong)
        for fault in wrong:
            shown[where[0], fault] += 1
            if shown[where[0], fault] <= options.show:
                print(f"{geometry.kind}: {fault}: {geometry}", flush=True)
    print(f"\n--operator {options.operator} --seed {options.seed}: {sum(tried.values())} geometries\n")
    print("| geometry | dtype | tried | faults |\n|:--|:--|--:|:--|")
    for where in sorted(tried):
        told = ", ".join(f"{fault}: {count}" for fault, count in faults[where].most_common()) or "none"
        print(f"| {where[0]} | {where[1]} | {tried[where]} | {told} |")


def step_of(name: str) -> Callable[[], object]:
    """Returns what passes 64 images of 32 x 32 through a network and back to its weights."""
    model = network(name).to(memory_format=torch.channels_last)
    x = torch.rand(64, 3, 32, 32).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        model.zero_grad()
        model(x).logsumexp(1).sum().backward()

    return step


def cost(options: argparse.Namespace) -> None:
    """Prints what a network's pass takes with torch's operators and with those here, in turns."""
    print("| network | torch's, ms | ours, ms | ours / torch's |\n|:--|--:|--:|--:|")
    for name in SIZES:
        step, rounds = step_of(name), list[tuple[float, float]]()
        for _ in range(options.repeats + 1):
            plain = seconds(step)
            with sound_convolutions():
                rounds.append((plain, seconds(step)))
        plain, ours = (1000 * statistics.median(column) for column in zip(*rounds[1:], strict=True))
        ratio = statistics.median(ours / plain for plain, ours in rounds[1:])
        print(f"| {name} | {plain:.1f} | {ours:.1f} | {ratio:.3f} |", flush=True)


def seconds(action: Callable[[], object]) -> float:
    """Returns the processor's time, which other work on the machine changes little."""
    begin = time.process_time()
    action()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("search")
    command.add_argument("--seconds", type=float, default=300)
    command.add_argument("--seed", type=int, default=0, help="of the geometries")
    command.add_argument("--operator", choices=("torch", "robustcords"), default="torch")
    command.add_argument("--show", type=int, default=5, help="geometries printed for each kind and fault")
    command.set_defaults(run=search)
    command = commands.add_parser("cost")
    command.add_argument("--repeats", type=int, default=10)
    command.set_defaults(run=cost)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}, one thread")
    options.run(options)


if __name__ == "__main__":
    main()
