"""Large signals in tiles, each with as much around it as its results depend on: memory stays bounded.

Networks that normalise per position and attend to nothing far away give a tile what they give the whole. At the
signal's own border a tile ends there too, so that kernels see the same zeros behind it. What may differ is rounding, as
products over other shapes may be summed in another order:

- fp32: latents and samples agree within 1e-4 (3e-6 was measured), so codes differ only where two are equally near.
- bf16: equal on the processor it was measured on. A device that sums in another order may move a result as far as bf16
  is from fp32 anyway: there samples differed by up to 0.07, and a few codes in a hundred.

Beside what goes in and comes out, a network 128 wide took 0.4 to 0.8 GB for 4096 x 4096 pixels and the same for
8192 x 8192; one 256 wide took 1 GB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from torch import Tensor

MOST = 1 << 20  # samples of the signal that a network sees at once
LEAST = 4  # a tile keeps at least so many margins along each axis, or most of the work would be margin


@dataclass(frozen=True)
class Tile:
    """A box of a grid, each field one slice an axis: what a network sees, what of that is kept, and where it goes."""

    seen: tuple[slice, ...]
    kept: tuple[slice, ...]
    place: tuple[slice, ...]


def tiles(grid: Sequence[int], margin: int, most: int) -> list[Tile]:
    """Boxes whose kept parts are the grid, each once.

    Each sees `margin` positions around what is kept, as far as the grid goes, and at most `most` positions in all; more
    only where that would leave it less than four margins to keep along an axis.
    """
    axes = [_along(side, seen, margin) for side, seen in zip(grid, _sides(grid, most), strict=True)]
    return [Tile(*zip(*cuts, strict=True)) for cuts in product(*axes)]


def in_tiles(
    function: Callable[[Tensor], Tensor],
    values: Tensor,
    *,
    given: int,
    made: int,
    margin: int,
    rows: int,
) -> Tensor:
    """function(values), a few rows or one tile at a time: (B, C, *grid x given) -> (B, D, *grid x made).

    One of `given` and `made` is 1, the other how many samples make one position of the grid along an axis: an encoder
    is given many and makes one. `margin` is in positions. At most `rows` rows and `MOST` samples are seen at once.
    """
    space = values.shape[2:]
    if not space or any(side % given for side in space):
        return function(values)  # which says what is wrong
    grid = [side // given for side in space]
    at_once = max(1, MOST // max(given, made) ** len(grid))
    boxes = tiles(grid, margin, at_once)
    rows = max(1, min(rows, at_once // max(1, math.prod(grid))))
    if len(values) <= rows and len(boxes) == 1:
        return function(values)
    whole: Tensor | None = None
    for start in range(0, max(1, len(values)), rows):
        batch = values[start : start + rows]
        for box in boxes:
            part = function(batch[_scaled(box.seen, given)])
            if whole is None:
                whole = part.new_empty(len(values), part.shape[1], *(side * made for side in grid))
            kept = part[_scaled(box.kept, made)]
            whole[start : start + rows][_scaled(box.place, made)] = kept
    assert whole is not None
    return whole


def _sides(grid: Sequence[int], most: int) -> list[int]:
    """How many positions a tile may see along each axis: a cube, longer where other axes are short."""
    sides = list(grid)
    left = most
    by_length = sorted(range(len(grid)), key=lambda axis: grid[axis])
    for count, axis in zip(range(len(grid), 0, -1), by_length, strict=True):
        sides[axis] = max(1, min(grid[axis], int(left ** (1 / count) + 1e-9)))
        left = max(1, left // sides[axis])
    return sides


def _along(side: int, seen: int, margin: int) -> list[tuple[slice, slice, slice]]:
    """One axis cut into parts of nearly one length: (seen, kept within it, place)."""
    if side <= seen:
        return [(slice(0, side), slice(0, side), slice(0, side))]
    length = max(1, LEAST * margin, seen - 2 * margin)
    count = -(-side // length)
    cuts = [side * i // count for i in range(count + 1)]
    parts = []
    for start, end in pairwise(cuts):
        first, last = max(0, start - margin), min(side, end + margin)
        parts.append((slice(first, last), slice(start - first, end - first), slice(start, end)))
    return parts


def _scaled(slices: Sequence[slice], factor: int) -> tuple[slice, ...]:
    """The slices of a grid for a tensor (B, C, *grid x factor)."""
    return slice(None), slice(None), *(slice(each.start * factor, each.stop * factor) for each in slices)
