"""Pictures from files for a model, and samples into files."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from smalti.checkpoint import saving
from smalti.config import SignalSpec
from smalti.data.image import fit, read_image, to_signal, write_image
from smalti.errors import UserError
from smalti.model import Generator, Model

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}


def listed(paths: Sequence[str | Path]) -> list[Path]:
    """The files named, and every picture inside the folders named. Raises UserError when there is nothing."""
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(each for each in path.rglob("*") if each.suffix.lower() in PICTURES)
            if not inside:
                raise UserError(f"no pictures in {path}")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"no file {path}")
    if not files:
        raise UserError("no files given; name pictures or folders of pictures")
    return files


def read_signal(path: str | Path, signal: SignalSpec) -> Tensor:
    """A picture at its own size, in the model's channels: (C, H, W) in [-1, 1]."""
    return to_signal(read_image(path, signal.channels))


def read_fitted(path: str | Path, model: Model) -> Tensor:
    """A picture in the shape the model was trained on, fitted as its training data was: (C, H, W) in [-1, 1]."""
    pixels = read_image(path, model.signal.channels)
    height, width = model.signal.shape
    return to_signal(fit(pixels, (height, width), model.recipe.data.fit))


def padded(x: Tensor, stride: int) -> Tensor:
    """(C, H, W) with its last row and column repeated until both sides divide by the stride."""
    height, width = x.shape[-2:]
    return F.pad(x[None], (0, -width % stride, 0, -height % stride), mode="replicate")[0]


def slug(name: str) -> str:
    """A label as part of a file name: lower case, every run of other characters than letters and digits one hyphen."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "sample"


def write_samples(
    x: Tensor, folder: Path, model: Generator, seed: int, label: str | None = None, told: dict[str, str] | None = None
) -> list[Path]:
    """One file a sample, named by its label and index, with recipe, seed and index in the PNG's text fields."""
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, picture in enumerate(x):
        path = folder / f"{slug(label) if label else 'sample'}_{index:05d}.png"
        text = {
            "smalti:recipe": json.dumps(model.recipe.model_dump(mode="json")),
            "smalti:model": model.sha256,
            "smalti:seed": str(seed),
            "smalti:index": str(index),
            **({"smalti:label": label} if label else {}),
            **(told or {}),
        }
        write_picture(path, picture, text)
        paths.append(path)
    return paths


def write_picture(path: Path, x: Tensor, text: dict[str, str] | None = None) -> None:
    """Write (C, H, W) in [-1, 1] as PNG, with a full disk said in words."""
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, x, text)


def unique_names(files: Sequence[Path], suffix: str = ".png") -> list[str]:
    """An output name for each file; the second of two equal stems is numbered."""
    taken: dict[str, int] = {}
    names = []
    for file in files:
        count = taken.get(file.stem, 0)
        taken[file.stem] = count + 1
        names.append(f"{file.stem}{f'_{count}' if count else ''}{suffix}")
    return names


def same_shape(first: Tensor, second: Tensor, names: tuple[str, str]) -> None:
    """Raises UserError when two pictures differ in size."""
    if first.shape != second.shape:
        sizes = [f"{name} is {x.shape[-1]}×{x.shape[-2]}" for name, x in zip(names, (first, second), strict=True)]
        raise UserError(f"a morph needs two pictures of one size; {' and '.join(sizes)}")


def stacked(files: Sequence[Path], model: Model) -> Tensor:
    """Files fitted to the model's shape, (N, C, H, W)."""
    return torch.stack([read_fitted(file, model) for file in files])
