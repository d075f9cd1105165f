"""Light augmentation of pictures, the same for an example wherever and whenever its step is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from smalti.data.order import uniform

# streams of random numbers, one for each decision about an example, apart from those of paradigms: or which caption is
# shown would hang on how much noise is added, and whose class is hidden on where it was moved
FLIP, DOWN, RIGHT, TEXT = 0, 161, 162, 160


def augment(pixels: Tensor, seed: int, step: int, rows: Tensor, flip: bool, shift: int) -> Tensor:
    """(B, C, H, W) -> the same, mirrored left to right at random and moved by up to `shift` pixels, edges repeated.

    `rows` (B,) are the examples' places in the global batch of the step; the choice hangs on (seed, step, row) only.
    """
    if not flip and not shift:
        return pixels
    count, channels, height, width = pixels.shape
    down = torch.arange(height).expand(count, height)
    right = torch.arange(width).expand(count, width)
    if flip:
        mirrored = uniform(seed, step, rows, FLIP) < 0.5
        right = torch.where(mirrored[:, None], right.flip(1), right)
    if shift:
        down = (down + _moves(seed, step, rows, DOWN, shift)).clamp(0, height - 1)
        right = (right + _moves(seed, step, rows, RIGHT, shift)).clamp(0, width - 1)
    places = (down[:, :, None] * width + right[:, None, :]).reshape(count, 1, height * width)
    return pixels.flatten(2).gather(2, places.expand(-1, channels, -1)).reshape(pixels.shape)


def _moves(seed: int, step: int, rows: Tensor, stream: int, shift: int) -> Tensor:
    """int64 (B, 1), each in -shift … shift."""
    return (uniform(seed, step, rows, stream) * (2 * shift + 1)).long()[:, None] - shift
