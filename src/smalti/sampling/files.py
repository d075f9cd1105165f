"""Pictures from files for a model, and samples into files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path, PurePosixPath
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from smalti.checkpoint import saving
from smalti.config import SignalSpec
from smalti.data.folder import SUFFIXES, check_broken
from smalti.data.image import BrokenFile, fit, read_image, read_text, to_signal, write_image
from smalti.errors import UserError
from smalti.model import Generator, Model
from smalti.paradigms.base import Progress
from smalti.training.log import ProgressLine, say

T = TypeVar("T")

LONGEST_SLUG = 80  # bytes
PATIENCE = 2.0  # seconds that nobody minds waiting without a word


def listed(paths: Sequence[str | Path]) -> list[Path]:
    """The files named, and every picture inside the folders named. Raises UserError when there is nothing."""
    return list(named(paths))


def named(paths: Sequence[str | Path]) -> dict[Path, str]:
    """Each file of `listed`, once, and its name: its path inside the folder that was given, with forward slashes."""
    names: dict[Path, str] = {}
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file())
            if not inside:
                raise UserError(f"no pictures in {path}")
            for each in inside:
                names.setdefault(each, each.relative_to(path).as_posix())
        elif path.is_file():
            names.setdefault(path, path.name)
        else:
            raise UserError(f"no file {path}")
    if not names:
        raise UserError("no files given; name pictures or folders of pictures")
    return names


def readable(files: Sequence[Path], read: Callable[[Path], T], title: str) -> Iterator[tuple[Path, T]]:
    """Each file and what `read` makes of it; broken ones are named and left out.

    Raises BrokenFile when the only file is broken, UserError when more than 5 % of several are.
    """
    broken: list[tuple[str, str]] = []
    with ProgressLine(title, len(files), after=PATIENCE) as line:
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


def remade(
    model: Model, files: Sequence[str | Path], folder: Path, change: Callable[[Tensor, Progress], Tensor]
) -> Iterator[Path]:
    """Pictures read as the model reads them, changed all at once, and written into a folder: where each one went.

    change: (B, C, *space) in [-1, 1], and whom to tell of its steps -> the same shape. Raises UserError as `listed`,
    `readable` and `spare` do.
    """
    paths = listed(files)
    places = outputs(paths, folder)
    whole = dict(readable(paths, lambda path: read_fitted(path, model), "read"))
    with drawing(len(whole)) as line:
        changed = change(torch.stack(list(whole.values())), line.told)
    for path, picture in zip(whole, changed, strict=True):
        write_picture(places[path], picture, {"smalti:model": model.sha256})
        yield places[path]


def drawing(n: int) -> ProgressLine:
    """How far the steps of n pictures are, where they take long enough to ask."""
    return ProgressLine(f"steps of {n:,} pictures", n, after=PATIENCE)


def padded(x: Tensor, stride: int) -> Tensor:
    """(C, H, W) with its last row and column repeated until both sides divide by the stride."""
    height, width = x.shape[-2:]
    if height % stride == width % stride == 0:
        return x  # which may be large
    return F.pad(x[None], (0, -width % stride, 0, -height % stride), mode="replicate")[0]


def slug(name: str) -> str:
    """A label or a prompt as part of a file name: lower case, every run of other characters than letters and digits, of
    any script, one hyphen, and not too long for any disk. What has neither is told apart by its hash.
    """
    letters = re.sub(r"[\W_]+", "-", name.lower()).strip("-")
    letters = letters.encode()[:LONGEST_SLUG].decode(errors="ignore").rstrip("-")
    return letters or f"sample-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"


def sample_path(folder: Path, index: int, asked_for: str | None = None) -> Path:
    """Where a sample goes: its name is the label or prompt it was asked for by, and its index."""
    return folder / f"{slug(asked_for) if asked_for else 'sample'}_{index:05d}.png"


def write_samples(
    pictures: Iterable[Tensor],
    folder: Path,
    model: Model,
    seed: int,
    asked_for: str | None = None,
    told: dict[str, str] | None = None,
) -> Iterator[Path]:
    """One file a sample (C, H, W), as soon as it is there, at its `sample_path`: where each one went.

    What it was asked for by, its index, recipe and seed stand in the PNG's text fields. Raises UserError as `spare`.
    """
    kind = "prompt" if isinstance(model, Generator) and model.words else "label"
    text = {
        "smalti:recipe": json.dumps(model.recipe.model_dump(mode="json")),
        "smalti:model": model.sha256,
        "smalti:seed": str(seed),
        **({f"smalti:{kind}": asked_for} if asked_for else {}),
        **(told or {}),
    }
    for index, picture in enumerate(pictures):
        path = sample_path(folder, index, asked_for)
        spare([path])
        write_picture(path, picture, {**text, "smalti:index": str(index)})
        yield path


def write_picture(path: Path, x: Tensor, text: dict[str, str] | None = None) -> None:
    """Write (C, H, W) in [-1, 1] as PNG, with a full disk said in words."""
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, x, text)


def written_here(path: Path) -> bool:
    """Whether a file is a PNG that smalti wrote, by its text fields."""
    try:
        return "smalti:model" in read_text(path)
    except BrokenFile:
        return False


def unique_names(names: Sequence[str], suffix: str = ".png") -> list[str]:
    """An output name for each name; folders in it stay, and the second of two equal stems is numbered."""
    taken: set[str] = set()  # in lower case: some file systems tell no difference
    found = []
    for name in map(PurePosixPath, names):
        for i in count():
            other = name.with_name(f"{name.stem}{f'_{i}' if i else ''}{suffix}").as_posix()
            if other.lower() not in taken:
                break
        taken.add(other.lower())
        found.append(other)
    return found


def outputs(files: Sequence[Path] | Mapping[Path, str], folder: Path) -> dict[Path, Path]:
    """Where in `folder` what comes of each file goes, as `named` names it or by its bare name.

    Raises UserError as `spare` does.
    """
    names = list(files.values()) if isinstance(files, Mapping) else [file.name for file in files]
    places = dict(zip(files, (folder / name for name in unique_names(names)), strict=True))
    spare(places.values(), files)
    return places


def spare(places: Iterable[Path], files: Iterable[Path] = ()) -> None:
    """Raises UserError where writing would replace one of the `files`, or a picture that smalti did not write."""
    own = {file.resolve() for file in files}
    for place in places:
        if place.resolve() in own:
            raise UserError(f"{place} would be overwritten; choose another --out than the pictures' own folder")
        if place.is_file() and not written_here(place):
            raise UserError(f"{place} would be overwritten, and smalti did not write it; choose another --out")


def same_shape(first: Tensor, second: Tensor, names: tuple[str, str]) -> None:
    """Raises UserError when two pictures differ in size."""
    if first.shape != second.shape:
        sizes = [f"{name} is {x.shape[-1]}×{x.shape[-2]}" for name, x in zip(names, (first, second), strict=True)]
        raise UserError(f"a morph needs two pictures of one size; {' and '.join(sizes)}")
