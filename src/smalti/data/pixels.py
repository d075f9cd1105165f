"""A source's pixels, ready to be taken by number: all in memory, or read by workers ahead of training.

A broken picture is replaced by the next readable one, so the same one stands in for it whatever happened before.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from smalti.data.decoded import decode
from smalti.data.example import Source
from smalti.data.folder import check_broken
from smalti.data.workers import Job, Workers, read_each
from smalti.errors import UserError

KEPT_DECODED = 1 << 30  # bytes: a source this large or smaller is decoded once and kept
FEW = 500  # fewer pictures than this are read sooner by one process than others can start
AHEAD = 3  # steps read ahead of training


class Pixels(ABC):
    """The pixels of a source. `broken`: index -> why that example cannot be read, as far as is known."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.broken: dict[int, str] = {}

    @property
    def broken_names(self) -> list[tuple[str, str]]:
        """(name, reason): what the source knew when it was opened, then what reading found."""
        return [*self.source.broken, *self.source.named(self.broken)]

    @abstractmethod
    def stream(self, requests: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each int64 (B,): the indices taken, others where pictures are broken, and their uint8 (B, C, H, W)."""

    def close(self) -> None:  # noqa: B027
        """Let go of processes."""

    def standin(self, i: int) -> int:
        """The next example after i, round and round, that is not known to be broken."""
        for step in range(1, len(self.source)):
            if (other := (i + step) % len(self.source)) not in self.broken:
                return other
        raise UserError(f"{self.source.name}: every picture is broken")


def open_pixels(source: Source, workers: int | None = None) -> Pixels:
    """The fitting kind of Pixels. `workers` processes read files; None: as many as there are processors, up to 8."""
    pixels = source.pixels()
    if pixels is not None:
        return HeldPixels(source, pixels, {})
    if workers is None:
        workers = 0 if len(source) < FEW else min(8, os.cpu_count() or 1)
    if len(source) * source.signal.channels * int(np.prod(source.signal.shape)) <= KEPT_DECODED:
        return HeldPixels(source, *decode(source, workers))
    return StreamedPixels(source, workers)


class HeldPixels(Pixels):
    """All pictures as one tensor."""

    def __init__(self, source: Source, pixels: Tensor, broken: dict[int, str]) -> None:
        super().__init__(source)
        self.broken = broken
        self.pixels = pixels
        self._taken = torch.arange(len(source))
        for i in broken:
            self._taken[i] = self.standin(i)

    def stream(self, requests: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        for indices in requests:
            taken = self._taken[indices]
            yield taken, self.pixels[taken]


class StreamedPixels(Pixels):
    """Pictures read by workers, some steps ahead of what is asked."""

    def __init__(self, source: Source, workers: int) -> None:
        super().__init__(source)
        self._count = workers
        self._workers = Workers(source, workers)

    def stream(self, requests: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        waiting: deque[tuple[list[int], list[Job]]] = deque()
        for indices in requests:
            wanted = indices.tolist()
            size = -(-len(wanted) // max(1, self._count))
            jobs = [self._workers.submit(wanted[at : at + size]) for at in range(0, len(wanted), size)]
            waiting.append((wanted, jobs))
            if len(waiting) > AHEAD:
                yield self._finish(*waiting.popleft())
        while waiting:
            yield self._finish(*waiting.popleft())

    def close(self) -> None:
        self._workers.close()

    def _finish(self, wanted: list[int], jobs: list[Job]) -> tuple[Tensor, Tensor]:
        taken, pictures = [], []
        for i, (pixels, reason) in zip(wanted, [read for job in jobs for read in job.result()], strict=True):
            while pixels is None:
                self._note(i, reason)
                i = self.standin(i)
                ((pixels, reason),) = read_each(self.source, [i])
            taken.append(i)
            pictures.append(pixels)
        return torch.tensor(taken), torch.from_numpy(np.stack(pictures))

    def _note(self, i: int, reason: str) -> None:
        if i not in self.broken:
            self.broken[i] = reason
            check_broken(self.source.named(self.broken), len(self.source), self.source.name)
