"""The base class of strategies that use adversarial gradients."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from robustcords.config.requirements import VALIDATION_IMAGES
from robustcords.data.split import apportion
from robustcords.engine import contracts
from robustcords.errors import UserError, is_own, one_line_from
from robustcords.losses.check import loss_values
from robustcords.models.last_layer import LastLayer
from robustcords.rng import generator
from robustcords.runtime import collectives
from robustcords.selection._cords import DataSelectionStrategy
from robustcords.selection.base import Augment, Granularity, SelectionContext, SelectionReport, Strategy, StrategyConfig
from robustcords.selection.gradient_based_config import AdversarialConfig, AttackConfig
from robustcords.selection.gradients.adversarial_gradients import AdversarialGradients
from robustcords.selection.gradients.candidates import Group, Picked, of_class, without_hard_tail
from robustcords.selection.gradients.class_stream import ClassGradients, class_by_class
from robustcords.selection.gradients.factors import Gradients, LastLayerGradients, by_view
from robustcords.selection.gradients.groups import batches_of, check_budget, labels_of
from robustcords.selection.gradients.head import check_last_layer
from robustcords.selection.gradients.matching import Matching

SELECTION_TYPES: dict[Granularity, str] = {
    "per_class": "PerClass",
    "per_batch": "PerBatch",
    "per_gradient": "PerClassPerGradient",
    "full": "Supervised",
}
"""What CORDS calls each granularity."""

_KEPT = 512e6  # bytes of gradients that are kept at a time where one class is chosen from after the other


def augmentation(config: AttackConfig, context: SelectionContext) -> Augment | None:
    """Returns the augmentation of the images that are selected from; None for clean ones.

    Raises:
        UserError: the options ask for it, and the training's augmentation is unknown.
    """
    if config.augment and context.augment is None:
        raise UserError("selector.augment = true needs to know how training augments images; set it to false")
    return context.augment if config.augment else None


class AdversarialStrategy(AdversarialGradients, Strategy, DataSelectionStrategy):
    """The base of strategies on adversarial gradients: subclasses implement `pick` only.

    `select` makes the adversarial pass (distributed over the processes), divides examples and budget by granularity (by
    class size, with largest remainders), calls `pick` for each group in one of the processes, and checks its result. If
    groups are classes, each is selected from as soon as all its examples are attacked, and its gradients are freed:
    memory does not grow with the number of classes. A strategy with a `state_dict` picks in the main process only,
    classes in ascending order. With ``per_batch`` the candidates are the mean gradients of batches: the fewest batches
    that hold the budget are picked, and the last one in the order of `pick` is truncated. If all weights are 0, all
    become 1.

    Args:
        args: arguments of the CORDS strategy that it extends; of `DataSelectionStrategy` if there is none.
        config: the options of a recipe, available to `pick` as ``self.config``.
        granularity: left out, CORDS' ``selection_type``.
        measure: whether to report the gradient matching error.
        shuffle: with ``per_batch``, choose among batches of random examples, others at each selection; False for the
            loader's own, which are of one class each where a data set is in order of its classes.
        options: see `AdversarialGradients`.

    Attributes:
        validation: during `pick`, the validation examples' gradients (of the same class and outputs as the candidates;
            of all classes if validation lacks that one), or None if `uses_validation` is false.
    """

    Config: ClassVar[type[StrategyConfig]] = AdversarialConfig
    needs_linear_head = True
    validation: LastLayerGradients | None = None

    def __init__(
        self,
        *args: Any,
        config: Any = None,
        granularity: Granularity | None = None,
        measure: bool = False,
        shuffle: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.config, self.measure, self.shuffle = config, measure, shuffle
        names = {name: key for key, name in SELECTION_TYPES.items()}
        self.granularity = granularity or names.get(getattr(self, "selection_type", "Supervised"), "full")

    @property
    def uses_validation(self) -> bool:
        """Whether `pick` reads `validation`."""
        return VALIDATION_IMAGES in self.requires

    @classmethod
    def from_context(cls, config: Any, context: SelectionContext) -> Self:
        """Returns the strategy, with CORDS' `arguments` and the options of a recipe.

        Raises:
            UserError: it needs a validation split and there is none, the device lacks the attack's precision, or
                the training's augmentation is unknown.
        """
        attack = context.attack and config.attack(context.attack, context.device)
        options: dict[str, Any] = {"attack": attack, "seed": context.seed, "on_batch": context.on_batch}
        options |= {"model_mode": config.model_mode, "augment": augmentation(config, context)}
        options |= {"config": config, "granularity": config.granularity, "measure": context.measure, "shuffle": True}
        strategy = cls(*cls.arguments(config, context), **options)
        if strategy.uses_validation and context.val_loader is None:
            cause = "" if VALIDATION_IMAGES in cls.requires else " because of selector.valid"
            raise UserError(
                f"selector {config.name!r} selects with validation images{cause}: set data.validation_fraction > 0"
            )
        return strategy

    @classmethod
    def check(cls, config: Any, context: SelectionContext) -> None:
        """Builds the strategy, and passes two images through the model's last layer."""
        check_last_layer(context, bias_alone=not cls.from_context(config, context).linear_layer)

    @classmethod
    def arguments(cls, config: Any, context: SelectionContext) -> tuple[Any, ...]:
        """Returns the positional arguments of CORDS' constructor: by default of ``DataSelectionStrategy``.

        Without an option ``linear_layer`` gradients are those of weight and bias.
        """
        return (
            context.train_loader,
            context.val_loader or context.train_loader,  # upstream counts the validation examples in any case
            context.model,
            context.num_classes,
            getattr(config, "linear_layer", True),
            context.loss,
            context.device,
            context.logger,
        )

    @abstractmethod
    def pick(self, gradients: Gradients, budget: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns the selected rows of one group, and their weights.

        Args:
            gradients: of the group's N candidates (`robustcords.selection.gradients.factors`); ``numbers`` names them.
            budget: k, from 1 to N.
            generator: for random numbers; differs from group to group.

        Returns:
            k unique rows (k,) in [0, N), and weights (k,), finite and >= 0.
        """

    def batch_candidates(self, gradients: LastLayerGradients, sizes: list[int]) -> Gradients:
        """Returns the candidates when whole batches are selected: by default their mean gradients.

        Args:
            gradients: of all examples.
            sizes: length of each batch; they add up to N.
        """
        return gradients.means(sizes)

    def select(self, budget: int, model_params: Mapping[str, Any]) -> tuple[list[int], Tensor]:
        """Returns exactly ``budget`` rows of the training loader's data set, and their weights (k,) float32."""
        batches = batches_of(self.trainloader)
        rows = [row for batch in batches for row in batch]
        check_budget(budget, len(rows))
        self.update_model(model_params)
        self.report = SelectionReport({})
        if budget == len(rows):
            return rows, torch.ones(budget)
        matching = Matching(self.seed) if self.measure else None
        if self.granularity in {"full", "per_batch"}:
            choice = self._from_all(budget, [len(batch) for batch in batches], matching)
        else:
            choice = self._from_classes(budget, rows, max(map(len, batches)), matching)
        places = torch.cat([place for place, _ in choice])
        weights = torch.cat([weight for _, weight in choice]).float()
        if matching and (errors := matching.errors()):
            self.report.matching_error, self.report.random_matching_error = errors
        return [rows[place] for place in places.tolist()], weights if weights.any() else torch.ones(budget)

    def pick_groups(self, groups: Sequence[Group]) -> list[tuple[Tensor, Tensor]]:
        """Returns the results of `pick` for several groups, one after the other."""
        found = []
        for group in groups:
            self.validation = group.validation
            source = generator(self.seed, "pick", group.number)
            found.append(self.pick(group.gradients, group.budget, source))
        return found

    def _from_all(self, budget: int, sizes: list[int], matching: Matching | None) -> list[Picked]:
        """Selects from all examples at once, in the main process."""
        with self._phase("attack"):
            self.compute_gradients()
        gradients = self._of_chosen_parameters(self.gradients)
        validation = self._validation_gradients()

        def choose() -> Picked:
            if self.granularity == "full":
                places, weights = self._choose([Group(0, gradients, validation, budget)])[0]
            else:
                places, weights = self._whole_batches(gradients, validation, budget, sizes)
            if matching:
                matching.add(gradients, places, weights, 0)
            return places, weights

        with self._phase("solve"):
            return [collectives.decide_together(choose)]

    def _from_classes(self, budget: int, rows: list[int], batch_size: int, matching: Matching | None) -> list[Picked]:
        """Selects from one class after the other, each in one of the processes."""
        labels = labels_of(self.trainloader)
        classes, counts = (part.tolist() for part in labels.unique(return_counts=True))
        shares = dict(zip(classes, apportion(counts, budget), strict=True))
        validation = self._validation_gradients()

        def compute(batches: list[list[int]], before: int, total: int) -> LastLayerGradients:
            report = self.on_batch and (lambda done, _: self.on_batch and self.on_batch(before + done, total))
            own = [[rows[place] for place in batch] for batch in batches]
            with self._phase("attack"):
                gradients = self._pass(self.trainloader, self.adversarial_loss, "training", own, report)
            return self._of_chosen_parameters(gradients)

        found: dict[int, Picked] = {}
        share = slice(collectives.rank(), None, collectives.world_size())
        if self.stateful():  # one class may leave something for the next
            share = slice(None if collectives.is_main() else 0)
        at_once = self._batches_at_once(batch_size)
        for complete in class_by_class(labels, compute, batch_size=batch_size, batches_at_once=at_once):
            mine = complete[share]
            choose = partial(self._from_some, mine, shares, validation, matching)
            with self._phase("solve"):
                for part in collectives.gather_objects(choose):
                    found |= part
            del complete, mine, choose
        if matching:
            matching.join(collectives.gather_objects(lambda: matching.sums))
        return [found[label] for label in sorted(found)]

    def _from_some(
        self,
        classes: list[ClassGradients],
        shares: Mapping[int, int],
        validation: LastLayerGradients | None,
        matching: Matching | None,
    ) -> dict[int, Picked]:
        """Returns the selections from some classes."""
        groups = []
        for each in classes:
            if matching and not shares[each.label]:
                matching.add(each.gradients, torch.zeros(0, dtype=torch.int64), torch.zeros(0), each.label)
        classes = [each for each in classes if shares[each.label]]
        for each in classes:
            gradients, target = each.gradients, of_class(validation, each.label)
            if self.granularity == "per_gradient":
                gradients = gradients.of_output(each.label)
                target = target and target.of_output(each.label)
            groups.append(Group(each.label, gradients, target, shares[each.label]))
        found = {}
        for each, (chosen, weights) in zip(classes, self._choose(groups), strict=True):
            found[each.label] = each.places[chosen], weights
            if matching:
                matching.add(each.gradients, chosen, weights, each.label)
        return found

    def _whole_batches(
        self, gradients: LastLayerGradients, validation: LastLayerGradients | None, budget: int, sizes: list[int]
    ) -> Picked:
        """Returns the examples of the fewest batches that hold the budget, truncated to the budget."""
        order = torch.arange(len(gradients))
        if self.shuffle:
            order = torch.randperm(len(gradients), generator=generator(self.seed, "batches"))
            gradients = gradients.rows(order)
        candidates = self.batch_candidates(gradients, sizes)
        parts = order.split(sizes)
        count = -(-budget // max(sizes))
        losses = [torch.stack([part.mean() for part in self._losses(gradients).split(sizes)])]
        while True:
            chosen, weights = self._choose([Group(0, candidates, validation, count)], losses)[0]
            places = torch.cat([parts[batch] for batch in chosen.tolist()])
            if len(places) >= budget:
                break
            count += 1  # a shorter batch is among them
        lengths = torch.tensor([sizes[batch] for batch in chosen.tolist()])
        return places[:budget], weights.repeat_interleave(lengths)[:budget]

    def _validation_gradients(self) -> LastLayerGradients | None:
        if not self.uses_validation:
            return None
        with self._phase("validation attack"):
            self.validation_gradients = self._pass(self.valloader, self.validation_loss, "validation")
        return self._of_chosen_parameters(self.validation_gradients)

    def _batches_at_once(self, batch_size: int) -> int:
        """Returns the number of batches whose gradients are in memory at a time; a multiple of the process count."""
        width = LastLayer(self.model, self.num_classes).head.in_features + 2 * self.num_classes
        per_batch = 4 * batch_size * width * len(self.adversarial_loss.views)
        world = collectives.world_size()
        return max(1, int(_KEPT / per_batch / world)) * world

    def _losses(self, gradients: Any) -> Tensor:
        """Returns the loss (N,) of every example, at the logits of its gradient."""
        logits = by_view(self.adversarial_loss, gradients.logits)
        return loss_values(self.adversarial_loss, logits, gradients.labels).detach()

    def _choose(self, groups: Sequence[Group], losses: Sequence[Tensor] = ()) -> list[Picked]:
        """Returns the checked results of `pick` for each group, on the CPU.

        Args:
            groups: of examples, or of batches.
            losses: (N,) of each group's candidates; left out if those are examples.
        """
        share = getattr(self.config, "hard_tail", 0.0)
        if not share:
            return self._picked(groups)
        losses = losses or [self._losses(group.gradients) for group in groups]
        easier, kept = zip(*(without_hard_tail(*pair, share) for pair in zip(groups, losses, strict=True)), strict=True)
        picked = zip(kept, self._picked(easier), strict=True)
        return [(rows.cpu()[places], weights) for rows, (places, weights) in picked]

    def _picked(self, groups: Sequence[Group]) -> list[Picked]:
        source = f"{contracts.title(self)}.pick"
        with nullcontext() if is_own(type(self).__module__) else one_line_from(f"{source} failed"):
            picked = self.pick_groups(groups)
        return [
            contracts.chosen(source, *contracts.pair(source, found), group.budget, len(group.gradients))
            for group, found in zip(groups, picked, strict=True)
        ]

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Context whose duration is added to the report."""
        start = time.perf_counter()
        yield
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize(self.device)
        assert self.report is not None
        self.report.seconds[name] = self.report.seconds.get(name, 0.0) + time.perf_counter() - start
