"""Pictures of pictures, of codes and of figures, in one calm style.

Grids of pictures are Pillow images, enlarged by whole numbers so that pixels stay square; plots are matplotlib figures
that no window ever shows.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib import font_manager, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from smalti.data.image import to_pillow, to_pixels
from smalti.evaluation.codes import usage

INK, QUIET, LINE, PAPER = "#2b2f36", "#7d838c", "#e4e6ea", "#ffffff"
COLOURS = ("#2f6f9f", "#d9803b", "#4f9a76", "#a35a8c", "#8a7a3d", "#6b6fb3")
STYLE: dict[Any, Any] = {  # matplotlib types its keys as a list of literals
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": QUIET,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "figure.dpi": 160,
}
TILE = 56  # screen pixels a small picture is enlarged to, or just over
TEXT = 13  # pixels, the height of captions


def picture_grid(
    x: Tensor,
    columns: int,
    scale: int | None = None,
    captions: Sequence[str] | None = None,
) -> Image.Image:
    """Pictures in rows of `columns`: x (N, C, H, W), uint8 or float in [-1, 1], C = 1 … 4.

    Each pixel becomes `scale` × `scale`, by default enough to see small pictures. `captions` stand under the pictures.
    """
    pictures = [_tile(one, scale) for one in x]
    return _sheet([(None, pictures[i : i + columns]) for i in range(0, len(pictures), columns)], captions)


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


def code_grid(codes: Tensor, size: int, picture: Tensor | None = None) -> Figure:
    """The codes of one picture, int64 (H, W) in [0, size), as coloured numbers; a code has its colour everywhere.

    Neighbouring ids have unlike colours, as ids have no order. `picture` (C, h, w) is shown beside them. Numbers are
    left out where they would be too small to read.
    """
    codes = codes.cpu()
    height, width = codes.shape
    cell = min(0.42, 6.5 / max(height, width))  # inches
    with rc_context(STYLE):
        panels = 1 if picture is None else 2
        ratios = [width * cell] if picture is None else [height * cell * _aspect(picture), width * cell]
        figure = _figure((sum(ratios) + 0.3 * panels, height * cell + 0.4))
        axes = figure.subplots(1, panels, width_ratios=ratios, squeeze=False)[0]
        if picture is not None:
            axes[0].imshow(_array(picture), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes[0].set_title("picture")
        palette = np.array([_code_colour(code) for code in range(size)])
        axes[-1].imshow(palette[codes.numpy()], interpolation="nearest")
        axes[-1].set_title(f"{height} × {width} codes of {size}")
        points = min(10.0, cell * 72 / (0.75 * max(2, len(str(size - 1)))))
        if points >= 4:
            for i in range(height):
                for j in range(width):
                    axes[-1].text(j, i, str(int(codes[i, j])), ha="center", va="center", fontsize=points, color=INK)
        for axis in axes:
            _bare(axis)
    return figure


def usage_bars(counts: Tensor | Sequence[int]) -> Figure:
    """How often each code of one codebook occurred, the most used first; `counts` (K,)."""
    counts = torch.as_tensor(counts).cpu()
    told = usage(counts)
    tokens, size = told["tokens"], len(counts)
    share = 100 * counts.double().sort(descending=True).values.numpy() / max(tokens, 1)
    with rc_context(STYLE):
        figure = _figure((6.8, 2.6))
        axis = figure.subplots()
        edges = np.arange(size + 1)
        axis.stairs(share, edges, fill=True, color=COLOURS[0], linewidth=0)
        axis.axhline(100 / size, color=COLOURS[1], linewidth=1.2)
        axis.annotate(
            "all used evenly", (size, 100 / size), (0, 3), textcoords="offset points", ha="right", color=COLOURS[1]
        )
        axis.set(xlim=(0, size), ylim=(0, None), xlabel="codes, most used first", ylabel="% of tokens")
        axis.set_title(
            f"{told['used']:,} of {size:,} codes used · perplexity {told['perplexity']:.1f} · {tokens:,} tokens"
        )
    return figure


def curves(rows: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None, columns: int = 2) -> Figure:
    """One panel for each value over the steps, from the rows of metrics.jsonl (step, time, split, values).

    Training is a line (smoothed, the raw one pale behind it), other splits are lines with dots. `names` picks the
    values and their order; by default all that were logged. Raises ValueError when there are none.
    """
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in rows:
        for name, value in row["values"].items():
            if isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, {}).setdefault(row.get("split", "train"), []).append((row["step"], value))
    chosen = [name for name in (names or found) if name in found]
    if not chosen:
        raise ValueError("no values to draw in these rows")
    columns = min(columns, len(chosen))
    lines = math.ceil(len(chosen) / columns)
    with rc_context(STYLE):
        figure = _figure((3.4 * columns, 2.1 * lines + 0.3))
        panels = figure.subplots(lines, columns, squeeze=False).flatten()
        splits = list(dict.fromkeys(split for name in chosen for split in found[name]))
        for axis, name in zip(panels, chosen, strict=False):
            for split, points in found[name].items():
                _curve(axis, split, COLOURS[splits.index(split) % len(COLOURS)], points)
            _leave_out_the_start(axis, [point for points in found[name].values() for point in points])
            axis.set_title(name.replace("_", " "))
            axis.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
            axis.locator_params(axis="x", nbins=5)
        for axis in panels[len(chosen) :]:
            axis.set_visible(False)
        if len(splits) > 1:
            handles = [Line2D([], [], color=COLOURS[i % len(COLOURS)], linewidth=2) for i in range(len(splits))]
            figure.legend(handles, splits, loc="outside upper right", ncols=len(splits))
    return figure


def histogram(groups: Mapping[str, Tensor], label: str, bins: int = 40) -> Figure:
    """The distributions of a few sets of numbers (N,) over one another, each as shares of its own set."""
    values = {name: group.detach().cpu().double().numpy() for name, group in groups.items()}
    # all but the farthest: one outlier should not squeeze the rest into a corner
    low = min(group.min() for group in values.values())
    high = max(np.quantile(group, 0.995) for group in values.values())
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    with rc_context(STYLE):
        figure = _figure((6.8, 2.4))
        axis = figure.subplots()
        for (name, group), colour in zip(values.items(), COLOURS, strict=False):
            share = 100 * np.histogram(group, edges)[0] / len(group)
            axis.stairs(share, edges, fill=True, color=colour, alpha=0.18)
            axis.stairs(share, edges, color=colour, linewidth=1.4, label=f"{name} (median {np.median(group):,.4g})")
        axis.set(xlabel=label, ylabel="% of each", ylim=(0, None), xlim=(edges[0], edges[-1]))
        axis.legend()
    return figure


def _figure(inches: tuple[float, float]) -> Figure:
    figure = Figure(figsize=inches, layout="constrained")
    FigureCanvasAgg(figure)  # draws into memory whatever windows the user's matplotlib would open
    return figure


def _bare(axis: Axes) -> None:
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)


def _curve(axis: Axes, split: str, colour: str, points: Sequence[tuple[int, float]]) -> None:
    steps, values = np.array(points, dtype=np.float64).T
    if split != "train" or len(values) < 30:
        axis.plot(steps, values, color=colour, linewidth=1.4, marker="o" if split != "train" else None, markersize=2.5)
    else:
        axis.plot(steps, values, color=colour, linewidth=0.8, alpha=0.25)
        axis.plot(steps, _smooth(values), color=colour, linewidth=1.5)


def _leave_out_the_start(axis: Axes, points: Sequence[tuple[int, float]]) -> None:
    """Where the first steps tower over all that follows, end the axis above what follows."""
    steps, values = np.array(points, dtype=np.float64).T
    settled = values[steps >= 0.05 * steps.max()]
    span = settled.max() - settled.min()
    if values.max() > settled.max() + span > settled.max():
        axis.set_ylim(top=settled.max() + 0.05 * span)


def _smooth(values: np.ndarray) -> np.ndarray:
    """A centred running mean over about a thirtieth of the curve; shorter at both ends."""
    reach = max(1, len(values) // 60)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    near = np.minimum(reach, np.minimum(at, len(values) - 1 - at))
    return (sums[at + near + 1] - sums[at - near]) / (2 * near + 1)


def _code_colour(code: int) -> tuple[float, float, float]:
    """A light colour on which dark numbers are read; steps of the golden ratio keep neighbours apart."""
    hue, light, strong = ((code * step) % 1 for step in (0.6180339887, 0.7548776662, 0.5698402910))
    return colorsys.hls_to_rgb(hue, 0.70 + 0.12 * light, 0.40 + 0.30 * strong)


def _array(picture: Tensor) -> np.ndarray:
    """(C, H, W) -> uint8 (H, W) or (H, W, 3), alpha on white."""
    return np.asarray(_opaque(picture))


def _aspect(picture: Tensor) -> float:
    return picture.shape[-1] / picture.shape[-2]


def _opaque(picture: Tensor) -> Image.Image:
    image = to_pillow(picture if picture.dtype == torch.uint8 else to_pixels(picture))
    if image.mode in ("LA", "RGBA"):
        white = Image.new("RGBA", image.size, PAPER)
        white.alpha_composite(image.convert("RGBA"))
        return white.convert("L" if image.mode == "LA" else "RGB")
    return image


def _tile(picture: Tensor, scale: int | None) -> Image.Image:
    image = _opaque(picture)
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
) -> Image.Image:
    """Rows of equal tiles on paper: names on the left, captions below, more air between groups of rows."""
    tiles = [tile for _, row in rows for tile in row]
    if not tiles:
        raise ValueError("no pictures to lay out")
    wide, high = max(t.width for t in tiles), max(t.height for t in tiles)
    gap = max(4, wide // 28)
    names = [_fit_text(name, 160) for name, _ in rows if name]
    left = math.ceil(max(_font().getlength(name) for name in names)) + 3 * gap if names else 0
    below = TEXT + 6 if captions else 0
    columns = max(len(row) for _, row in rows)
    air = 3 * gap if group > 1 else 0
    width = left + columns * (wide + gap) - gap
    height = len(rows) * (high + below + gap) - gap + (math.ceil(len(rows) / group) - 1) * air
    colourful = any(tile.mode != "L" for tile in tiles)
    sheet = Image.new("RGB" if colourful or names or captions else "L", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    told = iter(captions or ())
    for i, (name, row) in enumerate(rows):
        top = i * (high + below + gap) + i // group * air
        if name:
            pen.text((left - 2 * gap, top + high / 2), _fit_text(name, 160), INK, _font(), anchor="rm")
        for j, tile in enumerate(row):
            sheet.paste(tile, (left + j * (wide + gap), top))
            if captions:
                text = _fit_text(next(told, ""), wide)
                pen.text((left + j * (wide + gap) + wide / 2, top + high + 3), text, QUIET, _font(), anchor="mt")
    return sheet


def _fit_text(text: str, pixels: int) -> str:
    """The text, or as much of its beginning as fits, with an ellipsis."""
    if _font().getlength(text) <= pixels:
        return text
    while text and _font().getlength(text + "…") > pixels:
        text = text[:-1]
    return text + "…"
