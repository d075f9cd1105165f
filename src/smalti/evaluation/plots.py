"""Pictures of pictures: grids, rows, pairs and strips, in one calm style.

They are Pillow images, enlarged by whole numbers so that pixels stay square.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache

import torch
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from smalti.data.image import to_pillow, to_pixels

INK, QUIET, PAPER = "#2b2f36", "#7d838c", "#ffffff"
TILE = 56  # screen pixels a small picture is enlarged to, or just over
TEXT = 13  # pixels, the height of captions
LINE = 16  # pixels from one line of a name to the next


def picture_grid(
    x: Tensor,
    columns: int,
    scale: int | None = None,
    captions: Sequence[str] | None = None,
    gap: int | None = None,
) -> Image.Image:
    """Pictures in rows of `columns`: x (N, C, H, W), uint8 or float in [-1, 1], C = 1 … 4.

    Each pixel becomes `scale` × `scale`, by default enough to see small pictures. `captions` stand under the pictures,
    which are `gap` screen pixels apart, a few by default.
    """
    pictures = [_tile(one, scale) for one in x]
    return _sheet([(None, pictures[i : i + columns]) for i in range(0, len(pictures), columns)], captions, gap=gap)


def picture_rows(rows: Mapping[str, Tensor], scale: int | None = None) -> Image.Image:
    """A named row of pictures for each entry, the name on its left; each value (N, C, H, W) as in `picture_grid`."""
    return _sheet([(name, [_tile(one, scale) for one in x]) for name, x in rows.items()])


def picture_pairs(
    x: Tensor,
    x_hat: Tensor,
    columns: int,
    scale: int | None = None,
    names: tuple[str, str] = ("original", "rebuilt"),
) -> Image.Image:
    """Originals with their counterparts right below, `columns` pairs in a row; both (N, C, H, W)."""
    rows: list[tuple[str | None, list[Image.Image]]] = []
    for start in range(0, len(x), columns):
        for name, part in zip(names, (x, x_hat), strict=True):
            rows.append((name, [_tile(one, scale) for one in part[start : start + columns]]))
    return _sheet(rows, group=2)


def strip(x: Tensor, scale: int | None = None, captions: Sequence[str] | None = None) -> Image.Image:
    """One row of pictures (N, C, H, W), as the frames of a morph or of a sampling."""
    return picture_grid(x, max(1, len(x)), scale, captions)


def opaque(picture: Tensor) -> Image.Image:
    """One picture (C, H, W), uint8 or float in [-1, 1], as a Pillow image; alpha lies on white."""
    image = to_pillow(picture if picture.dtype == torch.uint8 else to_pixels(picture))
    if image.mode in ("LA", "RGBA"):
        white = Image.new("RGBA", image.size, PAPER)
        white.alpha_composite(image.convert("RGBA"))
        return white.convert("L" if image.mode == "LA" else "RGB")
    return image


def _tile(picture: Tensor, scale: int | None) -> Image.Image:
    image = opaque(picture)
    if scale is None:
        scale = max(1, math.ceil(TILE / max(image.size)))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


@cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), TEXT)


def _sheet(
    rows: Sequence[tuple[str | None, Sequence[Image.Image]]],
    captions: Sequence[str] | None = None,
    group: int = 1,
    gap: int | None = None,
) -> Image.Image:
    """Rows of equal tiles on paper: names on the left, captions below, more air between groups of rows."""
    tiles = [tile for _, row in rows for tile in row]
    if not tiles:
        raise ValueError("no pictures to lay out")
    wide, high = max(t.width for t in tiles), max(t.height for t in tiles)
    gap = max(4, wide // 28) if gap is None else gap
    lines = [_fit_lines(name or "", 160, max(1, high // LINE)) for name, _ in rows]
    left = math.ceil(max(_font().getlength(line) for name in lines for line in name))
    left += 3 * gap if left else 0
    below = TEXT + 6 if captions else 0
    columns = max(len(row) for _, row in rows)
    air = 3 * gap if group > 1 else 0
    width = left + columns * (wide + gap) - gap
    height = len(rows) * (high + below + gap) - gap + (math.ceil(len(rows) / group) - 1) * air
    colourful = any(tile.mode != "L" for tile in tiles)
    sheet = Image.new("RGB" if colourful or left or captions else "L", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    told = iter(captions or ())
    for i, (name, (_, row)) in enumerate(zip(lines, rows, strict=True)):
        top = i * (high + below + gap) + i // group * air
        for j, line in enumerate(name):
            middle = top + high / 2 + (j - (len(name) - 1) / 2) * LINE
            pen.text((left - 2 * gap, middle), line, INK, _font(), anchor="rm")
        for j, tile in enumerate(row):
            sheet.paste(tile, (left + j * (wide + gap), top))
            if captions:
                text = _fit_text(next(told, ""), wide)
                pen.text((left + j * (wide + gap) + wide / 2, top + high + 3), text, QUIET, _font(), anchor="mt")
    return sheet


def _fit_lines(text: str, pixels: int, most: int) -> list[str]:
    """The words of a text in at most so many lines; in the last of them, as much as fits."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if len(lines) == most or not lines[-1] or _font().getlength(longer) <= pixels:
            lines[-1] = longer
        else:
            lines.append(word)
    return [_fit_text(line, pixels) for line in lines]


def _fit_text(text: str, pixels: int) -> str:
    """The text, or as much of its beginning as fits, with an ellipsis."""
    if _font().getlength(text) <= pixels:
        return text
    while text and _font().getlength(text + "…") > pixels:
        text = text[:-1]
    return text + "…"
