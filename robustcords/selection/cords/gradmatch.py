"""GRAD-MATCH of CORDS."""

from __future__ import annotations

from inspect import signature
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from robustcords.config.schema import NotNegative
from robustcords.selection._cords import GradMatchStrategy
from robustcords.selection.base import Granularity
from robustcords.selection.cords.strategy import CordsStrategy, UpstreamConfig
from robustcords.selection.gradients.groups import labels_of
from robustcords.selection.strategies.adv_gradmatch import AdvGradMatchStrategy


class GradMatch(CordsStrategy):
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
            granularity: as for every selector; ``per_gradient`` is PerClassPerGradient in CORDS.
            lam: ridge penalty on the weights.
            eps: tolerance on the residual, as a share of the target's length.
        """

        name: str = "gradmatch"
        granularity: Granularity = "per_gradient"
        lam: NotNegative = 0.5
        eps: Annotated[float, Field(ge=0, lt=1)] = 1e-100

    strategy = GradMatchStrategy
    ours = AdvGradMatchStrategy
    parameters = tuple(signature(GradMatchStrategy).parameters)

    def upstream(self, model: nn.Module, budget: int) -> Any | None:
        """Returns CORDS' GRAD-MATCH, or None."""
        members = labels_of(self.context.train_loader).bincount(minlength=self.context.num_classes)
        if self.config.granularity == "full" or (self.config.granularity != "per_batch" and not members.all()):
            return None
        return super().upstream(model, budget)

    def arguments(self, model: nn.Module) -> dict[str, Any]:
        """Returns what the constructor gets; CORDS' GRAD-MATCH does not use its eta."""
        return super().arguments(model) | {"eta": 0.0, "linear_layer": True}
