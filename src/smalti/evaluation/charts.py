"""Charts of codes, latents and figures, in the style of the pictures beside them.

They are matplotlib figures that no window ever shows.
"""

from __future__ import annotations

import colorsys
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from torch import Tensor

from smalti.evaluation.codes import usage
from smalti.evaluation.latents import ACTIVE
from smalti.evaluation.plots import INK, PAPER, QUIET, opaque

LINE = "#e4e6ea"
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
SIBLING = re.compile(r"(^|[_./])(\d+|real|made|fake)$")  # the end of a name that has siblings
WIDE, HALF = 6.8, 3.4  # inches: a chart alone, and one of two side by side


def code_grid(codes: Tensor, size: int, picture: Tensor | None = None) -> Figure:
    """The codes of one picture, int64 (H, W), or (Q, H, W) of several codebooks, as coloured numbers in [0, size).

    A code has its colour everywhere; neighbouring ids have unlike colours, as ids have no order. `picture` (C, h, w)
    is shown beside them. Numbers are left out where they would be too small to read.
    """
    books = codes.cpu().view(-1, *codes.shape[-2:])
    height, width = books.shape[1:]
    cell = min(0.42, 6.5 / max(height, width * (1 if len(books) == 1 else 2)))  # inches
    with rc_context(STYLE):
        ratios = [width * cell] * len(books)
        if picture is not None:
            ratios = [height * cell * _aspect(picture), *ratios]
        columns = min(3, len(ratios))
        lines = math.ceil(len(ratios) / columns)
        figure = _figure((sum(ratios[:columns]) + 0.3 * columns, lines * (height * cell + 0.4)))
        axes = list(figure.subplots(lines, columns, width_ratios=ratios[:columns], squeeze=False).flatten())
        for axis in axes:
            _bare(axis)
        if picture is not None:
            axes[0].imshow(np.asarray(opaque(picture)), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.pop(0).set_title("picture")
        points = min(10.0, cell * 72 / (0.75 * max(2, len(str(size - 1)))))
        for q, book in enumerate(books):
            axis, ids = axes[q], book.numpy()
            known, at = np.unique(ids, return_inverse=True)
            palette = np.array([_code_colour(int(code)) for code in known])
            axis.imshow(palette[at.reshape(ids.shape)], interpolation="nearest")
            axis.set_title(f"{height} × {width} codes of {size:,}" if len(books) == 1 else f"codebook {q + 1}")
            if points >= 4:
                for i, j in np.ndindex(height, width):
                    axis.text(j, i, str(ids[i, j]), ha="center", va="center", fontsize=points, color=INK)
    return figure


def usage_bars(counts: Tensor | Sequence[int]) -> Figure:
    """How often each code occurred, the most used first, on a logarithmic scale, beside the uniform rate.

    `counts` (K,) of one codebook, or (Q, K) for a panel each.
    """
    books = torch.as_tensor(counts).cpu()
    books = books.view(-1, books.shape[-1])
    several = len(books) > 1
    with rc_context(STYLE):
        figure, panels = _panels(len(books), (HALF, 2.1) if several else (WIDE, 2.6), 2)
        for q, (axis, each) in enumerate(zip(panels, books, strict=False)):
            told = usage(each)
            tokens, size = told["tokens"], len(each)
            share = 100 * each.double().sort(descending=True).values.numpy() / max(tokens, 1)
            uniform = 100 / size
            floor = 0.5 * min(uniform, 100 / max(tokens, 1))  # below the bar of a code that occurred once
            axis.stairs(share, np.arange(size + 1), baseline=floor, fill=True, color=COLOURS[0], linewidth=0)
            _line_across(axis, uniform, "all used evenly")
            axis.set(xlim=(0, size), xlabel="codes, most used first", ylabel="% of tokens")
            _logarithmic(axis, floor, max(float(share.max()), uniform))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda place, _: f"{place:,.0f}"))
            axis.set_title(
                f"codebook {q + 1}: {told['used']:,} of {size:,} used,\n{size - told['used']:,} unused ·"
                f" perplexity {told['perplexity']:,.1f}"
                if several
                else f"{told['used']:,} of {size:,} codes used, {size - told['used']:,} unused ·"
                f" perplexity {told['perplexity']:,.1f} · {tokens:,} tokens",
                fontsize=9 if several else 10,
            )
    return figure


