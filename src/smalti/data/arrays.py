"""Batches of examples that are held in memory as they are: cached codes and latents."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import torch
from torch import Tensor

from smalti.data.batch import Batch
from smalti.data.order import indices
from smalti.errors import UserError


def shuffled(
    values: Tensor,
    labels: Tensor | None,
    batch: int,
    seed: int,
    rank: int = 0,
    ranks: int = 1,
    start: int = 0,
) -> Iterator[Batch]:
    """Endless training batches from step `start`, in the order that a Loader would give.

    values: (V, N, …), V codings of each of N examples; a pass over the data takes one of them, the next pass the next.
    Raises UserError when the batch does not divide among the ranks.
    """
    if batch % ranks:
        raise UserError(f"a batch of {batch} cannot be shared equally by {ranks} processes")
    share, length = batch // ranks, values.shape[1]
    rows = torch.arange(rank * share, (rank + 1) * share)
    for step in count(start):
        chosen = indices(length, batch, step, seed)[rows]
        coding = (step * batch + rows) // length % len(values)
        x = _wide(values[coding, chosen])
        yield Batch(step, rows, chosen, x, None if labels is None else labels[chosen], seed=seed)


def in_order(values: Tensor, labels: Tensor | None, batch: int, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
    """Every example (N, …) once; rank r of `ranks` gets every ranks-th, and all of them when there are fewer."""
    mine = torch.arange(len(values))
    if len(values) >= ranks:
        mine = mine[rank::ranks]
    for step, chosen in enumerate(mine.split(batch)):
        yield Batch(step, chosen, chosen, _wide(values[chosen]), None if labels is None else labels[chosen])


def _wide(values: Tensor) -> Tensor:
    """Codes as int64, latents as fp32: they may be kept in fewer bits."""
    return values.float() if values.is_floating_point() else values.long()
