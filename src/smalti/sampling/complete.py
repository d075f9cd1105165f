"""Completion: keep part of a real signal's codes and draw the rest anew."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from smalti.config import CodeSpec, Config
from smalti.data.image import read_image
from smalti.errors import UserError
from smalti.model import Generator, Labels


def first_codes(codes: CodeSpec, n: int, keep: float) -> Tensor:
    """A mask bool (n, Q, *grid), True on the first `keep` of the positions in reading order.

    keep: a share in (0, 1), or a whole number of positions from 1 on. Raises UserError outside.
    """
    positions = math.prod(codes.grid)
    if not 0 < keep <= positions or (keep > 1 and keep != int(keep)):
        raise UserError(f"--keep {keep:g} is neither a share below 1 nor a number of positions from 1 to {positions}")
    count = round(keep * positions) if keep < 1 else int(keep)
    if not count:
        raise UserError(f"--keep {keep:g} keeps none of the {positions} positions; --keep 1 keeps one")
    mask = (torch.arange(positions) < count).view(codes.grid)
    return mask.expand(n, codes.codebooks, *codes.grid)


def mask_from_file(path: str | Path, codes: CodeSpec, shape: tuple[int, ...], n: int) -> Tensor:
    """A mask bool (n, Q, *grid) from a PNG of the signal's shape: white keeps, black is drawn anew.

    A code is kept where all of its pixels are. Raises UserError on a picture of another size.
    """
    white = read_image(path, 1) >= 128  # (1, H, W)
    if tuple(white.shape[1:]) != tuple(shape):
        found, wanted = ("×".join(map(str, size)) for size in (white.shape[1:], shape))
        raise UserError(f"the mask {path} is {found}, the model's pictures are {wanted}")
    stride = tuple(side // cells for side, cells in zip(shape, codes.grid, strict=True))
    kept = -F.max_pool2d(-white.float()[None], stride)[0, 0] > 0.5
    if bool(kept.all()):
        raise UserError(f"the mask {path} keeps everything; paint black what is to be drawn anew")
    return kept.expand(n, codes.codebooks, *codes.grid)


def complete(
    generator: Generator,
    x: Tensor,
    mask: Tensor,
    condition: Labels = None,
    seed: int = 0,
    options: Config | None = None,
) -> Tensor:
    """Completions (B, C, *space) of x (B, C, *space): codes under the mask stay, the others are drawn."""
    known = generator.tokenizer.encode(x)
    return generator.sample(len(x), condition, known, mask, seed, options)
