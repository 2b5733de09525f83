"""What holds for every run, whatever the loss, effort and selector."""

from __future__ import annotations

import copy
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.cases import cases
from support.small_run import (
    BATCH,
    COUNT,
    After,
    check_same,
    chooser,
    close,
    eventful,
    fitted,
    made_up,
    network,
    trainer,
    vector,
)
from torch import Tensor, nn
from torch.nn import functional as F

from robustcords.config.registry import names
from robustcords.data.augmentations.crop_flip import CropFlip
from robustcords.data.images import ImageSet
from robustcords.errors import Interrupted, RunError, UserError
from robustcords.methods.efforts.base import Effort, Plan
from robustcords.methods.efforts.bullet import Bullet
from robustcords.methods.efforts.uniform import Uniform
from robustcords.runtime import accelerator
from robustcords.runtime.interruption import Interruption
from robustcords.runtime.stopwatch import PHASES
from robustcords.selection.base import SelectionContext, Strategy, StrategyConfig
from robustcords.storage.checkpoint import read
from robustcords.storage.run_directory import RunDirectory
from robustcords.training.callbacks.base import Callback, EpochEnd
from robustcords.training.config import AveragingConfig
from robustcords.training.trainer import Trainer


def test_one_step_descends_the_weighted_mean_of_the_losses():
    class Given(StrategyConfig):
        name: str = "given"

    class Weighted(Strategy):
        Config = Given

        @classmethod
        def from_context(cls, config: Any, context: SelectionContext) -> Weighted:
            return cls()

        def select(self, budget: int, model_params: Any) -> tuple[list[int], Tensor]:
            return list(range(0, 2 * budget, 2)), torch.linspace(0, 3, budget)

    images = in_double()
    selector = chooser(images=images)
    selector.strategy, selector.config = Weighted, Given(fraction=10 / COUNT, select_first=True)
    model = network().double()
    before = copy.deepcopy(model)
    settings = {"epochs": 1, "batch_size": 10, "accumulation": 2}
    fitted(loss="standard", model=model, lr=0.5, selector=selector, settings=settings, train=images)
    rows, weights = torch.arange(0, 20, 2), torch.linspace(0, 3, 10).double()
    x, y = images.batch(rows)
    losses = -before(x).log_softmax(1)[torch.arange(10), y]
    gradients = torch.autograd.grad((weights * losses).sum() / weights.sum(), tuple(before.parameters()))
    for parameter, start, gradient in zip(model.parameters(), before.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter, start - 0.5 * gradient, rtol=1e-6, atol=1e-9)


def in_double() -> ImageSet:
    """Returns the images in float64, so that a reference can be compared exactly."""
    images = made_up()
    return ImageSet(images.images.double() / 255, images.labels, images.classes)


@pytest.mark.parametrize("effort", [Uniform, Bullet])
def test_a_whole_subset_with_unit_weights_is_no_subset(effort: type[Effort]):
    with_all = fitted(selector=chooser(fraction=1.0), effort=effort)
    assert torch.equal(vector(with_all), vector(fitted(effort=effort)))


@cases("effort", [Uniform, Bullet])
@cases("loss", ["mart", "trades"])
def test_accumulation_is_the_larger_batch(loss: str, effort: type[Effort]):
    def in_float64(**settings: Any) -> Trainer:
        """Trains where rounding, of which the sign of a gradient would make much, is too small to change one."""
        model = network().double()
        return fitted(loss=loss, effort=effort, model=model, settings=settings, train=in_double())

    whole = in_float64(clip_gradient=0.5)
    assert close(whole, in_float64(clip_gradient=0.5, accumulation=3))
    assert not close(whole, in_float64())


