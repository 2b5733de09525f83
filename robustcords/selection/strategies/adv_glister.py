"""Adv-GLISTER."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from robustcords.config.requirements import VALIDATION_IMAGES
from robustcords.config.schema import NotNegative
from robustcords.losses.base import Loss
from robustcords.losses.sat import SAT
from robustcords.selection._cords import GLISTERStrategy
from robustcords.selection.base import Granularity, SelectionContext
from robustcords.selection.gradient_based import SELECTION_TYPES, AdversarialStrategy
from robustcords.selection.gradient_based_config import AdversarialConfig
from robustcords.selection.gradients.factors import Gradients
from robustcords.selection.solvers.greedy import Greedy, TaylorGreedy


class AdvGLISTERStrategy(AdversarialStrategy, GLISTERStrategy):
    """Keeps the examples that lower the adversarial validation loss most (Li et al. 2023, Eq. 5).

    Candidates have the gradient of the training loss at adversarial examples; the validation loss is the cross-entropy
    at adversarial examples of the validation split, whose perturbations stay fixed within a selection. Weights are 1.

    `robustcords.selection.solvers.greedy.TaylorGreedy` picks. The constructor is CORDS' own, so the class can take
    ``GLISTERStrategy``'s place. One thing differs where eta is a number: CORDS multiplies the *sum* of the chosen
    gradients by it, so its step grows with the budget; here the sum is divided by the (group's) budget, and eta is the
    learning rate of one step on the subset's mean loss. The two are the same with ``eta = eta_cords * budget``.

    Args:
        args: those of CORDS' ``GLISTERStrategy``. The model gives logits of images in [0, 1] and ends in a linear
            layer; ``loss_func`` is a loss of this package, or a torch loss with ``reduction="none"``, which then serves
            validation too.
        normalise: divide the sum of gradients by the budget; False is CORDS' eta.
        options: see `AdversarialStrategy`; CORDS' own arguments, if they are given by name.
    """

    class Config(AdversarialConfig):
        """Options of Adv-GLISTER.

        Attributes:
            granularity: as for every strategy. With batches and ``eta = "lr"`` the gain looks ahead by the steps that
                training takes on the subset, one along the mean gradient of each batch. With single examples it looks
                a batch size times as far, and class by class most of them are then taken at random.
            eta: how far the gain looks ahead: ``"lr"`` is the scale of CORDS, the optimizer's peak learning rate on the
                sum of the chosen gradients; a number is the learning rate of one step on the mean loss of the subset.
                With a small number the strategy chooses the hardest examples, and training on those fails.
            greedy: how examples are picked: ``"Stochastic"``, each time the best of a random sample; ``"Naive"``, each
                time the best of all; ``"RGreedy"``, in ``r`` rounds.
            r: number of rounds of RGreedy; the validation gradient is recomputed after each.
            linear_layer: use the gradients of the last layer's weight and bias; otherwise those of its bias alone.
            class_shares: with ``granularity = "full"``, take no more examples of a class than its share of the budget.
        """

        name: str = "adv-glister"
        granularity: Granularity = "per_batch"
        eta: NotNegative | Literal["lr"] = "lr"
        greedy: Greedy = "Stochastic"
        r: Annotated[int, Field(ge=1)] = 15
        linear_layer: bool = True
        class_shares: bool = False

        @model_validator(mode="after")
        def _shares_of_all(self) -> Self:
            if self.class_shares and self.granularity != "full":
                raise ValueError('class_shares has no effect without granularity = "full"')
            return self

    requires = frozenset({VALIDATION_IMAGES})

    def __init__(self, *args: Any, normalise: bool = True, **options: Any) -> None:
        super().__init__(*args, **options)
        self.normalise = normalise and getattr(self.config, "eta", None) != "lr"

    @classmethod
    def arguments(cls, config: Config, context: SelectionContext) -> tuple[Any, ...]:
        """Returns the positional arguments of CORDS' ``GLISTERStrategy``.

        Raises:
            UserError: ``eta = "lr"``, and the rate is unknown.
        """
        return (
            context.train_loader,
            context.val_loader or context.train_loader,
            context.model,
            context.loss,
            context.peak_rate if config.eta == "lr" else config.eta,
            context.device,
            context.num_classes,
            config.linear_layer,
            SELECTION_TYPES[config.granularity],
            config.greedy,
            context.logger,
            config.r,
        )

    @property
    def validation_loss(self) -> Loss:
        """Cross-entropy at adversarial examples; if the training loss is a torch loss, that one, as in CORDS."""
        return SAT() if isinstance(self.loss, Loss) else self.adversarial_loss

    def pick(self, gradients: Gradients, budget: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns the greedily selected rows, with weight 1."""
        assert self.validation is not None
        shares = getattr(self.config, "class_shares", False)
        greedy = TaylorGreedy(self.validation_loss, self.eta, self.greedy, self.r, self.normalise, shares)
        return greedy.pick(gradients, self.validation, budget, generator)
