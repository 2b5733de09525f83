"""The environment of a run (versions, hardware, code), for its directory and reports."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from robustcords.recipe.recipe import Recipe
from robustcords.runtime import collectives

_PACKAGES = ("robustcords", "torch", "torchvision", "accelerate", "cords", "numpy", "pyautoattack", "safetensors")


def environment(recipe: Recipe, accelerator: Accelerator) -> dict[str, Any]:
    """Returns what a run was made with: versions, device, source, processes, threads, seed and precision."""
    device = accelerator.device
    return {
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "git_commit": git_commit(Path(__file__)),
        "world_size": collectives.world_size(),
        "threads": torch.get_num_threads(),
        "seed": recipe.seed,
        "precision": recipe.train.precision,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Returns the processor's name, from where Linux keeps it, or what torch knows of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"CPU, {names[0] if names else torch.backends.cpu.get_cpu_capability()}"


def git_commit(file: Path) -> str | None:
    """Returns the commit that a file is checked out at, or None for one that is in no repository.

    ``-dirty`` is added where a file of the repository has changed since.
    """

    def git(*arguments: str | Path) -> str:
        command = ("git", *arguments)
        return subprocess.run(command, cwd=file.parent, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file)  # a package that is installed in another repository is not of it
        return git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")
    except (OSError, subprocess.CalledProcessError):
        return None