def rate_distortion(bits: Sequence[float], figures: Mapping[str, Sequence[float]]) -> Figure:
    """A panel for each figure, over the bits a picture that the first 1, 2, … codebooks take."""
    with rc_context(STYLE):
        figure, panels = _panels(len(figures), (HALF, 2.3), 2)
        for axis, (name, values) in zip(panels, figures.items(), strict=False):
            axis.plot(bits, values, color=COLOURS[0], linewidth=1.4, marker="o", markersize=3)
            axis.set(xlabel="bits a picture", xlim=(0, None))
            axis.set_title(name)
    return figure


def unit_bars(variances: Tensor) -> Figure:
    """The variance of each unit's posterior mean (any shape), the largest first, beside the threshold of activity."""
    values = variances.detach().cpu().double().flatten().sort(descending=True).values.numpy()
    active = int((values > ACTIVE).sum())
    with rc_context(STYLE):
        figure = _figure((WIDE, 2.4))
        axis = figure.subplots()
        floor = max(1e-6, 0.5 * min(ACTIVE, float(values.min())))
        axis.stairs(values, np.arange(len(values) + 1), baseline=floor, fill=True, color=COLOURS[0], linewidth=0)
        _line_across(axis, ACTIVE, "active above")
        axis.set(xlim=(0, len(values)), xlabel="latent numbers, most active first", ylabel="variance of the mean")
        _logarithmic(axis, floor, max(float(values.max()), ACTIVE))
        axis.set_title(f"{active:,} of {len(values):,} latent numbers active")
    return figure


def channel_ranges(means: Tensor, deviations: Tensor) -> Figure:
    """Mean and standard deviation of each latent channel, both (D,), over the band of the prior, 0 ± 1."""
    centre, reach = (values.detach().cpu().double().numpy() for values in (means, deviations))
    at = np.arange(1, len(centre) + 1)
    with rc_context(STYLE):
        figure = _figure((WIDE, 2.2))
        axis = figure.subplots()
        axis.axhspan(-1, 1, color=COLOURS[1], alpha=0.12, linewidth=0)
        axis.errorbar(at, centre, reach, fmt="o", color=COLOURS[0], markersize=3, elinewidth=1.2)
        axis.set(xlim=(0.5, len(centre) + 0.5), xlabel="channel", ylabel="mean ± deviation")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_title("latent channels; the band is the prior's")
    return figure


def scatter(points: Tensor, labels: Tensor | None = None, names: Sequence[str] = (), reach: float = 3.0) -> Figure:
    """Points (N, 2), coloured by `labels` int64 (N,), whose `names` stand beside; at least ± `reach` on both axes."""
    places = points.detach().cpu().double().numpy()
    reach = max(reach, 1.05 * float(np.abs(places).max(initial=0)))
    named = labels is not None and len(names) > 0
    ids = labels.cpu().numpy() if labels is not None and named else np.zeros(len(places), dtype=np.int64)
    with rc_context(STYLE):
        figure = _figure((6.2 if named else 4.6, 4.6))
        axis = figure.subplots()
        for group, name in enumerate(names if named else [""]):
            colour = _label_colour(group, len(names)) if named else COLOURS[0]
            xs, ys = places[ids == group].T
            axis.scatter(xs, ys, s=6, color=colour, alpha=0.6, linewidths=0, label=name)
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach), xlabel="first number", ylabel="second number")
        axis.set_aspect("equal")
        axis.grid(True, axis="both")
        if named:
            columns = math.ceil(len(names) / 20)
            axis.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), markerscale=2.5, ncols=columns)
    return figure


