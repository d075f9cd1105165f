"""Residual vector quantization: each codebook codes what the ones before it left over.

Zeghidour et al. 2021 (SoundStream, arXiv 2107.03312), section III-C.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from smalti.device import full_precision
from smalti.term import Term
from smalti.tokenizers.bottlenecks.base import Bottleneck, Moment, Quantized, Statistic
from smalti.tokenizers.bottlenecks.vq import ESTIMATORS, VQ, VQConfig

DROP, STAGES = 100, 101  # streams of random numbers


class RVQConfig(VQConfig):
    """`stages` codebooks of `codes` each; the other settings are every stage's.

    `dropout`: the share of training examples that are given only the first 1 … stages codebooks, their number drawn
    evenly, so that one model serves every bitrate.
    """

    kind: Literal["rvq"] = "rvq"  # type: ignore[assignment]
    metric: Literal["euclidean"] = "euclidean"  # what is left over has no direction alone
    stages: int = Field(8, ge=1, le=64, description="how many codebooks")
    dropout: float = Field(0.0, ge=0, le=1, description="share of examples trained on fewer stages")

    def build(self) -> RVQ:  # type: ignore[override]
        return RVQ(self)


class RVQ(Bottleneck):
    """(B, N, dim) -> codes (B, N, stages); the vectors are the sum of all stages' codes."""

    fewer = True

    def __init__(self, config: RVQConfig) -> None:
        super().__init__()
        self.config = config
        self.in_width = self.out_width = config.dim
        self.codebooks, self.size = config.stages, config.codes
        self.stages = nn.ModuleList(VQ(config) for _ in range(config.stages))

    def _each(self) -> list[VQ]:
        return [stage for stage in self.stages if isinstance(stage, VQ)]

    def lookup(self, codes: Tensor) -> Tensor:
        vectors = [stage.lookup(codes[..., q : q + 1]) for q, stage in enumerate(self._each()[: codes.shape[-1]])]
        return torch.stack(vectors).sum(0)

    def latent(self, z: Tensor) -> Tensor:
        return z.float()

    def forward(self, z: Tensor, moment: Moment | None = None) -> Quantized:
        with full_precision(z.device):
            z = z.float()
            depth = self._depth(len(z), moment).to(z.device)
            total = torch.zeros_like(z)
            codes: list[Tensor] = []
            sums: dict[str, Tensor] = {}
            coefficients: dict[str, float] = {}
            statistics: dict[str, Statistic] = {}
            for q, stage in enumerate(self._each()):
                # every stage keeps its own pull on the encoder; what earlier stages took away carries no gradient
                residual = z - total
                given = depth > q
                whole = bool(given.all())
                quantized, chosen, terms, seen = stage.quantize(residual if whole else residual[given])
                for term in terms:
                    sums[term.name] = sums.get(term.name, 0.0) + term.sum
                    coefficients[term.name] = term.coefficient
                statistics.update({f"{q}.{name}": statistic for name, statistic in seen.items()})
                if whole:
                    total = total + quantized.detach()
                    codes.append(chosen)
                else:
                    total = total.index_add(0, given.nonzero().squeeze(1), quantized.detach())
                    codes.append(chosen.new_zeros(*z.shape[:-1], 1).index_copy(0, given.nonzero().squeeze(1), chosen))
            # counted as one: every stage adds its error over the same numbers
            terms = [Term(name, value, z.numel(), coefficients[name]) for name, value in sums.items()]
            # one estimator on the sum: one on each stage would multiply the encoder's gradient by the stages
            return Quantized(ESTIMATORS[self.config.estimator](z, total), torch.cat(codes, -1), terms, statistics)

    def _depth(self, rows: int, moment: Moment | None) -> Tensor:
        """How many stages each example is given, (B,)."""
        full = torch.full((rows,), len(self.stages))
        if moment is None or not self.config.dropout:
            return full
        drawn = 1 + (moment.one(STAGES) * len(self.stages)).long()
        return torch.where(moment.one(DROP) < self.config.dropout, drawn, full)

    @torch.no_grad()
    def initialise(self, vectors: Tensor) -> None:
        """Every stage from what the stages before it leave over of real latents."""
        residual = vectors.float()
        for stage in self._each():
            stage.initialise(residual)
            residual = residual - stage.quantize(residual[None])[0][0]

    def after_step(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        mine: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for name, value in statistics.items():
            stage, _, key = name.partition(".")
            mine[int(stage)][key] = value
        each = [stage.after_step(mine[q]) for q, stage in enumerate(self._each())]
        return {
            "codes_used": sum(one["codes_used"] for one in each) / len(each),
            "codes_used_least": min(one["codes_used"] for one in each),
            "codes_dead": sum(one["codes_dead"] for one in each),
        }
