"""Images larger than memory: what a run takes of memory and time to read them.

    python benchmarks/images_on_disk.py [--images 2000] [--size 224] [--workers 2] [--folder DIR] [--only memory ...]

Makes class folders of synthetic JPEGs (smooth patterns with noise; kept in ``--folder`` if that is given, and used
again), and prints Markdown tables of

- *start-up*: seconds from nothing to the first batch of training, the mean and deviation of the pixels included, with
  the images encoded on disk, for the first time and again; and what building the cache of decoded images takes, and
  starting with it;
- *memory*: the most that the process and its workers take (PSS: what they share counts once) in a shuffled pass, and
  how much more that is than before there were images;
- *reading*: images a second, and a second and core, in such passes of torchvision's ``ImageFolder`` and of Hugging
  Face's ``datasets``, each in a ``DataLoader``, and of this package, encoded and decoded on disk, in turn, medians of
  ``--repeats`` rounds. Cores are those that were busy: seconds of the processor, of the process and its workers;
- *tables*: milliseconds of the processor that an image takes out of a Parquet file, decoded when it is read, in passes
  of which all images are shuffled, or blocks and then a window (``train.shuffle_window``);
- *waiting*: the shares of an epoch of plain training and of a selection's pass without an attack, which are the
  fastest there are, that wait for images: torchvision's ResNet-18 at ``--side`` pixels, batches of ``--batch``.
  Adversarial ones wait less, as their batches take longer.

A pass ends after ``--read`` images. ``--encoded`` leaves out the decoded ones, which take the room and the time of
decoding all.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from robustcords import data
from robustcords.data.images import Images, Part
from robustcords.data.loading import loaded
from robustcords.data.storage import in_units
from robustcords.engine.allocator import keep_freed_memory
from robustcords.experiments.build import channel_statistics
from robustcords.losses.sat import SAT
from robustcords.models.external import TorchvisionModel
from robustcords.selection.gradients.adversarial_pass import adversarial_pass
from robustcords.selection.selector import everything
from robustcords.training.loader import BatchLoader
from robustcords.training.shuffling import shuffled

CLASSES = 20
WAYS = (("encoded", False), ("decoded", True))
PARTS = ("memory", "reading", "tables", "waiting")
AT_FIRST = 2  # batches that start the workers, and are not counted
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


def started(options: argparse.Namespace, folder: Path, *, cache: bool) -> tuple[float, float, Images]:
    """Returns the seconds to the first batch of a shuffled epoch, those of the processor, and the images."""
    start, busy = time.perf_counter(), processor()
    images = open_images(options, folder, options.size, cache=cache)
    channel_statistics(images)
    next(iter(images.batches(passed(options, len(images)), "cpu")))
    return time.perf_counter() - start, processor() - busy, images


def passed(options: argparse.Namespace, count: int, window: int | None = None) -> list[list[int]]:
    """Returns the batches of a shuffled pass over so many images, as far as it goes."""
    order = shuffled(torch.arange(count), window, torch.Generator().manual_seed(0))
    return [part.tolist() for part in order[: options.read].split(options.batch)]


def processor() -> float:
    """Returns the seconds of the processor that this process and those that it has now have taken."""
    return sum(sum(each.cpu_times()[:2]) for each in (PROCESS, *PROCESS.children()))


def rate(batches: Iterator[object], count: int) -> tuple[float, float]:
    """Returns images a second, and a second and core, in a pass whose workers are there already."""
    wall, busy = time.perf_counter(), processor()
    for _ in batches:
        pass
    return count / (time.perf_counter() - wall), count / (processor() - busy)


def baselines(options: argparse.Namespace, folder: Path) -> dict[str, Callable[[], Iterator[object]]]:
    """Returns passes of torchvision's folder and of Hugging Face's table, each in a DataLoader whose workers stay."""
    import datasets

    datasets.disable_progress_bars()
    steps = transforms.Compose(
        [transforms.Resize(options.size), transforms.CenterCrop(options.size), transforms.ToTensor()]
    )
    table = datasets.Dataset.from_parquet(
        str(written(folder, 100) / "train.parquet"), cache_dir=str(folder.parent / "datasets")
    ).cast_column("image", datasets.Image())
    table.set_transform(lambda rows: {"image": [steps(image) for image in rows["image"]], "label": rows["label"]})
    sets = {"torchvision": ImageFolder(str(folder / "train"), steps), "datasets": table}

    def passes(images: Any) -> Callable[[], Iterator[object]]:
        loader: DataLoader[Any] = DataLoader(
            images,
            batch_size=options.batch,
            sampler=list(itertools.chain.from_iterable(passed(options, len(images)))),
            num_workers=options.workers,
            persistent_workers=options.workers > 0,
        )
        return lambda: iter(loader)

    return {f"{name}, DataLoader": passes(images) for name, images in sets.items()}


def written(folder: Path, rows: int) -> Path:
    """Returns a folder with the images as tables, of so many rows a group; written where it is not there."""
    place = folder.parent / f"tables-{rows}"
    place.mkdir(exist_ok=True)
    kind = pa.schema([("image", pa.struct([("bytes", pa.binary())])), ("label", pa.int64())])
    for split in ("train", "test"):
        file = place / f"{split}.parquet"
        if file.exists():
            continue
        paths = sorted((folder / split).rglob("*.jpg"))
        with pq.ParquetWriter(file.with_suffix(".part"), kind) as writer:
            for start in range(0, len(paths), rows):
                part = paths[start : start + rows]
                images = [{"bytes": path.read_bytes()} for path in part]
                labels = [int(path.parent.name.removeprefix("class_")) for path in part]
                writer.write_table(pa.table({"image": images, "label": labels}, schema=kind), row_group_size=rows)
        file.with_suffix(".part").rename(file)
    return place


def tables(options: argparse.Namespace, folder: Path) -> None:
    print("\n| rows a group | order | ms of the processor an image |\n|--:|:--|--:|")
    for rows in (100, 1000):
        images = open_images(options, written(folder, rows), options.size, cache=False)
        for _ in images.batches([[0]] * 2 * max(1, options.workers), "cpu"):  # starts the workers
            pass
        for name, window in (("all shuffled", None), (f"a window of {options.window:,}", options.window)):
            parts = passed(options, len(images), window)
            _, core = rate(images.batches(parts, "cpu"), sum(map(len, parts)))
            print(f"| {rows:,} | {name} | {1000 / core:.2f} |", flush=True)


def reading(options: argparse.Namespace, folder: Path, ways: dict[str, Images]) -> None:
    parts = passed(options, options.images)
    count = sum(map(len, parts))
    passes = baselines(options, folder)
    passes |= {name: partial(images.batches, parts, "cpu") for name, images in ways.items()}
    for each in passes.values():
        rate(each(), count)  # starts the workers, and fills the system's cache
    rounds = [{name: rate(each(), count) for name, each in passes.items()} for _ in range(options.repeats)]
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
        for _ in images.batches(passed(options, options.images), "cpu"):
            now = max(now, taken())
        print(f"| {name} | {in_units(now)} | {in_units(max(0, now - before))} |", flush=True)


class Timed(Part):
    """All images of a set, with the seconds that each batch is waited for, the first two left out."""

    def __init__(self, images: Images) -> None:
        super().__init__(images, torch.arange(len(images)))
        self.waits: list[float] = []

    def batches(self, parts: Sequence[Sequence[int]], device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields images and labels of several lists of rows."""
        batches = super().batches(parts, device)
        for number in range(len(parts)):
            start = time.perf_counter()
            batch = next(batches)
            if number >= AT_FIRST:
                self.waits.append(time.perf_counter() - start)
            yield batch


