"""Images larger than memory: what a run takes of memory and time to read them.

    python benchmarks/images_on_disk.py [--images 2000] [--size 224] [--workers 2] [--steps 8] [--folder DIR]

Makes class folders of synthetic JPEGs (smooth patterns with noise; kept in ``--folder`` if that is given, and used
again), and prints Markdown tables of

- *start-up*: seconds from nothing to the first batch of training, with the images encoded on disk, for the first time
  and again; and what building the cache of decoded images takes, and starting with it;
- *memory*: what the process and its workers take (PSS: what they share counts once) in the middle of a shuffled pass,
  and how much more that is than before there were images;
- *reading*: images a second, and a second and core, in such passes of torchvision's ``ImageFolder`` with a
  ``DataLoader`` and of this package, encoded and decoded on disk, in turn, medians of ``--repeats`` rounds. Cores are
  those that were busy: seconds of the processor, of the process and its workers;
- *waiting*: the share of an epoch of plain training, which is the fastest there is, that waits for images: a ResNet-18
  at ``--side`` pixels, batches of ``--batch``. Adversarial training waits less, as its steps take longer.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from robustcords import data
from robustcords.data.images import Images
from robustcords.data.loading import loaded
from robustcords.data.storage import in_units
from robustcords.models.resnet import ResNet
from robustcords.selection.selector import everything
from robustcords.training.loader import BatchLoader

CLASSES = 20
PROCESS = psutil.Process()


def make(folder: Path, count: int, size: int, distinct: int) -> int:
    """Writes so many JPEGs, and a test image of each class, where they are missing; returns their bytes.

    Those after so many distinct ones are further names of the same files: as many to list and decode, and little to
    write.
    """
    source = np.random.default_rng(0)
    first: list[Path] = []
    for number in range(count + CLASSES):
        split, name = ("train" if number < count else "test"), f"class_{number % CLASSES:02d}"
        file = folder / split / name / f"{number:07d}.jpg"
        if number < distinct:
            first.append(file)
        if file.exists():
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        if number >= distinct:
            file.hardlink_to(first[number % distinct])
        else:
            coarse = Image.fromarray(source.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((size * 4 // 3, size), Image.Resampling.BICUBIC), dtype=np.float32)
            noisy = smooth + source.normal(0, 6, smooth.shape)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, quality=90)
    return sum(file.stat().st_size for file in folder.rglob("*.jpg"))


def open_images(options: argparse.Namespace, folder: Path, size: int, *, cache: bool) -> Images:
    around = {"image_size": size, "storage": "disk", "cache": cache, "workers": options.workers}
    return loaded(data.source(str(folder))(name=str(folder), **around)).train


def started(options: argparse.Namespace, folder: Path, *, cache: bool) -> tuple[float, Images]:
    """Returns the seconds to the first batch of a shuffled epoch, and the images."""
    start = time.perf_counter()
    images = open_images(options, folder, options.size, cache=cache)
    next(iter(images.batches(shuffled(len(images), options.batch), "cpu")))
    return time.perf_counter() - start, images


def shuffled(count: int, batch: int) -> list[list[int]]:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return [part.tolist() for part in order.split(batch)]


def processor() -> float:
    """Returns the seconds of the processor that this process and those that it has now have taken."""
    return sum(sum(each.cpu_times()[:2]) for each in (PROCESS, *PROCESS.children()))


def rate(batches: Iterator[object], count: int) -> tuple[float, float]:
    """Returns images a second, and a second and core, in a pass whose workers are there already."""
    wall, busy = time.perf_counter(), processor()
    for _ in batches:
        pass
    return count / (time.perf_counter() - wall), count / (processor() - busy)


def baseline(options: argparse.Namespace, folder: Path) -> Callable[[], Iterator[object]]:
    """Returns passes of torchvision's folder in a DataLoader whose workers stay."""
    steps = [transforms.Resize(options.size), transforms.CenterCrop(options.size), transforms.ToTensor()]
    loader = DataLoader(
        ImageFolder(str(folder / "train"), transforms.Compose(steps)),
        batch_size=options.batch,
        shuffle=True,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
    )
    return lambda: iter(loader)


