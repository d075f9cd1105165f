"""Opening a source by its name: a folder of pictures, or a named set, split into train, validation and test."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import lru_cache
from itertools import compress
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from pydantic import Field, PositiveInt

from smalti.config import Config, SignalSpec
from smalti.data.example import TEST_SHARE, Item, MemorySource, Questions, Some, Source, SplitName, held_out
from smalti.data.fetch import cache_dir, obtain
from smalti.data.folder import Folder, FolderSource, read_folder
from smalti.data.image import Fit, fit, recolour
from smalti.data.named import NAMED_SETS, Pictures
from smalti.errors import UserError, nearest

__all__ = ["DataConfig", "Item", "MemorySource", "Source", "SplitName", "describe", "open_source"]


class DataConfig(Config):
    """What to learn from, and how pictures are brought to one shape.

    `source`: a folder or a named set. `shape` (H, W) and `channels`: None for what the source has. `fit`: how a
    picture of other proportions gets into the shape. `flip`, `shift`: light augmentation of training pictures, a
    random mirroring left to right and a random move by up to `shift` pixels, edges repeated. `validation`: the share
    held out where the source has no validation split. `most`: so many training examples at most, drawn with a fixed
    seed; for a set that is made without end, or to see what more of them are worth. `workers`: processes that read
    files, None to choose.
    """

    source: str = ""
    shape: tuple[PositiveInt, PositiveInt] | None = None
    channels: int | None = Field(default=None, ge=1, le=4)
    fit: Fit = "crop"
    flip: bool = False
    shift: int = Field(default=0, ge=0, le=4096)
    validation: float = Field(default=0.05, ge=0, le=0.5)
    most: int | None = Field(default=None, ge=1)
    workers: int | None = Field(default=None, ge=0)


def open_source(config: DataConfig, split: SplitName = "train") -> Source:
    """The examples of one split; fetches a named set that is not on this machine yet.

    Raises UserError when there is no such folder or set, it has no pictures, or the split would be empty.
    """
    if split not in get_args(SplitName):
        raise UserError(f"no split {split!r}; {nearest(str(split), get_args(SplitName))}")
    source = _open_named(config, split) if _is_named(config) else _open_folder(config, split)
    if not len(source):
        why = "data.validation is 0" if config.validation == 0 else "at least two different pictures are needed"
        raise UserError(f"{config.source}: nothing to hold out for the {split} split: {why}")
    if split == "train" and config.most is not None and config.most < len(source):
        chosen = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[: config.most]
        source = Some(source, chosen.sort().values)
    return source


def describe(config: DataConfig) -> dict[str, Any]:
    """What a source is, as plain values: its splits, labels and their counts, shape, licence, what is broken."""
    about: dict[str, Any] = {"source": config.source}
    if _is_named(config):
        named = NAMED_SETS[config.source]
        about |= {"title": named.title, "licence": named.licence, "attribution": named.attribution}
        about["way"] = _read_named(config.source, str(cache_dir()))[1]
    else:
        folder = _read_folder(config)
        sizes = Counter(f"{entry.seen.height}×{entry.seen.width}" for entry in folder.entries)
        about |= {"sizes": dict(sizes.most_common(10)), "different_sizes": len(sizes)}
        about["broken"] = [list(each) for each in folder.broken]
    about["splits"] = {}
    for split in get_args(SplitName):
        try:
            source = open_source(config, split)
        except UserError:
            if split == "train":
                raise
            continue
        ids = source.label_ids
        counts = [] if ids is None else torch.bincount(ids, minlength=len(source.labels)).tolist()
        about["splits"][split] = {
            "pictures": len(source),
            "labels": dict(zip(source.labels, counts, strict=False)),
            "with_text": _with_text(source),
            "fingerprint": source.fingerprint,
        }
        if (artists := source.artist_ids) is not None:
            drawn = torch.bincount(artists, minlength=len(source.artists)).tolist()
            about["splits"][split]["artists"] = dict(zip(source.artists, drawn, strict=True))
        about |= {"channels": source.signal.channels, "shape": list(source.signal.shape)}
    return about


def _with_text(source: Source) -> int:
    """How many examples have a text."""
    if source.made or not source.has_text:
        return len(source) if source.has_text else 0
    return sum(bool(source.text(i)) for i in range(len(source)))


def _is_named(config: DataConfig) -> bool:
    """True for a named set, False for a folder that exists; a folder of a set's name must be given as ./NAME."""
    name = config.source
    if not name:
        raise UserError(f"no data source given: name a folder of pictures, or one of {', '.join(NAMED_SETS)}")
    if name in NAMED_SETS:
        return True
    path = Path(name).expanduser()
    if path.is_dir():
        return False
    if path.exists():
        raise UserError(f"{name} is a file; a data source is a folder of pictures or a named set")
    raise UserError(f"no folder {name}, and no data set of that name; {nearest(name, NAMED_SETS)}")


