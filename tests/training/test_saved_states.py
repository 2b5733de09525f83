"""What a model and an optimizer keep: saved and taken back, or refused before it has cost anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.cases import cases
from support.small_run import COUNT, After, fitted, network, trainer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robustcords.errors import Interrupted, UserError
from robustcords.training.schedules import Cosine


class Wrapped(nn.Module):
    """A network with something more."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Kept(Wrapped):
    """Keeps something that is no tensor."""

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.state = state

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


class NotTakenBack(Wrapped):
    def get_extra_state(self) -> Tensor:
        return torch.ones(2)


class Manifold(Kept):
    """Keeps a tensor besides, views of the same memory, numbers that stand for several and complex ones; recomputes."""

    def __init__(self) -> None:
        super().__init__(torch.ones(2))
        base = torch.arange(5.0)
        self.register_buffer("first", base[:3])
        self.register_buffer("last", base[1:])
        self.register_buffer("expanded", torch.tensor([[0.5], [2.0]]).expand(2, 3))
        self.register_buffer("complex", torch.ones(2, dtype=torch.complex64))
        self.scale = nn.Parameter(torch.ones(1).expand(3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = checkpoint(self.inner, x, use_reentrant=False)
        return logits * self.scale + self.expanded.sum(0)


class Grows(torch.optim.SGD):
    """Keeps a set from its first step on."""

    def step(self, closure: Any = None) -> Any:
        self.state[self.param_groups[0]["params"][0]]["seen"] = {1}
        return super().step(closure)


class Forgets(torch.optim.SGD):
    def load_state_dict(self, state_dict: Any) -> None:
        raise NotImplementedError


def with_buffer(buffer: Tensor) -> nn.Module:
    model = Wrapped()
    model.register_buffer("buffer", buffer)
    return model


def lazy() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))


@cases(
    ("model", "message"),
    [
        (
            Kept({"calls": 3}),
            "'Kept': '_extra_state' .* is a dict, and weights are tensors; let get_extra_state",
        ),
        (NotTakenBack(), "'NotTakenBack': load_state_dict refuses what state_dict returned: "),
        (with_buffer(torch.eye(3).to_sparse()), "'Wrapped': 'buffer' in its state_dict is sparse_coo, and weights are"),
        (lazy(), "'Sequential': it has parameters without a size"),
    ],
)
def test_a_model_whose_state_cannot_be_kept_is_refused(model: nn.Module, message: str):
    with pytest.raises(UserError, match=message) as refused:
        trainer(model=model)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (torch.optim.LBFGS, "optimizer torch.optim.lbfgs:LBFGS: its step needs a closure"),
        (Forgets, "optimizer test_saved_states:Forgets: load_state_dict refuses what state_dict returned"),
    ],
)
def test_an_optimizer_that_cannot_be_used_is_refused(optimizer: type[torch.optim.Optimizer], message: str):
    with pytest.raises(UserError, match=message):
        trainer(optimizer=optimizer)


def test_a_state_that_comes_to_hold_what_cannot_be_kept_ends_the_run_at_its_first_step():
    begun = trainer(optimizer=Grows)
    with pytest.raises(UserError, match="optimizer: state_dict: /state/0/seen: a checkpoint cannot keep a set;"):
        begun.fit()
    assert begun.progress.steps == 1


@pytest.mark.parametrize(
    "options",
    [{"model": Manifold}, {"lr": torch.tensor(0.01), "optimizer": torch.optim.Adam, "schedule": Cosine()}],
    ids=["model", "optimizer"],
)
def test_what_can_be_kept_is_resumed(options: dict[str, Any], tmp_path: Path):
    def run(name: str, **more: Any) -> dict[str, Tensor]:
        own = {"model": options.get("model", network)(), "settings": {"batch_size": COUNT}, "run": tmp_path / name}
        return fitted(**{**options, **own, **more}).model.state_dict()

    with pytest.raises(Interrupted):
        run("parts", interruption=After(1))
    parts, whole = run("parts"), run("whole")
    assert all(torch.equal(value, whole[name]) for name, value in parts.items())
    assert parts.keys() == load_file(tmp_path / "parts" / "weights" / "last.safetensors").keys()
