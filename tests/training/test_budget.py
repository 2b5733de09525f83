"""A budget in time: training ends when it is over, and what was settled on the way makes the same run again."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.cases import cases
from support.clocks import Clock
from support.command_line import call, settings
from support.ranks import joined
from support.small_run import BATCH, COUNT, After, chooser, fitted, made_up, network, trainer, vector
from torch import nn

from robustcords.errors import Interrupted, UserError
from robustcords.losses.context import Moment
from robustcords.methods import adversarial
from robustcords.methods.efforts.base import Plan
from robustcords.methods.efforts.bullet import Bullet
from robustcords.methods.efforts.uniform import Uniform
from robustcords.recipe.recipe import dump, load, parse
from robustcords.runtime import stopwatch
from robustcords.runtime.stopwatch import TRAINING
from robustcords.training import measuring
from robustcords.training.callbacks import validation
from robustcords.training.callbacks.base import Callback, EpochEnd
from robustcords.training.config import SHARES, AveragingConfig, TrainConfig
from robustcords.training.costs import Calendar, Costs
from robustcords.training.length import Length
from robustcords.training.schedules import Cosine, MultiStep
from robustcords.training.state import Progress
from robustcords.training.trainer import Trainer

PER_EPOCH = -(-COUNT // BATCH)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (stopwatch, measuring):
        monkeypatch.setattr(module, "time", made)
    return made


def budgeted(minutes: float, **options: Any) -> Trainer:
    settings = {"epochs": None, "budget": f"{minutes} min", "validate_every": 4} | options.pop("settings", {})
    return trainer(settings=settings, validation=made_up(12, seed=1), schedule=Cosine(), **options)


def planned(run: Trainer) -> list[int]:
    assert run.length.budget and run.length.steps
    return run.length.steps


@pytest.mark.parametrize(("step", "grows"), [(4.0, 0.0), (2.0, 0.08)], ids=["even", "slower and slower"])
def test_training_ends_with_its_budget(
    step: float, grows: float, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    made = budgeted(10, selector=chooser("adv-gradmatch", select_every=5), run=tmp_path / "run")
    begun = itertools.count()
    clock.slow(monkeypatch, adversarial, "attack_batch", lambda *_, **__: step + grows * next(begun))
    clock.slow(monkeypatch, made.selector, "select", 6 * step)
    clock.slow(monkeypatch, validation, "robust_accuracy", 2.5 * step)
    clock.slow(monkeypatch, made.run.checkpoints, "save", step / 8)
    start = clock.now
    made.fit()
    assert clock.now - start == pytest.approx(600, rel=0.03)
    assert len(planned(made)) == SHARES
    assert made.progress.steps == sum(planned(made))
    rows = made.run.rows()
    assert "validation" in rows[-1]
    assert rows[-1]["progress"] == 1
    assert [row["progress"] for row in rows] == sorted(row["progress"] for row in rows)
    assert rows[0]["seconds"]["planning"] > 0


def test_a_machine_that_stalls_still_trains_to_the_end_of_the_schedule(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    made = budgeted(5, settings={"validate_every": 1000})
    begun = itertools.count()
    clock.slow(monkeypatch, adversarial, "attack_batch", lambda *_, **__: 1000.0 if next(begun) == 45 else 2.0)
    made.fit()
    first, *others = planned(made)
    assert min(others) >= first // 2
    assert made.progress.steps == sum(planned(made))
    assert made.optimizer.param_groups[0]["lr"] < 0.1 * 0.02


def test_what_was_settled_makes_the_same_run_again(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    begun = itertools.count()
    clock.slow(monkeypatch, adversarial, "attack_batch", lambda *_, **__: 1.0 + 0.01 * next(begun))

    def options() -> dict[str, Any]:
        return {
            "model": nn.Sequential(network(norm=True), nn.Dropout(0.1), nn.Linear(3, 3)),
            "selector": chooser("adv-gradmatch", select_every=8, warm_start=0.2),
            "effort": Bullet,
        }

    averaged = {"averaging": AveragingConfig()}
    torch.manual_seed(3)
    made = budgeted(1, settings=averaged, **options())
    made.fit()
    torch.manual_seed(3)
    again = budgeted(1, settings={**averaged, "steps": planned(made)}, **options())
    assert again.length.budget is None
    again.fit()
    assert torch.equal(vector(made), vector(again))
    assert again.progress.steps == made.progress.steps


def test_a_run_that_was_interrupted_is_the_run_that_is_recorded(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    clock.slow(monkeypatch, adversarial, "attack_batch", 1.0)
    recorded: list[list[int]] = []

    def part(looks: int) -> Trainer:
        made = budgeted(1, run=tmp_path / "run", interruption=After(looks), model=network(norm=True))
        made.length.on_plan = recorded.append
        return made

    with pytest.raises(Interrupted):
        part(30).fit()
    made = part(10_000)
    made.fit()
    assert recorded == [planned(made)[: number + 1] for number in range(SHARES)]
    again = budgeted(1, settings={"steps": planned(made)}, model=network(norm=True))
    again.fit()
    assert torch.equal(vector(made), vector(again))


class Recorder(Callback):
    """Records its calls, which no state undoes."""

    name = "recorder"

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.epochs = 0, []

    def after_step(self, loss: float, model: nn.Module) -> None:
        self.steps += 1

    def after_epoch(self, end: EpochEnd) -> None:
        self.epochs.append((end.epoch, end.last))


def test_callbacks_that_are_not_measurable_are_called_in_training_alone(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    clock.slow(monkeypatch, adversarial, "attack_batch", 1.0)
    recorder = Recorder()
    made = budgeted(1, callbacks=[recorder])
    made.fit()
    assert recorder.steps == made.progress.steps
    assert recorder.epochs == [(row["epoch"], row is made.history[-1]) for row in made.history]


def test_the_first_passes_of_a_compiled_model_are_not_measured(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    class First(Recorder):
        measurable = True

        def after_epoch(self, end: EpochEnd) -> None:
            clock.now += 1 if self.epochs else 100
            super().after_epoch(end)

    made = trainer(callbacks=[First()])
    made.settings = made.settings.model_copy(update={"compile": True})
    assert measuring.measure(made, 0.0, lambda _: 40.0).callbacks == {"first": 1.0}


def test_the_warm_start_is_known_before_training():
    made = trainer(selector=chooser(warm_start=0.5, fraction=0.5), settings={"epochs": 4})
    assert made.selector and (made.selector.first, made.selector.full_until) == (2, 1)


def test_a_subset_from_a_file_trains_within_a_budget(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch):
    clock.slow(monkeypatch, adversarial, "attack_batch", 1.0)
    file = tmp_path / "subset.npz"
    rows = torch.arange(0, 400, 4)
    np.savez(file, indices=rows.numpy(), weights=np.ones(100, dtype=np.float32))
    images = made_up(400)
    made = budgeted(1, train=images, selector=chooser("fixed", file=str(file), fraction=0.25, select_first=True))
    made.fit()
    assert made.selector and made.selector.current and torch.equal(made.selector.current.indices, rows)


def test_steps_are_measured_all_over_the_run():
    moments = []

    class Recording(Uniform):
        def plan(self, attack: Any, clean: Any, y: Any, moment: Moment, generator: Any) -> Plan:
            moments.append(moment)
            return super().plan(attack, clean, y, moment, generator)

    measuring.measure(trainer(effort=Recording), 0.0, lambda _: 40.0)
    assert all(moment.passed == moment.epoch for moment in moments)
    later = [moment.passed for moment in moments if moment.epochs == 40.0]
    assert len(later) >= 3 and max(later) - min(later) > 10


def test_a_budget_that_is_too_short_says_what_takes_how_long(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    clock.slow(monkeypatch, adversarial, "attack_batch", 2.0)
    text = (
        r"^train\.budget: 30 s are too short: measuring took 18\.0 s, a batch takes 2\.00 s, .* 10 batches are needed$"
    )
    with pytest.raises(UserError, match=text):
        budgeted(0.5).fit()


def plans(rank: int, folder: str) -> None:
    clock = Clock()
    stopwatch.time = measuring.time = clock  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        clock.slow(patch, adversarial, "attack_batch", 1.0 + rank)  # clocks that disagree
        made = fitted(settings={"epochs": None, "budget": "40 s"})
    Path(folder, str(rank)).write_text(repr(planned(made)))


def test_processes_agree_on_one_length(tmp_path: Path):
    joined(plans, 2, str(tmp_path))
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text()


def test_a_length_in_steps_cuts_the_last_epoch():
    made = fitted(settings={"epochs": None, "steps": PER_EPOCH + 1}, schedule=Cosine())
    assert (made.progress.epoch, made.progress.steps) == (2, PER_EPOCH + 1)
    # The rate of the last step: that which begins with one step to go.
    assert made.optimizer.param_groups[0]["lr"] == pytest.approx(
        0.1 * (1 + math.cos(math.pi * PER_EPOCH / (PER_EPOCH + 1))) / 2
    )


def test_whole_epochs_in_steps_are_the_same_run():
    by_epochs = fitted(settings={"epochs": 2})
    by_steps = fitted(settings={"epochs": None, "steps": 2 * PER_EPOCH})
    assert torch.equal(vector(by_epochs), vector(by_steps))


def test_shares_are_equal_parts_of_the_run():
    length = Length(TrainConfig(steps=[4, 2, 6]), batches=2)
    assert length.epochs == 4 * 3 / 2
    shares = [length.share(Progress(steps=steps), 0.0) for steps in range(13)]
    expected = [0, 1 / 12, 1 / 6, 1 / 4, 1 / 3, 1 / 2, *(2 / 3 + n / 18 for n in range(7))]
    assert shares == pytest.approx(expected)
    assert [length.ended(99, steps) for steps in (11, 12)] == [False, True]


def test_a_plan_is_known_up_to_its_last_share():
    length = Length(TrainConfig(budget="1 min", steps=[5, 5]), batches=5)
    assert (length.epochs, length.shares) == (SHARES, SHARES)
    assert [length.known(steps) for steps in (0, 9, 10)] == [True, True, False]
    assert not length.ended(99, 10)


def test_milestones_of_a_cut_run_are_where_they_are():
    factors = [MultiStep(milestones=(0.5,)).factor(epoch, 1.5) for epoch in (0, 0.74, 0.75, 1.4)]
    assert factors == [1, 1, 0.1, 0.1]


@cases("seconds", [3.0, 40.0, 100.0, 333.0])
@cases("left", [None, 3])
def test_as_many_batches_fit_as_taking_them_one_by_one_shows(seconds: float, left: int | None):
    costs = Costs(step=1.0, selection=7.0, callbacks={"a": 2.0, "b": 0.5}, checkpoint=0.25)
    calendar = Calendar(
        batches=5,
        selects=lambda epoch: epoch % 3 == 0,
        due=lambda epoch, last: ["b", *(["a"] if last or epoch % 2 else [])],
        checkpoint_every=2,
    )

    def total(count: int) -> float:
        """The time of so many batches, and of all around them."""
        spent, epoch, rest = 0.0, 4, left
        for number in range(count):
            if rest is None:
                spent, rest = spent + (7.0 if epoch % 3 == 0 else 0.0), 5
            spent, rest = spent + 1.0, rest - 1
            last = number == count - 1
            if rest == 0 or last:
                spent += 0.5 + (2.0 if last or epoch % 2 else 0.0) + (0.25 if last or epoch % 2 else 0.0)
                epoch, rest = epoch + 1, None
        return spent

    expected = max((count for count in range(400) if total(count) <= seconds), default=0)
    assert costs.fitting(seconds, calendar, 4, left) == expected


def test_checkpoints_by_the_clock_keep_the_cost_that_was_measured():
    length = Length(TrainConfig(budget="30 min", checkpoint_every="10 min"), batches=100)
    length.costs = Costs(step=1.0, checkpoint=3.0)
    calendar = Calendar(100, lambda epoch: False, lambda epoch, last: [], checkpoint_every=None, checkpoint_seconds=600)
    seconds = dict.fromkeys((*TRAINING, "logging", "selection", "validation", "checkpoint"), 0.0)
    for steps, checkpoint in ((0, 0.0), (100, 0.0), (200, 3.0)):  # one part without a checkpoint, one with
        seconds |= {"update": 1.0 * steps, "checkpoint": checkpoint}
        total = {"total": sum(seconds.values())}
        length._learn(seconds | total, calendar, steps=steps, begun=steps // 100, ended=steps // 100)
        assert (length.costs.step, length.costs.checkpoint) == (1.0, 3.0)


def test_the_last_length_written_counts(tmp_path: Path):
    (tmp_path / "a.toml").write_text('extends = "digits_mart"\n[train]\nbudget = "5 min"\n')
    train = load(tmp_path / "a.toml").train
    assert (train.epochs, train.steps, str(train.budget)) == (None, None, "0:05:00")
    train = load(tmp_path / "a.toml", ["train.epochs=3"]).train
    assert (train.epochs, train.budget) == (3, None)
    recorded = load(tmp_path / "a.toml", ["train.budget='6 min'", f"train.steps={[7] * SHARES}"])
    assert recorded.train.planned
    (tmp_path / "b.toml").write_text(dump(recorded))
    assert load(tmp_path / "b.toml") == recorded
    assert load(tmp_path / "b.toml", ["train.budget='1 h'"]).train.steps is None


@pytest.mark.parametrize("other", ["steps = 10", 'budget = "1 min"'])
def test_one_file_says_one_length(other: str, tmp_path: Path):
    (tmp_path / "a.toml").write_text(f'extends = "digits_mart"\n[train]\nepochs = 3\n{other}\n')
    name, *_ = other.split()
    with pytest.raises(UserError, match=f"a.toml: .*epochs and {name} both say how long training is"):
        load(tmp_path / "a.toml")


def test_a_recipe_without_a_length_has_epochs():
    recipe = parse({"data": {"name": "digits"}, "model": {"name": "resnet8"}})
    assert recipe.train.epochs == 100


def test_the_recipe_of_a_run_has_what_its_budget_came_to(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    clock.slow(monkeypatch, adversarial, "attack_batch", 1.0)
    tiny = settings(
        data__train_limit=200,
        model__width=2,
        model__depths="[1]",
        attack__steps=1,
        bullet="false",
        selector="false",
        train__budget="40 s",
        train__batch_size=16,
        train__precision="fp32",
        evaluation__pgd="false",
        evaluation__autoattack="false",
        evaluation__limit=8,
        callbacks__overfitting="false",
    )
    assert call(capsys, "run", "digits_mart", *tiny, "--output", "one").status == 0
    train = load(tmp_path / "one" / "recipe.toml", of_run=True).train
    assert train.planned
    assert (str(train.budget), train.epochs) == ("0:00:40", None)
    # A clock that runs otherwise changes nothing of what is recorded.
    clock.slow(monkeypatch, adversarial, "attack_batch", 3.0)
    answer = call(capsys, "run", "one/recipe.toml", "--output", "two")
    assert answer.status == 0
    assert "more than its budget of 40 s" in answer.out
    first, second = (Path(run, "weights", "last.safetensors").read_bytes() for run in ("one", "two"))
    assert first == second
    again = call(capsys, "run", "digits_mart", *tiny, "--output", "one", "--resume")
    assert "is finished; nothing to do" in again.err
