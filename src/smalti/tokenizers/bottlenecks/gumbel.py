"""A categorical code by Gumbel-softmax: the discrete VAE.

Jang et al. 2016 (arXiv 1611.01144); as a tokenizer of pictures, Ramesh et al. 2021 (DALL-E, arXiv 2102.12092).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from smalti.config import Config
from smalti.device import full_precision
from smalti.term import Term
from smalti.tokenizers.bottlenecks.base import Bottleneck, Moment, Quantized
from smalti.tokenizers.bottlenecks.spread import Spread
from smalti.tokenizers.bottlenecks.vq import k_means, nearest_code

NOISE = 120  # stream of random numbers


class GumbelConfig(Config):
    """The temperature falls from `hot` to `cold` on a cosine over the first `anneal` of the training.

    `kl` weighs the divergence of each position's distribution from the uniform one (DALL-E's term; at 0 it is left
    out). `spread` weighs the codes' pull towards equal use, which asks nothing of a single position.
    `hard` hands the decoder one code even while training, with the gradient of the soft mixture.
    """

    kind: Literal["gumbel"] = "gumbel"
    codes: int = Field(1024, ge=2, le=1 << 16, description="how many codes the codebook holds")
    dim: int = Field(8, ge=1, description="width of a code")
    hot: float = Field(1.0, gt=0, description="temperature at the start")
    cold: float = Field(0.5, gt=0, description="temperature at the end")
    anneal: float = Field(0.7, gt=0, le=1, description="share of the training over which it falls")
    kl: float = Field(0.0, ge=0, description="weight of the divergence from the uniform distribution, nats")
    spread: float = Field(0.003, ge=0, description="weight of the codes' pull towards equal use, nats")
    hard: bool = False

    def build(self) -> Gumbel:
        return Gumbel(self)


class Gumbel(Bottleneck):
    """(B, N, dim) -> codes (B, N, 1); vectors are mixtures of codes while training.

    A position's logits fall with its squared distances to the codes, times a sharpness that is learned: so the codebook
    serves as the head too, and a code that moves takes its share of the positions with it.
    """

    def __init__(self, config: GumbelConfig) -> None:
        super().__init__()
        self.config = config
        self.in_width = self.out_width = config.dim
        self.codebooks, self.size = 1, config.codes
        self.codebook = nn.Parameter(torch.randn(config.codes, config.dim))
        self.log_sharpness = nn.Parameter(torch.zeros(()))
        self.spread = Spread((config.codes,))

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes.squeeze(-1), self.codebook)

    def logits(self, z: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, codes)."""
        half = 0.5 * self.codebook.square().sum(1)
        return (8 * self.log_sharpness).exp() * (z.float() @ self.codebook.t() - half)

    @torch.no_grad()
    def initialise(self, vectors: Tensor) -> None:
        """A start as soft k-means over real latents: each code as likely as a Gaussian around it says."""
        centroids, _ = k_means(vectors.float(), self.size)
        error = (vectors - centroids[nearest_code(vectors.float(), centroids)]).square().mean()
        error = torch.maximum(error, 1e-4 * vectors.var(correction=0)).clamp_min(1e-6)  # fewer latents than codes
        self.codebook.copy_(centroids)
        self.log_sharpness.copy_(-error.log() / 8)

    def latent(self, z: Tensor) -> Tensor:
        with full_precision(z.device):
            return torch.softmax(self.logits(z), -1) @ self.codebook

    def temperature(self, along: float) -> float:
        """At this share of the training."""
        fallen = 0.5 - 0.5 * math.cos(math.pi * min(1.0, along / self.config.anneal))
        return self.config.hot + (self.config.cold - self.config.hot) * fallen

    def forward(self, z: Tensor, moment: Moment | None = None) -> Quantized:
        with full_precision(z.device):
            logits = self.logits(z)
            codes = logits.max(-1, keepdim=True).indices
            positions, p = codes.numel(), torch.softmax(logits, -1)
            terms = [Term("spread", self.spread.loss(p.flatten(0, -2)), positions, self.config.spread)]
            if self.config.kl:
                entropy = -(p * torch.log_softmax(logits, -1)).sum()
                terms.append(Term("kl", positions * math.log(self.size) - entropy, positions, self.config.kl))
            statistics = self.spread.statistics(codes) if self.training else {}
            if moment is None:
                return Quantized(self.lookup(codes), codes, terms, statistics)
            # the negative logarithm of an exponential number is a Gumbel one
            noise = moment.exponential(NOISE, tuple(logits.shape[1:]), z.device).clamp_min_(1e-20).log_()
            mixture = torch.softmax((logits - noise) / self.temperature(moment.along), -1)
            if self.config.hard:
                one = F.one_hot(mixture.argmax(-1), self.size).to(mixture)
                mixture = mixture + (one - mixture).detach()
            return Quantized(mixture @ self.codebook, codes, terms, statistics)

    def after_step(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        return self.spread.after_step(statistics)
