"""What choosing costs once gradients are there, beside CORDS' own solvers, on made-up gradients.

    python benchmarks/selection_engine.py pursuit            one class, against CORDS' matching pursuit
    python benchmarks/selection_engine.py greedy             all of CIFAR-10's size, against CORDS' greedy GLISTER
    python benchmarks/selection_engine.py whole              whole selections of CIFAR-10's and CIFAR-100's size
    python benchmarks/selection_engine.py full               matching pursuit among all of CIFAR-10 at once
    python benchmarks/selection_engine.py imagenet           1.28 million examples of 1,000 classes, streamed
    python benchmarks/selection_engine.py growth             how the pursuit's time grows with n, C, E and k

Prints Markdown tables. Each row is measured in this one process; memory is the process's peak above what it had before
the row, the gradients themselves not counted. ``--threads`` sets torch's.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import logging
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import torch
from torch import Tensor
from torch.nn import functional as F

from robustcords.data.split import apportion
from robustcords.losses.sat import SAT
from robustcords.selection import _cords  # noqa: F401  # makes cords importable
from robustcords.selection.gradients.class_stream import class_by_class
from robustcords.selection.gradients.factors import LastLayerGradients
from robustcords.selection.gradients.validation_gradient import ValidationGradient
from robustcords.selection.solvers.greedy import taylor_greedy
from robustcords.selection.solvers.omp import Problem, match, match_all

RIDGE, TOLERANCE = 0.5, 1e-10
FEATURES = 512


def made_up(labels: Tensor, classes: int, terms: int, seed: int, features: int = FEATURES) -> LastLayerGradients:
    """Returns float32 gradients of rectified Gaussian features under a random linear head."""
    source = torch.Generator().manual_seed(seed)
    head = torch.randn(classes, features, generator=torch.Generator().manual_seed(classes)) * 5 / features**0.5
    h = tuple(torch.randn(len(labels), features, generator=source).relu_() for _ in range(terms))
    logits = tuple(part @ head.T for part in h)
    deltas = tuple(part.softmax(1) - F.one_hot(labels, classes) for part in logits)
    return LastLayerGradients(deltas, h, labels, logits)


@contextmanager
def peak_memory() -> Iterator[Callable[[], float]]:
    """Gives a function that returns the GB that the block needed at most, beyond what there was before it."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier rows have left over would hide what this one needs
    process = psutil.Process()
    before = highest = process.memory_info().rss
    over = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not over.wait(0.01):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: (max(highest, process.memory_info().rss) - before) / 1e9
    finally:
        over.set()
        watcher.join()


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def error(gradients: LastLayerGradients, rows: Tensor | slice, weights: Tensor) -> float:
    target = gradients.sum()
    return float((gradients.rows(rows).sum(weights.double()) - target).norm() / target.norm())


def pursuit(repeats: int) -> None:
    from cords.selectionstrategies.helpers.omp_solvers import OrthogonalMP_REG_Parallel_V1

    print("One class: n = 5,000, C = 10, E = 512, lam = 0.5; Gram matrix included\n")
    print("| terms | k | s | CORDS, s | ratio | error | CORDS' error |\n|--:|--:|--:|--:|--:|--:|--:|")
    for terms in (1, 2):
        gradients = made_up(torch.zeros(5000, dtype=torch.int64), 10, terms, seed=0)
        dense = gradients.dense()
        for k in (1000, 1500):
            problem = Problem(gradients, gradients.sum(), k)
            solve = functools.partial(match, problem, ridge=RIDGE, tolerance=TOLERANCE)
            rows, weights = solve()
            # On both sides of theirs, which takes minutes: the machine may become slower or faster meanwhile.
            times = [seconds(solve) for _ in range(repeats)]
            start = time.perf_counter()
            theirs = OrthogonalMP_REG_Parallel_V1(
                dense.T,
                dense.sum(0),
                tol=TOLERANCE,
                nnz=k,
                positive=True,
                lam=RIDGE,
                device=torch.device("cpu"),
            )
            upstream = time.perf_counter() - start
            times += [seconds(solve) for _ in range(repeats)]
            ours = statistics.median(times)
            found = error(gradients, rows, weights), error(gradients, slice(None), theirs)
            errors = f"{found[0]:.1e} | {found[1]:.1e}"
            print(f"| {terms} | {k} | {ours:.2f} | {upstream:.1f} | {upstream / ours:.0f} | {errors} |", flush=True)


def balanced(count: int, classes: int) -> Tensor:
    return torch.arange(count) * classes // count


