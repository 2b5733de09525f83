"""One picture, in any form that a data set holds it in, to one array.

The rule for colour. Grey pictures (1, 8 or 16 bits, with or without alpha) give one channel. 16-bit grey is divided by
257 and rounded, so that 65535 becomes 255; of 16-bit colour, and 16-bit grey with alpha, Pillow reads the upper 8 bits.
Everything else (palette, RGBA, CMYK, YCbCr) becomes RGB as Pillow converts it; alpha is dropped, not blended. The EXIF
orientation of pictures that are decoded here is applied.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

_GREY = {"1", "L", "LA", "La"}
# Pillow hands these to Ghostscript, an interpreter.
_PROGRAMS = {"EPS"}
_COLOUR = {"RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV"}

_ROUNDING = 4 * torch.finfo(torch.float32).eps
"""By how much floats may leave [0, 1], as the last steps of resizing or of a division do; a coarser type's own step."""


def to_array(picture: Any, size: int | None = None) -> NDArray[Any]:
    """Returns a picture as (C, H, W) uint8, or float32 in [0, 1] where it is a floating-point tensor.

    Args:
        picture: a path, encoded bytes, a PIL image, or a tensor (C, H, W) of uint8 or of floats in [0, 1].
        size: side of the square that it is resized and cropped to, as torchvision's ``Resize`` and ``CenterCrop`` do;
            not for tensors.

    Raises:
        ValueError, OSError: the picture cannot be read, or its values or shape cannot be used; one line says why.
    """
    if isinstance(picture, Tensor):
        return _from_tensor(picture)
    if isinstance(picture, Image.Image):
        return _from_pil(picture, size)
    with _open(picture) as image:
        if size:
            # JPEG can be decoded at 1/2, 1/4 or 1/8 of its size; twice the side keeps what the resizing needs.
            image.draft(None, (2 * size, 2 * size))
        ImageOps.exif_transpose(image, in_place=True)
        return _from_pil(image, size)


def channels_of(picture: Any) -> int:
    """Returns how many channels `to_array` gives a picture; of an encoded one, only the beginning is read.

    Raises:
        ValueError, OSError: the picture cannot be read; one line says why.
    """
    if isinstance(picture, Tensor):
        return len(picture)
    if isinstance(picture, Image.Image):
        return 1 if _is_grey(picture.mode) else 3
    with _open(picture) as image:
        return 1 if _is_grey(image.mode) else 3


def _is_grey(mode: str) -> bool:
    return mode in _GREY or mode == "I" or mode.startswith("I;16")


def _open(picture: Any) -> Image.Image:
    """Returns an encoded picture, of which the beginning has been read."""
    if picture is None:
        raise ValueError("there is no image")
    if not isinstance(picture, str | Path | bytes):
        raise ValueError(f"{type(picture).__name__} is not an image; give a PIL image or a tensor (C, H, W)")  # noqa: TRY004
    if isinstance(picture, bytes) and not picture:
        raise ValueError("the image has no bytes")
    if not isinstance(picture, bytes) and not Path(picture).stat().st_size:
        raise ValueError("the file is empty")
    try:
        image = Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else Path(picture))
    except UnidentifiedImageError:
        raise ValueError("not an image, or of a kind that Pillow does not know") from None
    if image.mode == "RGBA" and image.tile and str(image.tile[0].args).startswith("LA"):
        return image.convert("LA")  # grey of 16 bits with alpha, which Pillow makes colour of
    if image.format in _PROGRAMS:
        raise ValueError(f"{image.format} files are programs, which are not executed; convert it to PNG")
    return image


def _from_pil(image: Image.Image, size: int | None) -> NDArray[Any]:
    image = _eight_bits(image)
    pixels = np.asarray(_square(image, size) if size else image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _square(image: Image.Image, side: int) -> Image.Image:
    """Returns the centre of the image, the shorter side of which is resized to this length."""
    shorter = min(image.size)
    width, height = (int(side * length / shorter) for length in image.size)
    if shorter != side:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (round((length - side) / 2) for length in (width, height))
    return image.crop((left, top, left + side, top + side))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Returns the image in mode L or RGB."""
    if image.mode in {"L", "RGB"}:
        return image
    if image.mode in _GREY:
        return image.convert("L")
    if image.mode in _COLOUR:
        return image.convert("RGB")
    if _is_grey(image.mode):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("grey values beyond 16 bits")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    raise ValueError(f"images of mode {image.mode!r} are not supported; convert them to 8-bit grey or RGB")


def _from_tensor(tensor: Tensor) -> NDArray[Any]:
    if tensor.ndim != 3:
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} is not an image (C, H, W)")
    if tensor.dtype == torch.uint8:
        return tensor.numpy(force=True)
    if not tensor.is_floating_point():
        raise ValueError(f"a tensor of {tensor.dtype} is not an image; give uint8, or floats in [0, 1]")
    low, high = tensor.min().item(), tensor.max().item()
    step = max(torch.finfo(tensor.dtype).eps, _ROUNDING)
    if not (low >= -step and high <= 1 + step):
        raise ValueError(
            f"pixel values from {low:.4g} to {high:.4g} are outside [0, 1]; normalisation belongs in the model, as its "
            "first layer, and not in the data"
        )
    return tensor.float().clamp(0, 1).numpy(force=True)


def to_label(label: Any, classes: int | None) -> int:
    """Returns a label as an int.

    Args:
        label: an integer of Python, NumPy or torch.
        classes: how many classes there are; None where that is not known yet.

    Raises:
        ValueError: it is missing, not an integer, negative or too large; one line says which.
    """
    if label is None:
        raise ValueError("there is no label")
    value = label.item() if isinstance(label, Tensor | np.generic) and np.ndim(label) == 0 else label
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"the label {value!r} is not an integer")  # noqa: TRY004
    if not 0 <= value < (2**63 if classes is None else classes):
        allowed = "0 and up" if classes is None else f"0 to {classes - 1}"
        raise ValueError(f"the label {value} is out of range (allowed: {allowed})")
    return value
