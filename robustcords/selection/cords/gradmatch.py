"""GRAD-MATCH, as CORDS has it."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from robustcords.selection.base import Granularity, Strategy
from robustcords.selection.cords._cords import GradMatchStrategy
from robustcords.selection.cords.upstream import UpstreamConfig, UpstreamStrategy
from robustcords.selection.gradient_based import SELECTION_TYPES
from robustcords.selection.gradients.groups import labels_of
from robustcords.selection.strategies.adv_gradmatch import AdvGradMatchStrategy


class GradMatch(UpstreamStrategy):
    """CORDS' ``GradMatchStrategy`` on clean images (Killamsetty et al. 2021).

    The defaults of its options are those of CORDS' configuration for CIFAR-10
    (``configs/SL/config_gradmatch_cifar10.py`` of decile-team/cords; that of the form by batches,
    ``config_gradmatchpb_cifar10.py``, has ``lam = 0`` and selects at every epoch), and its train mode. CORDS has no
    full form, and cannot finish where the training split lacks a class, or BatchNorm meets a batch of one value a
    channel in train mode: there `AdvGradMatchStrategy` serves, in eval mode.

    Its solver gives wrong weights where it takes a gradient that it already holds, which is what it is compared for.
    """

    class Config(UpstreamConfig):
        """Options of GRAD-MATCH.

        Attributes:
            granularity: ``"per_gradient"`` is CORDS' PerClassPerGradient.
            lam: ridge on the weights, >= 0.
            eps: tolerance on the residual, as a share of the target's length.
        """

        name: str = "gradmatch"
        granularity: Granularity = "per_gradient"
        lam: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
        eps: Annotated[float, Field(ge=0, lt=1)] = 1e-100

    def upstream(self, model: nn.Module, budget: int) -> Any | None:
        """Returns CORDS' GRAD-MATCH, or None."""
        del budget
        if self.config.granularity == "full":
            return None
        if self.config.granularity != "per_batch":
            members = labels_of(self.context.train_loader).bincount(minlength=self.context.num_classes)
            if not members.all():
                return None
        if self.meets_one_image(by_class=self.config.granularity != "per_batch"):
            return None
        return GradMatchStrategy(*self._arguments(model))

    def own(self) -> Strategy:
        """Returns this package's GRAD-MATCH, with the same options and no attack."""
        context = self.context
        return AdvGradMatchStrategy(
            *self._arguments(context.model),
            granularity=self.config.granularity,
            seed=context.seed,
            on_batch=context.on_batch,
        )

    def _arguments(self, model: nn.Module) -> tuple[Any, ...]:
        context, config = self.context, self.config
        return (
            context.train_loader,
            context.val_loader or context.train_loader,
            model,
            self.loss,
            0.0,
            torch.device(context.device),  # the string "cpu" would select a solver that ignores lam and eps
            context.num_classes,
            True,
            SELECTION_TYPES[config.granularity],
            context.logger,
            False,
            True,
            config.lam,
            config.eps,
        )
