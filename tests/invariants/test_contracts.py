"""What is asked of parts that users write: one line that names the class, where others would broadcast."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.cases import cases
from support.command_line import SMALL, Command, refused, settings
from support.small_run import ATTACK, chooser, fitted, network, trainer
from torch import Tensor, nn

from robustcords.attacks.base import Attack
from robustcords.attacks.pgd import PGD
from robustcords.errors import UserError
from robustcords.losses.objective import Objective
from robustcords.losses.sat import SAT
from robustcords.methods.adversarial import AdversarialTraining
from robustcords.methods.base import Batch, Method, Step, StepReport
from robustcords.methods.efforts.base import Effort, Kinds, Plan
from robustcords.methods.efforts.batch import attack_batch
from robustcords.methods.efforts.bullet import Bullet
from robustcords.methods.efforts.uniform import Uniform
from robustcords.methods.wrapper import Wrapper
from robustcords.rng import Noise
from robustcords.selection.gradients.factors import logit_gradients
from robustcords.selection.strategies.random import RandomSubset
from robustcords.threats.base import ThreatModel
from robustcords.training.callbacks.base import Callback, EpochEnd
from robustcords.training.optimizers import trainable

LOGITS, Y = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])


class Bent(SAT):
    """SAT whose values, or whose objective's, are bent."""

    def __init__(self, bend: Any = None, objective: Any = None) -> None:
        super().__init__()
        self.bend, self.bent_objective = bend, objective

    def from_logits(self, logits: Mapping[str, Tensor], y: Tensor) -> Any:
        value = super().from_logits(logits, y)
        return self.bend(value) if self.bend else value

    def objective(self, y: Tensor, clean: Callable[[], Tensor]) -> Objective:
        given = super().objective(y, clean)
        return replace(given, value=lambda z: self.bent_objective(given.value(z))) if self.bent_objective else given


BENDS = [
    (torch.mean, r"shape \(\), expected \(\d+,\)"),
    (lambda value: value.unsqueeze(1), r"shape \(\d+, 1\), expected \(\d+,\)"),
    (lambda value: value.tolist(), r"a list, expected a tensor of shape \(\d+,\)"),
    (lambda value: value > 0, r"torch\.bool, expected floating-point numbers"),
    (lambda value: value.detach(), r"a constant: no gradient leads from it to the logits"),
]


@cases(("bend", "message"), BENDS)
def test_a_loss_gives_one_number_an_example_in_training_and_in_selection(bend: Any, message: str):
    text = f"^loss test_contracts:Bent returned {message}"
    loss = Bent(bend)
    with pytest.raises(UserError, match=text):
        logit_gradients(loss, [LOGITS], Y)
    made = trainer()
    made.method.loss = made.step.passes.loss = loss
    with pytest.raises(UserError, match=text):
        made.fit()


@cases(("bend", "message"), BENDS)
def test_so_does_its_objective(bend: Any, message: str):
    loss = Bent(objective=bend)
    with pytest.raises(UserError, match=f"^the objective of loss test_contracts:Bent returned {message}"):
        attack_batch(network(), torch.rand(4, 1, 8, 8), Y, Noise(0, torch.arange(4)), attack=ATTACK, loss=loss)


class Found(Attack):
    """Finds what it is told, and goes far beyond the ball."""

    num_gradient_steps = 1

    def __init__(self, bend: Any) -> None:
        super().__init__(ThreatModel(epsilon=0.1))
        self.bend = bend

    def search(self, model: Any, x: Tensor, objective: Objective, noise: Noise) -> Any:
        return self.bend(x + 5)

    def with_effort(self, steps: int, step_size: float | None = None) -> Attack:
        return self


@cases(
    ("bend", "message"),
    [
        (lambda x: x[:1], r"returned shape \(1, 1, 8, 8\), expected \(4, 1, 8, 8\)"),
        (lambda x: x.double(), r"returned torch\.float64, expected torch\.float32"),
        (lambda x: (x, 1), r"returned a tuple, expected a tensor"),
    ],
)
def test_an_attack_gives_images_like_those_it_got(bend: Any, message: str):
    x = torch.rand(4, 1, 8, 8)
    with pytest.raises(UserError, match=f"^attack test_contracts:Found {message}"):
        Found(bend)(network(), x, Objective(lambda z: z.sum(1)), Noise(0, torch.arange(4)))
    inside = Found(lambda found: found)(network(), x, Objective(lambda z: z.sum(1)), Noise(0, torch.arange(4)))
    torch.testing.assert_close(inside, (x + 0.1).clamp(max=1))


