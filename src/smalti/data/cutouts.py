"""Drawings of things cut out with their alpha, ready to be laid on a ground of any colour."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from smalti.data.emoji import ARTISTS, find_drawings
from smalti.data.raster import quiet, reading
from smalti.errors import UserError

_SEEN = 32  # alpha below which a pixel does not count as drawn
_CONTRAST = 70  # of 255: how far, in some channel, a pixel stands out from a ground
_STANDS_OUT = 0.55  # the share of a drawing's pixels that must


def read_cutouts(contents: Mapping[str, bytes], codes: Sequence[str], side: int) -> np.ndarray:
    """The emoji set's files -> uint8 (codes, artists, 4, side, side): each emoji by each artist, RGB and alpha.

    Every drawing is trimmed and scaled, its proportions kept, so that it fills its square one way.
    Raises UserError where a drawing is missing.
    """
    drawings, archives = find_drawings(contents)
    files = {(each.code, each.artist): each for each in drawings}
    found = np.empty((len(codes), len(ARTISTS), 4, side, side), dtype=np.uint8)
    for row, code in enumerate(codes):
        for artist, called in enumerate(ARTISTS):
            drawing = files.get((code, artist))
            if drawing is None:
                raise UserError(f"emoji: {called}.zip has no drawing of {code}")
            with quiet(), reading(drawing.name):
                content = io.BytesIO(archives[artist].read(drawing.file))
                found[row, artist] = _trimmed(Image.open(content).convert("RGBA"), side)
    return found


def scaled(cutouts: np.ndarray, side: int) -> np.ndarray:
    """uint8 (…, 4, s, s) -> uint8 (…, 4, side, side), antialiased; alpha weighs the colours."""
    *outer, channels, height, width = cutouts.shape
    small = [
        np.array(Image.fromarray(each.transpose(1, 2, 0)).resize((side, side), Image.Resampling.BICUBIC))
        for each in np.ascontiguousarray(cutouts.reshape(-1, channels, height, width))
    ]
    return np.stack(small).transpose(0, 3, 1, 2).reshape(*outer, channels, side, side)


def lay(cutout: np.ndarray, picture: np.ndarray, top: int, left: int) -> None:
    """Lay a cutout uint8 (4, s, s) on a picture uint8 (3, H, W), in place, its corner at (top, left)."""
    side = cutout.shape[-1]
    under = picture[:, top : top + side, left : left + side]
    alpha = cutout[3].astype(np.int32)
    under[:] = (cutout[:3] * alpha + under * (255 - alpha) + 127) // 255


def melts(cutouts: np.ndarray, ground: Sequence[int]) -> np.ndarray:
    """bool (…): which cutouts (…, 4, s, s) are hard to see on a ground of this colour, RGB in 0 … 255."""
    colour = np.array(ground, dtype=np.int32)[:, None, None]
    drawn = cutouts[..., 3, :, :] > 127
    apart = np.abs(cutouts[..., :3, :, :].astype(np.int32) - colour).max(-3) > _CONTRAST
    return (drawn & apart).sum((-1, -2)) < _STANDS_OUT * drawn.sum((-1, -2))


def _trimmed(drawing: Image.Image, side: int) -> np.ndarray:
    """An RGBA picture -> uint8 (4, side, side): what is drawn of it, in the middle."""
    box = drawing.getchannel("A").point(lambda alpha: 255 * (alpha > _SEEN)).getbbox()
    if box is None:
        raise ValueError("there is nothing in it")
    drawing = drawing.crop(box)
    longest = max(drawing.size)
    square = Image.new("RGBA", (longest, longest), (0, 0, 0, 0))
    square.paste(drawing, ((longest - drawing.width) // 2, (longest - drawing.height) // 2))
    return np.array(square.resize((side, side), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
