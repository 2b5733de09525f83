"""The attack and the training step, beside what the papers' scripts do.

    python benchmarks/attack_engine.py attack      one attack step, against float32 without redundant work
    python benchmarks/attack_engine.py training    one training step of TRADES and MART, against both baselines

The baselines are written from the papers' descriptions. "Textbook" is what their scripts do: float32, contiguous
images, TRADES' clean logits computed again at every attack step and its clean batch run twice in the update, worker
processes that decode and transform image by image. "Lean" is the same computation with that redundant work removed and
the images in memory. Every contender has a process of its own; they take turns, and figures are medians over
``--repeats`` rounds. FLOPs are counted by torch's own counter, a multiplication and an addition as two.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from multiprocessing.connection import Connection

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from robustcords.attacks.pgd import PGD
from robustcords.data.augmentations.crop_flip import CropFlip
from robustcords.data.images import ImageSet
from robustcords.engine.allocator import ask_for_huge_pages, keep_freed_memory
from robustcords.engine.inference import Inference
from robustcords.losses.base import Loss
from robustcords.losses.context import Moment
from robustcords.losses.mart import MART
from robustcords.losses.trades import TRADES
from robustcords.methods.adversarial import AdversarialTraining
from robustcords.methods.efforts.batch import attack_batch
from robustcords.models.resnet import ResNetNetwork
from robustcords.rng import Noise
from robustcords.runtime.accelerator import start
from robustcords.selection.selector import everything
from robustcords.threats.linf import Linf
from robustcords.training.config import TrainConfig
from robustcords.training.loader import BatchLoader
from robustcords.training.trainer import Trainer

ask_for_huge_pages()  # as the command line does

EPSILON, STEP, STEPS, BETA = 8 / 255, 2 / 255, 10, {"trades": 6.0, "mart": 5.0}
SIZES = {"resnet18": (64, (2, 2, 2, 2)), "resnet8": (16, (1, 1, 1))}
LARGE = 10 * 2 * 32 * 16 * 16 * 256 * 256 * 9
LOSSES: dict[str, type[Loss]] = {"trades": TRADES, "mart": MART}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return ResNetNetwork(3, 10, *SIZES[name])


class Contender:
    """Something to time, in a process of its own, so that it has its own memory and settings.

    Args:
        make: returns what is timed.
        arguments: of ``make``.
    """

    def __init__(self, make: Callable[..., Callable[[], object]], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=serve, args=(there, make, arguments))
        self._process.start()

    def seconds(self) -> float:
        """Runs it once."""
        self.begin()
        return self.wait()

    def begin(self) -> None:
        """Begins to run it."""
        self._pipe.send(True)

    def wait(self) -> float:
        """Returns the seconds that the run which was begun has taken."""
        taken: float = self._pipe.recv()
        return taken

    def end(self) -> None:
        """Ends the process."""
        self._pipe.send(False)
        self._process.join()


def serve(pipe: Connection, make: Callable[..., Callable[[], object]], arguments: tuple[object, ...]) -> None:
    action = make(*arguments)
    while pipe.recv():
        begin = time.perf_counter()
        action()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        pipe.send(time.perf_counter() - begin)


def in_turns(contenders: dict[str, Contender], repeats: int) -> dict[str, float]:
    """Returns the median seconds of each contender, all of them warmed up once, and ends them."""
    rounds = [{name: each.seconds() for name, each in contenders.items()} for _ in range(repeats + 1)][1:]
    for each in contenders.values():
        each.end()
    return {name: statistics.median(each[name] for each in rounds) for name in contenders}


def project(x_adv: Tensor, x: Tensor) -> Tensor:
    return torch.min(torch.max(x_adv, x - EPSILON), x + EPSILON).clamp(0, 1)


def plain_attack(model: nn.Module, x: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns PGD-10's last iterate, as the scripts find it."""
    x_adv = x + 0.001 * torch.randn_like(x)
    for _ in range(STEPS):
        x_adv.requires_grad_()
        with torch.enable_grad():
            loss = value(model(x_adv))
        gradient = torch.autograd.grad(loss, [x_adv])[0]
        x_adv = project(x_adv.detach() + STEP * gradient.sign(), x)
    return x_adv


def divergence(log_q: Tensor, p: Tensor) -> Tensor:
    return F.kl_div(log_q, p, reduction="sum")


def lean_attack(model: nn.Module, loss: str, x: Tensor, y: Tensor) -> Tensor:
    model.eval()
    if loss == "mart":
        return plain_attack(model, x, lambda z: F.cross_entropy(z, y))
    with torch.no_grad():
        p = model(x).softmax(1)
    return plain_attack(model, x, lambda z: divergence(z.log_softmax(1), p))


