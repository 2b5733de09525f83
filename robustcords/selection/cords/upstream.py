"""Running CORDS' own strategies as they are, inside the promises that every strategy here keeps."""

from __future__ import annotations

import time
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from inspect import signature
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from robustcords.engine.modes import evaluation_mode, seeded, training_mode
from robustcords.models.last_layer import CordsModel, LastLayer
from robustcords.rng import generator
from robustcords.runtime import collectives
from robustcords.selection.base import SelectionContext, SelectionReport, Strategy, StrategyConfig
from robustcords.selection.gradient_based import SELECTION_TYPES
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
        known_batches: whether the granularity says which batches CORDS passes through the model.
    """

    needs_linear_head = True
    all_processes: ClassVar[bool] = False
    known_batches: ClassVar[bool] = True

    def __init__(self, config: Any, context: SelectionContext) -> None:
        self.config = config
        self.context = context

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

    def own(self) -> Strategy:
        """Returns this package's strategy that serves where CORDS cannot."""
        raise NotImplementedError

    def given(self, model: nn.Module) -> dict[str, Any]:
        """Returns what a selection is made with, by the names that CORDS' constructors have for it."""
        context = self.context
        return {
            "trainloader": context.train_loader,
            "valloader": context.val_loader or context.train_loader,  # CORDS counts its examples in any case
            "model": model,
            **dict.fromkeys(("loss", "loss_func", "loss_type"), nn.CrossEntropyLoss(reduction="none")),
            "device": torch.device(context.device),  # with the string "cpu" GRAD-MATCH would ignore lam and eps
            "num_classes": context.num_classes,
            "logger": context.logger,
            "attack": context.attack,
            "seed": context.seed,
            "on_batch": context.on_batch,
        }

    def arguments(self, names: Iterable[str], model: nn.Module) -> dict[str, Any]:
        """Returns the values that a selection and the options have for some of a constructor's parameters."""
        known = {"selection_type": SELECTION_TYPES[self.config.granularity], **dict(self.config), **self.given(model)}
        return {name: known[name] for name in names if name in known}

    @property
    def trains(self) -> bool:
        """Whether the model runs in train mode."""
        return getattr(self.config, "model_mode", "eval") == "train"

    @property
    def uses_weight(self) -> bool:
        """Whether gradients are those of the last layer's weight as well as of its bias."""
        return bool(getattr(self.config, "linear_layer", True))

    def mode(self, model: nn.Module) -> AbstractContextManager[None]:
        """Returns a block in which the model is in the mode that it selects in."""
        return training_mode(model) if self.trains else evaluation_mode(model)

    def obstacle(self) -> str | None:
        """Returns why CORDS' code cannot select by this model and these splits, or None where it can.

        Raises:
            UserError: the last layer has or trains none of the parameters in question.
        """
        context, validates = self.context, self.needs_validation or getattr(self.config, "valid", False)
        if validates and context.val_loader is None:
            return "selection is by validation images: set data.validation_fraction > 0"
        if not self.needs_linear_head:
            return None
        last_layer = LastLayer(context.model, context.num_classes)
        last_layer.check_trained(bias_alone=not self.uses_weight)
        if self.all_processes:
            return None
        if not last_layer.trains_bias or (self.uses_weight and not last_layer.trains_weight):
            return (
                "CORDS' gradients are those of a bias and a weight, and the model's last layer does not train both: "
                "put AdversarialGradients in front of the strategy, or train both"
            )
        if self.known_batches and self.trains and self._meets_one_image(validates):
            return (
                "a batch has one image, and BatchNorm needs more than 1 value per channel; CORDS selects in train "
                'mode: set selector.model_mode = "eval", or another train.batch_size'
            )
        return None

    def _meets_one_image(self, validates: bool) -> bool:
        """Returns whether a batch of one image comes up that the model cannot run in train mode."""
        by_class = self.config.granularity in {"per_class", "per_gradient"}
        loader, model = self.context.train_loader, self.context.model
        sizes: list[tuple[int, int]] = []
        for each in [loader, *([self.context.val_loader] if validates else [])]:
            assert each is not None
            labels, batch = labels_of(each), len(batches_of(loader if by_class else each)[0])
            sizes += [(count, batch) for count in (labels.bincount().tolist() if by_class else [len(labels)])]
        if not any(count and (count - 1) % batch == 0 for count, batch in sizes):
            return False
        _, image, _ = next(fetch(loader, [batches_of(loader)[0][:1]]))
        with training_mode(model), seeded(0, torch.device(self.context.device)), torch.no_grad():
            try:
                model(image.to(self.context.device))
            except ValueError:
                return True
        return False

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
            if strategy._made(max(1, round(config.fraction * examples))) is None:
                strategy.own()
                # No error: the recipe that a run writes names every option, whether or not anybody chose it.
                if strategy.trains and collectives.is_main():
                    text = (
                        '%s: this package selects here, in eval mode, where CORDS cannot; not in model_mode = "train"'
                    )
                    context.logger.warning(text, config.name)

    def _made(self, budget: int) -> Any | None:
        """Returns CORDS' strategy, or None where CORDS cannot do what is asked."""
        if self.obstacle():
            return None
        model = self.context.model
        return self.upstream(CordsModel(model, self.context.num_classes) if self.needs_linear_head else model, budget)

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
        wanted = len(signature(strategy.select).parameters)  # CORDS' RandomStrategy takes no model parameters
        indices, gammas = strategy.select(*(budget, model_params)[:wanted])
        return [int(index) for index in indices], torch.as_tensor(gammas).double().view(-1).tolist()

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
