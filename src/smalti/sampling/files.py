"""Pictures from files for a model, and samples into files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import TypeVar

from torch import Tensor
from torch.nn import functional as F

from smalti.checkpoint import saving
from smalti.config import SignalSpec
from smalti.data.folder import SUFFIXES, check_broken
from smalti.data.image import BrokenFile, fit, read_image, to_signal, write_image
from smalti.errors import UserError
from smalti.model import Generator, Model
from smalti.training.log import ProgressLine, say

T = TypeVar("T")


def listed(paths: Sequence[str | Path]) -> list[Path]:
    """The files named, and every picture inside the folders named. Raises UserError when there is nothing."""
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES)
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


def readable(files: Sequence[Path], read: Callable[[Path], T], title: str) -> Iterator[tuple[Path, T]]:
    """Each file and what `read` makes of it; broken ones are named and left out.

    Raises BrokenFile when the only file is broken, UserError when more than 5 % of several are.
    """
    broken: list[tuple[str, str]] = []
    with ProgressLine(title, len(files)) as line:
        for done, file in enumerate(files, 1):
            try:
                yield file, read(file)
            except BrokenFile as error:
                if len(files) == 1:
                    raise
                say(f"left out: {error}")
                broken.append((str(file), error.reason))
                check_broken(broken, len(files), title)
            line.update(done)


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
    names: dict[str, str] = {}  # in lower case first: some file systems tell no difference
    for file in files:
        numbered = (f"{file.stem}{f'_{i}' if i else ''}{suffix}" for i in count())
        name = next(name for name in numbered if name.lower() not in names)
        names[name.lower()] = name
    return list(names.values())


def outputs(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Where in `folder` what comes of each file goes. Raises UserError where a file would itself be overwritten."""
    places = dict(zip(files, (folder / name for name in unique_names(files)), strict=True))
    own = {file.resolve() for file in files}
    for place in places.values():
        if place.resolve() in own:
            raise UserError(f"{place} would be overwritten; choose another --out than the pictures' own folder")
    return places


def same_shape(first: Tensor, second: Tensor, names: tuple[str, str]) -> None:
    """Raises UserError when two pictures differ in size."""
    if first.shape != second.shape:
        sizes = [f"{name} is {x.shape[-1]}×{x.shape[-2]}" for name, x in zip(names, (first, second), strict=True)]
        raise UserError(f"a morph needs two pictures of one size; {' and '.join(sizes)}")