def textbook_attack(model: nn.Module, loss: str, x: Tensor, y: Tensor) -> Tensor:
    model.eval()
    if loss == "mart":
        return plain_attack(model, x, lambda z: F.cross_entropy(z, y))
    return plain_attack(model, x, lambda z: divergence(z.log_softmax(1), model(x).softmax(1)))


def mart_loss(clean: Tensor, adversarial: Tensor, y: Tensor) -> Tensor:
    p = adversarial.softmax(1)
    wrong = p.masked_fill(F.one_hot(y, p.shape[1]).bool(), 0).amax(1)
    boosted = F.cross_entropy(adversarial, y) - (1.0001 - wrong + 1e-12).log().mean()
    q = clean.softmax(1)
    true = q.gather(1, y[:, None])[:, 0]
    apart = F.kl_div((p + 1e-12).log(), q, reduction="none").sum(1)
    return boosted + BETA["mart"] * (apart * (1.0000001 - true)).mean()


class Plain:
    """A script's training step, with or without what its authors compute more than once."""

    def __init__(self, name: str, loss: str, batches: Iterator[tuple[Tensor, Tensor]], *, lean: bool) -> None:
        self.model, self.loss, self.batches, self.lean = network(name), loss, batches, lean
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def __call__(self) -> None:
        """Takes the next batch and one step."""
        x, y = next(self.batches)
        x_adv = (lean_attack if self.lean else textbook_attack)(self.model, self.loss, x, y)
        self.model.train()
        self.optimizer.zero_grad()
        clean = self.model(x)
        adversarial = self.model(x_adv)
        if self.loss == "mart":
            value = mart_loss(clean, adversarial, y)
        else:
            target = clean if self.lean else self.model(x)
            value = F.cross_entropy(clean, y)
            value = value + BETA["trades"] / len(x) * divergence(adversarial.log_softmax(1), target.softmax(1))
        value.backward()
        self.optimizer.step()


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images that are transformed one by one, as torchvision's data sets do."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.pictures = [Image.fromarray(array) for array in images.permute(0, 2, 3, 1).numpy().astype(np.uint8)]
        self.labels = labels.tolist()
        self.transform = transforms.Compose(
            [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.pictures[index]), self.labels[index]


def from_workers(images: Tensor, labels: Tensor, batch: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    loader = DataLoader(
        Pictures(images, labels), batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))


def from_memory(train: ImageSet, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields batches as the package loads them, but contiguous and with no generators kept by."""
    loader = BatchLoader(train, batch, CropFlip(crop=4, flip=True), seed=0, device=torch.device("cpu"))
    for epoch in itertools.count():
        for positions in loader.order(epoch, everything(len(train))):
            loaded = loader.load(positions, everything(len(train)), epoch)
            yield loaded.x, loaded.y


def made_up(count: int) -> ImageSet:
    source = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=source, dtype=torch.uint8)
    return ImageSet(images, torch.randint(0, 10, (count,), generator=source), tuple(map(str, range(10))))


def large_convolution(dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    """Returns a function of `LARGE` FLOPs in convolutions that fill the machine: the most that a network can reach."""
    keep_freed_memory()
    x = torch.randn(32, 256, 16, 16, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3, device=device).to(dtype).contiguous(memory_format=torch.channels_last)

    def run() -> None:
        with torch.no_grad():
            for _ in range(10):
                F.conv2d(x, weight, padding=1)

    return run


def step_flops(name: str) -> float:
    """Returns the FLOPs of one image's forward pass and of the backward pass to the image."""
    frozen = network(name).eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        frozen(torch.rand(1, 3, 32, 32, requires_grad=True)).sum().backward()
    return float(counter.get_total_flops())


def attack(options: argparse.Namespace) -> None:
    device = start("auto").device
    limits = {str(dtype): Contender(large_convolution, dtype, device) for dtype in (torch.float32, torch.bfloat16)}
    rates = {dtype: LARGE / seconds for dtype, seconds in in_turns(limits, 9).items()}
    for dtype, rate in rates.items():
        print(f"A large convolution in {dtype}: {rate / 1e9:.0f} GFLOP/s")
    print("\nOne attack step (of TRADES' PGD-10, the clean forward counted)\n")
    print("| network | batch | contender | ms a step | images/s | ratio | GFLOP/s | of a large convolution |")
    print("|:--|--:|:--|--:|--:|--:|--:|--:|")
    for name in options.networks:
        contenders = {
            "lean, fp32": Contender(lean, name, options.batch, device, False),
            "lean, fp32, memory kept": Contender(lean, name, options.batch, device, True),
        }
        for label, setting in VARIANTS.items():
            if options.compile or "compiled" not in setting:
                contenders[label] = Contender(engine, name, options.batch, device, *setting)
        seconds = in_turns(contenders, options.repeats)
        for label, taken in seconds.items():
            images = options.batch * STEPS / taken
            flops = step_flops(name) * images
            share = flops / rates[str(torch.bfloat16 if "bf16" in label else torch.float32)]
            cells = [name, options.batch, label, f"{taken / STEPS * 1e3:.1f}", f"{images:.0f}"]
            cells += [f"{seconds['lean, fp32'] / taken:.2f}", f"{flops / 1e9:.0f}", f"{share:.0%}"]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
    print(
        "\n" + ", ".join(f"{name}: {step_flops(name) / 1e9:.3f} GFLOP an image and step" for name in options.networks)
    )


VARIANTS = {
    "ours, fp32, contiguous": ("fp32", "contiguous", "plain"),
    "ours, fp32": ("fp32", "channels_last", "plain"),
    "ours, bf16": ("bf16", "channels_last", "plain"),
    "ours, bf16, folded": ("bf16", "channels_last", "folded"),
    "ours, bf16, compiled": ("bf16", "channels_last", "compiled"),
}
"""Precision, memory format, how the network runs: one thing changed at a time, up to what training does."""


def batch_of(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    x = torch.rand(size, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return x.to(device), torch.arange(size, device=device) % 10


def lean(name: str, batch: int, device: torch.device, keep: bool) -> Callable[[], object]:
    """Returns the lean baseline's attack on a network, and lets the process keep freed memory or not, as scripts do."""
    if keep:
        keep_freed_memory()
    model = network(name).to(device)
    x, y = batch_of(batch, device)
    return lambda: lean_attack(model, "trades", x, y)


def engine(name: str, batch: int, device: torch.device, precision: str, layout: str, mode: str) -> Callable[[], object]:
    """Returns the package's own attack on a network."""
    formats = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
    accelerator = start(precision)
    model = network(name).to(device).to(memory_format=formats[layout])
    if mode == "compiled":
        model.compile()
    x, y = batch_of(batch, device)
    x = x.contiguous(memory_format=formats[layout])
    attack = PGD(Linf(epsilon=EPSILON), steps=STEPS, step_size=STEP)
    inference = Inference(model, accelerator.autocast)
    noise = Noise(0, torch.arange(len(x), device=device))

    def run() -> None:
        with accelerator.autocast(), inference.folded() if mode == "folded" else nullcontext():
            attack_batch(inference, x, y, noise, attack=attack, loss=TRADES())

    return run


def training(options: argparse.Namespace) -> None:
    print("One training step, data included: ms, and how much faster the package's is\n")
    print("| network | batch | loss | textbook | lean | ours | against textbook | against lean |")
    print("|:--|--:|:--|--:|--:|--:|--:|--:|")
    for name in options.networks:
        for loss in LOSSES:
            contenders = {
                "textbook": Contender(textbook, name, loss, options.batch, options.workers),
                "lean": Contender(without_redundancy, name, loss, options.batch),
                "ours": Contender(ours, name, loss, options.batch),
            }
            seconds = in_turns(contenders, options.repeats)
            cells = [name, str(options.batch), loss, *(f"{value * 1e3:.0f}" for value in seconds.values())]
            cells += [f"{seconds[base] / seconds['ours']:.2f}" for base in ("textbook", "lean")]
            print(f"| {' | '.join(cells)} |", flush=True)


def textbook(name: str, loss: str, batch: int, workers: int) -> Callable[[], object]:
    """Returns the textbook baseline's training step."""
    train = made_up(batch * 8)
    return Plain(name, loss, from_workers(train.images, train.labels, batch, workers), lean=False)


def without_redundancy(name: str, loss: str, batch: int) -> Callable[[], object]:
    """Returns the lean baseline's training step."""
    return Plain(name, loss, from_memory(made_up(batch * 8), batch), lean=True)


def ours(name: str, loss_name: str, batch: int) -> Callable[[], object]:
    """Returns a function that takes the next batch and one step of the package's own training."""
    loss = LOSSES[loss_name](beta=BETA[loss_name])
    model, train = network(name), made_up(batch * 8)
    trainer = Trainer(
        model,
        AdversarialTraining(loss, PGD(Linf(epsilon=EPSILON), steps=STEPS, step_size=STEP)),
        train,
        torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4),
        TrainConfig(batch_size=batch),
        augmentation=CropFlip(crop=4, flip=True),
    )
    batches = (
        (epoch, positions)
        for epoch in itertools.count()
        for positions in trainer.loader.order(epoch, everything(len(train)))
    )

    def step() -> None:
        epoch, positions = next(batches)
        trainer.train_step(trainer.loader.load(positions, everything(len(train)), epoch), Moment(epoch, 0, 0.0))

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("attack", "training"))
    parser.add_argument("--networks", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="also time the compiled network")
    options = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    {"attack": attack, "training": training}[options.what](options)


if __name__ == "__main__":
    main()
