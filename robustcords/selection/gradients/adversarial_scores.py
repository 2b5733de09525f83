"""Other quantities of CORDS' strategies besides ``compute_gradients``, at adversarial examples."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from robustcords.losses.base import Loss
from robustcords.selection.gradients.factors import LastLayerGradients
from robustcords.selection.gradients.groups import batches_of, rows_of
from robustcords.selection.gradients.validation_gradient import ValidationGradient


class AdversarialScores:
    """Adversarial versions of what GLISTER and CRAIG compute besides ``compute_gradients``.

    Attributes:
        validation_gradients: of the validation examples, after GLISTER's first request.
    """

    trainloader: Any
    linear_layer: bool
    validation_gradients: LastLayerGradients

    @property
    def validation_loss(self) -> Loss:
        """The loss on validation examples."""
        raise NotImplementedError

    def _pass(self, loader: Any, loss: Loss, what: str) -> LastLayerGradients:
        raise NotImplementedError

    def _update_grads_val(self, grads_curr: Any = None, first_init: bool = False) -> None:
        """Sets GLISTER's ``grads_val_curr``, the mean gradient of the validation examples (C, 1) or (C + C*E, 1).

        Their perturbations are found at ``first_init`` and stay; afterwards the last layer moves by
        ``-eta * grads_curr``. The mean is over examples, also where CORDS' PerBatch takes it over batches.

        Args:
            grads_curr: the sum of the chosen gradients (1, C) or (1, C + C*E), biases first.
            first_init: attack the validation examples.
        """
        strategy: Any = self
        if first_init:
            loader = strategy.pcvalloader if strategy.selection_type == "PerClass" else strategy.valloader
            self.validation_gradients = self._pass(loader, self.validation_loss, "validation")
        gradients = self._of_chosen_parameters(self.validation_gradients)
        if grads_curr is None:
            mean = gradients.sum() / len(gradients)
        else:
            biases = strategy.num_classes
            step = torch.cat([grads_curr[0, :biases].view(-1, 1), grads_curr[0, biases:].view(biases, -1)], dim=1)
            mean = ValidationGradient(gradients, self.validation_loss).after(strategy.eta * step)
        flat = torch.cat([mean[:, 0], mean[:, 1:].flatten()])
        strategy.grads_val_curr = flat.view(-1, 1).to(gradients.deltas[0].dtype)

    def compute_score(self, model_params: Any, idxs: Any) -> None:
        """Sets CRAIG's ``dist_mat``: the largest distance of two gradients minus the distance of each pair.

        Its rows are the examples of ``idxs`` in that order, where CORDS shuffles them.

        Args:
            model_params: a state dictionary, which is loaded into the model.
            idxs: rows of the training examples.
        """
        strategy: Any = self
        if strategy.if_convex:  # compares images, not gradients
            strategy_of_cords: Any = super()
            strategy_of_cords.compute_score(model_params, idxs)
            return
        strategy.model.load_state_dict(model_params)
        rows = rows_of(self.trainloader)
        chosen = Subset(self.trainloader.dataset, [rows[int(place)] for place in idxs])
        loader = DataLoader(chosen, self.trainloader.batch_size, collate_fn=self.trainloader.collate_fn)
        exact = self._of_chosen_parameters(self._pass(loader, strategy.adversarial_loss, "training")).double()
        per_batch = strategy.selection_type == "PerBatch"
        gradients: Any = exact.means([len(batch) for batch in batches_of(loader)]) if per_batch else exact
        norms = gradients.squared_norms()
        distances = norms.unsqueeze(1) + norms - 2 * gradients.products(gradients)
        distances = distances.clamp_(min=0).fill_diagonal_(0).float().cpu()
        strategy.N = len(gradients)
        strategy.const = distances.max().item()
        strategy.dist_mat = (strategy.const - distances).numpy()

    def _of_chosen_parameters(self, gradients: LastLayerGradients) -> LastLayerGradients:
        """Returns the gradients, with ``linear_layer=False`` only those of the bias."""
        return gradients if self.linear_layer else gradients.bias_only()
