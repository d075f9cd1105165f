"""Vector quantization: the nearest code of a learned codebook (van den Oord et al. 2017, arXiv 1711.00937)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from smalti.config import Config
from smalti.device import full_precision
from smalti.term import Term
from smalti.tokenizers.bottlenecks.base import Bottleneck, Quantized, Statistic


class VQConfig(Config):
    """`learn` is how the codebook moves: by running means of the vectors that chose each code (`ema`, the paper's
    appendix A.1) or by the gradient of its own loss term (`gradient`, the paper's equation 3)."""

    kind: Literal["vq"] = "vq"
    codes: int = Field(512, ge=2, le=1 << 20, description="how many codes the codebook holds")
    dim: int = Field(32, ge=1, description="width of a code")
    learn: Literal["ema", "gradient"] = "ema"
    commitment: float = Field(0.25, ge=0, description="weight of the loss that holds the encoder to its codes")
    decay: float = Field(0.99, gt=0, lt=1, description="how much of the running mean one step keeps")
    revive_every: int = Field(5, ge=0, description="steps between looks for dead codes; 0 never revives")
    revive_below: float = Field(0.1, ge=0, lt=1, description="dead: used less than this share of the uniform rate")

    def build(self) -> VQ:
        return VQ(self)


def nearest_code(vectors: Tensor, codebook: Tensor, chunk: int = 1 << 22) -> Tensor:
    """The index of the nearest code by Euclidean distance: (n, D), (K, D) -> (n,) int64.

    The squared norm of the vector is the same for every code and is left out; half the code's norm rides in the
    product. At most `chunk` distances exist at once.
    """
    half_norm = codebook.square().sum(1).mul(0.5)
    rows = max(1, chunk // len(codebook))
    columns = codebook.t()
    parts = [torch.addmm(half_norm, part, columns, alpha=-1).argmin(1) for part in vectors.split(rows)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def k_means(vectors: Tensor, count: int, rounds: int = 10, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from randomly drawn vectors: centroids (count, D) and how many vectors chose each (count,).

    With fewer vectors than centroids some are drawn twice and set apart by a little noise, so that no two codes are
    equal and revival can take over.
    """
    generator = torch.Generator().manual_seed(seed)
    n = len(vectors)
    drawn = torch.cat([torch.randperm(n, generator=generator) for _ in range(-(-count // n))])[:count]
    centroids = vectors[drawn.to(vectors.device)].clone()
    if count > n:
        noise = torch.randn(centroids.shape, generator=generator).to(vectors)
        centroids += 1e-3 * vectors.std().clamp_min(1e-6) * noise
    counts = torch.zeros(count, device=vectors.device)
    for _ in range(rounds):
        chosen = nearest_code(vectors, centroids)
        counts = torch.bincount(chosen, minlength=count).to(vectors)
        sums = torch.zeros_like(centroids).index_add_(0, chosen, vectors)
        centroids = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centroids)
    return centroids, counts


class VQ(Bottleneck):
    """(B, N, dim) -> the nearest codes (B, N, 1)."""

    codebook: Tensor
    counts: Tensor
    sums: Tensor
    steps: Tensor
    candidates_a_row = 8  # latents a row offers for revival

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.in_width = self.out_width = config.dim
        self.codebooks, self.size = 1, config.codes
        start = torch.empty(config.codes, config.dim).uniform_(-1 / config.codes, 1 / config.codes)
        if config.learn == "gradient":
            self.codebook = nn.Parameter(start)
        else:
            self.register_buffer("codebook", start)
        # running counts and sums, not centroids: a code's mean is then exact however its count moves
        self.register_buffer("counts", torch.ones(config.codes))
        self.register_buffer("sums", start.clone())
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes.squeeze(-1), self.codebook)

    def forward(self, z: Tensor) -> Quantized:
        with full_precision(z.device):
            z = z.float()
            flat = z.detach().reshape(-1, z.shape[-1])
            chosen = nearest_code(flat, self.codebook.detach())
            codes = chosen.view(*z.shape[:-1], 1)
            quantized = self.lookup(codes)
            # taken before the straight-through, after which the difference would be zero
            terms = [Term("commitment", (z - quantized.detach()).square().sum(), z.numel(), self.config.commitment)]
            if self.config.learn == "gradient":
                terms.append(Term("codebook", (quantized - z.detach()).square().sum(), z.numel()))
            straight_through = z + (quantized - z).detach()
            return Quantized(straight_through, codes, terms, self._statistics(z, flat, chosen) if self.training else {})

    def _statistics(self, z: Tensor, flat: Tensor, chosen: Tensor) -> dict[str, Statistic]:
        counts = torch.bincount(chosen, minlength=self.size).to(flat)
        sums = torch.zeros_like(self.sums).index_add_(0, chosen, flat)
        # the same positions of every row, so that splitting a batch over ranks changes nothing
        drawn = torch.randperm(z.shape[1], generator=self._generator())[: self.candidates_a_row]
        candidates = z.detach()[:, drawn.to(z.device)].flatten(0, 1)
        return {"counts": Statistic(counts), "sums": Statistic(sums), "candidates": Statistic(candidates, "gather")}

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(int(self.steps))

    @torch.no_grad()
    def initialise(self, vectors: Tensor) -> None:
        """Codes from k-means over real latents; sums and counts start together, so the first step moves none away."""
        centroids, counts = k_means(vectors.float(), self.size)
        self._place(torch.arange(self.size, device=vectors.device), centroids, counts.clamp_min(1))

    @torch.no_grad()
    def after_step(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        generator = self._generator()
        self.steps += 1
        keep = self.config.decay
        self.counts.mul_(keep).add_(statistics["counts"], alpha=1 - keep)
        self.sums.mul_(keep).add_(statistics["sums"], alpha=1 - keep)
        if self.config.learn == "ema":
            # a code nobody chose keeps its place: its sum and count fade together, until nothing is left of them
            known = self.counts[:, None] > 1e-6
            self.codebook.copy_(torch.where(known, self.sums / self.counts[:, None], self.codebook))
        rate = self.counts.sum() / self.size
        dead = (self.counts < self.config.revive_below * rate).nonzero().squeeze(1)
        every = self.config.revive_every
        if every and len(dead) and int(self.steps) % every == 0:
            candidates = statistics["candidates"]
            order = torch.randperm(len(candidates), generator=generator)[: len(dead)].to(dead.device)
            # a revived code starts at the uniform rate: with its old count the next mean would overwrite it
            self._place(dead[: len(order)], candidates[order], rate.expand(len(order)))
        used = (statistics["counts"] > 0).sum()
        return {"codes_used": used.item() / self.size, "codes_dead": float(len(dead))}

    def _place(self, which: Tensor, vectors: Tensor, counts: Tensor) -> None:
        self.codebook.data[which] = vectors
        self.counts[which] = counts
        self.sums[which] = vectors * counts[:, None]