def by_class(gradients: LastLayerGradients) -> list[LastLayerGradients]:
    return [gradients.rows(gradients.labels == label) for label in gradients.labels.unique()]


def match_classes(gradients: LastLayerGradients, fraction: float) -> None:
    problems = [Problem(group, group.sum(), round(fraction * len(group))) for group in by_class(gradients)]
    match_all(problems, ridge=RIDGE, tolerance=TOLERANCE)


def match_batches(gradients: LastLayerGradients, fraction: float) -> None:
    sizes = [len(part) for part in gradients.labels.split(128)]
    means = gradients.means(sizes)
    match(Problem(means, means.sum(), round(fraction * len(means))), ridge=RIDGE, tolerance=TOLERANCE)


def look_ahead(groups: list[LastLayerGradients], validation: list[LastLayerGradients], fraction: float) -> list[Tensor]:
    found = []
    for group, beside in zip(groups, validation, strict=True):
        budget = round(fraction * len(group))
        gains = ValidationGradient(beside, SAT())
        source = torch.Generator().manual_seed(0)
        found.append(
            taylor_greedy(group, gains, budget, step_size=0.1 / budget, method="RGreedy", rounds=15, generator=source)
        )
    return found


def whole(repeats: int) -> None:
    cifar10 = made_up(balanced(50_000, 10), 10, 2, seed=0)
    validation = made_up(balanced(5_000, 10), 10, 1, seed=1)
    cifar100 = made_up(balanced(50_000, 100), 100, 2, seed=2)
    rows: dict[str, Callable[[], object]] = {
        "CIFAR-10, 30 %, matching pursuit, per_class": lambda: match_classes(cifar10, 0.3),
        "CIFAR-10, 30 %, matching pursuit, per_batch": lambda: match_batches(cifar10, 0.3),
        "CIFAR-10, 30 %, RGreedy, per_class": lambda: look_ahead(by_class(cifar10), by_class(validation), 0.3),
        "CIFAR-10, 30 %, RGreedy, full": lambda: look_ahead([cifar10], [validation], 0.3),
        "CIFAR-100, 50 %, matching pursuit, per_class": lambda: match_classes(cifar100, 0.5),
    }
    print("Whole selections: N = 50,000, E = 512, two terms\n")
    print("| | s | peak memory, GB |\n|---|--:|--:|")
    for name, action in rows.items():
        with peak_memory() as peak:
            taken = statistics.median(seconds(action) for _ in range(repeats))
            print(f"| {name} | {taken:.1f} | {peak():.2f} |", flush=True)


def full(repeats: int) -> None:
    del repeats
    gradients = made_up(balanced(45_000, 10), 10, 2, seed=0)
    print("Matching pursuit, full: N = 45,000, C = 10, E = 512, two terms\n")
    print("| fraction | s | ms a pick | peak memory, GB | error |\n|--:|--:|--:|--:|--:|")
    for fraction in (0.01, 0.05, 0.3):
        k = round(fraction * len(gradients))
        with peak_memory() as peak:
            start = time.perf_counter()
            rows, weights = match(Problem(gradients, gradients.sum(), k), ridge=RIDGE, tolerance=TOLERANCE)
            taken = time.perf_counter() - start
            found = error(gradients, rows, weights)
            print(f"| {fraction:.0%} | {taken:.0f} | {1e3 * taken / k:.0f} | {peak():.2f} | {found:.1e} |", flush=True)


