"""What a selection spends on its images: asked for by rows as in training, and through a ``DataLoader``.

    python benchmarks/selection_data.py [--images 5000] [--width 16] [--batch 128] [--repeats 5] [--data-path DIR]

Makes the pass of a selection without an attack (a forward pass of a ResNet-8, in float32) over images in memory, in
turn with batches that the set gives itself and with those of a ``DataLoader``, which splits a batch into single images
and stacks them again. Prints a Markdown table: seconds for the data, of the whole pass and the share, medians of the
rounds; of the processor (with one thread, what it takes on an idle core) and by the clock. *Ratio* is the median over
the rounds of what the row takes over what the first row takes. Without ``--data-path`` the images are made up, which
takes the same time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from robustcords.data.images import Images, ImageSet, Part
from robustcords.engine.inference import Inference
from robustcords.engine.memory_format import lay_out
from robustcords.experiments import build
from robustcords.losses.standard import Standard
from robustcords.models.resnet import ResNet
from robustcords.recipe.recipe import load
from robustcords.selection.gradients.adversarial_pass import adversarial_pass
from robustcords.selection.loaded import LoadedImages

CLOCKS = (time.process_time, time.perf_counter)


class Timed(Part):
    """A set that adds up what its batches take, by each of `CLOCKS`."""

    def __init__(self, whole: Images) -> None:
        super().__init__(whole, torch.arange(len(whole)))
        self.seconds = [0.0] * len(CLOCKS)

    def batches(self, parts: Sequence[Sequence[int]], device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the whole set's batches."""
        given = self.whole.batches(parts, device)
        while True:
            start = [clock() for clock in CLOCKS]
            batch = next(given, None)
            self.seconds = [sum(each) for each in zip(self.seconds, elapsed(start), strict=True)]
            if batch is None:
                return
            yield batch


def elapsed(start: Sequence[float]) -> list[float]:
    return [clock() - before for clock, before in zip(CLOCKS, start, strict=True)]


def images_of(options: argparse.Namespace) -> Images:
    if options.data_path:
        path = f"data.path={json.dumps(options.data_path)}"
        return build.data(load("cifar10_trades", [path])).train.subset(torch.arange(options.images))
    source = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (options.images, 3, 32, 32), generator=source, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(options.images) % 10, tuple("0123456789"))


def measured(model: nn.Module, images: Images, batch: int) -> tuple[list[float], list[float]]:
    """Returns the seconds of the data and of the whole pass, by each of `CLOCKS`."""
    timed, start = Timed(images), [clock() for clock in CLOCKS]
    batches = [rows.tolist() for rows in torch.arange(len(images)).split(batch)]
    adversarial_pass(model, timed, batches, Standard(), None, seed=0, num_classes=10, device="cpu")
    return timed.seconds, elapsed(start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--width", type=int, default=16, help="of the ResNet-8")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data-path", help="folder of CIFAR-10")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = images_of(options)
    ways = {"rows": images, "DataLoader": LoadedImages(DataLoader(images, batch_size=options.batch))}
    network = ResNet(name="resnet8", width=options.width).build(3, 32, 10, torch.zeros(3), torch.ones(3), seed=0)
    model = Inference(lay_out(network, torch.device("cpu"), "channels_last"))
    for way in ways.values():
        measured(model, way, options.batch)
    rounds = [{name: measured(model, way, options.batch) for name, way in ways.items()} for _ in range(options.repeats)]
    print(
        "| images by | clock | data, s | ratio | pass, s | ratio | data, % of the pass |\n|:--|:--|--:|--:|--:|--:|--:|"
    )
    for name in ways:
        for number, clock in enumerate(("processor", "wall")):
            cells = []
            for part in (0, 1):
                taken = statistics.median(each[name][part][number] for each in rounds)
                ratio = statistics.median(each[name][part][number] / each["rows"][part][number] for each in rounds)
                cells += [f"{taken:.3f}", f"{ratio:.2f}"]
            share = statistics.median(each[name][0][number] / each[name][1][number] for each in rounds)
            print(f"| {name} | {clock} | {' | '.join(cells)} | {share:.1%} |")


if __name__ == "__main__":
    main()
