"""Adv-GRAD-MATCH."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from robustcords.config.schema import NotNegative
from robustcords.runtime import collectives
from robustcords.selection._cords import GradMatchStrategy
from robustcords.selection.base import SelectionContext
from robustcords.selection.gradient_based import SELECTION_TYPES, AdversarialStrategy
from robustcords.selection.gradient_based_config import AdversarialConfig
from robustcords.selection.gradients.candidates import Group
from robustcords.selection.gradients.factors import Gradients
from robustcords.selection.solvers.omp import MatchingPursuit, refuse_too_large


class AdvGradMatchStrategy(AdversarialStrategy, GradMatchStrategy):
    """Keeps the weighted examples whose adversarial gradients add up to those of all the data (Li et al. 2023, Eq. 6).

    `robustcords.selection.solvers.omp.MatchingPursuit` picks. The constructor is CORDS' own, so the class can take
    ``GradMatchStrategy``'s place. If the pursuit ends before the budget is used up, the remaining examples have weight
    0 and leave the match unchanged.

    Args:
        args: those of CORDS' ``GradMatchStrategy``; ``eta`` and ``v1``, its choice between two solvers, are not used.
            The model gives logits of images in [0, 1] and ends in a linear layer; ``loss`` is a loss of this
            package, or a torch loss with ``reduction="none"``; validation examples are read only if ``valid``.
        options: see `AdversarialStrategy`; CORDS' own arguments, if they are given by name.
    """

    class Config(AdversarialConfig):
        """Options of Adv-GRAD-MATCH.

        Attributes:
            lam: ridge penalty on the weights, in units of a squared gradient. With 0 the pursuit ends at the rank of
                the gradients, and further examples get weight 0.
            eps: stop when this share of the target is left; below 1e-7 the rest is rounding error.
            valid: match the gradient of the validation split instead of the training split.
            linear_layer: use the gradients of the last layer's weight and bias; otherwise those of its bias alone.
        """

        name: str = "adv-gradmatch"
        lam: NotNegative = 0.5
        eps: Annotated[float, Field(ge=0, lt=1)] = 1e-10
        valid: bool = False
        linear_layer: bool = True

    @classmethod
    def arguments(cls, config: Config, context: SelectionContext) -> tuple[Any, ...]:
        """Returns the positional arguments of CORDS' ``GradMatchStrategy``."""
        return (
            context.train_loader,
            context.val_loader or context.train_loader,
            context.model,
            context.loss,
            0.0,
            context.device,
            context.num_classes,
            config.linear_layer,
            SELECTION_TYPES[config.granularity],
            context.logger,
            config.valid,
            True,
            config.lam,
            config.eps,
        )

    @classmethod
    def refuse_too_large(cls, config: Config, candidates: int, entries: int) -> None:
        """Checks that the Gram matrix of the candidates, or of a gradient's entries, fits into memory."""
        refuse_too_large(candidates, entries)

    @property
    def uses_validation(self) -> bool:
        """Whether the target is the validation gradient."""
        return bool(self.valid)

    def select(self, budget: int, model_params: Mapping[str, Any]) -> tuple[list[int], Tensor]:
        """Like `AdversarialStrategy.select`, with a warning of examples of weight 0."""
        rows, weights = super().select(budget, model_params)
        if collectives.is_main() and (unused := int((weights == 0).sum())):
            self.logger.warning(
                "matching pursuit: %d of %d selected examples have weight 0; a larger lam or a smaller eps uses more",
                unused,
                budget,
            )
        return rows, weights

    @property
    def _pursuit(self) -> MatchingPursuit:
        return MatchingPursuit(self.lam, self.eps)

    def pick(self, gradients: Gradients, budget: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns the pursuit's rows and weights."""
        return self._pursuit.pick(gradients, self.validation, budget, generator)

    def pick_groups(self, groups: Sequence[Group]) -> list[tuple[Tensor, Tensor]]:
        """Returns the results of `pick` for several groups; on an accelerator they are solved in parallel."""
        if type(self).pick is not AdvGradMatchStrategy.pick:  # a subclass picks in its own way
            return super().pick_groups(groups)
        return self._pursuit.pick_all(groups, self.on_batch if len(groups) == 1 else None)
