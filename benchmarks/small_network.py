"""What might move a small network's rate on a CPU, each with what it gains over the attack engine as it is.

    python small_network.py [--network resnet8] [--batch 128] [--repeats 5]

from this folder. All contenders compute the same logits of a folded network, and the gradient of their sum to the
images where *backward* is said; each is a process of its own with one thread, unless it says two, and they take turns.
*Gain* is the median over the rounds of the images a second divided by those of the first contender of its block:

- *no normalisation*: the images go to the first convolution as they are, which is the most that normalising in its
  weights could gain;
- *compiled*: ``torch.compile`` of the folded network, *frozen* where its weights are constants, which it can be in a
  forward pass only;
- *oneDNN graph*: the traced network, frozen, optimised by ``torch.jit.enable_onednn_fusion``;
- batches of other sizes, as selection and evaluation could choose them;
- one process with two threads, and two processes with one each.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable
from functools import partial

import torch
from attack_engine import SIZES, Contender, network
from torch import Tensor, nn

from robustcords.engine.allocator import keep_freed_memory
from robustcords.engine.folding import fold

Pass = Callable[[], object]
Contenders = dict[str, tuple[Callable[..., Pass], tuple[int, str], int, int]]
"""By its name, what makes a pass, of which batch and way, images in a process, and threads."""


def folded(name: str, *, normalised: bool = True) -> nn.Module:
    """Returns the folded network as a module whose weights need no gradient."""
    model = network(name).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    if not normalised:
        for parent in model.modules():
            for key, child in parent.named_children():
                if type(child).__name__ == "Normalize":
                    setattr(parent, key, nn.Identity())
    found = fold(model)
    assert found is not None
    found.refresh(None, in_place=False)
    return found._graph


def images(batch: int) -> Tensor:
    source = torch.Generator().manual_seed(0)
    return torch.rand(batch, 3, 32, 32, generator=source).contiguous(memory_format=torch.channels_last)


def prepared(name: str, batch: int, way: str, *, backward: bool, threads: int) -> Pass:
    """Returns one pass over a batch."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    model: Callable[[Tensor], Tensor] = folded(name, normalised=way != "no normalisation")
    x = images(batch).requires_grad_(backward)
    if way == "compiled":
        model = torch.compile(model)
    if way == "compiled, frozen":
        model = torch.compile(model, options={"freezing": True})
    if way == "oneDNN graph":
        torch.jit.enable_onednn_fusion(True)
        with torch.no_grad():
            model = torch.jit.freeze(torch.jit.trace(model, x))

    def run() -> None:
        with torch.enable_grad() if backward else torch.no_grad():
            logits = model(x)
        if backward:
            torch.autograd.grad(logits.sum(), [x])

    for _ in range(3):  # compiles, and lets oneDNN choose
        run()
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=SIZES, default="resnet8")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"{platform.machine()}, torch {torch.__version__}, {options.network}, batches of {options.batch}\n")
    print("| pass | way | images a second | gain |\n|:--|:--|--:|--:|", flush=True)
    for backward, name in ((True, "forward, backward"), (False, "forward")):
        make = partial(prepared, options.network, backward=backward)
        ways = ["as it is", "no normalisation", "compiled"]
        ways += [] if backward else ["compiled, frozen", "oneDNN graph"]
        block: Contenders = {way: (make, (options.batch, way), options.batch, 1) for way in ways}
        for times in (0.25, 0.5, 2, 4):
            size = int(options.batch * times)
            block[f"batches of {size}"] = (make, (size, ""), size, 1)
        compare(name, block, options.repeats)
        half = options.batch // 2
        block = {
            "one process, two threads": (make, (options.batch, ""), options.batch, 2),
            "two processes, a thread each": (make, (half, ""), half, 1),
        }
        compare(name, block, options.repeats)


def compare(name: str, block: Contenders, repeats: int) -> None:
    """Prints a line for each contender; one of two processes has as many images in each."""
    contenders = {
        way: [Contender(partial(make, threads=threads), *given) for _ in range(2 if way.startswith("two") else 1)]
        for way, (make, given, _, threads) in block.items()
    }
    rounds: list[dict[str, float]] = []
    for _ in range(repeats + 1):
        rates = {}
        for way, together in contenders.items():
            for each in together:
                each.begin()
            rates[way] = sum(block[way][2] / each.wait() for each in together)
        rounds.append(rates)
    for together in contenders.values():
        for each in together:
            each.end()
    first = next(iter(block))
    for way in block:
        rate = statistics.median(each[way] for each in rounds[1:])
        gain = statistics.median(each[way] / each[first] for each in rounds[1:])
        print(f"| {name} | {way} | {rate:.0f} | {gain:.2f} |", flush=True)


if __name__ == "__main__":
    main()
