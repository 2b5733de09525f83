"""A run that takes milliseconds, on made-up images."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from robustcords.attacks.base import Attack
from robustcords.attacks.pgd import PGD
from robustcords.config.registry import find
from robustcords.data.images import ImageSet
from robustcords.methods.adversarial import AdversarialTraining
from robustcords.methods.base import Method
from robustcords.methods.efforts.base import Effort
from robustcords.methods.efforts.bullet import Bullet
from robustcords.methods.efforts.uniform import Uniform
from robustcords.runtime import collectives
from robustcords.runtime.accelerator import start
from robustcords.runtime.interruption import Interruption
from robustcords.runtime.progress import Display
from robustcords.runtime.session import Session
from robustcords.selection.selector import SubsetSelector
from robustcords.storage.run_directory import RunDirectory
from robustcords.threats.base import ThreatModel
from robustcords.training.callbacks.base import Callback, EpochEnd
from robustcords.training.callbacks.validation import Validation
from robustcords.training.config import AveragingConfig, TrainConfig
from robustcords.training.trainer import Trainer

COUNT, BATCH = 61, 16
THREAT = ThreatModel(epsilon=0.05)
ATTACK = PGD(THREAT, steps=2, step_size=0.03)
SGD = partial(torch.optim.SGD, momentum=0.9)


def made_up(count: int = COUNT, seed: int = 0) -> ImageSet:
    """Three classes of noisy patterns, which a small network learns in a few steps."""
    numbers = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    patterns = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    images = 0.7 * patterns[labels] + 0.3 * torch.rand(count, 1, 8, 8, generator=numbers)
    return ImageSet((images * 255).to(torch.uint8), labels, ("a", "b", "c"))


def network(norm: bool = False) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        middle = [nn.BatchNorm1d(16)] if norm else []
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), *middle, nn.ReLU(), nn.Linear(16, 3))


def chooser(
    name: str = "random",
    images: ImageSet | None = None,
    loss: str = "sat",
    epochs: int = 3,
    proxy: nn.Module | None = None,
    **options: Any,
):
    strategy = find("selector", name)
    config = strategy.Config(name=name, **{"fraction": 0.5, "select_every": 1, **options})
    selector = SubsetSelector(strategy, config, validation=made_up(12, seed=1), proxy=proxy)
    return selector.bind(
        images or made_up(), loss=find("loss", loss)(), attack=ATTACK, epochs=epochs, batch_size=BATCH, lr=0.1
    )


def trainer(
    *,
    loss: str = "sat",
    attack: Attack = ATTACK,
    effort: type[Effort] = Uniform,
    method: Method | None = None,
    model: nn.Module | None = None,
    lr: float = 0.1,
    optimizer: Callable[..., torch.optim.Optimizer] = SGD,
    run: Path | None = None,
    settings: dict[str, Any] | None = None,
    validation: ImageSet | None = None,
    callbacks: Sequence[Callback] = (),
    accelerator: Accelerator | None = None,
    interruption: Interruption | None = None,
    **options: Any,
) -> Trainer:
    model = model or network()
    config = TrainConfig(
        **{"epochs": 2, "batch_size": BATCH, "memory_format": "contiguous", "precision": "fp32", **(settings or {})}
    )
    validated = [Validation(validation, ATTACK, config.validate_every)] if validation else []
    session = Session(accelerator or start(config.precision, config.accumulation))
    session.interruption = interruption or session.interruption
    directory = None
    if run:
        run.mkdir(exist_ok=True)
        directory = RunDirectory(run, writes=collectives.is_main())
        directory.start("", {})
    return Trainer(
        model,
        method or AdversarialTraining(find("loss", loss)(), attack, effort()),
        options.pop("train", made_up()),
        optimizer(model.parameters(), lr=lr),
        config,
        callbacks=[*validated, *callbacks],
        run=directory,
        session=session,
        **options,
    )


def eventful(**settings: Any) -> dict[str, Any]:
    """Options of a run with a bit of everything that a checkpoint has to hold."""
    return {
        "loss": "mart",
        "effort": partial(Bullet, steps={"boundary": 3}),
        "model": network(norm=True),
        "selector": chooser("adv-glister", loss="mart", select_first=True),
        "validation": made_up(12, seed=1),
        "settings": {"accumulation": 2, "averaging": AveragingConfig(), "validate_every": 1, **settings},
    }


def epoch_end(model: nn.Module, epoch: int = 0, *, seed: int = 0, display: Display | None = None) -> EpochEnd:
    """The end of an epoch of a run with this model that is neither averaged nor in mixed precision."""
    quiet = display or Display(visible=False)
    return EpochEnd(epoch, False, model, model, seed, nullcontext, save_weights=lambda _: None, display=quiet)


def fitted(**options: Any) -> Trainer:
    made = trainer(**options)
    made.fit()
    return made


def vector(of: Trainer | nn.Module) -> Tensor:
    model = of.evaluated if isinstance(of, Trainer) else of
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


def close(first: Trainer, second: Trainer) -> bool:
    return torch.allclose(vector(first), vector(second), rtol=1e-4, atol=1e-5)


def check_same(whole: Trainer, again: Trainer) -> None:
    """Two runs of two epochs have the same files, and the same figures in them."""
    assert figures(again) == figures(whole)
    one, other = whole.run.path, again.run.path
    files = {path.relative_to(one) for path in one.glob("[sw]*/*")}
    assert files == {path.relative_to(other) for path in other.glob("[sw]*/*")}
    assert len(files) == 4, "two selections, best and last weights"
    for file in files:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file


def figures(of: Trainer) -> list[dict[str, Any]]:
    assert of.run is not None
    return [{key: row[key] for key in row.keys() - {"seconds", "images_per_second"}} for row in of.run.rows()]


class After(Interruption):
    """Is asked to stop after it has been looked at so many times."""

    def __init__(self, looks: int) -> None:
        self._deadline = math.inf
        self.looks = looks

    @property
    def requested(self) -> int:  # type: ignore[override]
        self.looks -= 1
        return signal.SIGTERM if self.looks < 0 else 0
