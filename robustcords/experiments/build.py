"""Builds the objects that a recipe names."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from robustcords.attacks.base import Attack
from robustcords.attacks.pgd import PGD
from robustcords.config.registry import constructed
from robustcords.data.augmentations.base import Augmentation
from robustcords.data.base import DataSource
from robustcords.data.images import Images
from robustcords.data.loading import loaded
from robustcords.data.split import stratified_split, training_sample
from robustcords.engine import contracts
from robustcords.engine.inference import Inference
from robustcords.errors import UserError, nearest
from robustcords.losses.base import Loss
from robustcords.methods.base import Method
from robustcords.methods.efforts.base import Effort
from robustcords.methods.wrapper import Wrapper
from robustcords.models.last_layer import find_head
from robustcords.recipe.recipe import Recipe
from robustcords.recipe.tables import find
from robustcords.runtime.accelerator import start
from robustcords.runtime.progress import Display
from robustcords.runtime.session import Session
from robustcords.selection.gradient_based_config import AdversarialConfig
from robustcords.selection.gradients.memory import refuse_larger_than_memory
from robustcords.selection.selector import SubsetSelector
from robustcords.training.callbacks.base import Callback, CallbackContext
from robustcords.training.callbacks.validation import Validation
from robustcords.training.rehearsal import Rehearsal
from robustcords.training.trainer import Trainer

_LOOKED_AT = 160_000_000
"""Of sets with so many values of pixels, mean and deviation are those of all images: CIFAR's have 153,600,000."""
_SAMPLE = 64_000_000
"""Values that they are taken of in larger sets, where images are decoded for it: 425 images of 224 pixels."""
_AT_ONCE = 2**22  # of them, in float64


@dataclass(frozen=True)
class Data:
    """The images of a run.

    Attributes:
        source: where they come from.
        train: the training split, with its rows' `numbers` in the full training set.
        validation: the validation split, or None.
        test: the test set.
        mean: (C,) of the training split's pixels.
        std: (C,) of the training split's pixels.
        notes: what a person should know of how they were read, a line each.
        warnings: what reports have to say too, a line each.
    """

    source: DataSource
    train: Images
    validation: Images | None
    test: Images
    mean: Tensor
    std: Tensor
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def component(kind: str, config: Any, *context: Any) -> Any:
    """Returns the component that a recipe's table names, built from its options."""
    return constructed(kind, find(kind, config.name), *context, name=config.name, **config.options())


def accelerator(recipe: Recipe) -> Accelerator:
    """Starts Accelerate with the recipe's precision, accumulation and trackers.

    Raises:
        UserError: the precision needs other hardware, or a tracker's package is not installed.
    """
    return start(recipe.train.precision, recipe.train.accumulation, recipe.logging.trackers)


def resolved(recipe: Recipe, started: Accelerator) -> Recipe:
    """Returns the recipe with ``precision = "auto"`` replaced by what it stands for on this machine."""
    return recipe.with_train(precision="fp32" if started.mixed_precision == "no" else started.mixed_precision)


def data(recipe: Recipe, display: Display | None = None) -> Data:
    """Loads the images and splits off the validation set.

    Args:
        recipe: which.
        display: for progress; left out, there is none.

    Raises:
        UserError: they cannot be read; the message names the file.
    """
    source: DataSource = component("data", recipe.data)
    splits = loaded(source, display)
    _refuse_larger_than_images(recipe, splits.test)
    whole = _limited(recipe, splits.train)
    kept, held_out = stratified_split(whole.labels, recipe.data.validation_fraction, recipe.seed)
    train = whole.subset(kept)
    validation = whole.subset(held_out) if len(held_out) else None
    mean, std = channel_statistics(train)
    return Data(source, train, validation, splits.test, mean, std, splits.notes, splits.warnings)


def _limited(recipe: Recipe, train: Images) -> Images:
    """Returns the part of the training set that ``data.train_limit`` says.

    Raises:
        UserError: it has not room for every class.
    """
    limit, classes = recipe.data.train_limit, len(train.labels.unique())
    if limit == 0 or limit >= len(train):
        return train
    if limit < classes:
        raise UserError(f"data.train_limit = {limit}: there are {classes} classes, and each needs an image")
    return train.subset(training_sample(train.labels, limit, recipe.seed))


def _refuse_larger_than_images(recipe: Recipe, images: Images) -> None:
    """Checks that no radius covers every image there is, but for twice the threat's own.

    Raises:
        UserError: one does, most likely meant in levels of 255.
    """
    if math.isfinite(recipe.threat.largest) or not len(images):  # which has been looked at, without images
        return
    threat, own = recipe.threat, recipe.threat.epsilon
    diameter = threat.diameter(images.shape)
    named = {"threat.epsilon": [own]}
    named |= {f"evaluation.{key}.epsilons": each.options.radii for key, each in recipe.evaluation.chosen.items()}
    for key, radii in named.items():
        for radius in radii:
            if radius >= diameter and not (own < diameter and radius <= 2 * own * (1 + 1e-9)):
                guess = f'; did you mean "{radius:g}/255"?' if threat.nearest_radius(radius / 255) < 1 else ""
                raise UserError(
                    f"{key} = {radius:g}: {threat.radius_name()} of {diameter:g} and more covers every image of this "
                    f"size{guess}"
                )


