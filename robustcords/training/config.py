"""The ``[train]`` and ``[logging]`` tables of a recipe; free of torch, so that validation is quick."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from robustcords.config.schema import Duration, OrFalse, Positive, Role, Table
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


def _tracker(name: str) -> str:
    if name not in TRACKERS:
        raise ValueError(f"unknown tracker{nearest(name, TRACKERS)}")
    return name


class AveragingConfig(Table):
    """Options of weight averaging.

    Attributes:
        kind: ``"ema"``, an exponential moving average, or ``"swa"``, the plain mean (Izmailov et al. 2018, but over
            steps and not over epochs).
        decay: weight that the ema keeps at each step; swa does not use it.
        start: share of the run after which averaging starts; left out, 0 for ema and 0.75 for swa.
        warmup: shorten the memory of the ema at the beginning: after n averages it keeps ``min(decay, (1 + n) / (10 +
            n))``, so that the first weights do not stay in it for long. This helps short runs, and decays close to 1.
        statistics: BatchNorm's statistics: ``"averaged"`` like weights, or ``"copied"`` from the model in training.
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
        epochs: number of passes over the subset, or over the training split without a selector; left out, 100 if
            neither ``steps`` nor ``budget`` is given.
        steps: number of batches, instead of epochs; the last epoch may be incomplete. A list gives the batches of each
            equal share of the schedules: the recipe.toml of a run with a budget contains one, which reproduces the run.
        budget: training time, instead of epochs, with selections, validation and checkpoints but without evaluation.
            The number of steps is measured.
        batch_size: images per optimizer step: all processes and accumulation steps together. An epoch is divided into
            batches of equal size (give or take one), none larger than this.
        shuffle_window: shuffle blocks of 100 neighbouring images, and then the images within a window of this size, for
            tables that are decoded as they are read; left out or ``false``, all images of an epoch are shuffled.
        accumulation: number of micro-batches that an optimizer step is computed in; more take less memory.
        precision: precision of forward and backward passes: ``"auto"`` is bf16 if the hardware has instructions for it,
            otherwise fp32, and the recipe.toml of the run says which. It overrides the setting of the launcher. fp16
            needs a GPU. Evaluation is always in float32.
        compile: compile the model with torch.compile, which needs a C++ compiler.
        cuda_graphs: on a GPU, record the passes of attacks in training, selection and evaluation once and replay them,
            for networks that support it. This takes memory for the activations of one more batch. ``"all"`` does the
            same with the passes of updates, in one process, which takes that of the activations of a step again; it
            has not been tried on a GPU yet.
        memory_format: memory layout of images and convolutions: ``"auto"`` is channels_last if the model runs in it,
            otherwise contiguous, and the recipe.toml of the run says which.
        validate_every: number of epochs between validations, on which ``best`` is chosen; the last epoch is always
            validated.
        checkpoint_every: number of epochs, or time, between checkpoints; with a time also within an epoch. There is
            always one after the last epoch.
        keep_checkpoints: number of newest checkpoints to keep.
        time_limit: time from the start of the command, evaluation included, after which the run stops with a checkpoint
            and exit status 75, and can be resumed; left out or ``false``, no limit. Leave room for one step and one
            checkpoint. For a run that is complete in a given time, see ``budget``.
        sync_batchnorm: with several processes, have BatchNorm normalise with the images of all of them in training.
        clip_gradient: largest l2 norm of the gradient; left out or ``false``, no limit.
        averaging: weight averaging; left out or ``false``, none.
    """

    epochs: Annotated[int, Field(ge=1)] | None = None
    steps: Steps | None = None
    budget: Duration | None = None
    batch_size: Annotated[int, Field(ge=1)] = 128
    shuffle_window: Annotated[Annotated[int, Field(ge=1)] | None, OrFalse()] = None
    accumulation: Annotated[int, Field(ge=1)] = 1
    precision: Annotated[Literal["fp32", "bf16", "fp16", "auto"], Role("computation")] = "auto"
    compile: Annotated[bool, _COMPUTATION] = False
    cuda_graphs: Annotated[bool | Literal["all"], _COMPUTATION] = True
    memory_format: Annotated[Literal["auto", "channels_last", "contiguous"], _COMPUTATION] = "auto"
    validate_every: Annotated[int, Field(ge=1)] = 10
    checkpoint_every: Annotated[Annotated[int, Field(ge=1)] | Duration, _RECORD] = 1
    keep_checkpoints: Annotated[int, Field(ge=1), _RECORD] = 2
    time_limit: Annotated[Duration | None, OrFalse(), _RECORD] = None
    sync_batchnorm: bool = False
    clip_gradient: Annotated[Positive | None, OrFalse()] = None
    averaging: Annotated[AveragingConfig | None, OrFalse()] = None

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
        trackers: experiment trackers to report to through Accelerate, in addition to metrics.jsonl: ``"aim"``,
            ``"clearml"``, ``"comet_ml"``, ``"dvclive"``, ``"mlflow"``, ``"swanlab"``, ``"tensorboard"``, ``"trackio"``
            or ``"wandb"``. Each needs its own package. They get every number of metrics.jsonl after each epoch, under
            its keys (``seconds/attack``), and at the end those of report.json (``evaluation/last/pgd/8/255``) and the
            images of the report's page.
    """

    trackers: Annotated[list[Annotated[str, AfterValidator(_tracker)]], _RECORD] = Field(default_factory=list)