def greedy(repeats: int) -> None:
    from cords.selectionstrategies.SL.glisterstrategy import GLISTERStrategy

    count, classes, rounds = 45_000, 10, 15
    train = made_up(balanced(count, classes), classes, 1, seed=0)
    validation = made_up(balanced(5_000, classes), classes, 1, seed=1)
    budget = round(0.3 * count)

    # CORDS' greedy loop alone, on the same gradients: its passes over the data are left out on both sides.
    theirs = object.__new__(GLISTERStrategy)
    theirs.logger = logging.getLogger(__name__)
    theirs.device, theirs.num_classes, theirs.selection_type = torch.device("cpu"), classes, "Supervised"
    theirs.linear_layer, theirs.eta, theirs.r, theirs.greedy = True, 0.1 / budget, rounds, "RGreedy"
    theirs.numSelected, theirs.N_trn, theirs.nvalid = 0, count, len(validation)
    looking = ValidationGradient(validation, SAT())

    def update(grads_currX: Tensor | None = None, first_init: bool = False) -> None:  # CORDS' names
        step = torch.zeros(classes, 1 + FEATURES, dtype=torch.float64)
        if grads_currX is not None:
            flat = grads_currX.view(-1).double()
            step = torch.cat([flat[:classes, None], flat[classes:].view(classes, -1)], dim=1)
        mean = looking.after(theirs.eta * step)
        theirs.grads_val_curr = torch.cat([mean[:, 0], mean[:, 1:].flatten()]).view(-1, 1).float()

    theirs._update_grads_val = update
    with peak_memory() as peak:
        start = time.perf_counter()
        theirs.grads_per_elem = train.dense()
        update(first_init=True)
        expected, _ = theirs.greedy_algo(budget)
        upstream, memory = time.perf_counter() - start, peak()
    theirs.grads_per_elem = None
    with peak_memory() as peak:
        times = [seconds(lambda: look_ahead([train], [validation], 0.3)) for _ in range(repeats)]
        ours, least = statistics.median(times), peak()
    found = look_ahead([train], [validation], 0.3)[0].tolist()
    same = len(set(found) & {int(row) for row in expected}) / budget
    print("RGreedy, full: N = 45,000, 30 %, C = 10, E = 512, one term, 5,000 validation examples\n")
    print("| s | CORDS, s | ratio | GB | CORDS, GB | same picks |\n|--:|--:|--:|--:|--:|--:|")
    print(f"| {ours:.2f} | {upstream:.1f} | {upstream / ours:.0f} | {least:.2f} | {memory:.2f} | {same:.2%} |")


def imagenet(repeats: int) -> None:
    del repeats
    count, classes = 1_280_000, 1000
    labels = torch.randperm(count, generator=torch.Generator().manual_seed(0)) % classes
    shares = apportion(labels.bincount(minlength=classes).tolist(), round(0.3 * count))
    making = solving = 0.0

    def compute(batches: list[list[int]], before: int, total: int) -> LastLayerGradients:
        nonlocal making
        start = time.perf_counter()
        places = torch.tensor([place for batch in batches for place in batch])
        made = made_up(labels[places], classes, 2, seed=before)
        making += time.perf_counter() - start
        if before % 500 == 0:
            print(f"batch {before} of {total}: {making:.0f} s made up, {solving:.0f} s solved", flush=True)
        return made

    chosen = 0
    with peak_memory() as peak:
        for complete in class_by_class(labels, compute, batch_size=128, batches_at_once=100):
            start = time.perf_counter()
            for each in complete:
                problem = Problem(each.gradients, each.gradients.sum(), shares[each.label])
                rows, _ = match(problem, ridge=RIDGE, tolerance=TOLERANCE)
                chosen += len(rows)
            solving += time.perf_counter() - start
        memory = peak()
    print(f"\nN = {count}, C = {classes}, E = {FEATURES}, two terms, 30 % per class: {chosen} chosen\n")
    print("| making gradients up, s | solving, s | both, s | peak memory, GB, gradients included |\n|--:|--:|--:|--:|")
    print(f"| {making:.0f} | {solving:.0f} | {making + solving:.0f} | {memory:.2f} |")


def growth(repeats: int) -> None:
    print("One class, two terms, lam = 0.5\n\n| n | C | E | k | s |\n|--:|--:|--:|--:|--:|")
    for n, classes, features, k in (
        (1250, 10, 512, 375),
        (2500, 10, 512, 750),
        (5000, 10, 512, 1500),
        (10_000, 10, 512, 3000),
        (5000, 10, 512, 250),
        (5000, 10, 512, 500),
        (5000, 10, 512, 1000),
        (5000, 10, 128, 500),
        (5000, 10, 2048, 500),
        (5000, 100, 512, 500),
        (5000, 1000, 512, 500),
    ):
        gradients = made_up(torch.zeros(n, dtype=torch.int64), classes, 2, 0, features)
        problem = Problem(gradients, gradients.sum(), k)
        times = [seconds(functools.partial(match, problem, ridge=RIDGE, tolerance=TOLERANCE)) for _ in range(repeats)]
        print(f"| {n} | {classes} | {features} | {k} | {statistics.median(times):.2f} |", flush=True)


MEASUREMENTS = {each.__name__: each for each in (pursuit, greedy, whole, full, imagenet, growth)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=MEASUREMENTS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}\n")
    match(
        Problem(made_up(torch.zeros(50, dtype=torch.int64), 2, 1, 0), torch.ones(2, 513), 5),
        ridge=RIDGE,
        tolerance=TOLERANCE,
    )
    MEASUREMENTS[options.what](options.repeats)


if __name__ == "__main__":
    main()
