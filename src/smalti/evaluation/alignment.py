"""How well pictures and texts find each other, as unit vectors: retrieval among a hundred."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

AMONG = 100
HUNDREDS = 20  # their mean has a standard error of about a percent
SEED = 0


def hundreds(captions: Sequence[str]) -> list[Tensor]:
    """Random choices of AMONG examples whose captions differ (without regard to case), as their places, int64 (n,).

    All HUNDREDS are as large, smaller than AMONG where there are fewer different captions. They depend on the captions
    alone, so that models are asked the same.
    """
    generator, drawn = torch.Generator().manual_seed(SEED), []
    for _ in range(HUNDREDS):
        first: dict[str, int] = {}
        for place in torch.randperm(len(captions), generator=generator).tolist():
            if len(first) < AMONG:
                first.setdefault(captions[place].casefold(), place)
        drawn.append(torch.tensor(list(first.values())))
    return drawn


def recall(pictures: Tensor, texts: Tensor, drawn: Sequence[Tensor]) -> dict[str, float]:
    """The share in [0, 1] of the drawn examples whose text comes first for their picture, and the other way round.

    `pictures` and `texts`: unit vectors (N, D), a pair in each row. Recall at 1, as retrieval is measured (Radford et
    al. 2021, arXiv 2103.00020, table 13), among as few as were drawn.
    """
    fits = [pictures[rows] @ texts[rows].T for rows in drawn]
    both = {"caption_recall_at_1": fits, "picture_recall_at_1": [fit.T for fit in fits]}
    return {name: torch.cat([first(fit) for fit in each]).double().mean().item() for name, each in both.items()}


def first(fit: Tensor) -> Tensor:
    """bool (n,): whether in each row of (n, n) the right one, on the diagonal, is larger than all others."""
    others = fit.masked_fill(torch.eye(len(fit), dtype=torch.bool), -torch.inf)
    return fit.diagonal() > others.max(1).values
