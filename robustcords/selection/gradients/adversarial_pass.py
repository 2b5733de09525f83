"""The adversarial pass of a selection: attack every example, store its gradient in factored form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from robustcords.attacks.base import Attack, CleanLogits
from robustcords.data.augmentations.base import Augmentation
from robustcords.data.images import Images
from robustcords.engine.inference import folded
from robustcords.engine.memory_format import MEMORY_FORMATS, layout_of
from robustcords.engine.modes import evaluation_mode, seeded, training_mode
from robustcords.engine.precision import full_precision
from robustcords.errors import UserError, one_line
from robustcords.losses.base import Loss
from robustcords.models.last_layer import LastLayer
from robustcords.rng import Noise, derive
from robustcords.runtime import collectives
from robustcords.selection.base import Augment
from robustcords.selection.gradients.factors import LastLayerGradients, logit_gradients

OnBatch = Callable[[int, int], None]
"""Called with how many batches are done, and how many there are."""


def adversarial_pass(
    model: nn.Module,
    images: Images,
    batches: Sequence[Sequence[int]],
    loss: Loss,
    attack: Attack | None,
    *,
    seed: int,
    num_classes: int,
    device: torch.device | str,
    on_batch: OnBatch | None = None,
    train_mode: bool = False,
    augment: Augment | None = None,
) -> LastLayerGradients:
    """Returns the gradient of the loss at adversarial examples, for every example of some batches, in order.

    The model is attacked in eval mode. Its modes, buffers and ``.grad``, and global random states, are unchanged.
    Batches are distributed round-robin over the processes, and every process gets all factors; the result is the same
    for any number of processes, as batches are the same and noise is keyed by the images' rows.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits, ending in a linear layer.
        images: the data set; batches have the model's memory format, as in training.
        batches: rows of the images, each at most once.
        loss: its ``views`` determine the forward passes, and the number of terms of a gradient. A ``batchwise`` loss is
            differentiated batch by batch, any other example by example.
        attack: makes the adversarial examples; None for clean images.
        seed: of the attack's random starts.
        num_classes: number of logits.
        device: of the model and the factors.
        on_batch: called after each batch.
        train_mode: compute gradients in train mode, with BatchNorm statistics of each batch and view.
        augment: augments images before the attack; None for no augmentation.

    Raises:
        UserError: the model does not end in a linear layer, or cannot run a batch of one image in train mode.
    """
    last_layer = LastLayer(model, num_classes)
    attack = attack if "adversarial" in loss.views else None
    world, rank = collectives.world_size(), collectives.rank()
    mine, layout = batches[rank::world], MEMORY_FORMATS[layout_of(model)]
    if isinstance(augment, Augmentation):
        images = augment.takes(images)
    columns: list[list[Tensor]] = []
    with evaluation_mode(model), nullcontext() if train_mode else folded(model):
        for done, (batch, (original, y)) in enumerate(zip(mine, images.batches(mine, device), strict=True), 1):
            rows = torch.tensor(batch, device=device)
            x = augment(original, Noise(derive(seed, "augment"), rows)) if augment else original
            x, noise = x.contiguous(memory_format=layout), Noise(seed, rows)
            columns.append([rows, y, *_factors(model, last_layer, x, y, loss, attack, noise, train_mode=train_mode)])
            if on_batch:
                on_batch(min(done * world, len(batches)), len(batches))
    parts = zip(_empty(last_layer, num_classes, len(loss.views), device), *columns, strict=True)
    whole = [torch.cat(collectives.gather_rows(torch.cat(part))) for part in parts]  # of all processes
    wanted = torch.tensor([row for batch in batches for row in batch], device=device)
    order = whole[0].argsort()[wanted.argsort().argsort()]
    numbers, y, *factors = (column[order] for column in whole)
    features, logits = tuple(factors[0::2]), tuple(factors[1::2])
    sizes = [len(batch) for batch in batches] if loss.batchwise else [len(y)]
    batched = zip(zip(*(z.split(sizes) for z in logits), strict=True), y.split(sizes), strict=True)
    deltas = zip(*(logit_gradients(loss, part, labels) for part, labels in batched), strict=True)
    gradients = LastLayerGradients(
        tuple(torch.cat(parts) for parts in deltas), features, y, logits, bias=last_layer.trains_bias, numbers=numbers
    )
    return gradients if last_layer.trains_weight else gradients.bias_only()


def _factors(
    model: nn.Module,
    last_layer: LastLayer,
    x: Tensor,
    y: Tensor,
    loss: Loss,
    attack: Attack | None,
    noise: Noise,
    *,
    train_mode: bool,
) -> list[Tensor]:
    """Returns features (B, E) and logits (B, C) of each of the loss's views in turn."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    if "clean" in loss.views and not train_mode:
        with torch.no_grad():
            found["clean"] = last_layer.features_and_logits(x)
    images = {"clean": x, "adversarial": x}
    if attack:
        with folded(model):
            reusable = "clean" in found and getattr(model, "exact", model) is model
            clean: Callable[[], Tensor] = (lambda: found["clean"][1]) if reusable else CleanLogits(model, x)
            images["adversarial"] = attack(model, x, attack.objective_for(loss, y, clean), noise)
    with _trained(model, noise) if train_mode else nullcontext(), torch.no_grad():
        pairs = [found.get(name) or last_layer.features_and_logits(images[name]) for name in loss.views]
    return [factor for pair in pairs for factor in pair]


@contextmanager
def _trained(model: nn.Module, noise: Noise) -> Iterator[None]:
    """Context with the model in train mode, and dropout seeded by the batch's first example.

    Raises:
        UserError: the model cannot run a batch of one image in train mode.
    """
    with training_mode(model), seeded(derive(noise.seed, "dropout", int(noise.keys[0])), noise.keys.device):
        try:
            yield
        except ValueError as error:
            if len(noise.keys) > 1:
                raise
            raise UserError(
                'selector.model_mode = "train": a batch of one image comes up, and the model cannot be trained on it '
                f'({one_line(error)}); change train.batch_size, or set it to "eval"'
            ) from error


def _empty(last_layer: LastLayer, classes: int, views: int, device: torch.device | str) -> list[Tensor]:
    """Returns empty columns, for a process without batches."""
    kind = full_precision(last_layer.head.weight.new_zeros(0)).dtype
    pair = [torch.zeros((0, width), dtype=kind, device=device) for width in (last_layer.head.in_features, classes)]
    numbers = torch.zeros(0, dtype=torch.int64, device=device)
    return [numbers, numbers, *(pair * views)]
