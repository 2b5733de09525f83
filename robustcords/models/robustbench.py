"""Models of RobustBench, with the weights that their authors published."""

from __future__ import annotations

import importlib
import sys
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustcords.errors import UserError
from robustcords.models.base import ImageSize, Statistics
from robustcords.models.external import ExternalModel


class RobustBenchModel(ExternalModel):
    """``robustbench:NAME``: a model of RobustBench's model zoo (Croce et al. 2021, https://arxiv.org/abs/2010.09670).

    Which data set it is for follows from the number of classes. A name that has weights for several threat models is
    written with one of them, ``robustbench:Linf/NAME``. The model takes pixels in [0, 1] and normalises them itself, or
    does not: nothing is put in front of it.
    """

    class Config(ExternalModel.Config):
        """Options of RobustBench's models.

        Attributes:
            pretrained: use the published weights, which are downloaded once.
            checkpoint: a file with weights as RobustBench publishes them, instead of a download.
        """

        checkpoint: str | None = None

    config: RobustBenchModel.Config
    prefix = "robustbench:"
    package = "robustbench"
    hint = "RobustBench: pip install robustbench"

    @classmethod
    def library(cls) -> Any:
        """Returns the package.

        Raises:
            UserError: it is not installed, or cannot be imported.
        """
        if find_spec(cls.package) and not find_spec("autoattack"):
            # What RobustBench imports is called `pyautoattack` in the package that it depends on.
            for name in ("autoattack", "autoattack.state"):
                sys.modules[name] = importlib.import_module(f"py{name}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # names of timm's that it still uses
            return super().library()

    @classmethod
    def zoo(cls) -> dict[tuple[str, str], Any]:
        """Returns data set and threat model, such as ``("cifar10", "Linf")``, to the entries by name."""
        cls.library()
        models = importlib.import_module("robustbench.model_zoo").model_dicts
        return {(data.value, threat.value): models[data][threat] for data in models for threat in models[data]}

    @classmethod
    def available(cls) -> list[str]:
        """Returns all names, with a threat model and without."""
        names = [(threat, name) for (_, threat), entries in cls.zoo().items() for name in entries]
        return list(dict.fromkeys([*(name for _, name in names), *(f"{threat}/{name}" for threat, name in names)]))

    def create(self, name: str, channels: int, image_size: ImageSize, num_classes: int) -> nn.Module:
        """Returns RobustBench's model, which takes the images of its data set alone.

        Raises:
            UserError: it is for other classes or several threat models, or the checkpoint is no file of its own.
        """
        del channels, image_size
        threat, _, short = name.rpartition("/")
        zoo = self.zoo()
        places = [place for place, entries in zoo.items() if short in entries and threat in {"", place[1]}]
        classes = importlib.import_module("robustbench.utils").DATASET_CLASSES
        sizes = {data.value: count for data, count in classes.items()}
        fitting = [place for place in places if sizes[place[0]] == num_classes]
        if not fitting:
            known = " and ".join(dict.fromkeys(f"{data} ({sizes[data]} classes)" for data, _ in places))
            raise UserError(f"model {self.config.name!r} is for {known}; these images have {num_classes} classes")
        if len(fitting) > 1:
            names = ", ".join(f"{self.prefix}{each}/{short}" for _, each in fitting)
            raise UserError(f"model {self.config.name!r}: RobustBench has several of this name: {names}")
        network: nn.Module = self._loaded(short, *fitting[0], zoo[fitting[0]][short])
        return network

    def _loaded(self, name: str, data: str, threat: str, entry: Any) -> Any:
        """Returns a model with weights as the options say, read by RobustBench's own loader."""
        config, load = self.config, importlib.import_module("robustbench.utils").load_model
        if config.checkpoint is None:
            if not config.pretrained:
                return entry["model"]()
            downloads = Path(torch.hub.get_dir()) / "robustbench"
            return load(name, model_dir=downloads, dataset=data, threat_model=threat)
        file = Path(config.checkpoint).absolute()
        if not file.is_file():
            raise UserError(f"model.checkpoint {config.checkpoint}: there is no such file")
        if not isinstance(entry["gdrive_id"], str):
            raise UserError(f"model.checkpoint: {self.config.name!r} is not published as one file; leave it out")
        with tempfile.TemporaryDirectory() as folder:
            (place := Path(folder) / data / threat).mkdir(parents=True)
            (place / f"{name}.pt").symlink_to(file)
            return load(name, model_dir=folder, dataset=data, threat_model=threat)

    def statistics(self, network: nn.Module, mean: Statistics, std: Statistics) -> tuple[Statistics, Statistics]:
        """Returns 0 and 1 for every channel: the model is given pixels as they are."""
        del network, std
        return [0.0] * len(mean), [1.0] * len(mean)
