"""Checks of a model's last layer for gradient-based selection, before training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from robustcords.engine.inference import folded
from robustcords.engine.modes import evaluation_mode
from robustcords.models.last_layer import CordsModel, LastLayer
from robustcords.rng import generator
from robustcords.selection.base import SelectionContext
from robustcords.selection.gradients.groups import batches_of
from robustcords.selection.loaded import images_of


def check_last_layer(
    context: SelectionContext,
    *,
    bias_alone: bool,
    mode: Callable[[nn.Module], AbstractContextManager[None]] = evaluation_mode,
) -> None:
    """Passes two images through the model as in a selection, and inspects its last layer.

    This is repeated with perturbed parameters, which reveal a temperature that starts at 1, or layers behind a head
    that starts at 0.

    Args:
        context: of a selection.
        bias_alone: whether only gradients of the bias are used.
        mode: of the model in the selection.

    Raises:
        UserError: the model does not end in a linear layer, or the parameters in question are not trained.
    """
    last_layer = LastLayer(context.model, context.num_classes)
    last_layer.check_trained(bias_alone)
    loader = context.train_loader
    x, _ = images_of(loader).batch(torch.tensor(batches_of(loader)[0][:2]), context.device)
    with mode(context.model), folded(context.model), torch.no_grad():
        last_layer.features_and_logits(x)
    # In float32 where that can be had, in which a small difference is none of rounding.
    model = CordsModel(getattr(context.model, "exact", context.model), context.num_classes)
    with mode(context.model), torch.no_grad():
        functional_call(model, _perturbed(model, context.seed), (x,), {"last": True})


def _perturbed(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Returns copies of a model's buffers, and its parameters perturbed by about their size.

    Args:
        model: is not changed.
        seed: of the directions.
    """
    source = generator(seed, "perturbed")
    values = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            continue
        drawn = torch.rand(parameter.shape, generator=source).to(parameter) - 0.5  # a step of 0.5 to 0.9 either way
        size = parameter.abs().mean()
        values[name] = parameter + (0.8 * drawn + 0.5 * drawn.sign()) * torch.where(size > 0, size, 0.1)
    return values
