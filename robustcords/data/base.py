"""What every source of images shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

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
    """

    path: Annotated[str, Field(min_length=1)] | None = None
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1


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

    @abstractmethod
    def load(self) -> Splits:
        """Returns the training and test sets.

        Raises:
            UserError: the images cannot be found or read; the message names the file and row.
        """
