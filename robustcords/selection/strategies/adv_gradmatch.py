"""Adv-GRAD-MATCH."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from robustcords.runtime import collectives
from robustcords.selection.base import SelectionContext
from robustcords.selection.cords._cords import GradMatchStrategy
from robustcords.selection.gradient_based import SELECTION_TYPES, AdversarialConfig, AdversarialStrategy
from robustcords.selection.gradients.candidates import Group
from robustcords.selection.gradients.factors import Gradients, LastLayerGradients
from robustcords.selection.solvers.omp import Problem, match, match_all, refuse_too_large


class AdvGradMatchStrategy(AdversarialStrategy, GradMatchStrategy):
    """Keeps the weighted examples whose adversarial gradients add up to those of all the data (Li et al. 2023, Eq. 6).

    By non-negative orthogonal matching pursuit, see `robustcords.selection.solvers.omp`. Where the pursuit ends before
    the budget is used up, the remaining examples have weight 0 and leave the match as good as it was.

    The constructor is CORDS' own, inherited, so the class can take ``GradMatchStrategy``'s place: ``(trainloader,
    valloader, model, loss, eta, device, num_classes, linear_layer, selection_type, logger, valid=False, v1=True, lam=0,
    eps=1e-4)``, with the options of `AdversarialStrategy` as keywords, ``attack`` among them. The loss may be one of
    this package, or a torch loss with ``reduction="none"``; ``valid`` matches the mean validation gradient, scaled to
    the number of candidates, instead of their own sum; ``lam`` is the ridge on the weights and ``eps`` the tolerance on
    the residual, as a share of the target's length. CORDS' eta is read by no GRAD-MATCH, CORDS' neither, and its v1
    chooses between two solvers of CORDS that do not serve here; recipes have no such keys.
    """

    class Config(AdversarialConfig):
        """Options of Adv-GRAD-MATCH.

        Attributes:
            lam: ridge on the weights, in units of a squared gradient, >= 0. With 0 the pursuit ends at the rank of the
                gradients, and examples beyond it have weight 0.
            eps: end where this share of the target is left; below 1e-7 what is left is rounding.
            valid: match the gradient of the validation split.
            linear_layer: use the gradients of the last layer's weight and bias; otherwise those of its bias alone.
        """

        name: str = "adv-gradmatch"
        lam: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
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
        """Checks that all products of the candidates, or of a direction's entries, can be kept."""
        refuse_too_large(candidates, entries)

    @property
    def uses_validation(self) -> bool:
        """Whether the validation gradient is what is matched."""
        return bool(self.valid)

    def select(self, budget: int, model_params: Mapping[str, Any]) -> tuple[list[int], Tensor]:
        """Returns what `AdversarialStrategy.select` does, and warns of examples that training will not use."""
        rows, weights = super().select(budget, model_params)
        if collectives.is_main() and (unused := int((weights == 0).sum())):
            self.logger.warning(
                "matching pursuit: %d of %d selected examples have weight 0; a larger lam or a smaller eps uses more",
                unused,
                budget,
            )
        return rows, weights

    def pick(self, gradients: Gradients, budget: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns the pursuit's choice and weights."""
        del generator
        return match(self._problem(gradients, self.validation, budget), ridge=self.lam, tolerance=self.eps)

    def pick_groups(self, groups: Sequence[Group]) -> list[tuple[Tensor, Tensor]]:
        """Returns what `pick` does for each of several groups; on an accelerator they are solved side by side."""
        if type(self).pick is not AdvGradMatchStrategy.pick:  # a subclass picks in its own way
            return super().pick_groups(groups)
        problems = [self._problem(group.gradients, group.validation, group.budget) for group in groups]
        return match_all(
            problems, ridge=self.lam, tolerance=self.eps, on_pick=self.on_batch if len(groups) == 1 else None
        )

    def _problem(self, gradients: Gradients, validation: LastLayerGradients | None, budget: int) -> Problem:
        target = gradients.sum()
        if validation is not None:
            target = validation.sum() * (len(gradients) / len(validation))
        return Problem(gradients, target, budget)
