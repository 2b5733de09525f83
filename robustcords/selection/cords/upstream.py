"""Running CORDS' own strategies as they are, inside the promises that every strategy here keeps."""

from __future__ import annotations

import time
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from robustcords.engine.modes import evaluation_mode, seeded, training_mode
from robustcords.models.last_layer import CordsModel, LastLayer
from robustcords.rng import generator
from robustcords.runtime import collectives
from robustcords.selection.base import SelectionContext, SelectionReport, Strategy, StrategyConfig
from robustcords.selection.gradients.groups import batches_of, check_budget, fetch, labels_of
from robustcords.selection.gradients.head import check_last_layer


class UpstreamConfig(StrategyConfig):
    """Options of CORDS' own strategies.

    Attributes:
        model_mode: what the model runs in while selecting. CORDS selects in ``"train"``: BatchNorm normalises with the
            statistics of each batch, and dropout drops; ``"eval"`` is what this package's strategies do.
    """

    model_mode: Literal["train", "eval"] = "train"


class UpstreamStrategy(Strategy):
    """A strategy of CORDS on clean images and cross-entropy, with CORDS' own gradients and solver.

    The model runs in the mode that ``model_mode`` says, in eval mode where the strategy has no such option; its modes
    and BatchNorm's statistics are given back as they were. CORDS' own pipeline selects from augmented images.

    What CORDS returns is brought to exactly the budget: repeated indices are left out, a uniform random part is kept of
    too many, and too few are filled up with random ones of weight 1, as CORDS fills up. Its draws from global
    generators are seeded, and those generators are given back as they were. Where CORDS has no such form or cannot
    finish, or takes gradients of a bias or weight that the last layer does not have or does not train, the strategy of
    this package serves, with no attack and cross-entropy.

    Attributes:
        all_processes: whether every process selects, as it must where gradients are shared out among them; otherwise
            the main one does, for all.
    """

    needs_linear_head = True
    all_processes: ClassVar[bool] = False

    def __init__(self, config: Any, context: SelectionContext) -> None:
        self.config = config
        self.context = context
        self.loss = nn.CrossEntropyLoss(reduction="none")

    @classmethod
    def from_context(cls, config: Any, context: SelectionContext) -> Self:
        """Returns the strategy for one selection."""
        return cls(config, context)

    @abstractmethod
    def upstream(self, model: nn.Module, budget: int) -> Any | None:
        """Returns CORDS' strategy, or None where CORDS cannot do what is asked.

        Args:
            model: the model with the interface that CORDS wants.
            budget: k.
        """

    @property
    def trains(self) -> bool:
        """Whether the model runs in train mode."""
        return getattr(self.config, "model_mode", "eval") == "train"

    def mode(self, model: nn.Module) -> AbstractContextManager[None]:
        """Returns a block in which the model is in the mode that it selects in."""
        return training_mode(model) if self.trains else evaluation_mode(model)

    def meets_one_image(self, *, by_class: bool) -> bool:
        """Returns whether a batch of one image comes up that the model cannot run in train mode.

        BatchNorm has no statistics of one value a channel.

        Args:
            by_class: whether each class has batches of its own.
        """
        loader, model = self.context.train_loader, self.context.model
        sizes: list[tuple[int, int]] = []
        validates = self.needs_validation or getattr(self.config, "valid", False)
        for each in [loader, *([self.context.val_loader] if validates else [])]:
            assert each is not None
            labels, batch = labels_of(each), len(batches_of(loader if by_class else each)[0])
            sizes += [(count, batch) for count in (labels.bincount().tolist() if by_class else [len(labels)])]
        if not self.trains or not any(count and (count - 1) % batch == 0 for count, batch in sizes):
            return False
        _, image, _ = next(fetch(loader, [batches_of(loader)[0][:1]]))
        with training_mode(model), seeded(0, torch.device(self.context.device)), torch.no_grad():
            try:
                model(image.to(self.context.device))
            except ValueError:
                return True
        return False

    def own(self) -> Strategy:
        """Returns this package's strategy that serves where `upstream` gives None."""
        raise NotImplementedError

    def select(self, budget: int, model_params: Any) -> tuple[list[int], Tensor]:
        """Returns exactly ``budget`` rows of the training loader's data set, and their weights (k,) float32."""
        rows = [row for batch in batches_of(self.context.train_loader) for row in batch]
        check_budget(budget, len(rows))
        if budget == len(rows):
            return rows, torch.ones(budget)
        strategy = self._made(budget)
        if strategy is None:
            own = self.own()
            found = own.select(budget, model_params)
            self.report = own.report
            return found

        def decide() -> tuple[list[int], Tensor]:
            start = time.perf_counter()
            found = self._exactly(budget, *self._run(strategy, budget, model_params), rows)
            self.report = SelectionReport({"solve": time.perf_counter() - start})
            return found

        return decide() if self.all_processes else collectives.decide_together(decide)

    @classmethod
    def check(cls, config: Any, context: SelectionContext) -> None:
        """Builds CORDS' strategy, and passes two images through the model's last layer.

        It warns where this package's strategy serves, which does not follow ``model_mode``.
        """
        strategy = cls(config, context)
        if cls.needs_linear_head:
            with seeded(context.seed, torch.device(context.device)):
                check_last_layer(context, bias_alone=not strategy.uses_weight, mode=strategy.mode)
        examples = sum(map(len, batches_of(context.train_loader)))
        with seeded(context.seed):
            if strategy._made(config.budget_of(examples)) is None:
                strategy.own()
                # No error: the recipe that a run writes names every option, whether or not anybody chose it.
                if strategy.trains and collectives.is_main():
                    text = (
                        '%s: this package selects here, in eval mode, where CORDS cannot; not in model_mode = "train"'
                    )
                    context.logger.warning(text, config.name)

    @property
    def uses_weight(self) -> bool:
        """Whether gradients are those of the last layer's weight as well as of its bias."""
        return bool(getattr(self.config, "linear_layer", True))

    def _made(self, budget: int) -> Any | None:
        """Returns CORDS' strategy, or None where CORDS cannot do what is asked.

        CORDS' gradients have entries for a bias and, with ``linear_layer``, for a weight, whether or not the model has
        them and trains them.
        """
        model, classes = self.context.model, self.context.num_classes
        if not self.needs_linear_head:
            return self.upstream(model, budget)
        last_layer = LastLayer(model, classes)
        last_layer.check_trained(bias_alone=not self.uses_weight)
        whole = last_layer.trains_bias and (last_layer.trains_weight or not self.uses_weight)
        return self.upstream(CordsModel(model, classes), budget) if whole or self.all_processes else None

    def _run(self, strategy: Any, budget: int, model_params: Any) -> tuple[list[int], list[float]]:
        """Returns what CORDS selects; nothing, to be filled up at random, where all gradients of a group are 0."""
        context = self.context
        with self.mode(context.model), seeded(context.seed, torch.device(context.device)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CORDS pins memory whether or not there is a device to pin it for
            try:
                return self._ask(strategy, budget, model_params)
            except ZeroDivisionError:
                self.context.logger.warning("%s: CORDS divided by a gradient of 0; a random subset", self.config.name)
                return [], []

    def _ask(self, strategy: Any, budget: int, model_params: Any) -> tuple[list[int], list[float]]:
        """Returns the indices and weights that CORDS' strategy returns, as numbers."""
        indices, gammas = strategy.select(budget, model_params)
        return [int(index) for index in indices], torch.as_tensor(gammas).tolist()

    def _exactly(
        self, budget: int, indices: Sequence[int], gammas: Sequence[float], rows: list[int]
    ) -> tuple[list[int], Tensor]:
        """Returns ``budget`` unique indices and their weights."""
        source = generator(self.context.seed, "fill")
        # GLISTER gives more indices than weights where its rounds overshoot; all its weights are 1.
        given = [*gammas, *[1.0] * (len(indices) - len(gammas))]
        weights = dict(zip(indices, given, strict=False))
        kept = list(weights)
        if len(kept) > budget:
            order = torch.randperm(len(kept), generator=source)[:budget].sort().values
            kept = [kept[place] for place in order.tolist()]
        rest = sorted(set(rows) - weights.keys())
        order = torch.randperm(len(rest), generator=source)[: budget - len(kept)]
        kept += [rest[place] for place in order.tolist()]
        found = torch.tensor([weights.get(row, 1.0) for row in kept]).nan_to_num(0, 0, 0).clamp_(min=0)
        return kept, found if found.any() else torch.ones(budget)
