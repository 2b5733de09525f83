"""The base class of data sources."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from robustcords.config.schema import Component, ComponentConfig, Role
from robustcords.data.images import Images


@dataclass(frozen=True)
class Splits:
    """What a source gives.

    Attributes:
        train: the whole training set.
        test: the test set.
        notes: what a person should know of how they were read, a line each.
        warnings: what reports have to say too, a line each: images that are missing.
    """

    train: Images
    test: Images
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class DataConfig(ComponentConfig):
    """Options that every data set has.

    Attributes:
        path: where ``name`` is read from: a folder with parquet files, class folders, or torchvision's own files; left
            out, the default location of the source: scikit-learn for ``digits``, a cache folder for torchvision's sets.
        validation_fraction: share of the training set that is held out for validation, stratified by class. The
            ``best`` weights are chosen on it, and Adv-GLISTER selects with it. With 0 there is no ``best``.
        train_limit: number of training images to use, 0 for all. They are drawn with the run's ``seed``, in proportion
            to the classes and at least one of each; the validation split is taken from them.
        cache: keep the decoded images on disk for later runs.
    """

    path: Annotated[Annotated[str, Field(min_length=1)] | None, Role("repetition", changeable=True)] = None
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    train_limit: Annotated[int, Field(ge=0)] = 0
    cache: Annotated[bool, Role("computation", changeable=True)] = True


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

    def files(self) -> Sequence[str | Path] | None:
        """Returns the files that the images are decoded from, in a fixed order.

        They tell whether images that were kept from an earlier run are still the same. None, as here, where nobody can
        say which they are: then nothing is kept.
        """
        return None

    @abstractmethod
    def load(self) -> Splits:
        """Returns the training and test sets.

        Raises:
            UserError: the images cannot be found or read; the message names the file and row.
        """