def channel_statistics(images: Images) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation (C,) of the pixels in [0, 1], summed in float64 portion by portion.

    Of large sets some images are looked at, evenly spread over all, wherever they are kept.
    """
    total = torch.zeros(images.shape[0], dtype=torch.float64)
    square = torch.zeros_like(total)
    size = math.prod(images.shape)
    used = len(images) if len(images) * size <= _LOOKED_AT else max(1, _SAMPLE // size)
    portions = (torch.arange(used) * len(images) // used).split(max(1, min(4096, _AT_ONCE // size)))
    for x, _ in images.batches([rows.tolist() for rows in portions], "cpu"):
        pixels = x.double()
        total += pixels.sum(dim=(0, 2, 3))
        square += pixels.square().sum(dim=(0, 2, 3))
    count = used * math.prod(images.shape[1:])
    mean = total / count
    std = (square / count - mean.square()).clamp(min=0).sqrt()
    # A channel that never changes carries nothing; dividing it by 1 leaves it at zero.
    return mean.float(), torch.where(std > 1e-6, std, 1.0).float()


def augmentation(recipe: Recipe, images: Data) -> Augmentation:
    """Returns how training changes images at random."""
    config = recipe.augmentation
    built: Augmentation = component("augmentation", find("augmentation", config.name).resolved(config, images.source))
    return built


def model(recipe: Recipe, images: Data) -> nn.Module:
    """Returns the network with its initial weights, normalisation in front."""
    channels, height, width = images.train.shape
    network: nn.Module = component("model", recipe.model).build(
        channels, (height, width), len(images.train.classes), images.mean, images.std, seed=recipe.seed
    )
    return network


def attack(recipe: Recipe) -> Attack:
    """Returns the training attack."""
    built: Attack = component("attack", recipe.attack, recipe.threat)
    return built


def effort(recipe: Recipe) -> Effort:
    """Returns what decides how hard each example is attacked in training."""
    built: Effort = component("effort", recipe.effort)
    return built


def method(recipe: Recipe, loss: Loss, attack: Attack, effort: Effort) -> Method:
    """Returns what a training step does with a batch: a method, or wrappers around one."""

    def built(config: Any) -> Method:
        kind: type[Method] = find("method", config.name)
        options = {"name": config.name, **config.options()}
        if issubclass(kind, Wrapper):
            wrapper: Method = constructed("method", kind, built(options.pop("inner")), **options)
            return wrapper
        innermost: Method = constructed("method", kind, loss, attack, effort, **options)
        return innermost

    return built(recipe.method)


def cautions(recipe: Recipe) -> list[str]:
    """Returns what a user should know of a recipe's attacks before training, a sentence each.

    That is attacks whose steps cannot cross the ball, in training and in selection, and an evaluation that leaves out
    the radius that training is for.
    """
    loss: Loss = component("loss", recipe.loss)
    found = []
    if "adversarial" in loss.views:
        training, planned = attack(recipe), effort(recipe)
        attacks = {kind and f" of {kind} examples": each for kind, each in planned.attacks(training).items()}
        if isinstance(recipe.selector, AdversarialConfig):
            attacks[" for selection"] = recipe.selector.effort(training)
        found = [f"the training attack{of}: {text}" for of, each in attacks.items() if (text := each.falls_short)]
        if not planned.strongest(training).num_gradient_steps and recipe.threat.epsilon:
            found.append("the training attack takes no steps: training is on the images as they are")
    return [*found, *recipe.evaluation.unmeasured(recipe.threat)]


def proxy(recipe: Recipe, images: Data, device: torch.device) -> Inference | None:
    """Returns the model that selections are made by, as attacks run it, where it is not the one that is trained.

    Its weights are those of the file that the recipe names, or the initial ones of a proxy that is to be trained.

    Raises:
        UserError: the selector uses no model, or the file is not of this one.
    """
    config = recipe.selector.proxy if recipe.selector else None
    if recipe.selector is None or config is None:
        return None
    if not find("selector", recipe.selector.name).uses_model:
        raise UserError(f"[selector.proxy]: selector {recipe.selector.name!r} uses no model; leave the table out")
    network, _ = settled_model(recipe.model_copy(update={"model": config.model}), images, device)
    if config.weights:
        load_weights(network, Path(config.weights), "selector.proxy.weights:")
    return Inference(network, replay=bool(recipe.train.cuda_graphs))


def selector(recipe: Recipe, images: Data, proxy: Inference | None = None) -> SubsetSelector | None:
    """Returns the subset selector, which a trainer binds to what it trains with, or None for full data.

    Args:
        recipe: with or without a selector.
        images: which the validation split is of.
        proxy: the recipe's `proxy`.
    """
    if recipe.selector is None:
        return None
    strategy = find("selector", recipe.selector.name)
    return SubsetSelector(strategy, recipe.selector, validation=images.validation, proxy=proxy)


def settled_model(recipe: Recipe, images: Data, device: torch.device) -> tuple[nn.Module, str]:
    """Returns the network on a device, as evaluation and selection run it, and its layout.

    Raises:
        UserError: it cannot be built, or does not run there.
    """
    network = model(recipe, images)
    return network, Rehearsal(images.test, device).settle(network, recipe.train.memory_format)


def check_size(recipe: Recipe, network: nn.Module, images: Data) -> None:
    """Checks that the selector can select from so many images, now and not hours from here.

    Raises:
        UserError: the model has no linear layer, there are too many candidates for the strategy, or their gradients
            would not fit in memory.
    """
    config: Any = recipe.selector
    if config is None:
        return
    strategy = find("selector", config.name)
    if not strategy.needs_linear_head:
        return
    classes = len(images.train.classes)
    head = find_head(network, classes)
    width = head.in_features if getattr(config, "linear_layer", True) else 0
    largest = {
        "full": len(images.train),
        "per_batch": math.ceil(len(images.train) / recipe.train.batch_size),
    }.get(config.granularity, int(images.train.labels.bincount().max()))
    outputs = 1 if config.granularity == "per_gradient" else classes
    strategy.refuse_too_large(config, largest, outputs * (1 + width))
    if isinstance(config, AdversarialConfig) and config.granularity in {"full", "per_batch"}:
        views, device = component("loss", recipe.loss).views, next(network.parameters()).device
        refuse_larger_than_memory(len(images.train), len(views) * (head.in_features + 2 * classes), device)


def trainer(recipe: Recipe, images: Data, session: Session) -> Trainer:
    """Returns a trainer that is ready to fit, on one loss and one attack that its parts share."""
    loss: Loss = component("loss", recipe.loss)
    trained = method(recipe, loss, attack(recipe), effort(recipe))
    network = model(recipe, images).to(session.device)
    judge = proxy(recipe, images, session.device)
    check_size(recipe, judge or network, images)
    if images.validation is None and recipe.evaluation.checkpoints == ["best"]:
        raise UserError(
            f'evaluation.checkpoints = ["best"]: data.validation_fraction = {recipe.data.validation_fraction:g} holds '
            'out no image to choose the best weights on; raise it, or evaluate "last"'
        )
    images = replace(images, train=images.train.resident(session.device))
    return Trainer(
        network,
        trained,
        images.train,
        component("optimizer", recipe.optimizer).build(network.parameters()),
        recipe.train,
        schedule=component("schedule", recipe.schedule),
        selector=selector(recipe, images, judge),
        augmentation=augmentation(recipe, images),
        callbacks=callbacks(recipe, images, trained),
        seed=recipe.seed,
        session=session,
    )


def callbacks(recipe: Recipe, images: Data, trained: Method) -> list[Callback]:
    """Returns what reacts to training: validation where there are images for it, and what ``[callbacks]`` names."""
    # PGD-10 with steps of a quarter of the radius, whatever the training attack is.
    monitor = PGD(recipe.threat, steps=10, step_size=recipe.threat.epsilon / 4)
    strongest = trained.effort.strongest(trained.attack)
    context = CallbackContext(images.train, strongest, monitor, trained.loss, recipe.seed)
    built: list[Callback | None] = []
    if images.validation:
        planned = partial(trained.effort.validation_attack, trained.attack)
        built.append(Validation(images.validation, monitor, recipe.train.validate_every, planned))
    for name, config in recipe.callbacks.items():
        if config is not None:
            found = find("callback", name).from_context(config, context)
            built.append(found and contracts.instance(f"callback {name}: from_context", found, Callback))
    return [callback for callback in built if callback is not None]


def load_weights(network: nn.Module, path: Path, what: str = "weights") -> None:
    """Loads a state dict from a safetensors file, ``what`` in messages; nothing in it can run code.

    Raises:
        UserError: the file is missing, is not safetensors, or has other names or shapes than the model.
    """
    if path.is_dir():
        raise UserError(
            f"{what} {path}: a folder; name a file, such as {path / 'weights' / 'last.safetensors'} of a run"
        )
    try:
        state = load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{what} {path}: there is no such file") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{what} {path}: not a safetensors file ({error})") from error
    expected = network.state_dict()
    for name, value in expected.items():
        if name not in state:
            raise UserError(f"{what} {path}: no {name!r}, which this model has{nearest(name, state)[:200]}")
        if state[name].shape != value.shape:
            shapes = f"{tuple(state[name].shape)}, not {tuple(value.shape)}"
            raise UserError(f"{what} {path}: {name!r} has shape {shapes}: another model, data set or width")
    extra = sorted(set(state) - set(expected))
    if extra:
        raise UserError(f"{what} {path}: {extra[0]!r} is not in this model ({len(extra)} such)")
    network.load_state_dict(state)
