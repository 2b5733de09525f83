"""Runs strategies written for CORDS unchanged, under the same guarantees as every other strategy."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from inspect import signature
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from robustcords.config.requirements import VALIDATION_IMAGES
from robustcords.engine.modes import evaluation_mode, seeded, training_mode
from robustcords.errors import UserError, one_line_from, raised_at
from robustcords.models.last_layer import CordsModel, LastLayer
from robustcords.rng import generator
from robustcords.runtime import collectives
from robustcords.selection.base import PlainStrategy, SelectionContext, SelectionReport, Strategy, StrategyConfig
from robustcords.selection.cords.instance_state import changed, put, taken
from robustcords.selection.gradient_based import SELECTION_TYPES, augmentation
from robustcords.selection.gradients.groups import batches_of, check_budget, labels_of, rows_of
from robustcords.selection.gradients.head import check_last_layer
from robustcords.selection.loaded import images_of

GIVEN = {
    **{"trainloader": "train_loader", "valloader": "val_loader"},
    **dict.fromkeys(("loss", "loss_func", "loss_type"), "loss"),
    **{name: name for name in ("model", "device", "num_classes", "logger", "attack", "augment", "seed", "on_batch")},
}
"""The parameters of CORDS' constructors that a selection has values for, and what its context calls them."""


class UpstreamConfig(StrategyConfig):
    """Options of CORDS' own strategies.

    Attributes:
        model_mode: mode of the model in a selection: ``"train"``, as in CORDS, where BatchNorm normalises with the
            statistics of each batch and dropout is active, or ``"eval"``. A strategy of this package that stands in for
            that of CORDS uses ``"eval"`` in any case, with a warning. BatchNorm's running statistics are not changed.
    """

    model_mode: Literal["train", "eval"] = "train"