def waiting(options: argparse.Namespace, folder: Path) -> None:
    print(f"\n| images of {options.side} pixels | | ms a batch | waits for images |\n|:--|:--|--:|--:|")
    for name, cache in WAYS[: 1 if options.encoded else 2]:
        images = open_images(options, folder, options.side, cache=cache)
        network = TorchvisionModel(name="torchvision:resnet18").build(
            3, options.side, CLASSES, torch.zeros(3), torch.ones(3), seed=0
        )
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        loader, subset = BatchLoader(images, options.batch, seed=0, device=torch.device("cpu")), everything(len(images))
        batches = loader.order(0, subset)[: options.steps + AT_FIRST]
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
        takes, waits = takes[AT_FIRST:], waits[AT_FIRST:]
        print(f"| {name} | training | {1000 * sum(takes) / options.steps:.0f} | {sum(waits) / sum(takes):.1%} |")
        parts, timed = [part.tolist() for part in batches], Timed(images)
        times: list[float] = []
        adversarial_pass(
            network,
            timed,
            parts,
            SAT(),
            None,
            seed=0,
            num_classes=CLASSES,
            device="cpu",
            on_batch=lambda *_, times=times: times.append(time.perf_counter()),
        )
        total = times[-1] - times[AT_FIRST - 1]
        print(f"| | selection | {1000 * total / options.steps:.0f} | {sum(timed.waits) / total:.1%} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--distinct", type=int, default=1000, help="images; the others are links to them")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--side", type=int, default=160, help="of the images that a network is trained on")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8, help="of training")
    parser.add_argument("--read", type=int, default=2000, help="images that a pass reads")
    parser.add_argument("--window", type=int, default=2000, help="of images out of tables")
    parser.add_argument("--encoded", action="store_true", help="leave out decoded images")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where images and cache are kept; left out, a temporary folder")
    options = parser.parse_args()
    keep_freed_memory()  # as a run does
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        os.environ["ROBUSTCORDS_CACHE"] = str(folder / "cache")
        size = make(folder / "images", options.images, options.size, options.distinct)
        print(f"{options.images:,} JPEGs of {options.size} pixels, {in_units(size)}; {options.workers} workers")
        before = taken()
        ways: dict[str, Images] = {}
        print("\n| first batch after | s | of the processor |\n|:--|--:|--:|")
        for name, cache in WAYS[: 1 if options.encoded else 2]:
            for which in ("first time", "again"):
                seconds, busy, ways[f"{name} on disk"] = started(options, folder / "images", cache=cache)
                print(f"| {name}, {which} | {seconds:.1f} | {busy:.1f} |", flush=True)
        if "memory" in options.only:
            memory(before, ways, options)
        if "reading" in options.only:
            reading(options, folder / "images", ways)
        if "tables" in options.only:
            tables(options, folder / "images")
        if "waiting" in options.only:
            waiting(options, folder / "images")


if __name__ == "__main__":
    main()
