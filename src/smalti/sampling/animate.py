"""Watching a picture being laid: a GIF of the way from nothing to the whole."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from smalti.checkpoint import saving
from smalti.config import Config
from smalti.data.image import to_pillow, to_pixels
from smalti.errors import UserError
from smalti.model import Generator, Labels

GREY = 0.0  # what has not been laid yet


def laid_so_far(generator: Generator, codes: Tensor) -> Tensor:
    """Frames (T + 1, B, C, H, W) of codes int64 (B, Q, *grid) as a next-token model lays them, position by position.

    What has not been chosen yet is shown grey.
    """
    x = generator.tokenizer.decode(codes)
    grid = codes.shape[2:]
    positions = grid.numel()
    frames = []
    for count in range(positions + 1):
        laid = (torch.arange(positions) < count).view(1, 1, *grid).float()
        shown = F.interpolate(laid, size=x.shape[2:], mode="nearest")
        frames.append(x * shown + GREY * (1 - shown))
    return torch.stack(frames)


def animate_samples(
    generator: Generator, n: int, condition: Labels, seed: int, options: Config | None, path: Path
) -> None:
    """Write the laying of n samples, side by side, as a GIF that rests on the finished pictures."""
    if path.suffix.lower() != ".gif":
        raise UserError(f"{path}: an animation is a GIF, so the name must end in .gif")
    codes = generator.sample_codes(n, condition, seed=seed, options=options)
    write_gif(laid_so_far(generator, codes), path)


def write_gif(frames: Tensor, path: Path, milliseconds: int = 60, rest: int = 1500) -> None:
    """Write frames (T, B, C, H, W) in [-1, 1], the B pictures of a frame side by side."""
    rows = [torch.cat(list(frame), -1) for frame in frames]
    scale = max(1, 56 // rows[0].shape[-2])
    images = [to_pillow(to_pixels(row)).convert("RGB") for row in rows]
    images = [i.resize((i.width * scale, i.height * scale), Image.Resampling.NEAREST) for i in images]
    whole = io.BytesIO()
    images[0].save(
        whole,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=[milliseconds] * (len(images) - 1) + [rest],
        loop=0,
    )
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(whole.getvalue())
