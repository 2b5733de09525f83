"""What an augmentation costs: CPU time per batch of 128 images of 3 x 32 x 32, loaded as training loads them.

    python benchmarks/augmentation_cost.py [--repeats 30]

One thread; the median of CPU seconds, which other programs on the machine hardly change.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from robustcords.config import registry
from robustcords.data.images import ImageSet
from robustcords.selection.selector import everything
from robustcords.training.loader import BatchLoader

BATCH = 128


def main() -> None:
    """Prints a line for each augmentation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    pixels = torch.randint(256, (BATCH, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ImageSet(pixels, torch.arange(BATCH) % 10, tuple("0123456789"))
    for name in registry.names("augmentation"):
        options = {} if name == "none" else {"crop": 4, "flip": True}
        augmentation = registry.find("augmentation", name)(**options)
        loader = BatchLoader(images, BATCH, augmentation, seed=0, device=torch.device("cpu"))
        seconds = []
        for epoch in range(repeats):
            start = time.process_time()
            loader.load(torch.arange(BATCH), everything(BATCH), epoch)
            seconds.append(time.process_time() - start)
        print(f"{name:16} {1000 * statistics.median(seconds):7.2f} ms a batch")


if __name__ == "__main__":
    main()