class Plans(Uniform):
    """Plans what the class says for so many examples."""

    planned: Any = None

    def plan(self, *args: Any) -> Any:
        return type(self).planned(len(args[2]))


@cases(
    ("planned", "message"),
    [
        (torch.ones, ": plan returned a Tensor, expected a Plan"),
        (lambda count: Plan([1] * count), r" planned steps: a list, expected a tensor of shape \(\d+,\)"),
        (
            lambda count: Plan(torch.ones(count)),
            r" planned steps: torch\.float32 of shape \(\d+,\), expected torch\.int64",
        ),
        (
            lambda count: Plan(torch.tensor(3)),
            r" planned steps: torch\.int64 of shape \(\), expected torch\.int64 of shape \(\d+,\)",
        ),
        (lambda count: Plan(torch.arange(count) - 2), " planned steps from -2 to .*, expected whole numbers >= 0"),
        (
            lambda count: Plan(torch.ones(count).long(), torch.full((count,), -0.1)),
            " planned step sizes that are negative",
        ),
        (
            lambda count: Plan(torch.ones(count).long(), torch.full((count,), torch.nan)),
            " planned step sizes .* not finite",
        ),
        (
            lambda count: Plan(torch.ones(count).long(), None, Kinds(("a", "b"), torch.arange(count))),
            " planned kinds from 0 to .*, expected whole numbers >= 0 and < 2",
        ),
        (
            lambda count: Plan(torch.full((count,), 10**6)),
            r" planned steps = 1000000 for attack robustcords\.attacks\.pgd:PGD: input should be less than or equal"
            " to 10000",
        ),
    ],
)
def test_an_effort_plans_steps_for_every_example(planned: Any, message: str):
    kind = type("Made", (Plans,), {"planned": staticmethod(planned), "__module__": __name__})
    with pytest.raises(UserError, match=f"^effort test_contracts:Made{message}"):
        fitted(effort=kind)


def test_step_sizes_are_one_for_each_example():
    def planned(count: int) -> Plan:
        return Plan(torch.ones(count).long(), torch.tensor(0.1))

    kind = type("Made", (Plans,), {"planned": staticmethod(planned), "__module__": __name__})
    with pytest.raises(
        UserError, match=r"^effort test_contracts:Made: step_size returned shape \(\), expected \(16,\)"
    ):
        fitted(effort=kind)


class Beyond(Found):
    """Calls itself, past the projection."""

    def __call__(self, model: Any, x: Tensor, objective: Objective, noise: Noise) -> Tensor:
        return x + 1


@pytest.mark.parametrize("effort", [Uniform, Bullet])
def test_an_attack_that_leaves_the_range_is_named_itself(effort: type[Effort]):
    made = trainer(attack=Beyond(None), effort=effort)
    with pytest.raises(
        UserError, match=r"^attack test_contracts:Beyond returned pixels from .* to .*, expected \[0, 1\]"
    ):
        made.fit()


class Notes(Callback):
    """Notes what it is told."""

    name = "notes"

    def __init__(self, value: Any, name: str = "notes") -> None:
        super().__init__()
        self.value, self.name = value, name  # type: ignore[misc]

    def after_epoch(self, end: EpochEnd) -> Any:
        return self.value


def test_callbacks_note_what_json_holds_under_a_name_of_their_own():
    for value, message in (({"a": torch.ones(1)}, "JSON cannot hold"), ([1], "a list, expected a dictionary or None")):
        with pytest.raises(UserError, match=f"^callback test_contracts:Notes noted .*{message}"):
            fitted(callbacks=[Notes(value)])
    for names in (["model"], ["selector"], ["data"], ["seconds"], ["epoch"], ["train_loss"], ["notes", "notes"]):
        with pytest.raises(UserError, match=rf"^callback '{names[-1]}': the name is taken; "):
            trainer(callbacks=[Notes(None, name) for name in names])
    made = fitted(callbacks=[Notes({"a": 1, "b": [math.nan, math.inf]}), Notes(None, "other")])
    assert [row["notes"] for row in made.history] == [{"a": 1, "b": [None, None]}] * made.settings.epochs
    assert "other" not in made.history[0]


def test_a_callback_named_validation_need_not_measure_accuracies():
    made = fitted(callbacks=[Notes({"auc": 0.5}, "validation")])
    assert made.history[0]["validation"] == {"auc": 0.5}


class Keeps(Bullet):
    """Says that its state is what it is told."""

    state: Any = None

    def state_dict(self) -> Any:
        return self.state


