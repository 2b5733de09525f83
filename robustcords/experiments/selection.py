"""``robustcords select``: one subset, chosen with given weights and written to a file."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np

from robustcords.engine.inference import Inference
from robustcords.errors import UserError
from robustcords.experiments import build, proxy, report_output
from robustcords.experiments.run import load_images, session
from robustcords.recipe.recipe import Recipe
from robustcords.report.selection_tables import SelectionSummary, summarise_selection
from robustcords.runtime import collectives
from robustcords.storage.files import write_atomic


def select(recipe: Recipe, weights: Path, output: Path) -> SelectionSummary:
    """Selects one subset with given weights, writes it, and returns what there is to say of it.

    The file holds ``indices`` (k,) int64 in the full training set's numbering and ``weights`` (k,) float32.

    Raises:
        UserError: the recipe has no selector, or one whose proxy has to be trained first, the weights do not fit its
            model, or the file exists or cannot be written.
    """
    report_output.refuse_taken(output)
    proxy.refuse_untrained(recipe)
    with session(recipe) as work:
        images = load_images(recipe, work)
        judge = build.proxy(recipe, images, work.device)
        selector = build.selector(recipe, images, judge)
        if selector is None:
            raise UserError("the recipe has no [selector] table, so there is nothing to select")
        selector.bind(
            images.train,
            loss=build.component("loss", recipe.loss),
            attack=build.attack(recipe),
            epochs=recipe.train.epochs or 0,
            batch_size=recipe.train.batch_size,
            seed=recipe.seed,
            lr=getattr(recipe.optimizer, "lr", None),
            augment=build.augmentation(recipe, images),
        )
        model, _ = build.settled_model(recipe, images, work.device)
        build.load_weights(model, weights)
        build.check_size(recipe, judge or model, images)
        for text in build.cautions(recipe):
            work.display.say(f"warning: {text}")
        start = time.perf_counter()
        with work.reported("selection") as on_batch, work.interruption:
            network = selector.proxy or Inference(model, replay=bool(recipe.train.cuda_graphs))
            with network.under(work.watched):
                subset = selector.select(0, network, on_batch, measure=True)
        seconds = time.perf_counter() - start
        if collectives.is_main():
            content = io.BytesIO()
            np.savez(content, indices=images.train.numbers[subset.indices].numpy(), weights=subset.weights.numpy())
            write_atomic(output, content.getvalue())
    return summarise_selection(selector.config.name, subset, images.train, selector.report, seconds, output)
