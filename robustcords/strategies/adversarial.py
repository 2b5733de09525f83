"""The base of strategies on adversarial gradients, this package's and one's own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from robustcords import processes
from robustcords.config import Radius
from robustcords.errors import UserError
from robustcords.rng import generator
from robustcords.strategies._cords import DataSelectionStrategy
from robustcords.strategies.adversarial_gradients import AdversarialGradients
from robustcords.strategies.base import Granularity, SelectionContext, Strategy, StrategyConfig
from robustcords.strategies.gradients import Gradients, LastLayerGradients
from robustcords.strategies.groups import apportion, batches_of, check_budget

SELECTION_TYPES: dict[Granularity, str] = {
    "per_class": "PerClass",
    "per_batch": "PerBatch",
    "per_gradient": "PerClassPerGradient",
    "full": "Supervised",
}
"""What CORDS calls each granularity."""


class AdversarialConfig(StrategyConfig):
    """Options of strategies that attack the data.

    Attributes:
        attack_steps: steps of the attack while selecting; left out, those of the training attack.
        attack_step_size: step size with these steps; left out, that of the training attack.
    """

    attack_steps: Annotated[int, Field(ge=0, le=10_000)] | None = None
    attack_step_size: Radius | None = None

    @model_validator(mode="after")
    def _step_size_needs_steps(self) -> Self:
        if self.attack_step_size is not None and self.attack_steps is None:
            raise ValueError("attack_step_size counts only together with attack_steps")
        return self


class AdversarialStrategy(AdversarialGradients, Strategy, DataSelectionStrategy):
    """The base of strategies on adversarial gradients: subclasses write `pick`, and nothing else.

    `select` makes the adversarial pass (shared by all processes), divides examples and budget by granularity (shares by
    class size and largest remainder), calls `pick` for each group in the main process alone, and checks what it gives
    back. With ``per_batch`` the candidates are the mean gradients of the loader's batches: as few batches are picked as
    hold the budget, and the last one in the order of `pick` is cut. Should all weights be 0, all become 1.

    Args:
        args: the arguments of the CORDS strategy that it extends; of `DataSelectionStrategy` where there is none.
        config: the options of a recipe, for `pick` to read as ``self.config``.
        granularity: left out, what CORDS' ``selection_type`` says.
        options: see `AdversarialGradients`.

    Attributes:
        validation: during `pick`, the validation examples' gradients (of the same class and outputs as the candidates;
            of all classes where validation has none of that one), or None if `uses_validation` is false.
    """

    Config: ClassVar[type[StrategyConfig]] = AdversarialConfig
    needs_linear_head = True
    validation: LastLayerGradients | None = None

    def __init__(self, *args: Any, config: Any = None, granularity: Granularity | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.config = config
        names = {name: key for key, name in SELECTION_TYPES.items()}
        self.granularity = granularity or names.get(getattr(self, "selection_type", "Supervised"), "full")

    @property
    def uses_validation(self) -> bool:
        """Whether `pick` reads `validation`."""
        return self.needs_validation

    @classmethod
    def from_context(cls, config: Any, context: SelectionContext) -> Self:
        """Returns the strategy, with CORDS' `arguments` and the options of a recipe.

        Raises:
            UserError: it needs a validation split and there is none.
        """
        attack = context.attack
        if attack and config.attack_steps is not None:
            attack = attack.with_effort(config.attack_steps, config.attack_step_size)
        options = {"attack": attack, "seed": context.seed, "on_batch": context.on_batch}
        strategy = cls(*cls.arguments(config, context), config=config, granularity=config.granularity, **options)
        if strategy.uses_validation and context.val_loader is None:
            raise UserError(
                f"selector {config.name!r} selects with validation images: set data.validation_fraction > 0"
            )
        return strategy

    @classmethod
    def arguments(cls, config: Any, context: SelectionContext) -> tuple[Any, ...]:
        """Returns the positional arguments of CORDS' constructor: here those of ``DataSelectionStrategy``."""
        del config
        return (
            context.train_loader,
            context.val_loader or context.train_loader,  # upstream counts the validation examples in any case
            context.model,
            context.num_classes,
            True,
            context.loss,
            context.device,
            context.logger,
        )

    @abstractmethod
    def pick(self, gradients: Gradients, budget: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns the rows to keep of one group and their weights.

        Args:
            gradients: of the group's N candidates, see `robustcords.strategies.gradients`.
            budget: k, from 1 to N.
            generator: for whatever is drawn at random; another for every group.

        Returns:
            k unique rows (k,) in [0, N), and weights (k,), finite and >= 0.
        """

    def select(self, budget: int, model_params: Mapping[str, Any]) -> tuple[list[int], Tensor]:
        """Returns exactly ``budget`` rows of the training loader's data set, and their weights (k,) float32."""
        batches = batches_of(self.trainloader)
        rows = [row for batch in batches for row in batch]
        check_budget(budget, len(rows))
        self.update_model(model_params)
        if budget == len(rows):
            return rows, torch.ones(budget)
        self.compute_gradients(valid=self.uses_validation)
        places, weights = processes.decide_together(lambda: self._solve(budget, [len(batch) for batch in batches]))
        return [rows[place] for place in places.tolist()], weights

    def _solve(self, budget: int, sizes: list[int]) -> tuple[Tensor, Tensor]:
        """Returns places among all examples and their weights, on the CPU."""
        found, given = zip(*self._groups(budget, sizes), strict=True)
        weights = torch.cat(given).float().cpu()
        return torch.cat(found).cpu(), weights if weights.any() else torch.ones(budget)

    def _groups(self, budget: int, sizes: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields places among all examples and their weights, group by group."""
        gradients = self.gradients if self.linear_layer else self.gradients.bias_only()
        if self.granularity == "per_batch":
            yield self._whole_batches(gradients, budget, sizes)
        elif self.granularity == "full":
            self.validation = self._validation(None)
            yield self._pick(gradients, budget, 0)
        else:
            labels, counts = gradients.labels.unique(return_counts=True)
            shares = apportion(counts.tolist(), budget)
            for label, share in zip(labels.tolist(), shares, strict=True):
                if share:
                    members = (gradients.labels == label).nonzero().view(-1)
                    group = gradients.rows(members)
                    self.validation = self._validation(label)
                    one = self.granularity == "per_gradient"
                    places, weights = self._pick(group.of_output(label) if one else group, share, label)
                    yield members.cpu()[places], weights

    def _whole_batches(self, gradients: LastLayerGradients, budget: int, sizes: list[int]) -> tuple[Tensor, Tensor]:
        """Returns the examples of as few batches as hold the budget, whichever batches they are, cut to the budget."""
        means = gradients.means(sizes)
        parts = torch.arange(len(gradients)).split(sizes)
        self.validation = self._validation(None)
        count = -(-budget // max(sizes))
        while True:
            chosen, weights = self._pick(means, count, 0)
            places = torch.cat([parts[batch] for batch in chosen.tolist()])
            if len(places) >= budget:
                break
            count += 1  # a shorter batch is among them
        lengths = torch.tensor([sizes[batch] for batch in chosen.tolist()])
        return places[:budget], weights.repeat_interleave(lengths)[:budget]

    def _validation(self, label: int | None) -> LastLayerGradients | None:
        if not self.uses_validation:
            return None
        gradients = self.validation_gradients if self.linear_layer else self.validation_gradients.bias_only()
        if label is None:
            return gradients
        same = gradients.labels == label
        gradients = gradients.rows(same) if same.any() else gradients
        return gradients.of_output(label) if self.granularity == "per_gradient" else gradients

    def _pick(self, gradients: Gradients, budget: int, number: int) -> tuple[Tensor, Tensor]:
        """Returns what `pick` does, on the CPU, after looking at it."""
        rows, weights = self.pick(gradients, budget, generator(self.seed, "pick", number))
        rows, weights = rows.cpu(), weights.cpu()
        problem = None
        if rows.shape != (budget,) or weights.shape != (budget,):
            problem = f"{len(rows)} rows and {len(weights)} weights where {budget} were asked for"
        elif len(rows.unique()) < budget or rows.min() < 0 or rows.max() >= len(gradients):
            problem = f"rows that are not unique and from 0 to {len(gradients) - 1}"
        elif not weights.isfinite().all() or weights.min() < 0:
            problem = "weights that are negative or not finite"
        if problem:
            raise UserError(f"{type(self).__name__}.pick returned {problem}")
        return rows, weights
