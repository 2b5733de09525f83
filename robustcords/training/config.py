"""The ``[train]`` and ``[logging]`` tables of a recipe; free of torch, so that validation is quick."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from robustcords.config.schema import Duration, Positive, Role, Table
from robustcords.errors import nearest

EPOCHS = 100
"""The length of a run that nobody has said."""
LENGTHS = ("epochs", "steps", "budget")
"""The keys that say how long training is. The last one written counts, see `robustcords.recipe.tables`."""
SHARES = 10
"""Equal shares of a run with a budget: before each one it is settled how many batches it has."""

Batches = Annotated[int, Field(ge=1)]
Steps = Batches | Annotated[list[Batches], Field(min_length=1, max_length=SHARES)]

_COMPUTATION, _RECORD = Role("computation", changeable=True), Role("record", changeable=True)

TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")
"""The trackers that Accelerate knows."""

_STARTS = {"ema": 0.0, "swa": 0.75}


def _off(value: Any) -> Any:
    return None if value is False else value


def _tracker(name: str) -> str:
    if name not in TRACKERS:
        raise ValueError(f"unknown tracker{nearest(name, TRACKERS)}")
    return name


class AveragingConfig(Table):
    """Options of weight averaging.

    Attributes:
        kind: ``"ema"``, an exponential moving average; or ``"swa"``, the plain mean (Izmailov et al. 2018, but over
            every step from the start on and not over epochs).
        decay: weight that the ema keeps at each step, in [0, 1); swa has no use for it.
        start: share of the run after which averaging starts, in [0, 1). Left out, 0 for ema and 0.75 for swa.
        warmup: have the ema begin with a shorter memory: after n averages it keeps ``min(decay, (1 + n) / (10 + n))``,
            so that the first weights do not stay in it for long.
        statistics: BatchNorm's: ``"averaged"`` like weights, or ``"copied"`` from the model in training.
    """

    kind: Literal["ema", "swa"] = "ema"
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    start: Annotated[float, Field(ge=0, lt=1)] = 0.0
    warmup: bool = False
    statistics: Literal["averaged", "copied"] = "averaged"

    @model_validator(mode="before")
    @classmethod
    def _start_of_kind(cls, values: Any) -> Any:
        kind = values.get("kind") if isinstance(values, dict) else None
        if not isinstance(kind, str) or kind not in _STARTS:  # a list could not even be looked up
            return values
        return {"start": _STARTS[kind], **values}


class TrainConfig(Table):
    """The ``[train]`` table: how long, in what portions and how exactly to train.

    Each key's `Role` says whether it is a part of the method, and whether a run may be resumed with another value.

    Attributes:
        epochs: passes over the selected subset, or over the full training set without a selector. Left out, 100 where
            neither ``steps`` nor ``budget`` is given.
        steps: batches, in place of epochs; the last epoch may be cut. A list says how many each equal share of the run
            has: the recipe.toml of a run with a budget has one, and is trained by it again.
        budget: time to train, in place of epochs: a length such as ``"30 min"``, with selections, validations and
            checkpoints, without evaluation. How many steps that is, is measured.
        batch_size: images per optimiser step, over all processes and accumulation steps together.
        shuffle_window: for images on disk whose neighbours are read together: blocks of 100 neighbours are shuffled,
            and then the images within so many; left out or ``false``, all are shuffled with one another.
        accumulation: micro-batches that one optimiser step is computed in; more take less memory.
        precision: of the forward and backward passes; ``"auto"`` takes bf16 where the hardware is faster with it.
        compile: compile the model with ``torch.compile``.
        cuda_graphs: on a GPU, record passes of attacks in training, selection and evaluation, and replay them. It takes
            memory for the activations of one more batch.
        memory_format: layout of images and convolutions in memory; ``"auto"`` is channels_last where the model runs so,
            else contiguous, and the run's own recipe.toml says which.
        validate_every: epochs from one validation to the next, on which ``best`` is chosen.
        checkpoint_every: between checkpoints: epochs, or a length of time such as ``"10 min"``, also within an epoch.
            There is always one after the last epoch.
        keep_checkpoints: how many of the newest checkpoints to keep.
        time_limit: from the start of the command, such as ``"23.5 h"``: after this the run stops with a checkpoint, as
            after a signal, to be resumed; left out or ``false``, none.
        sync_batchnorm: with several processes, have BatchNorm normalise by the images of all of them in training.
        clip_gradient: the largest l2 norm of the gradient; left out or ``false``, no limit.
        averaging: table of weight averaging; left out or ``false``, none.
    """

    epochs: Annotated[int, Field(ge=1)] | None = None
    steps: Steps | None = None
    budget: Duration | None = None
    batch_size: Annotated[int, Field(ge=1)] = 128
    shuffle_window: Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_off)] = None
    accumulation: Annotated[int, Field(ge=1)] = 1
    precision: Annotated[Literal["fp32", "bf16", "fp16", "auto"], Role("computation")] = "auto"
    compile: Annotated[bool, _COMPUTATION] = False
    cuda_graphs: Annotated[bool, _COMPUTATION] = True
    memory_format: Annotated[Literal["auto", "channels_last", "contiguous"], _COMPUTATION] = "auto"
    validate_every: Annotated[int, Field(ge=1)] = 10
    checkpoint_every: Annotated[Annotated[int, Field(ge=1)] | Duration, _RECORD] = 1
    keep_checkpoints: Annotated[int, Field(ge=1), _RECORD] = 2
    time_limit: Annotated[Duration | None, BeforeValidator(_off), _RECORD] = None
    sync_batchnorm: bool = False
    clip_gradient: Annotated[Positive | None, BeforeValidator(_off)] = None
    averaging: Annotated[AveragingConfig | None, BeforeValidator(_off)] = None

    @model_validator(mode="before")
    @classmethod
    def _some_length(cls, values: Any) -> Any:
        if not isinstance(values, dict) or any(values.get(key) is not None for key in LENGTHS):
            return values
        return {**values, "epochs": EPOCHS}

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs and (self.steps or self.budget):
            other = "steps" if self.steps else "budget"
            raise ValueError(f"epochs and {other} both say how long training is; write one of them")
        return self

    @property
    def planned(self) -> bool:
        """Whether it is known how many epochs or steps there are; with a budget, after it has been measured."""
        return not self.budget or isinstance(self.steps, int) or len(self.steps or ()) == SHARES

    def saves_after(self, epochs: int) -> bool:
        """Returns whether there is a checkpoint after so many epochs."""
        return isinstance(self.checkpoint_every, int) and epochs % self.checkpoint_every == 0

    def saves_within(self, seconds: float) -> bool:
        """Returns whether it is time for a checkpoint within an epoch, so long after the last one."""
        return not isinstance(self.checkpoint_every, int) and seconds >= self.checkpoint_every.total_seconds()


class LoggingConfig(Table):
    """The ``[logging]`` table.

    Attributes:
        trackers: experiment trackers to report to, in addition to metrics.jsonl; each needs its own package.
    """

    trackers: Annotated[list[Annotated[str, AfterValidator(_tracker)]], _RECORD] = Field(default_factory=list)
