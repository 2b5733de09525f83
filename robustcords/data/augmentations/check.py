"""Checks of an augmentation before a run depends on it."""

from __future__ import annotations

import torch

from robustcords.data.augmentations.base import Augmentation
from robustcords.data.images import Images
from robustcords.engine import contracts
from robustcords.errors import UserError
from robustcords.rng import Noise, derive


def check_augmentation(augmentation: Augmentation, images: Images, device: torch.device, count: int = 2) -> None:
    """Checks what an augmentation makes of some images.

    Args:
        augmentation: is given the images together, and one of them alone.
        images: the set that they are of.
        device: where they are augmented.
        count: how many.

    Raises:
        UserError: other shapes or types, pixels outside [0, 1], an image that changes with the batch that it is in, or
            images that it writes over.
    """
    x, _ = augmentation.takes(images).first(count, device)
    name = f"augmentation {contracts.title(augmentation)}"
    noise = Noise(derive(0, "check"), torch.arange(count).to(device))
    before, shape = x.clone(), images.shape
    made = contracts.numbers(name, augmentation(x, noise), torch.Size((count, *shape)), x.dtype)
    if not (made.min() >= -1e-6 and made.max() <= 1 + 1e-6):
        raise UserError(f"{name} returned pixels from {made.min():g} to {made.max():g}, expected [0, 1]")
    if not torch.equal(x, before):
        raise UserError(f"{name} modifies its input images; it must return new ones")
    alone = contracts.numbers(name, augmentation(x[-1:], noise[-1:]), torch.Size((1, *shape)), x.dtype)
    if not torch.allclose(alone, made[-1:], rtol=0, atol=1e-4):
        raise UserError(
            f"{name} changes an image differently when it is alone in its batch; it must take all random numbers from "
            "the noise, which is keyed by example"
        )
