"""RCS, robustness-aware coreset selection: greedy choice of batches by representational divergence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from robustcords.config.requirements import VALIDATION_IMAGES
from robustcords.config.schema import NotNegative
from robustcords.data.split import apportion
from robustcords.errors import UserError
from robustcords.losses.base import Loss
from robustcords.losses.objective import Objective
from robustcords.losses.sat import SAT
from robustcords.losses.trades import kl_divergence
from robustcords.models.base import name_of
from robustcords.models.last_layer import LastLayer
from robustcords.rng import generator
from robustcords.runtime import collectives
from robustcords.selection.base import SelectionContext, SelectionReport
from robustcords.selection.gradient_based import AdversarialStrategy
from robustcords.selection.gradient_based_config import AttackConfig
from robustcords.selection.gradients.factors import Gradients, MeanGradients
from robustcords.selection.gradients.groups import batches_of, check_budget


class RCSStrategy(AdversarialStrategy):
    """Keeps the batches that lower the divergence of validation predictions under attack most (Xu et al. 2023, RCS).

    "Efficient Adversarial Contrastive Learning via Robustness-Aware Coreset Selection",
    https://arxiv.org/abs/2302.03857, in its form for labelled images. The training images are shuffled into batches,
    and these into windows. Within a window the batch is taken whose gradient of the adversarial cross-entropy has the
    largest product with the gradient of ``KL(p' || p)`` on validation images, p' and p being the predictions with and
    without an attack on this divergence. Then the last layer takes a step along the batch's gradient, the validation
    images are attacked again, and so on; each window begins with the original layer. Weights are 1.

    Gradients are those of the last layer. ``granularity`` is ignored: candidates are batches.

    Example:
        >>> config = RCSStrategy.Config(fraction=0.3)
        >>> selector = SubsetSelector(RCSStrategy, config, validation=held_out)
    """

    class Config(AttackConfig):
        """Options of RCS.

        Attributes:
            select_every: number of epochs between selections; 10 in the paper.
            eta: learning rate of the last layer's step after each pick; ``"lr"`` is the optimizer's peak learning rate.
            window: number of batches to choose from at a time; the last layer is reset at the start of each window.
        """

        name: str = "rcs"
        select_every: Annotated[int, Field(ge=1)] = 10
        eta: NotNegative | Literal["lr"] = "lr"
        window: Annotated[int, Field(ge=1)] = 100

    requires = frozenset({VALIDATION_IMAGES})
    eta: float

    @classmethod
    def from_context(cls, config: Any, context: SelectionContext) -> Self:
        """Returns the strategy for one selection.

        Raises:
            UserError: there are no validation images, ``eta = "lr"`` and the rate is unknown, or the last layer's
                weights are not parameters of their own.
        """
        strategy = super().from_context(config, context)
        strategy.eta = context.peak_rate if config.eta == "lr" else config.eta
        head = LastLayer(context.model, context.num_classes).head
        if "weight" not in dict(head.named_parameters()):
            raise UserError(
                f"selector {config.name!r} moves the last layer's weight, and that of {name_of(context.model)} is "
                "computed from other parameters (a parametrization)"
            )
        return strategy

    def pick(self, gradients: Gradients, budget: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Never called, as `select` is overridden."""
        raise NotImplementedError

    def select(self, budget: int, model_params: Mapping[str, Any]) -> tuple[list[int], Tensor]:
        """Returns exactly ``budget`` rows of the training loader's data set, and weights 1."""
        loaded = batches_of(self.trainloader)
        rows = [row for batch in loaded for row in batch]
        check_budget(budget, len(rows))
        self.update_model(model_params)
        self.report = SelectionReport({})
        if budget == len(rows):
            return rows, torch.ones(budget)
        order = torch.randperm(len(rows), generator=generator(self.seed, "batches")).split(max(map(len, loaded)))
        batches = [[rows[place] for place in part.tolist()] for part in order]
        with self._phase("attack"):
            gradients = self._pass(self.trainloader, SAT(), "training", batches)
            candidates = gradients.means([len(batch) for batch in batches])
        windows = torch.arange(len(batches)).split(self.config.window)
        shares = apportion([sum(len(batches[batch]) for batch in window.tolist()) for window in windows], budget)
        first = self._divergence()
        chosen: list[int] = []
        for window, share in zip(windows, shares, strict=True):
            own = [batches[batch] for batch in window.tolist()]
            chosen += self._from_window(candidates.rows(window), own, share, first)
        return chosen, torch.ones(budget)

    def _from_window(self, candidates: MeanGradients, batches: list[list[int]], share: int, first: Tensor) -> list[int]:
        """Returns the examples of the fewest batches that hold the share, the last one truncated.

        Args:
            candidates: the batches' gradients.
            batches: the rows of each.
            share: number of examples to select.
            first: the divergence's gradient (C, 1 + E) at the initial layer.
        """
        taken: list[int] = []
        free = torch.ones(len(batches), dtype=torch.bool)
        target = first
        with self._movable_layer() as move:
            while len(taken) < share:
                with self._phase("solve"):
                    gains = candidates.inner(target).cpu().masked_fill(~free, -torch.inf)
                    best = collectives.decide_together(partial(_largest, gains))
                taken += batches[best]
                free[best] = False
                if len(taken) < share:
                    move(self.eta * candidates.values[best])
                    target = self._divergence()
        return taken[:share]

    def _divergence(self) -> Tensor:
        """Attacks the validation images; returns the gradient (C, 1 + E) of their mean divergence."""
        with self._phase("validation attack"):
            gradients = self._pass(self.valloader, Divergence(), "validation")
            return gradients.sum() / len(gradients)

    @contextmanager
    def _movable_layer(self) -> Iterator[Callable[[Tensor], None]]:
        """Lets the block step the last layer by gradients (C, 1 + E); restores it on exit."""
        layer = LastLayer(self._classifier, self.num_classes)
        parameters = [layer.head.weight, *([layer.head.bias] if layer.head.bias is not None else [])]
        before = [parameter.detach().clone() for parameter in parameters]

        @torch.no_grad()
        def move(step: Tensor) -> None:
            if layer.trains_weight:
                layer.head.weight.sub_(step[:, 1:])
            if layer.trains_bias:
                layer.head.bias.sub_(step[:, 0])

        try:
            yield move
        finally:
            with torch.no_grad():
                for parameter, value in zip(parameters, before, strict=True):
                    parameter.copy_(value)


def _largest(values: Tensor) -> int:
    return int(values.argmax())


class Divergence(Loss):
    """``KL(p' || p)``: how far an attack, which maximises it with p of the clean images fixed, moves predictions."""

    relative_to_clean = True

    def from_logits(self, logits: Mapping[str, Tensor], y: Tensor) -> Tensor:
        """Returns the divergence (B,) of clean and adversarial logits; labels are ignored."""
        del y
        return kl_divergence(logits["adversarial"], logits["clean"])

    def objective(self, y: Tensor, clean: Callable[[], Tensor]) -> Objective:
        """Returns ``KL(p' || p)``, from close to the image, where it has no gradient."""
        del y
        target = clean().detach()
        return Objective(lambda logits: kl_divergence(logits, target), start="gaussian", relative_to_clean=True)