class KeepsAlone(Callback):
    """Returns a state and does not take it back."""

    def state_dict(self) -> dict[str, Any]:
        return {"count": 1}


@cases(
    ("state", "message"),
    [
        ({"reference": object()}, "/reference: a checkpoint cannot keep an object; tensors, numbers"),
        ({"reference": {1, 2}}, "/reference: a checkpoint cannot keep a set"),
        ([1], "returned a list, not a dict"),
    ],
)
def test_what_cannot_be_kept_is_said_before_training(state: Any, message: str):
    kind = type("Made", (Keeps,), {"state": state, "__module__": __name__})
    with pytest.raises(UserError, match=f"^effort test_contracts:Made: state_dict:? ?{message}"):
        trainer(effort=kind)
    with pytest.raises(UserError, match=r"^callback test_contracts:KeepsAlone: .*load_state_dict is not"):
        trainer(callbacks=[KeepsAlone()])
    other = type("Other", (Keeps,), {"state": {"other": 1}, "__module__": __name__})
    with pytest.raises(UserError, match=r"^effort .*: load_state_dict refuses what state_dict returned: .*'reference'"):
        trainer(effort=other)


def test_what_an_effort_keeps_is_kept_with_any_method_that_says_nothing_else():
    class Plain(Method):
        def step(self, step: Step, batch: Batch) -> StepReport:
            return StepReport()

    method, again = (Plain(SAT(), ATTACK, Bullet()) for _ in range(2))
    method.effort.reference = 0.25  # type: ignore[attr-defined]
    for name, part in again.parts().items():
        part.load_state_dict(method.parts()[name].state_dict())
    assert again.effort.reference == 0.25  # type: ignore[attr-defined]


def test_a_method_reports_its_step_and_a_wrapper_lends_one():
    class Silent(AdversarialTraining):
        def step(self, step: Step, batch: Batch) -> Any:
            super().step(step, batch)

    class Miscounts(AdversarialTraining):
        def step(self, step: Step, batch: Batch) -> StepReport:
            return StepReport({"all": "some"})  # type: ignore[dict-item]

    class Viewless(AdversarialTraining):
        def views(self, step: Step, batch: Batch) -> Any:
            return {"clean": batch.x}, {}

    class Short(AdversarialTraining):
        def views(self, step: Step, batch: Batch) -> Any:
            return {"adversarial": batch.x[:3]}, {}

    class Idle(AdversarialTraining):
        def step(self, step: Step, batch: Batch) -> StepReport:
            return StepReport()

    class Stepless(AdversarialTraining):
        def step(self, step: Step, batch: Batch) -> StepReport:
            for rows in step.micro_batches(batch):
                step.backward(step.losses({"adversarial": batch.x}, batch, rows), batch, rows)
            return StepReport()

    class Lendless(Wrapper):
        def around(self, step: Step) -> Any:
            return None

    made = trainer()
    plain = made.method
    for method, message in (
        (Silent(plain.loss, plain.attack), "step returned a NoneType, expected a StepReport"),
        (Lendless(plain), "around returned a NoneType, expected a Step"),
        (Idle(plain.loss, plain.attack), r"step returned without a call of step.backward\(losses, batch, rows\), and"),
        (Stepless(plain.loss, plain.attack), r"step returned without a call of step.optimizer_step\(\), and"),
        (Miscounts(plain.loss, plain.attack), "step counted {'all': 'some'}, expected"),
        (Viewless(plain.loss, plain.attack), r"the view 'adversarial' of \d+ images, .* is missing"),
        (Short(plain.loss, plain.attack), r"the view 'adversarial' of \d+ images, .* is of 3 images"),
    ):
        made.method = made.step.method = method
        with pytest.raises(UserError, match=f"^method test_contracts:.*: {message}"):
            made.fit()


