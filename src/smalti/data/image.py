"""Pictures as tensors: read any file, fit it to a shape, write it back with its text fields.

Pixels are uint8 (C, H, W); a signal is float32 in [-1, 1] with p = (x + 1) · 127.5.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from smalti.data import raster
from smalti.data.raster import MAX_PIXELS, BrokenFile, Fit, quiet, reading
from smalti.errors import UserError

__all__ = [
    "BrokenFile",
    "Fit",
    "fit",
    "read_image",
    "read_text",
    "recolour",
    "to_pillow",
    "to_pixels",
    "to_signal",
    "write_image",
]


def read_image(path: str | os.PathLike[str], channels: int | None = None, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Any picture file as uint8 (C, H, W), turned as its EXIF says; the first frame of an animation.

    `channels`: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA, None grey or RGB as the file is. Where alpha is not asked
    for, the picture is laid on white. Raises BrokenFile for what is missing, damaged, cut short or larger than
    `max_pixels`, before anything large is allocated.
    """
    return torch.from_numpy(raster.read_raster(path, channels, max_pixels))


def fit(image: Tensor, shape: tuple[int, int], how: Fit = "crop") -> Tensor:
    """uint8 (C, h, w) -> uint8 (C, H, W), antialiased; the picture itself when it has that size already.

    crop: as large a middle part as has the shape's proportions; pad: the whole picture, white around it;
    stretch: the whole picture, proportions lost. Alpha weighs the colours while scaling.
    """
    if tuple(image.shape[-2:]) == tuple(shape):
        return image
    return torch.from_numpy(raster.fit_raster(image.numpy(), shape, how))


def recolour(image: Tensor, channels: int) -> Tensor:
    """uint8 (C, H, W) -> uint8 (channels, H, W): grey from colour by luminance, alpha added opaque or laid on white."""
    if image.shape[0] == channels:
        return image
    return torch.from_numpy(raster.from_pillow(to_pillow(image), channels))


def to_signal(pixels: Tensor) -> Tensor:
    """uint8 [0, 255], any shape -> float32 [-1, 1]."""
    return pixels.to(torch.float32).div_(127.5).sub_(1.0)


def to_pixels(x: Tensor) -> Tensor:
    """Float, any shape, [-1, 1] (what lies outside is clamped) -> uint8 [0, 255]; inverse of `to_signal`."""
    return x.detach().to(torch.float32).add(1.0).mul_(127.5).clamp_(0, 255).round_().to(torch.uint8)


def to_pillow(pixels: Tensor) -> Image.Image:
    """uint8 (C, H, W), C = 1 … 4 -> a Pillow picture in mode L, LA, RGB or RGBA."""
    return raster.to_pillow(pixels.cpu().numpy())


def write_image(path: str | os.PathLike[str], x: Tensor, text: Mapping[str, str] | None = None) -> None:
    """Write float (C, H, W) in [-1, 1] as a PNG with text fields; whole or not at all, whatever interrupts it."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise UserError(f"{path}: pictures are written as PNG, so the name must end in .png")
    fields = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        fields.add_text(key, value)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            to_pillow(to_pixels(x)).save(file, format="PNG", pnginfo=fields)
        os.chmod(temporary, 0o644)  # mkstemp keeps files private; a picture is not
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_text(path: str | os.PathLike[str]) -> dict[str, str]:
    """The text fields of a PNG, {} when there are none."""
    with quiet(), reading(path), Image.open(path) as image:
        image.load()  # fields may stand behind the pixels
        return {key: str(value) for key, value in getattr(image, "text", {}).items()}
