"""Batches in their order: shuffled and without end for training, once through for measuring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from types import TracebackType

import torch
from torch import Tensor

from smalti.data.augment import augment
from smalti.data.batch import Batch, texts_of
from smalti.data.example import Source
from smalti.data.image import to_signal
from smalti.data.order import indices
from smalti.data.pixels import open_pixels
from smalti.data.sources import DataConfig
from smalti.errors import UserError


class Loader:
    """Training batches of `batch` examples in all, for step `start`, `start` + 1, …

    Rank r of `ranks` gets rows r·batch/ranks and on. What a step holds is a pure function of (source, config, batch,
    seed, step), whatever was loaded before and however many ranks there are. Iterate it once; close it, or use it as
    a context, to end its processes.
    """

    def __init__(
        self,
        source: Source,
        config: DataConfig,
        batch: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        augment: bool = False,
        start: int = 0,
    ) -> None:
        if batch < 1 or batch % ranks:
            raise UserError(f"a batch of {batch} cannot be shared equally by {ranks} processes")
        self.source = source
        self.config = config
        self.batch = batch
        self.seed = seed
        self.augment = augment
        self.start = start
        share = batch // ranks
        self.rows = torch.arange(rank * share, (rank + 1) * share)
        self._pixels = open_pixels(source, config.workers)

    def __iter__(self) -> Iterator[Batch]:
        requests = (indices(len(self.source), self.batch, step, self.seed)[self.rows] for step in count(self.start))
        try:
            for step, (taken, pixels) in zip(count(self.start), self._pixels.stream(requests), strict=False):
                if self.augment:
                    config = self.config
                    pixels = augment(pixels, self.seed, step, self.rows, config.flip, config.shift)
                yield _batch(self.source, step, self.rows, taken, pixels, self.seed)
        finally:
            self.close()

    @property
    def broken(self) -> list[tuple[str, str]]:
        """(name, reason) of every file found broken so far."""
        return self._pixels.broken_names

    def close(self) -> None:
        self._pixels.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def sweep(source: Source, config: DataConfig, batch: int, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
    """Every example once, in order and as it is, in batches of at most `batch`; broken pictures are left out.

    Rank r of `ranks` gets every ranks-th example, and all of them when there are fewer. `rows` are the examples'
    places in the source, `step` is the batch's number.
    """
    mine = torch.arange(len(source))
    if len(source) >= ranks:
        mine = mine[rank::ranks]
    for step, (taken, pixels) in enumerate(sweep_pixels(source, config, mine.split(batch))):
        if len(taken):
            yield _batch(source, step, taken, taken, pixels)


def sweep_pixels(source: Source, config: DataConfig, asked: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """For each int64 (B,) those of them that can be read, and their uint8 (b, C, H, W); the others are left out."""
    pixels = open_pixels(source, config.workers)
    try:
        for wanted, (taken, found) in zip(asked, pixels.stream(asked), strict=True):
            right = taken == wanted
            yield (taken, found) if bool(right.all()) else (taken[right], found[right])
    finally:
        pixels.close()


def broken_in(source: Source, config: DataConfig) -> list[tuple[str, str]]:
    """(name, reason) of every picture that cannot be read; all of them are read to know. UserError above 5 %."""
    if source.made:
        return []
    pixels = open_pixels(source, config.workers)
    try:
        for _ in pixels.stream(torch.arange(len(source)).split(256)):
            pass
        return pixels.broken_names
    finally:
        pixels.close()


def _batch(source: Source, step: int, rows: Tensor, taken: Tensor, pixels: Tensor, seed: int | None = None) -> Batch:
    """Without a seed, the first of each example's texts."""
    labels = source.label_ids
    texts = texts_of(source, taken, step, rows, seed)
    labelled = None if labels is None else labels[taken]
    return Batch(step, rows, taken, to_signal(pixels), labelled, texts, seed=seed or 0)