def _open_folder(config: DataConfig, split: str) -> Source:
    folder = _read_folder(config)
    signal = SignalSpec(channels=config.channels or folder.channels, shape=config.shape or folder.shape)
    return FolderSource(folder, split, folder.splits[split], signal, config.fit)


def _read_folder(config: DataConfig) -> Folder:
    return read_folder(Path(config.source).expanduser(), config.validation)


def _open_named(config: DataConfig, split: str) -> Source:
    named = NAMED_SETS[config.source]
    splits, _ = _read_named(config.source, str(cache_dir()))
    whole = splits.get(split, splits["train"])
    if isinstance(whole, Source):
        return _as_made(whole, config)
    if whole.details:
        chosen = np.array([named.part(detail, config.validation) == split for detail in whole.details])
    elif split == "test":
        chosen = np.ones(len(whole.pixels), dtype=bool)
    else:
        out = held_out([picture.tobytes() for picture in whole.pixels], config.validation)
        chosen = out if split == "validation" else ~out
    pixels, ids = _conform(whole.pixels[chosen], config), torch.from_numpy(whole.labels[chosen])
    details = list(compress(whole.details, chosen))
    asked: list[Questions] = []
    if named.asked is not None:
        asked = [named.asked(detail, named.labels[i]) for detail, i in zip(details, ids.tolist(), strict=True)]
    details = [replace(detail, text=named.told(detail)) for detail in details]
    return MemorySource(config.source, pixels, ids, named.labels, details, named.artists, asked)


def _as_made(source: Source, config: DataConfig) -> Source:
    """A source that is computed, unless the configuration asks for what it cannot be."""
    signal = source.signal
    if (config.shape or signal.shape, config.channels or signal.channels) != (signal.shape, signal.channels):
        size = "×".join(map(str, signal.shape))
        raise UserError(
            f"{source.name}: made as {size} in {signal.channels} channels; leave out data.shape and channels"
        )
    if config.flip:
        raise UserError(f"{source.name}: its texts say what is left and right, so data.flip must be false")
    return source


@lru_cache(maxsize=2)
def _read_named(name: str, cache: str) -> tuple[dict[str, Pictures | Source], str]:
    """The set's splits and the way they came; remembered, since train, validation and test are opened one by one."""
    del cache  # only part of what is remembered by: another cache folder, another set of files
    named = NAMED_SETS[name]
    kept = named.of or name
    contents, way = obtain(kept, NAMED_SETS[kept].files, NAMED_SETS[kept].ways, NAMED_SETS[kept].places)
    splits = {
        split: part if isinstance(part, Source) else Pictures(*part) for split, part in named.read(contents).items()
    }
    whole = splits["train"]
    if "test" not in splits and isinstance(whole, Pictures) and not whole.details:  # details tell the split
        pixels, labels, _ = whole
        out = held_out([picture.tobytes() for picture in pixels], TEST_SHARE)
        splits = {"train": Pictures(pixels[~out], labels[~out]), "test": Pictures(pixels[out], labels[out])}
    return splits, way


def _conform(pixels: np.ndarray, config: DataConfig) -> torch.Tensor:
    """uint8 (N, c, h, w) -> uint8 (N, C, H, W) as the configuration asks; unchanged when it already is that."""
    channels, shape = config.channels or pixels.shape[1], config.shape or pixels.shape[2:]
    if (channels, *shape) == pixels.shape[1:]:
        return torch.from_numpy(pixels)
    return torch.stack([fit(recolour(torch.tensor(picture), channels), shape, config.fit) for picture in pixels])