def curves(rows: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None, columns: int = 2) -> Figure:
    """One panel for each value over the steps, from the rows of metrics.jsonl (step, time, split, values).

    Training is a line (smoothed, the raw one pale behind it), other splits are lines with dots. Values that differ
    only in their end, a number or real, made and fake, share a panel: codes_used_1 and codes_used_2. `names` picks the
    values and their order; by default all that were logged. Raises ValueError when there are none.
    """
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in rows:
        for name, value in row["values"].items():
            if isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, {}).setdefault(row.get("split", "train"), []).append((row["step"], value))
    chosen: dict[str, list[str]] = {}
    for name in names or found:
        if name in found:
            chosen.setdefault(SIBLING.sub("", name) or "real and fake", []).append(name)
    if not chosen:
        raise ValueError("no values to draw in these rows")
    with rc_context(STYLE):
        figure, panels = _panels(len(chosen), (HALF, 2.1), columns, more=0.3)
        splits = list(dict.fromkeys(split for each in chosen.values() for name in each for split in found[name]))
        for axis, (title, members) in zip(panels, chosen.items(), strict=False):
            if len(members) > 1:
                _siblings(axis, members, [found[name] for name in members])
            else:
                for split, points in found[members[0]].items():
                    _curve(axis, split, COLOURS[splits.index(split) % len(COLOURS)], points)
            _leave_out_the_start(axis, [point for name in members for each in found[name].values() for point in each])
            axis.set_title((title if len(members) > 1 else members[0]).replace("_", " "))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
            axis.locator_params(axis="x", nbins=5)
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
        figure = _figure((WIDE, 2.4))
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


def _panels(count: int, inches: tuple[float, float], columns: int, more: float = 0.0) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, each of that size, in rows of `columns`, and `more` inches of height."""
    columns = min(columns, count)
    lines = math.ceil(count / columns)
    figure = _figure((inches[0] * columns, inches[1] * lines + more))
    panels = list(figure.subplots(lines, columns, squeeze=False).flatten())
    for axis in panels[count:]:
        axis.set_visible(False)
    return figure, panels[:count]


def _line_across(axis: Axes, height: float, name: str) -> None:
    """A line at this height, its name at its right end, legible on bars too."""
    axis.axhline(height, color=COLOURS[1], linewidth=1.2)
    axis.annotate(
        name,
        (1, height),
        (-3, 4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        color=COLOURS[1],
        fontsize=8,
        bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )


def _logarithmic(axis: Axes, floor: float, top: float) -> None:
    axis.set_yscale("log")
    axis.set_ylim(floor, 1.6 * top)
    axis.yaxis.set_major_locator(LogLocator(numticks=6))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="y", which="minor", length=0)


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


def _siblings(axis: Axes, names: Sequence[str], found: Sequence[Mapping[str, Sequence[tuple[int, float]]]]) -> None:
    """Values that belong together, such as those of several codebooks: a line each, from pale to dark."""
    for place, (name, splits) in enumerate(zip(names, found, strict=True)):
        along = place / max(1, len(names) - 1)
        colour = colorsys.hls_to_rgb(0.57, 0.75 - 0.45 * along, 0.5)
        steps, values = np.array(next(iter(splits.values())), dtype=np.float64).T
        axis.plot(steps, _smooth(values), color=colour, linewidth=1.2, label=re.split(r"[_./]", name)[-1])
    axis.legend(fontsize=7, ncols=4, handlelength=1)


def _leave_out_the_start(axis: Axes, points: Sequence[tuple[int, float]]) -> None:
    """Where the first steps tower over all that follows, end the axis above what follows."""
    steps, values = np.array(points, dtype=np.float64).T
    settled = values[steps >= 0.05 * steps.max()]
    span = settled.max() - settled.min()
    if values.max() > settled.max() + span > settled.max():
        axis.set_ylim(values.min() - 0.05 * span, settled.max() + 0.05 * span)


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


def _label_colour(place: int, count: int) -> tuple[float, float, float]:
    """One of `count` colours around the wheel, every second one darker, so that neighbours can be told apart."""
    return colorsys.hls_to_rgb(place / count, 0.38 if place % 2 else 0.56, 0.62)


def _aspect(picture: Tensor) -> float:
    return picture.shape[-1] / picture.shape[-2]
