"""``robustcords doctor``: what is installed, what works, and how to fix the rest."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

from rich.table import Table

from robustcords.runtime.progress import verbatim


@dataclass(frozen=True)
class Finding:
    """One part, examined.

    Attributes:
        part: its name.
        works: whether it does.
        detail: a version or a device; where it does not work, what to do.
        needed: whether the shipped recipes need it.
    """

    part: str
    works: bool
    detail: str
    needed: bool = False


def examine() -> list[Finding]:
    """Tries every part by using it, and returns what came out."""
    checks: list[tuple[str, Callable[[], str], bool, str]] = [
        ("python", _python, True, "use Python 3.11 or newer"),
        ("torch", _torch, True, "pip install torch"),
        ("accelerate", _accelerate, True, "pip install accelerate"),
        ("cords", _cords, True, "pip install --no-deps cords==0.0.4"),
        ("autoattack", _autoattack, True, "pip install pyautoattack"),
        ("data sets", _datasets, True, "pip install datasets torchvision scikit-learn"),
        ("submodlib", _submodlib, False, "pip install submodlib-py; only facility-location selectors need it"),
        ("timm", _timm, False, "pip install 'robustcords[timm]'; only models named timm:... need it"),
        ("cuda", _cuda, False, "training runs on the CPU; only small networks are practical"),
        ("bf16", _bf16, False, "precision = 'auto' uses float32 here"),
        ("compiler", _compiler, False, "install a C++ compiler such as g++; only train.compile = true needs it"),
    ]
    return [_try(*check) for check in checks]


def _try(part: str, check: Callable[[], str], needed: bool, remedy: str) -> Finding:
    try:
        return Finding(part, True, check(), needed)
    except Exception as error:  # whatever a broken installation raises is a finding
        reason = str(error).partition("\n")[0] or type(error).__name__
        return Finding(part, False, f"{reason}; {remedy}" if remedy not in reason else reason, needed)


def print_findings(findings: list[Finding]) -> None:
    """Prints a table of findings."""
    table = Table("part", "state", "detail")
    for finding in findings:
        state = "works" if finding.works else ("missing" if finding.needed else "unavailable")
        table.add_row(finding.part, state, finding.detail)
    verbatim().print(table)


def _python() -> str:
    return sys.version.partition(" ")[0]


def _torch() -> str:
    import torch

    torch.ones(2, 2) @ torch.ones(2, 2)
    threads = torch.get_num_threads()
    return f"{torch.__version__}, {threads} thread{'s' if threads > 1 else ''}"


def _accelerate() -> str:
    import accelerate

    return str(accelerate.__version__)


def _cords() -> str:
    from robustcords.selection import _cords as cords

    return f"{version('cords')}: {cords.GLISTERStrategy.__name__}, {cords.GradMatchStrategy.__name__}"


def _autoattack() -> str:
    import pyautoattack

    return f"pyautoattack {version('pyautoattack')}: {pyautoattack.AutoAttack.__name__}"


def _datasets() -> str:
    import datasets
    import torchvision

    from robustcords.data.digits import Digits

    images = len(Digits(name="digits").load().train)
    return f"datasets {datasets.__version__}, torchvision {torchvision.__version__}, digits: {images} training images"


def _submodlib() -> str:
    import submodlib

    return f"submodlib-py {version('submodlib-py')}: {submodlib.FacilityLocationFunction.__name__}"


def _timm() -> str:
    import timm

    return str(timm.__version__)


def _cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("no CUDA device")
    return ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))


def _bf16() -> str:
    import torch

    from robustcords.engine.precision import fastest

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if fastest(device) != "bf16":
        raise RuntimeError(f"no bf16 instructions on this {device.type}")
    return f"fast on this {device.type}"


def _compiler() -> str:
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if found is None:
        raise RuntimeError("no C++ compiler")
    return found
