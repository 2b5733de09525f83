"""What selection by gradients asks of a model's last layer, found out before training."""

from __future__ import annotations

import torch

from robustcords.attacks.base import evaluation_mode
from robustcords.inference import frozen
from robustcords.models.last_layer import LastLayer
from robustcords.strategies.base import SelectionContext
from robustcords.strategies.groups import batches_of, fetch


def check_last_layer(context: SelectionContext, *, bias_alone: bool) -> None:
    """Passes two images through the model as a selection does, and looks at its last layer.

    Args:
        context: what a selection would be made with.
        bias_alone: whether gradients are those of the bias alone.

    Raises:
        UserError: the model does not end in a linear layer, or none of the parameters in question is trained.
    """
    last_layer = LastLayer(context.model, context.num_classes)
    last_layer.check_trained(bias_alone)
    loader = context.train_loader
    with evaluation_mode(context.model), frozen(context.model), torch.no_grad():
        for _, x, _ in fetch(loader, [batches_of(loader)[0][:2]]):
            last_layer.features_and_logits(x.to(context.device))
