"""The hook that replaces a CORDS strategy's gradients by those at adversarial examples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustcords.attacks.base import Attack
from robustcords.errors import RunError
from robustcords.losses.base import Loss
from robustcords.models.last_layer import CordsModel, LastLayer
from robustcords.rng import derive
from robustcords.selection.base import Augment
from robustcords.selection.gradients.adversarial_pass import OnBatch, adversarial_pass
from robustcords.selection.gradients.adversarial_scores import AdversarialScores
from robustcords.selection.gradients.factors import LastLayerGradients
from robustcords.selection.gradients.groups import batches_of
from robustcords.selection.gradients.torch_loss import as_loss
from robustcords.selection.loaded import images_of


class AdversarialGradients(AdversarialScores):
    """Mixin that replaces a CORDS strategy's gradients by those at adversarial examples.

    ``class Mine(AdversarialGradients, GradMatchStrategy)`` is upstream's strategy with upstream's constructor, whose
    ``compute_gradients`` computes the gradients of the whole training loss, both terms of TRADES and MART. They are
    stored as factors; upstream's code, which reads ``grads_per_elem`` and ``val_grads_per_elem``, gets them in dense
    form. GLISTER's validation gradient and CRAIG's similarities are those of adversarial examples too.

    Args:
        args: CORDS' own arguments. The loss may be one of `robustcords.losses`, or a torch loss with
            ``reduction="none"``.
        attack: makes the adversarial examples; None for clean images.
        seed: of the attack's random starts.
        on_batch: called with (done, total) batches of a pass over the data.
        model_mode: of the gradients' passes, ``"eval"`` or ``"train"``.
        augment: augments images; None for no augmentation.
        options: CORDS' own keyword arguments.

    Attributes:
        gradients: of the training examples, after `compute_gradients`.
        validation_gradients: of the validation examples, after ``compute_gradients(valid=True)``.
    """

    model: nn.Module
    loss: Any
    trainloader: Any
    valloader: Any
    linear_layer: bool
    num_classes: int
    device: Any
    logger: Any
    gradients: LastLayerGradients
    validation_gradients: LastLayerGradients

    def __init__(
        self,
        *args: Any,
        attack: Attack | None = None,
        seed: int = 0,
        on_batch: OnBatch | None = None,
        model_mode: Literal["eval", "train"] = "eval",
        augment: Augment | None = None,
        **options: Any,
    ) -> None:
        self.attack, self.seed, self.on_batch = attack, seed, on_batch
        self.model_mode, self.augment = model_mode, augment
        self._written_out: dict[str, Tensor | None] = {}
        super().__init__(*args, **options)
        self.adversarial_loss: Loss = as_loss(self.loss, adversarial=attack is not None)

    @property
    def validation_loss(self) -> Loss:
        """The loss on validation examples: as in CORDS, the training loss."""
        return self.adversarial_loss

    def compute_gradients(self, valid: bool = False, perBatch: bool = False, perClass: bool = False) -> None:
        """Attacks the examples and stores their gradients.

        Args:
            valid: compute those of the validation examples too.
            perBatch: means over batches in the dense form.
            perClass: use upstream's loaders of one class, ``pctrainloader`` and ``pcvalloader``.
        """
        if perBatch and perClass:
            raise ValueError("perBatch and perClass exclude each other")
        train = self.pctrainloader if perClass else self.trainloader  # type: ignore[attr-defined]
        self.gradients = self._pass(train, self.adversarial_loss, "training")
        if perClass:  # upstream's loader of one class has a part of the data set, which counts from 0
            numbers = torch.as_tensor(train.dataset.indices, device=self.gradients.labels.device)
            self.gradients = replace(self.gradients, numbers=numbers[self.gradients.numbers])
        self._written_out = {"train": None}
        self._sizes = {"train": [len(batch) for batch in batches_of(train)] if perBatch else None}
        if valid:
            validation = self.pcvalloader if perClass else self.valloader  # type: ignore[attr-defined]
            self.validation_gradients = self._pass(validation, self.validation_loss, "validation")
            self._written_out["validation"] = None
            self._sizes["validation"] = [len(batch) for batch in batches_of(validation)] if perBatch else None

    @property
    def grads_per_elem(self) -> Tensor | None:
        """Dense gradients (N, C) or (N, C + C*E), or a row per batch; None before `compute_gradients`."""
        return self._write_out("train")

    @grads_per_elem.setter
    def grads_per_elem(self, value: Tensor | None) -> None:
        self._written_out["train"] = value

    @property
    def val_grads_per_elem(self) -> Tensor | None:
        """The same of the validation examples."""
        return self._write_out("validation")

    @val_grads_per_elem.setter
    def val_grads_per_elem(self, value: Tensor | None) -> None:
        self._written_out["validation"] = value

    @property
    def _classifier(self) -> nn.Module:
        """The model without CORDS' wrapper."""
        return self.model.model if isinstance(self.model, CordsModel) else self.model

    def _pass(
        self,
        loader: Any,
        loss: Loss,
        what: str,
        batches: list[list[int]] | None = None,
        on_batch: OnBatch | None = None,
    ) -> LastLayerGradients:
        LastLayer(self._classifier, self.num_classes).check_trained(bias_alone=not self.linear_layer)
        gradients = adversarial_pass(
            self._classifier,
            images_of(loader),
            batches_of(loader) if batches is None else batches,
            loss,
            self.attack,
            seed=derive(self.seed, what),
            num_classes=self.num_classes,
            device=self.device,
            on_batch=on_batch or self.on_batch,
            train_mode=self.model_mode == "train",
            augment=self.augment,
        )
        finite = torch.cat([delta.isfinite() for delta in gradients.deltas], dim=1).all(dim=1)
        if broken := int((~finite).sum()):
            raise RunError(f"selection: the gradients of {broken} of {len(gradients)} {what} examples are not finite")
        return gradients

    def _write_out(self, which: str) -> Tensor | None:
        source = {"train": "gradients", "validation": "validation_gradients"}[which]
        if self._written_out.get(which) is None and hasattr(self, source):
            gradients: LastLayerGradients = getattr(self, source)
            gradients = self._of_chosen_parameters(gradients)
            sizes = self._sizes[which]
            self._written_out[which] = (gradients.means(sizes) if sizes else gradients).dense()
        return self._written_out.get(which)