@pytest.mark.parametrize("fastest", ["bf16", "fp32"])
@pytest.mark.parametrize("precision", ["auto", "bf16", "fp32"])
def test_the_settings_decide_the_precision_where_no_accelerator_is_given(
    precision: str, fastest: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(accelerator, "fastest", lambda _: fastest)
    lower = (fastest if precision == "auto" else precision) == "bf16"
    computed = set()

    class Watched(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            z = super().forward(x)
            if z.requires_grad and self.training:
                computed.add(z.dtype)
            return z

    model = nn.Sequential(nn.Flatten(), Watched(64, 3))
    fitted(model=model, loss="standard", settings={"precision": precision})
    assert computed == {torch.bfloat16 if lower else torch.float32}

    computed.clear()
    given = accelerator.start("fp32")
    model = nn.Sequential(nn.Flatten(), Watched(64, 3))
    fitted(model=model, loss="standard", settings={"precision": precision}, accelerator=given)
    assert computed == {torch.float32}


def test_the_seed_decides_everything():
    options: dict[str, Any] = {"augmentation": CropFlip(crop=1, flip=True), "loss": "trades"}
    first = fitted(**options, seed=5, selector=chooser())
    torch.manual_seed(123)
    assert torch.equal(vector(first), vector(fitted(**options, seed=5, selector=chooser())))
    assert not torch.equal(vector(first), vector(fitted(**options, seed=6, selector=chooser())))


@pytest.mark.parametrize(("effort", "selector"), [(Uniform, "random"), (Bullet, None)])
@pytest.mark.parametrize("loss", names("loss"))
def test_every_loss_learns_with_every_effort(loss: str, effort: type[Effort], selector: str | None, tmp_path: Path):
    done = fitted(
        loss=loss,
        effort=effort,
        selector=chooser(selector, loss=loss) if selector else None,
        settings={"epochs": 4, "clip_gradient": 1.0, "averaging": AveragingConfig(decay=0.5)},
        run=tmp_path / "run",
    )
    assert done.run is not None
    losses = [row["train_loss"] for row in done.run.rows()]
    assert losses[-1] < 0.9 * losses[0]
    assert not torch.equal(vector(done), vector(done.model)), "the averaged weights are the result"


class Recording(Uniform):
    """Keeps which examples it was given."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.batches: list[Tensor] = []

    def plan(self, *args: Any) -> Plan:
        self.batches.append(args[4].keys)
        return super().plan(*args)


@pytest.mark.parametrize("size", [BATCH, 2 * BATCH + 1, COUNT])
def test_an_epoch_sees_every_example_of_its_subset_once(size: int, tmp_path: Path):
    images, numbers = made_up(), torch.arange(COUNT) * 10
    images = ImageSet(images.images, images.labels, images.classes, numbers)
    selector = chooser(fraction=size / COUNT, granularity="full", images=images)
    done = fitted(effort=Recording, selector=selector, train=images, run=tmp_path / "run")
    assert isinstance(done.method.effort, Recording)
    batches, steps = done.method.effort.batches, math.ceil(size / BATCH)
    assert len(batches) == 2 * steps
    assert max(map(len, batches)) - min(map(len, batches)) <= 1
    first, second = torch.cat(batches[:steps]), torch.cat(batches[steps:])
    assert selector.current is not None
    assert torch.equal(second.sort().values, numbers[selector.current.indices].sort().values)
    assert len(first.unique()) == size
    assert size == COUNT or not torch.equal(first.sort().values, second.sort().values)
    assert not torch.equal(first, second), "each epoch has an order of its own"


def test_a_warm_start_trains_on_everything_and_skips_what_that_costs(tmp_path: Path):
    selector = chooser(epochs=10, warm_start=0.6, select_every=4)
    done = fitted(selector=selector, settings={"epochs": 10}, run=tmp_path / "run")
    assert done.run is not None
    sizes = {row["epoch"]: row["subset_size"] for row in done.run.rows()}
    assert sizes == {0: 61, 1: 61, 2: 61, 6: 30, 7: 30, 8: 30, 9: 30}
    assert [selection["epoch"] for selection in done.run.selections()] == [6, 8]


def test_a_warm_starts_full_epochs_have_to_fit_too():
    selector = chooser(fraction=16 / COUNT, warm_start=0.9)
    message = r"gives batches of 15 of 61 examples, too few for train\.accumulation = 16 times 1 process\(es\)"
    with pytest.raises(UserError, match=message):
        trainer(selector=selector, settings={"accumulation": 16})


def test_a_line_of_metrics_says_what_the_contract_promises(tmp_path: Path):
    done = fitted(
        effort=Bullet,
        selector=chooser("adv-glister"),
        validation=made_up(12, seed=1),
        settings={"epochs": 3, "validate_every": 2, "averaging": AveragingConfig()},
        run=tmp_path / "run",
    )
    assert done.run is not None
    rows = done.run.rows()
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert ["validation" in row for row in rows] == [False, True, True]
    for row in rows:
        assert {"train_loss", "lr", "images_per_second"} <= row.keys()
        assert row["subset_size"] == 30
        assert row["counts"].keys() == {"outlier", "boundary", "robust"}
        assert sum(row["counts"].values()) == 30
        assert row["seconds"].keys() == {"total", *PHASES}
    assert done.run.weights("best").exists()
    assert done.run.weights("last").exists()


class Breaks(nn.Module):
    """Gives NaN after so many training forwards, which a buffer counts."""

    left: Tensor

    def __init__(self, after: int) -> None:
        super().__init__()
        self.inner = network()
        self.register_buffer("left", torch.tensor(after))

    def forward(self, x: Tensor) -> Tensor:
        self.left -= int(self.training)
        logits: Tensor = self.inner(x)
        return logits if self.left >= 0 else logits * torch.nan


def without_gradients() -> nn.Module:
    model = network()
    next(model.parameters()).register_hook(lambda gradient: gradient * torch.nan)
    return model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": Breaks(6)}, r"the loss is not finite in epoch 1, step 2 \(training examples \d+, .*step_00000004;"),
        ({"model": Breaks(1)}, "the loss is not finite in epoch 0, step 1 .* there is no checkpoint yet;"),
        ({"model": Breaks(0)}, "the loss is not finite in epoch 0, step 0 .*; check the model's initial weights"),
        ({"model": network(), "lr": 1e30}, "the loss is not finite in epoch 0, step 1 .*; lower optimizer.lr or set"),
        # A single step, of which the loss is fine.
        (
            {"model": without_gradients(), "settings": {"batch_size": COUNT, "epochs": 1}},
            r"a gradient is not finite in epoch 0, step 0 \(training examples .*\); there is no checkpoint yet; look",
        ),
    ],
)
def test_numbers_that_are_not_finite_end_the_run_and_keep_the_last_good_checkpoint(
    options: dict[str, Any], message: str, tmp_path: Path
):
    with pytest.raises(RunError, match=message) as stopped:
        fitted(**options, run=tmp_path / "run")
    assert len(str(stopped.value).splitlines()) == 1
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        state = read(path)
        assert all(value.isfinite().all() for value in state["model"].values())
        assert state["progress"]["epoch"] == 1
    assert not (tmp_path / "run" / "weights" / "last.safetensors").exists()


def test_a_mask_of_minus_infinity_is_no_weight_that_diverged(tmp_path: Path):
    model = network()
    model.register_buffer("causal", torch.tensor([0.0, -torch.inf]))
    done = fitted(model=model, settings={"epochs": 1, "averaging": AveragingConfig()}, run=tmp_path / "run")
    assert all(not value.isnan().any() for value in done.model.state_dict().values())
    model.get_buffer("causal").fill_(torch.nan)
    with pytest.raises(RunError, match="the weights are not finite"):
        fitted(model=model, settings={"epochs": 1}, run=tmp_path / "other")


def test_a_run_directory_is_made_before_training(tmp_path: Path):
    directory = RunDirectory(tmp_path / "new" / "run")
    done = trainer(settings={"epochs": 1})
    done.run = directory
    (tmp_path / "new").touch()
    with pytest.raises(UserError, match="run: cannot be written"):
        done.fit()
    (tmp_path / "new").unlink()
    done.fit()
    assert directory.weights("last").exists()


def with_everything(run: Path) -> dict[str, Any]:
    return {**eventful(), "augmentation": CropFlip(crop=1), "run": run}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return fitted(**with_everything(tmp_path_factory.mktemp("runs") / "whole"))


@pytest.mark.parametrize("looks", [0, 5, 10, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3, 7, 12))])
def test_a_run_that_was_stopped_anywhere_ends_as_if_it_had_not_been(looks: int, whole: Trainer, tmp_path: Path):
    with pytest.raises(Interrupted) as stopped:
        fitted(**with_everything(tmp_path / "parts"), interruption=After(looks))
    assert stopped.value.status == 128 + signal.SIGTERM
    parts = fitted(**with_everything(tmp_path / "parts"))
    assert torch.equal(vector(whole), vector(parts))
    assert torch.equal(vector(whole.model), vector(parts.model))
    check_same(whole, parts)


class Told(Callback):
    """Counts the epochs that it is told of."""

    count = 0

    def after_epoch(self, end: EpochEnd) -> dict[str, int]:
        self.count += 1
        return {"count": self.count}

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


class Stops(Callback):
    """Is where a signal comes, in the second epoch."""

    def __init__(self, interruption: Interruption) -> None:
        super().__init__()
        self.interruption = interruption

    def after_epoch(self, end: EpochEnd) -> None:
        if end.epoch == 1:
            self.interruption.requested = signal.SIGTERM
            self.interruption.check()


def test_a_callback_is_told_again_of_an_epoch_after_which_a_run_was_stopped(tmp_path: Path):
    for asked in (Interruption(), None):
        callbacks = [Told(), *([Stops(asked)] if asked else [])]
        made = trainer(callbacks=callbacks, run=tmp_path / "run", settings={"epochs": 3}, interruption=asked)
        if asked:
            with pytest.raises(Interrupted):
                made.fit()
            assert [row["told"] for row in made.run.rows()] == [{"count": 1}]
    made.fit()
    assert [row["told"] for row in made.run.rows()] == [{"count": 1}, {"count": 2}, {"count": 3}]


def test_bf16_learns_and_a_stopped_run_ends_as_if_it_had_not_been(tmp_path: Path):
    def options(precision: str = "bf16") -> dict[str, Any]:
        return {
            "loss": "mart",
            "effort": Bullet,
            "model": network(norm=True),
            "selector": chooser("adv-gradmatch", loss="mart", epochs=4),
            "settings": {"precision": precision, "epochs": 4},
        }

    whole = fitted(**options(), run=tmp_path / "whole")
    with pytest.raises(Interrupted):
        fitted(**options(), run=tmp_path / "parts", interruption=After(5))
    fitted(**options(), run=tmp_path / "parts")
    assert whole.run is not None
    losses = [row["train_loss"] for row in whole.run.rows()]
    assert losses[-1] < 0.9 * losses[0]
    assert {value.dtype for value in whole.model.parameters()} == {torch.float32}
    assert not torch.equal(vector(whole), vector(fitted(**options("fp32"))))
    weights = [tmp_path / run / "weights" / "last.safetensors" for run in ("whole", "parts")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_batch_normalisation_keeps_learning_after_attacks_and_selections():
    model = network(norm=True)
    done = fitted(model=model, selector=chooser("adv-glister"), effort=Bullet)
    norm = model[2]
    assert isinstance(norm, nn.BatchNorm1d)
    # Two epochs of two batches, one training pass each: attacks and selections leave no trace.
    assert norm.num_batches_tracked == 2 * 2
    assert norm.training
    assert done.progress.steps == 4


def test_rows_of_a_run_that_died_before_its_first_checkpoint_are_written_anew(tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"epoch": 0, "seconds": {}}\n{"epoch": 1, "seconds": {}}\n{"epoch": 2, "tra')
    fitted(run=run)
    assert [row["epoch"] for row in RunDirectory(run).rows()] == [0, 1]
    assert all("train_loss" in row for row in RunDirectory(run).rows())


class Tied(nn.Module):
    """A network whose two layers are one parameter."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.first, self.second, self.last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.second(F.relu(self.first(x.flatten(1))))))


def test_tied_weights_are_saved(tmp_path: Path):
    made = fitted(run=tmp_path / "run", model=Tied())
    state = load_file(tmp_path / "run" / "weights" / "last.safetensors")
    assert torch.equal(state["first.weight"], made.model.second.weight)
    assert torch.equal(state["second.weight"], made.model.second.weight)


def test_a_warm_start_that_was_stopped_goes_on(tmp_path: Path):
    def options() -> dict[str, Any]:
        chosen = chooser(epochs=6, fraction=0.5, warm_start=0.7, select_every=1)
        return {"selector": chosen, "settings": {"epochs": 6}}

    whole = fitted(**options(), run=tmp_path / "whole")
    epochs = [row["epoch"] for row in RunDirectory(tmp_path / "whole").rows()]
    assert len(epochs) < 6, "some are replaced by the warm start"
    with pytest.raises(Interrupted):
        fitted(**options(), run=tmp_path / "parts", interruption=After(whole.progress.steps - 2))
    again = fitted(**options(), run=tmp_path / "parts")
    assert torch.equal(vector(again), vector(whole))
    assert [row["epoch"] for row in RunDirectory(tmp_path / "parts").rows()] == epochs
