"""Watching a picture come about: the way from nothing to the whole, as a GIF or as a strip."""

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
from smalti.paradigms.base import Progress, untold

GREY = 0.0  # what has not been chosen yet
IN_A_STRIP = 10  # frames
MOST = 120  # frames of an animation; of longer ways every so many


def frames_of(generator: Generator, trajectory: list[Tensor]) -> Tensor:
    """Frames (T, B, C, H, W) of a model's states (B, *shape), the finished one last.

    Codes that have not been chosen yet are shown grey; those that have look as they will among the others.
    """
    return torch.stack([_shown(generator, state, trajectory[-1]) for state in trajectory])


def _shown(generator: Generator, state: Tensor, last: Tensor) -> Tensor:
    if generator.reads != "codes":
        return generator.outwards(state)
    x = generator.outwards(torch.where(state >= 0, state, last))
    chosen = F.interpolate((state >= 0).all(1, keepdim=True).float(), size=x.shape[2:], mode="nearest")
    return x * chosen + GREY * (1 - chosen)


def animate_samples(
    generator: Generator,
    n: int,
    condition: Labels,
    seed: int,
    options: Config | None,
    path: Path,
    progress: Progress = untold,
) -> None:
    """Write how n samples come about: a GIF of them side by side, or a PNG with a strip for each.

    Raises UserError on a name that ends otherwise.
    """
    kind = animation_kind(path)
    way: list[Tensor] = []
    generator.draw(n, condition, seed=seed, options=options, trajectory=way, progress=progress)
    chosen = _spread(len(way), IN_A_STRIP if kind == ".png" else MOST)
    frames = frames_of(generator, [way[step] for step in chosen])
    if kind == ".gif":
        write_gif(frames, path)
        return
    sheet = torch.cat([torch.cat(list(picture), -1) for picture in frames.transpose(0, 1)], -2)
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _enlarged(sheet, frames.shape[-1]).save(path, optimize=True)


def animation_kind(path: Path) -> str:
    """`.gif` or `.png`. Raises UserError on a name that ends otherwise."""
    kind = path.suffix.lower()
    if kind not in (".gif", ".png"):
        raise UserError(f"{path}: an animation is a GIF or a strip in a PNG, so the name must end in .gif or .png")
    return kind


def _spread(length: int, most: int) -> list[int]:
    """Up to `most` of so many steps, evenly spread, the first and the last among them."""
    if length <= most:
        return list(range(length))
    return [round(i * (length - 1) / (most - 1)) for i in range(most)]


def _enlarged(row: Tensor, side: int) -> Image.Image:
    """A picture (C, H, W), small ones enlarged by a whole number."""
    image, scale = to_pillow(to_pixels(row)).convert("RGB"), max(1, 56 // side)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def write_gif(frames: Tensor, path: Path, milliseconds: int = 60, rest: int = 1500) -> None:
    """Write frames (T, B, C, H, W) in [-1, 1], the B pictures of a frame side by side."""
    rows = [torch.cat(list(frame), -1) for frame in frames]
    images = [_enlarged(row, row.shape[-2]) for row in rows]
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