def test_an_optimizer_is_that_of_the_model():
    model, other, loss = network(), network(), nn.Linear(1, 1)
    head = model[-1]

    def check(parameters: Any) -> None:
        trainable(model, torch.optim.SGD(parameters, lr=0.1))

    check(model.parameters())
    check([*model.parameters(), *loss.parameters()])  # a loss may have parameters of its own
    check(head.parameters())  # what is left out is frozen by that
    with pytest.raises(UserError, match=r"^optimizer torch.*: 4 of its 4 parameters are not the model's"):
        check(other.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[-1] = nn.Linear(16, 3)
    with pytest.raises(UserError, match="2 of its 4 parameters are not the model's, and 2 of the model's 4"):
        trainable(model, optimizer)
    model.requires_grad_(False)
    with pytest.raises(UserError, match=r"^model 'Sequential': no parameter requires a gradient"):
        check(model.parameters())


def test_a_model_in_eval_mode_trains_and_stale_gradients_are_dropped():
    class Kept(nn.BatchNorm1d):
        def train(self, mode: bool = True) -> Kept:
            return super().train(False)

    expected, given, frozen = network(norm=True), network(norm=True).eval(), network(norm=True)
    for parameter in given.parameters():
        parameter.grad = torch.ones_like(parameter)
    frozen[2] = Kept(16)
    for model in (expected, given, frozen):
        fitted(model=model, selector=chooser("adv-gradmatch"), validation=None)
    for name, value in expected.state_dict().items():
        assert torch.equal(value, given.state_dict()[name]), name
    assert given.training and given[2].num_batches_tracked == 4
    assert frozen[2].num_batches_tracked == 0, "a part that overrides train stays as it is"


class Lends(RandomSubset):
    """Does what the class says with the model."""

    config: Any = None
    use: Any = None

    @classmethod
    def from_context(cls, config: Any, context: Any) -> Any:
        made = super().from_context(config, context)
        made.model = context.model
        return made

    def select(self, budget: int, model_params: Any) -> Any:
        type(self).use(self.model)
        return super().select(budget, model_params)


class LeavesEval(PGD):
    """Leaves the model in eval mode."""

    def __call__(self, model: Any, x: Tensor, objective: Objective, noise: Noise) -> Tensor:
        model.eval()
        return super().__call__(model, x, objective, noise)


class Uses(Notes):
    """Does what it is told with the model."""

    def after_epoch(self, end: EpochEnd) -> None:
        self.value(end.model)


class UsesAtOnce(Notes):
    """Does what it is told with the model after each step."""

    def after_epoch(self, end: EpochEnd) -> None: ...

    def after_step(self, loss: float, model: nn.Module) -> None:
        self.value(model)


def lent(use: Any) -> Any:
    selector = chooser("random")
    selector.strategy = type("Lent", (Lends,), {"use": staticmethod(use), "__module__": __name__})
    return selector


def test_a_mode_that_is_left_behind_does_not_freeze_batchnorm():
    expected = fitted(model=network(norm=True), selector=chooser("random")).model
    for options in (
        {"selector": lent(lambda model: model.eval())},
        {"selector": chooser("random"), "attack": LeavesEval(**dict(ATTACK.config), threat=ATTACK.threat)},
        {"selector": chooser("random"), "callbacks": [Uses(lambda model: model.eval())]},
        {"selector": chooser("random"), "callbacks": [UsesAtOnce(lambda model: model.eval())]},
    ):
        model = fitted(model=network(norm=True), **options).model
        for name, value in expected.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), name


def test_weights_that_a_strategy_or_a_callback_changes_are_refused():
    def halve(model: nn.Module) -> None:
        with torch.no_grad():
            next(model.parameters()).mul_(0.5)

    with pytest.raises(
        UserError, match=r"^strategy test_contracts:Lent changed the model it was lent: 'model\.1\.weight'"
    ):
        fitted(selector=lent(halve))
    for kind in (Uses, UsesAtOnce):
        with pytest.raises(
            UserError, match=rf"^callback test_contracts:{kind.__name__} changed the model it was lent: '1\.weight'"
        ):
            fitted(callbacks=[kind(halve)])


def test_the_command_line_names_the_class_and_shows_the_traceback_where_it_is_wanted(command: Command, tmp_path: Any):
    (tmp_path / "mine.py").write_text(
        "from robustcords.losses.sat import SAT\n\n\nclass MeanLoss(SAT):\n"
        "    def from_logits(self, logits, y):\n        return super().from_logits(logits, y).mean()\n"
    )
    arguments = ("run", "digits_mart", *SMALL, *settings(loss__name="mine:MeanLoss", train__memory_format="contiguous"))
    quiet, loud = command(*arguments), command("--debug", *arguments)
    line = r"error: loss mine:MeanLoss returned shape (), expected (3,)"
    assert quiet.status == loud.status == 2
    assert quiet.err.splitlines()[-1] == loud.err.splitlines()[-1] == line
    assert "Traceback" not in quiet.err
    assert "Traceback (most recent call last)" in loud.err
    assert "in loss_values" in loud.err


def test_debug_says_no_more_of_what_is_no_error(command: Command):
    refused(command("list", "los"), "did you mean 'loss'?")