def reading(options: argparse.Namespace, folder: Path, ways: dict[str, Images]) -> None:
    parts = shuffled(options.images, options.batch)
    passes: dict[str, Callable[[], Iterator[object]]] = {"torchvision, DataLoader": baseline(options, folder)}
    passes |= {name: partial(images.batches, parts, "cpu") for name, images in ways.items()}
    for each in passes.values():
        rate(each(), options.images)  # starts the workers, and fills the system's cache
    rounds = [{name: rate(each(), options.images) for name, each in passes.items()} for _ in range(options.repeats)]
    print("\n| images | a second | a second and core | ratio |\n|:--|--:|--:|--:|")
    first = next(iter(passes))
    for name in passes:
        wall, core = (statistics.median(each[name][part] for each in rounds) for part in (0, 1))
        ratio = statistics.median(each[name][1] / each[first][1] for each in rounds)
        print(f"| {name} | {wall:.0f} | {core:.0f} | {ratio:.2f} |", flush=True)


def taken() -> int:
    """Returns the bytes of memory of this process and its workers."""
    return sum(each.memory_full_info().pss for each in (PROCESS, *PROCESS.children()))


def memory(before: int, ways: dict[str, Images], options: argparse.Namespace) -> None:
    print("\n| images | process and workers | more than before |\n|:--|--:|--:|")
    for name, images in ways.items():
        now = 0
        for number, _ in enumerate(images.batches(shuffled(options.images, options.batch), "cpu")):
            if number * options.batch >= options.images // 2:
                now = taken()
                break
        print(f"| {name} | {in_units(now)} | {in_units(max(0, now - before))} |", flush=True)


def waiting(options: argparse.Namespace, folder: Path) -> None:
    print(f"\n| images of {options.side} pixels | ms a step | waits for images |\n|:--|--:|--:|")
    for name, cache in (("encoded", False), ("decoded", True)):
        images = open_images(options, folder, options.side, cache=cache)
        network = ResNet(name="resnet18").build(3, options.side, CLASSES, torch.zeros(3), torch.ones(3), seed=0)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        loader, subset = BatchLoader(images, options.batch, seed=0, device=torch.device("cpu")), everything(len(images))
        batches = loader.order(0, subset)[: options.steps + 2]
        loader.read_ahead(batches, subset, 0)
        waits, takes = [], []
        for positions in batches:
            start = time.perf_counter()
            batch = loader.load(positions, subset, 0)
            waits.append(time.perf_counter() - start)
            nn.functional.cross_entropy(network(batch.x), batch.y).backward()
            optimizer.step()
            optimizer.zero_grad()
            takes.append(time.perf_counter() - start)
        total = sum(takes[2:])  # the first steps start the workers
        print(f"| {name} | {1000 * total / len(takes[2:]):.0f} | {sum(waits[2:]) / total:.1%} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--distinct", type=int, default=1000, help="images; the others are links to them")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--side", type=int, default=160, help="of the images that a network is trained on")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8, help="of training; 0 leaves it out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where images and cache are kept; left out, a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        os.environ["ROBUSTCORDS_CACHE"] = str(folder / "cache")
        size = make(folder / "images", options.images, options.size, options.distinct)
        print(f"{options.images:,} JPEGs of {options.size} pixels, {in_units(size)}; {options.workers} workers")
        before = taken()
        first, _ = started(options, folder / "images", cache=False)
        again, encoded = started(options, folder / "images", cache=False)
        built, _ = started(options, folder / "images", cache=True)
        kept, decoded = started(options, folder / "images", cache=True)
        print("\n| first batch after | s |\n|:--|--:|")
        for name, seconds in (
            ("encoded, first time", first),
            ("encoded, again", again),
            ("decoded, cache built", built),
            ("decoded, again", kept),
        ):
            print(f"| {name} | {seconds:.1f} |")
        ways = {"encoded on disk": encoded, "decoded on disk": decoded}
        memory(before, ways, options)
        reading(options, folder / "images", ways)
        if options.steps:
            waiting(options, folder / "images")


if __name__ == "__main__":
    main()
