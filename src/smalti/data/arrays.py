"""Batches of examples that are held in memory as they are: cached codes and latents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from smalti.data.batch import Batch, texts_of
from smalti.data.example import Source
from smalti.data.order import indices
from smalti.errors import UserError


@dataclass(frozen=True)
class Held:
    """Examples as they are kept: `values` (V, N, …), V codings of each; `labels` int64 (N,) or None.

    `words` is where texts and questions come from, and `rows` int64 (N,) each example's number there, its place unless
    said. `again` (V, N, …) are the codes of what each coding decodes to.
    """

    values: Tensor
    labels: Tensor | None = None
    rows: Tensor | None = None
    words: Source | None = None
    again: Tensor | None = None

    def __len__(self) -> int:
        return self.values.shape[1]

    def some(self, count: int) -> Held:
        """`count` examples drawn with a fixed seed: a source may be sorted by label."""
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:count]
        labels = None if self.labels is None else self.labels[chosen]
        rows = chosen if self.rows is None else self.rows[chosen]
        again = None if self.again is None else self.again[:, chosen]
        return Held(self.values[:, chosen], labels, rows, self.words, again)

    def batch(self, step: int, rows: Tensor, chosen: Tensor, coding: Tensor | int, seed: int | None) -> Batch:
        """The examples `chosen` (B,); without a seed, the first of each one's texts."""
        values = self.values[coding, chosen]
        x = values.float() if values.is_floating_point() else values.long()  # they may be kept in fewer bits
        again = None if self.again is None else self.again[coding, chosen].long()
        labels = None if self.labels is None else self.labels[chosen]
        if self.words is None:
            return Batch(step, rows, chosen, x, labels, again=again, seed=seed or 0)
        numbers = chosen if self.rows is None else self.rows[chosen]
        texts = texts_of(self.words, numbers, step, rows, seed)
        questions = [self.words.questions(i) for i in numbers.tolist()]
        tell_all = torch.tensor([self.words.tells_all(i) for i in numbers.tolist()], dtype=torch.bool)
        return Batch(step, rows, chosen, x, labels, texts, questions, again, tell_all, seed or 0)


def shuffled(held: Held, batch: int, seed: int, rank: int = 0, ranks: int = 1, start: int = 0) -> Iterator[Batch]:
    """Endless training batches from step `start`, in the order that a Loader would give.

    A pass over the data takes one coding of each example, the next pass the next. Raises UserError when the batch does
    not divide among the ranks.
    """
    if batch % ranks:
        raise UserError(f"a batch of {batch} cannot be shared equally by {ranks} processes")
    share, length = batch // ranks, len(held)
    rows = torch.arange(rank * share, (rank + 1) * share)
    for step in count(start):
        chosen = indices(length, batch, step, seed)[rows]
        coding = (step * batch + rows) // length % len(held.values)
        yield held.batch(step, rows, chosen, coding, seed)


def in_order(held: Held, batch: int, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
    """Every example once, in its first coding; rank r of `ranks` gets every ranks-th, and all where there are fewer."""
    mine = torch.arange(len(held))
    if len(mine) >= ranks:
        mine = mine[rank::ranks]
    for step, chosen in enumerate(mine.split(batch)):
        yield held.batch(step, chosen, chosen, 0, None)
