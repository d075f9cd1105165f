"""Lookup-free quantization: the sign of every dimension is a bit of the code; there is no codebook to look up.

Yu et al. 2023 (MAGVIT-v2, arXiv 2310.05737), section 3.1; on the unit sphere, Zhao et al. 2024 (BSQ, arXiv 2406.07548).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from smalti.config import Config
from smalti.device import full_precision
from smalti.term import Term
from smalti.tokenizers.bottlenecks.base import Bottleneck, Moment, Quantized, Statistic
from smalti.tokenizers.bottlenecks.spread import Spread
from smalti.tokenizers.bottlenecks.vq import straight_through


class LFQConfig(Config):
    """`bits` make 2^bits codes. `spherical` brings latents to length 1 and codes to ±1/√bits (BSQ).

    Two entropies (equation 6): `certain` makes each position sure of its bits, `spread` makes the codes equally common.
    `temperature` is that of the soft assignment both are taken on. `spread` is multiplied by `early` at the start,
    falling to 1 over the first tenth of the training.
    """

    kind: Literal["lfq"] = "lfq"
    bits: int = Field(10, ge=1, le=24)
    spherical: bool = False
    certain: float = Field(0.0005, ge=0, description="weight of each position's entropy, nats")
    spread: float = Field(0.01, ge=0, description="weight of the codes' pull towards equal use, nats")
    early: float = Field(2.0, ge=1)
    temperature: float = Field(2.0, gt=0)
    commitment: float = Field(0.02, ge=0, description="weight of the loss that holds the encoder to its codes")

    def build(self) -> LFQ:
        return LFQ(self)


class LFQ(Bottleneck):
    """(B, N, bits) -> codes (B, N, 1) = sum of bit_d * 2^d: the first dimension is the lowest bit."""

    places: Tensor

    def __init__(self, config: LFQConfig) -> None:
        super().__init__()
        self.config = config
        self.in_width = self.out_width = config.bits
        self.codebooks, self.size = 1, 1 << config.bits
        self.scale = config.bits**-0.5 if config.spherical else 1.0
        self.register_buffer("places", 1 << torch.arange(config.bits), persistent=False)
        self.spread = Spread((2,) * config.bits)

    def latent(self, z: Tensor) -> Tensor:
        z = z.float()
        return F.normalize(z, dim=-1) if self.config.spherical else z

    def lookup(self, codes: Tensor) -> Tensor:
        return self._vectors((codes & self.places) > 0)

    def _vectors(self, bits: Tensor) -> Tensor:
        return (2 * bits.float() - 1) * self.scale

    def forward(self, z: Tensor, moment: Moment | None = None) -> Quantized:
        with full_precision(z.device):
            z = self.latent(z)
            bits = z > 0
            codes = (bits * self.places).sum(-1, keepdim=True)
            vectors = self._vectors(bits)
            commitment = Term("commitment", (z - vectors).square().sum(), z.numel(), self.config.commitment)
            # how likely each bit is 1, by the distance to ±scale: a softmax over both codes' squared distances
            logit = z.flatten(0, -2) * (4 * self.scale / self.config.temperature)
            on, off = torch.sigmoid(logit), torch.sigmoid(-logit)
            doubt = -(on * F.logsigmoid(logit) + off * F.logsigmoid(-logit)).sum()
            parts = torch.stack([off, on], -1).unbind(1)[::-1]  # the highest bit first, as in the code
            positions = codes.numel()
            early = 1.0 if moment is None else 1 + (self.config.early - 1) * max(0.0, 1 - 10 * moment.along)
            terms = [
                commitment,
                Term("doubt", doubt, positions, self.config.certain),
                Term("spread", self.spread.loss(*parts), positions, self.config.spread * early),
            ]
            statistics: dict[str, Statistic] = self.spread.statistics(codes) if self.training else {}
            return Quantized(straight_through(z, vectors), codes, terms, statistics)

    def after_step(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        return self.spread.after_step(statistics)
