"""Finite scalar quantization: every dimension rounded to a few levels; no codebook, so none collapses.

Mentzer et al. 2023 (arXiv 2309.15505).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor

from smalti.config import Config
from smalti.device import full_precision
from smalti.term import Term
from smalti.tokenizers.bottlenecks.base import Bottleneck, Moment, Quantized
from smalti.tokenizers.bottlenecks.spread import Spread

SLOPE = 0.8  # of the bound at 0
MOST = 1 << 24  # codes that are told apart


class FSQConfig(Config):
    """`spread` keeps all codes in use where much of the data is alike (blank paper, silence); the paper has none.

    `levels` of each dimension: the codebook is their product. (8, 5, 5, 5) has 1,000 codes, (8, 8, 8, 5, 5, 5) has
    64,000 (the paper's table 1)."""

    kind: Literal["fsq"] = "fsq"
    levels: tuple[PositiveInt, ...] = Field((8, 5, 5, 5), min_length=1, max_length=16)
    spread: float = Field(0.001, ge=0, description="weight of the codes' pull towards equal use, nats")

    @field_validator("levels")
    @classmethod
    def _countable(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if math.prod(levels) > MOST:  # the codes are numbered in fp32
            raise ValueError(f"more than {MOST:,} codes in all; take fewer levels")
        return levels

    def build(self) -> FSQ:
        return FSQ(self)


class FSQ(Bottleneck):
    """(B, N, dimensions) -> codes (B, N, 1) = sum of level_d * product of the sizes before d: the first is fastest.

    Vectors lie in [-1, 1], evenly spaced.
    """

    levels: Tensor
    strides: Tensor
    counts: Tensor
    places: Tensor
    lowest: Tensor
    gaps: Tensor

    def __init__(self, config: FSQConfig) -> None:
        super().__init__()
        self.config = config
        self.in_width = self.out_width = len(config.levels)
        self.codebooks, self.size = 1, math.prod(config.levels)
        strides = [math.prod(config.levels[:d]) for d in range(len(config.levels))]
        self.register_buffer("levels", torch.tensor(config.levels), persistent=False)
        self.spread = Spread(config.levels[::-1])
        self.register_buffer("strides", torch.tensor(strides), persistent=False)
        counts = torch.tensor(config.levels, dtype=torch.float32)
        # a share of 1 still falls into the last cell
        self.register_buffer("counts", counts * (1 - 1e-6), persistent=False)
        self.register_buffer("places", torch.tensor(strides, dtype=torch.float32), persistent=False)
        self.register_buffer("lowest", 1 / counts - 1, persistent=False)
        self.register_buffer("gaps", 2 / counts, persistent=False)

    def latent(self, z: Tensor) -> Tensor:
        """Into (-1, 1). The slope is that which spreads a standard normal almost evenly."""
        return torch.tanh(SLOPE * z.float())

    def forward(self, z: Tensor, moment: Moment | None = None) -> Quantized:
        with full_precision(z.device):
            vectors, codes = _Round.apply(z.float(), self.counts, self.places, self.lowest, self.gaps)
            if not self.config.spread:
                return Quantized(vectors, codes)
            parts = self._soft(self.latent(z).flatten(0, -2))
            terms = [Term("spread", self.spread.loss(*parts), codes.numel(), self.config.spread)]
            return Quantized(vectors, codes, terms, self.spread.statistics(codes) if self.training else {})

    def lookup(self, codes: Tensor) -> Tensor:
        return (2 * (codes // self.strides % self.levels) + 1) / self.levels - 1

    def _soft(self, bounded: Tensor) -> list[Tensor]:
        """How near each level is: distributions (n, levels) of every dimension, the last one first as in the code."""
        places = ((bounded + 1) * 0.5 * self.levels - 0.5).unbind(-1)
        near = [
            torch.softmax(-2 * (place[:, None] - torch.arange(levels, device=place.device)).square(), -1)
            for place, levels in zip(places, self.config.levels, strict=True)
        ]
        return near[::-1]

    def after_step(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        return self.spread.after_step(statistics) if statistics else {}


class _Round(torch.autograd.Function):
    """Bound, round and straight through in one: half of the time of these small products is their bookkeeping."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, levels: Tensor, strides: Tensor, lowest: Tensor, gaps: Tensor
    ) -> tuple[Tensor, Tensor]:
        share = torch.sigmoid(z * (2 * SLOPE))  # (1 + tanh) / 2
        ctx.save_for_backward(share)
        # L levels are L equal cells of (-1, 1), whether L is odd or even
        level = torch.mul(share, levels).floor_()
        codes = (level @ strides).long().unsqueeze(-1)  # exact below MOST
        ctx.mark_non_differentiable(codes)
        return torch.addcmul(lowest, level, gaps), codes

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (share,) = ctx.saved_tensors
        return torch.ops.aten.sigmoid_backward(gradients[0], share).mul_(4 * SLOPE), None, None, None, None
