"""Bullet-Train's attack on one batch: all kinds of examples as one batch, and a batch for each kind.

    python benchmarks/kinds_together.py [--network resnet8] [--rounds 8]

128 synthetic images, of which 26 are attacked by no step, 23 by ten and 79 by two, as after some epochs of training;
TRADES' objective, one thread. What the counts allow is the clean forward, and for each image's step its share of a step
of all 128. What is timed is the process's own time on the processor, which other work on the machine disturbs less than
the clock; the ways take turns, and figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from typing import Any

import torch
from attack_engine import SIZES, network
from torch import Tensor

from robustcords.attacks.base import CleanLogits
from robustcords.attacks.pgd import PGD
from robustcords.engine.allocator import keep_freed_memory
from robustcords.engine.inference import Inference
from robustcords.losses.trades import TRADES
from robustcords.methods.efforts.base import Plan
from robustcords.methods.efforts.batch import attack_by_plan
from robustcords.rng import Noise
from robustcords.threats.linf import Linf

COUNTS, STEPS, SIZES_OF_STEPS = (26, 23, 79), (0, 10, 2), (2 / 255, 2 / 255, 6 / 255)


class ByKind(PGD):
    """PGD that says nothing of steps that differ by example, and so is called for each kind by itself."""

    def search(self, *arguments: Any) -> Tensor:
        """Returns what PGD finds."""
        return super().search(*arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=SIZES, default="resnet8")
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    inference = Inference(network(options.network).to(memory_format=torch.channels_last))
    source = torch.Generator().manual_seed(0)
    count, threat = sum(COUNTS), Linf(epsilon=8 / 255)
    x = torch.rand(count, 3, 32, 32, generator=source).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (count,), generator=source)
    kinds = torch.repeat_interleave(torch.tensor(COUNTS))[torch.randperm(count, generator=source)]
    steps = torch.tensor(STEPS)[kinds]
    plan = Plan(steps, torch.tensor(SIZES_OF_STEPS, dtype=torch.float64)[kinds])
    ways: dict[str | int, tuple[PGD, Plan]] = {
        "one batch": (PGD(threat), plan),
        "each kind": (ByKind(threat), plan),
        **{number: (PGD(threat, steps=number), Plan(torch.full((count,), number))) for number in (2, 10)},
    }

    def seconds(attack: PGD, planned: Plan) -> float:
        clean, begin = CleanLogits(inference, x), time.process_time()
        attack_by_plan(
            inference, x, y, Noise(0, torch.arange(count)), planned, attack=attack, loss=TRADES(), clean=clean
        )
        return time.process_time() - begin

    with inference.folded():
        rounds = [{way: seconds(*given) for way, given in ways.items()} for _ in range(options.rounds + 1)][1:]
    step = statistics.median((each[10] - each[2]) / 8 for each in rounds)
    allowed = statistics.median(each[2] for each in rounds) + step * (int(steps.sum()) / count - 2)
    print(f"{platform.machine()}, one thread, torch {torch.__version__}, {options.network}\n")
    print("| way | ms | of what the counts allow |\n|:--|--:|--:|")
    for way in ("each kind", "one batch"):
        taken = statistics.median(each[way] for each in rounds)
        print(f"| {way} | {taken * 1e3:.0f} | {allowed / taken:.0%} |")


if __name__ == "__main__":
    main()