class CordsStrategy(PlainStrategy):
    """A strategy that is written for CORDS, with its own gradients and solver: by `options.selector`, or a subclass.

    It selects by clean images and cross-entropy; behind the `AdversarialGradients` hook it gets the training loss and
    attack. The model's modes and BatchNorm's statistics are given back as they were, and so are the global generators,
    which are seeded for CORDS' draws.

    What CORDS returns is brought to exactly the budget: repeated indices are left out, a uniform random part is kept of
    too many, and too few are filled up with random ones of weight 1, as CORDS fills up. What the class leaves in its
    attributes is there at the next selection (`instance_state`), or what its own ``state_dict`` says, where it has one.

    Attributes:
        strategy: CORDS' class.
        parameters: the names of its constructor's parameters.
        ours: makes this package's strategy of the same arguments, where there is one.
        all_processes: whether every process selects, as it must where gradients are shared out among them; otherwise
            the main one does, for all.
        known_batches: whether the granularity says which batches CORDS passes through the model.
        trains: whether the model runs in train mode.
        uses_weight: whether gradients are those of the last layer's weight as well as of its bias.
        state: what an earlier selection left, and then what this one does.
    """

    strategy: ClassVar[type]
    parameters: ClassVar[tuple[str, ...]]
    ours: ClassVar[Callable[..., Strategy] | None] = None
    needs_linear_head = True
    all_processes: ClassVar[bool] = False
    known_batches: ClassVar[bool] = True
    state: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, config: Any, context: SelectionContext) -> None:
        super().__init__(config, context)
        self.trains = getattr(config, "model_mode", "eval") == "train"
        self.mode = training_mode if self.trains else evaluation_mode
        self.uses_weight = bool(getattr(config, "linear_layer", True))

    def state_dict(self) -> dict[str, Any]:
        """Returns what CORDS' object has left."""
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keeps it for CORDS' object, which is built when it selects."""
        self.state = state

    def upstream(self, model: nn.Module, budget: int) -> Any | None:
        """Returns CORDS' strategy, or None where CORDS cannot do what is asked.

        Args:
            model: the model with the interface that CORDS wants.
            budget: k.

        Raises:
            UserError: its constructor fails.
        """
        del budget
        self._arguments = self.arguments(model)
        with self._failing_in("its constructor"):
            return self.strategy(**self._arguments)

    def own(self) -> Strategy:
        """Returns this package's strategy that serves where CORDS cannot, with the same options and no attack.

        Raises:
            UserError: there is none; the line says what keeps CORDS' code from selecting.
        """
        if self.ours is None:
            raise UserError(f"selector {self.config.name!r}: {self.obstacle()}")
        context = self.context
        known = {"granularity": self.config.granularity, "seed": context.seed, "on_batch": context.on_batch}
        return self.ours(**self.arguments(context.model), **known)

    def arguments(self, model: nn.Module) -> dict[str, Any]:
        """Returns what the constructor gets of a selection and of the options; other parameters keep their defaults."""
        context = self.context
        device = torch.device(context.device)  # with the string "cpu" GRAD-MATCH would ignore lam and eps
        given: dict[str, Any] = {**vars(context), "model": model, "device": device}
        given["val_loader"] = context.val_loader or context.train_loader  # CORDS counts its examples in any case
        if self.all_processes:
            given["attack"] = context.attack and self.config.attack(context.attack, device)
            given["augment"] = augmentation(self.config, context)
        else:
            given["loss"] = nn.CrossEntropyLoss(reduction="none")
        known = {"selection_type": SELECTION_TYPES[self.config.granularity], **dict(self.config)}
        known |= {name: given[attribute] for name, attribute in GIVEN.items()}
        return {name: known[name] for name in self.parameters if name in known}

    def obstacle(self) -> str | None:
        """Returns why CORDS' code cannot select by this model and these splits, or None where it can.

        Raises:
            UserError: the last layer has or trains none of the parameters in question.
        """
        context, validates = self.context, VALIDATION_IMAGES in self.requires or getattr(self.config, "valid", False)
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
        loader, model = self.context.train_loader, self.context.model
        loaders = [loader, *([self.context.val_loader] if validates and self.context.val_loader else [])]
        if self.config.granularity in {"per_class", "per_gradient"}:
            size = len(batches_of(loader)[0])
            counts = [count for each in loaders for count in labels_of(each).bincount().tolist()]
            alone = any(count and (count - 1) % size == 0 for count in counts)
        else:
            alone = any(len(batch) == 1 for each in loaders for batch in batches_of(each))
        if not alone:
            return False
        image, _ = images_of(loader).batch(torch.tensor(batches_of(loader)[0][:1]), self.context.device)
        with training_mode(model), seeded(0, torch.device(self.context.device)), torch.no_grad():
            try:
                model(image)
            except ValueError:
                return True
        return False

    def select(self, budget: int, model_params: Any) -> tuple[list[int], Tensor]:
        """Returns exactly ``budget`` rows of the training loader's data set, and their weights (k,) float32."""
        rows = rows_of(self.context.train_loader)
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
                    text = "%s: this package selects here, in eval mode, where CORDS cannot in train mode"
                    context.logger.warning(text, config.name)

    def _made(self, budget: int) -> Any | None:
        """Returns CORDS' strategy, or None where CORDS cannot do what is asked."""
        if self.obstacle():
            return None
        model = self.context.model
        return self.upstream(CordsModel(model, self.context.num_classes) if self.needs_linear_head else model, budget)

    def _run(self, strategy: Any, budget: int, model_params: Any) -> tuple[list[int], list[float]]:
        """Returns what CORDS selects; nothing, to be filled up at random, where all gradients of a group are 0.

        Raises:
            UserError: it fails, or returns no subset; the line says where.
        """
        model, name, log = self.context.model, self.config.name, self.context.logger
        wanted = len(signature(strategy.select).parameters)  # CORDS' RandomStrategy takes no model parameters
        with self.mode(model), seeded(self.context.seed, torch.device(self.context.device)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CORDS pins memory whether or not there is a device to pin it for
            with self._failing_in("select"):
                new = self._begin(strategy)
                try:
                    indices, gammas = strategy.select(*(budget, model_params)[:wanted])
                except ZeroDivisionError as error:
                    if "cords" not in Path(raised_at(error).filename).parts:
                        raise
                    log.warning("%s: CORDS divided by a gradient of 0; a random subset", name)
                    return [], []
                picks = [int(index) for index in indices], torch.as_tensor(gammas).double().view(-1).tolist()
                self._end(strategy, new)
        if not picks[0]:
            raise UserError(f"selector {name!r}: {self.strategy.__name__} selected nothing")
        if (distinct := len(set(picks[0]))) < budget:
            text = "%s: %d of the %d examples wanted; the others are random, with weight 1"
            log.warning(text, name, distinct, budget)
        return picks

    def _begin(self, strategy: Any) -> dict[str, Any]:
        """Gives CORDS' object what the last one left; returns its attributes before that."""
        if hasattr(strategy, "load_state_dict"):
            if "own" in self.state:
                strategy.load_state_dict(self.state["own"])
            return {}
        new, _ = taken(strategy, self._arguments.values())
        put(strategy, self.state.get("attributes", {}))
        return new

    def _end(self, strategy: Any, new: dict[str, Any]) -> None:
        """Takes what CORDS' object leaves."""
        if hasattr(strategy, "load_state_dict"):
            self.state = {"own": strategy.state_dict()}
            return
        attributes, lost = taken(strategy, self._arguments.values())
        reported = self.state.get("lost", [])
        if collectives.is_main() and (names := [name for name in lost if name not in reported]):
            text = "%s: every selection begins with new %s: these attributes cannot be kept; write state_dict for them"
            self.context.logger.warning(text, self.config.name, ", ".join(names))
        self.state = {"attributes": changed(new, attributes), "lost": lost}

    def _failing_in(self, what: str) -> AbstractContextManager[None]:
        """Makes one line of what the strategy's own code raises."""
        return one_line_from(f"selector {self.config.name!r}: {self.strategy.__name__} failed in {what}")

    def _exactly(
        self, budget: int, indices: Sequence[int], gammas: Sequence[float], rows: list[int]
    ) -> tuple[list[int], Tensor]:
        """Returns ``budget`` unique indices and their weights."""
        source = generator(self.context.seed, "fill")
        # GLISTER gives more indices than weights where its rounds overshoot; all its weights are 1.
        weights = dict(zip(indices, [*gammas, *[1.0] * len(indices)], strict=False))
        kept = list(weights)
        if len(kept) > budget:
            order = torch.randperm(len(kept), generator=source)[:budget].sort().values
            kept = [kept[place] for place in order.tolist()]
        rest = sorted(set(rows) - weights.keys())
        order = torch.randperm(len(rest), generator=source)[: budget - len(kept)]
        kept += [rest[place] for place in order.tolist()]
        found = torch.tensor([weights.get(row, 1.0) for row in kept]).nan_to_num(0, 0, 0).clamp_(min=0)
        return kept, found if found.any() else torch.ones(budget)
