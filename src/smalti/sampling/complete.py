"""Completion: keep part of a real signal, as the model works on it, and draw the rest anew."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from smalti.config import Config
from smalti.data.image import read_image
from smalti.errors import UserError
from smalti.model import Generator, Labels
from smalti.paradigms.base import Progress, untold


def first_part(shape: tuple[int, ...], n: int, keep: float) -> Tensor:
    """A mask bool (n, *shape), True on the first `keep` of the positions in reading order.

    shape: (Q, *grid) of codes, or as a model's `shape` says. keep: a share in (0, 1), or a whole number of positions
    from 1 on. Raises UserError outside, and where all would be kept.
    """
    grid = shape[1:]
    positions = math.prod(grid)
    if not 0 < keep <= positions or (keep > 1 and keep != int(keep)):
        raise UserError(f"--keep {keep:g} is neither a share below 1 nor a number of positions from 1 to {positions}")
    count = round(keep * positions) if keep < 1 else int(keep)
    if not count:
        raise UserError(f"--keep {keep:g} keeps none of the {positions} positions; --keep 1 keeps one")
    if count == positions:
        raise UserError(f"--keep {keep:g} keeps all of the {positions} positions, and nothing is left to draw")
    mask = (torch.arange(positions) < count).view(grid)
    return mask.expand(n, *shape)


def mask_from_file(path: str | Path, shape: tuple[int, ...], space: tuple[int, ...], n: int) -> Tensor:
    """A mask bool (n, *shape) from a PNG of the signal's own size `space`: white keeps, black is drawn anew.

    A position of the grid is kept where all of its pixels are. Raises UserError on a picture of another size, on one
    that leaves nothing to draw, and on one that keeps nothing.
    """
    white = read_image(path, 1) >= 128  # (1, H, W)
    if tuple(white.shape[1:]) != tuple(space):
        found, wanted = ("×".join(map(str, size)) for size in (white.shape[1:], space))
        raise UserError(f"the mask {path} is {found}, the model's pictures are {wanted}")
    stride = tuple(side // cells for side, cells in zip(space, shape[1:], strict=True))
    kept = -F.max_pool2d(-white.float()[None], stride)[0, 0] > 0.5
    if bool(kept.all()):
        raise UserError(f"the mask {path} keeps everything; paint black what is to be drawn anew")
    if not bool(kept.any()):
        whole = "pixel" if max(stride) == 1 else f"square of {'×'.join(map(str, stride))} pixels"
        raise UserError(f"the mask {path} keeps nothing, for no {whole} is white; `smalti sample` draws from nothing")
    return kept.expand(n, *shape)


def complete(
    generator: Generator,
    x: Tensor,
    mask: Tensor,
    condition: Labels = None,
    seed: int = 0,
    options: Config | None = None,
    progress: Progress = untold,
) -> Tensor:
    """Completions (B, C, *space) of x (B, C, *space): what is under the mask stays, the rest is drawn.

    mask: bool (B, *generator.shape).
    """
    return generator.sample(len(x), condition, generator.inwards(x), mask, seed, options, progress)
