"""What every source of images shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from robustcords.config.schema import Component, ComponentConfig
from robustcords.data.images import Images


@dataclass(frozen=True)
class Splits:
    """What a source gives.

    Attributes:
        train: the whole training set.
        test: the test set.
        notes: what a person should know of how they were read, a line each.
    """

    train: Images
    test: Images
    notes: tuple[str, ...] = ()


class DataConfig(ComponentConfig):
    """Options that every data set has.

    Attributes:
        path: where ``name`` is read from: a folder of parquet files, of class folders, or torchvision's root. Left out,
            the source's own place.
        validation_fraction: share of the training set that is held out, stratified by class, in [0, 1).
        crop: pixels of zero padding for random crops; left out, what is usual for the data set.
        flip: random horizontal flips; left out, what is usual for the data set.
    """

    path: Annotated[str, Field(min_length=1)] | None = None
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    crop: Annotated[int, Field(ge=0, le=64)] | None = None
    flip: bool | None = None


class DataSource(Component, ABC):
    """A place that images come from.

    Attributes:
        crop: the usual padding for random crops.
        flip: whether random flips are usual.
    """

    Config = DataConfig
    config: DataConfig
    crop: int = 0
    flip: bool = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.crop = self.crop if self.config.crop is None else self.config.crop
        self.flip = self.flip if self.config.flip is None else self.config.flip

    @abstractmethod
    def load(self) -> Splits:
        """Returns the training and test sets.

        Raises:
            UserError: the images cannot be found or read; the message names the file and row.
        """
