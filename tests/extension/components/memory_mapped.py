"""A data set whose images stay in files, from outside the package."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustcords import DataSource, Images, Splits
from robustcords.errors import UserError


class InFile(Images):
    """Images (N, C, H, W) of 8 bits in one .npy file, which batches are read from."""

    def __init__(self, pixels: Path, labels: Path, classes: tuple[str, ...]) -> None:
        self.pixels = np.load(pixels, mmap_mode="r")
        self.labels = torch.from_numpy(np.load(labels))
        self.classes = classes

    def batch(self, rows: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Returns images and labels of some rows, on a device."""
        x = torch.from_numpy(self.pixels[rows.numpy()]).to(device)
        return x.float().div_(255), self.labels[rows].to(device)


class Mapped(DataSource):
    """The folder ``data.path``: {train,test}.npy, {train,test}_labels.npy, and classes.txt with a name a line."""

    def load(self) -> Splits:
        """Returns the training and the test set."""
        if self.config.path is None:
            raise UserError("data.path: names the folder that holds train.npy")
        folder = Path(self.config.path)
        classes = tuple((folder / "classes.txt").read_text().split())
        train, test = (
            InFile(folder / f"{part}.npy", folder / f"{part}_labels.npy", classes) for part in ("train", "test")
        )
        return Splits(train, test)
