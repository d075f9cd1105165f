"""Picture files as arrays: read any of them, fit it to a shape.

A raster is uint8 (C, H, W) in numpy. Nothing here needs torch, so the processes that read files start quickly.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from smalti.errors import UserError

Fit = Literal["crop", "pad", "stretch"]

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # channels -> the mode they are written in
GREY_MODES = {"1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
MAX_PIXELS = 100_000_000


class BrokenFile(UserError):
    """A file that cannot be read as what it should be; `path` says which, `reason` why."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(str(path), reason)
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot read {self.path}: {self.reason}"


def read_raster(
    path: str | os.PathLike[str],
    channels: int | None = None,
    max_pixels: int = MAX_PIXELS,
    at_least: tuple[int, int] | None = None,
) -> np.ndarray:
    """Any picture file as uint8 (C, H, W), turned as its EXIF says; the first frame of an animation.

    `channels`: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA, None grey or RGB as the file is. Where alpha is not asked
    for, the picture is laid on white. 16-bit grey is scaled to 8 bits; floating point is taken as [0, 1] or
    [0, 255], whichever holds it, and stretched from least to greatest otherwise.
    `at_least` (H, W) allows a JPEG to be decoded smaller, but no smaller than twice this.
    Raises BrokenFile for what is missing, damaged, cut short or larger than `max_pixels`; the size is looked at
    before anything is decoded, so a header that promises too much costs nothing.
    """
    if channels is not None and channels not in MODES:
        raise UserError(f"channels = {channels}: a picture has 1 to 4 channels")
    with quiet(), reading(path), Image.open(path) as image:
        _check_size(image, path, max_pixels)
        if at_least is not None:
            image.draft(None, (2 * max(at_least), 2 * max(at_least)))
        image.load()
        return from_pillow(ImageOps.exif_transpose(image), channels)


@dataclass(frozen=True)
class Header:
    """What a picture says of itself before it is decoded; height and width as they are after the EXIF turn."""

    height: int
    width: int
    grey: bool


def read_header(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Header:
    """The size of a picture without decoding it. Raises BrokenFile as `read_raster` does for what the header shows.

    Call it inside `quiet()`, once around many calls: what that sets is shared by all threads.
    """
    with reading(path), Image.open(path) as image:
        _check_size(image, path, max_pixels)
        width, height = image.size
        # the base class's: a PNG's own would decode all pixels to look behind them
        if Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1) >= 5:
            width, height = height, width
        return Header(height, width, image.mode in GREY_MODES)


@contextmanager
def quiet() -> Iterator[None]:
    """Without Pillow's warnings: of size, which is judged here, and of odd metadata, which does not matter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def fit_raster(raster: np.ndarray, shape: tuple[int, int], how: Fit = "crop") -> np.ndarray:
    """uint8 (C, h, w) -> uint8 (C, H, W), antialiased; the picture itself when it has that size already.

    crop: as large a middle part as has the shape's proportions; pad: the whole picture, white around it;
    stretch: the whole picture, proportions lost. Alpha weighs the colours while scaling.
    """
    if tuple(raster.shape[-2:]) == tuple(shape):
        return raster
    height, width = shape
    picture = to_pillow(raster)
    if how == "stretch":
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    elif how == "crop":
        scale = max(width / picture.width, height / picture.height)
        left, top = (picture.width - width / scale) / 2, (picture.height - height / scale) / 2
        box = (max(left, 0.0), max(top, 0.0), picture.width - max(left, 0.0), picture.height - max(top, 0.0))
        picture = picture.resize((width, height), Image.Resampling.BICUBIC, box=box)
    elif how == "pad":
        scale = min(width / picture.width, height / picture.height)
        inner = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        small = picture.resize(inner, Image.Resampling.BICUBIC)
        picture = Image.new(picture.mode, (width, height), (255,) * len(picture.getbands()))
        picture.paste(small, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    else:
        raise UserError(f"fit = {how!r}: known are crop, pad, stretch")
    return _channels_first(np.array(picture))


def to_pillow(raster: np.ndarray) -> Image.Image:
    """uint8 (C, H, W), C = 1 … 4 -> a Pillow picture in mode L, LA, RGB or RGBA."""
    if raster.ndim != 3 or raster.shape[0] not in MODES:
        raise ValueError(f"a picture is (C, H, W) with 1 to 4 channels, not {tuple(raster.shape)}")
    return Image.fromarray(raster[0] if len(raster) == 1 else np.ascontiguousarray(raster.transpose(1, 2, 0)))


def from_pillow(image: Image.Image, channels: int | None = None) -> np.ndarray:
    """A Pillow picture of any mode -> uint8 (C, H, W); see `read_raster`."""
    grey = image.mode in GREY_MODES
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    transparent = image.has_transparency_data
    if channels is None:
        channels = 1 if grey else 3
    if transparent and channels in (1, 3):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image).convert("RGB")
    elif transparent:
        image = image.convert("RGBA")  # palettes with alpha know no shorter way to grey and alpha
    return _channels_first(np.array(image.convert(MODES[channels])))


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever a decoder raises, as a BrokenFile."""
    try:
        yield
    except BrokenFile:
        raise
    except FileNotFoundError:
        raise BrokenFile(path, "no such file") from None
    except UnidentifiedImageError:
        raise BrokenFile(path, "not a picture in a format known here") from None
    except Image.DecompressionBombError:
        raise BrokenFile(path, f"its header promises more than the {MAX_PIXELS:,} pixels allowed") from None
    except MemoryError:
        raise BrokenFile(path, "it needs more memory than there is") from None
    except Exception as error:  # decoders raise whatever the damage leads them to
        raise BrokenFile(path, " ".join(str(error).split()) or type(error).__name__) from error


def _check_size(image: Image.Image, path: str | os.PathLike[str], max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise BrokenFile(path, f"{width}×{height} pixels, more than the {max_pixels:,} allowed")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or floating point -> L."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it has values that are not finite")
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I") and low >= 0 and high <= 65535:
        values = values / 257
    elif image.mode == "F" and low >= 0 and high <= 1:
        values = values * 255
    elif not (image.mode == "F" and low >= 0 and high <= 255):
        values = (values - low) * (255 / max(high - low, 1e-12))
    return Image.fromarray(np.round(values).astype(np.uint8))


def _channels_first(array: np.ndarray) -> np.ndarray:
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))
