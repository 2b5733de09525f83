"""The proxy of a recipe: a smaller model, trained first, whose gradients choose the subsets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from robustcords.config.registry import find
from robustcords.config.requirements import VALIDATION_IMAGES
from robustcords.errors import UserError
from robustcords.experiments import build
from robustcords.experiments.environment import environment
from robustcords.recipe.recipe import Recipe, dump
from robustcords.report.runs import rows_of
from robustcords.runtime import collectives
from robustcords.runtime.session import Session
from robustcords.storage.run_directory import RunDirectory
from robustcords.training.trainer import Trainer


def recipe_of(recipe: Recipe) -> Recipe | None:
    """Returns what a proxy is trained by: the recipe's method and settings, on all the data; None for no training."""
    config = recipe.selector.proxy if recipe.selector else None
    if config is None or config.weights is not None:
        return None
    changes: dict[str, Any] = {"model": config.model, "selector": None, "callbacks": {}}
    changes["train"] = recipe.train.model_copy(update={"epochs": config.epochs, "steps": None, "budget": None})
    changes["evaluation"] = recipe.evaluation.model_copy(update={"checkpoints": ["last"]})
    return recipe.model_copy(update=changes)


class ProxyTraining:
    """The training of a recipe's proxy, in the folder ``proxy`` of its run; nothing where a recipe trains none.

    It is built with the run, so that what cannot be built is said before there is a directory.

    Args:
        recipe: of the run.
        images: of the run.
        work: the run's session.
    """

    def __init__(self, recipe: Recipe, images: build.Data, work: Session) -> None:
        self.recipe, self.work = recipe_of(recipe), work
        self.trainer: Trainer | None = None
        if self.recipe:
            # Nothing else in it asks for a validation, whose time the proxy would spend.
            held_out = VALIDATION_IMAGES in find("effort", recipe.effort.name).requires
            self.trainer = build.trainer(self.recipe, images if held_out else replace(images, validation=None), work)

    def run(self, around: RunDirectory, network: nn.Module) -> float:
        """Trains the proxy, from its newest checkpoint where it has one, and loads its weights.

        Args:
            around: of the run itself.
            network: the proxy that selects.

        Returns:
            The seconds that its training took, all parts of it together.

        Raises:
            Interrupted: a signal asked to stop; a checkpoint of the proxy has been written.
        """
        if self.trainer is None or self.recipe is None:
            return 0.0
        folder = around.path / "proxy"
        directory = RunDirectory(folder, writes=around.writes, keep_checkpoints=self.recipe.train.keep_checkpoints)
        if not directory.weights("last").exists():
            self.work.display.say(f"{folder}: training {self.recipe.model.name}, which selects for the run")
            if around.writes:
                folder.mkdir(exist_ok=True)
            collectives.barrier()
            directory.start(dump(self.recipe), environment(self.recipe, self.work.accelerator))
            collectives.barrier()
            self.trainer.run = directory
            scaler = self.trainer.accelerator.scaler
            before = scaler.state_dict() if scaler else {}
            self.trainer.fit()
            if scaler:
                scaler.load_state_dict(before)  # the run begins with a scale of its own, resumed or not
            collectives.barrier()
        self.trainer = None  # and with it the optimizer's memory
        build.load_weights(network, directory.weights("last"))
        return sum(row.seconds["total"] for row in rows_of(directory))


def refuse_untrained(recipe: Recipe) -> None:
    """Checks, for a command that trains nothing, that a recipe's proxy has weights.

    Raises:
        UserError: it would have to be trained first.
    """
    config = recipe.selector.proxy if recipe.selector else None
    if config and config.weights is None:
        raise UserError(
            f"selector.proxy.epochs = {config.epochs}: this command trains no proxy; set selector.proxy.weights to a "
            "file, such as RUN/proxy/weights/last.safetensors of a run of this recipe"
        )
