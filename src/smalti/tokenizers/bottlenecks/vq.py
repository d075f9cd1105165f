"""Vector quantization: the nearest code of a learned codebook (van den Oord et al. 2017, arXiv 1711.00937)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from smalti.config import Config
from smalti.device import full_precision, full_product
from smalti.term import Term
from smalti.tokenizers.bottlenecks.base import Bottleneck, Moment, Quantized, Statistic

CHUNK = 1 << 19  # distances that exist at once: 2 MiB stay in a processor's cache
TILE = 512  # codes that are looked at at once


class VQConfig(Config):
    """`dim` is narrow on purpose: the encoder's last 1x1 product projects to it, and few dimensions keep codes in use.

    `learn` is how the codebook moves: by running means of the vectors that chose each code (`ema`, the paper's appendix
    A.1), by the gradient of its own loss term (`gradient`, the paper's equation 3), or as a frozen Gaussian one seen
    through a learned linear map, which moves all codes at once (`simvq`, Zhu et al. 2024, arXiv 2411.02038).
    `metric`: with `cosine`, latents and codes have length 1 (Yu et al. 2021, arXiv 2110.04627).
    `estimator` carries the gradient past the choice: copied (`straight-through`), or turned and scaled as the latent
    was to become its code (`rotation`, Fifty et al. 2024, arXiv 2410.06424).
    """

    kind: Literal["vq"] = "vq"
    codes: int = Field(512, ge=2, le=1 << 20, description="how many codes the codebook holds")
    dim: int = Field(32, ge=1, description="width of a code")
    metric: Literal["euclidean", "cosine"] = "euclidean"
    learn: Literal["ema", "gradient", "simvq"] = "ema"
    estimator: Literal["straight-through", "rotation"] = "straight-through"
    commitment: float = Field(0.25, ge=0, description="weight of the loss that holds the encoder to its codes")
    decay: float = Field(0.99, gt=0, lt=1, description="how much of the running mean one step keeps")
    revive_every: int = Field(5, ge=0, description="steps between looks for dead codes; 0 never revives")
    revive_below: float = Field(0.1, ge=0, lt=1, description="dead: used less than this share of the uniform rate")

    def build(self) -> VQ:
        return VQ(self)


def nearest_code(vectors: Tensor, codebook: Tensor, chunk: int = CHUNK) -> Tensor:
    """The index of the nearest code by Euclidean distance: (n, D), (K, D) -> (n,) int64.

    The squared norm of the vector is the same for every code and is left out; half the code's norm rides in the
    product. At most `chunk` distances exist at once, of some vectors to some codes.
    """
    half_norms, away = codebook.square().sum(1).mul(0.5).split(TILE), (-codebook).split(TILE)
    found = []
    for part in vectors.split(max(1, chunk // min(TILE, len(codebook)))):
        # min gives the index too, and on a processor in half the time of argmin
        nearest, chosen = full_product(part, away[0], half_norms[0]).min(1)
        for first, (codes, half_norm) in enumerate(zip(away[1:], half_norms[1:], strict=True), 1):
            distance, candidate = full_product(part, codes, half_norm).min(1)
            nearer = distance < nearest
            nearest, chosen = distance.where(nearer, nearest), (candidate + first * TILE).where(nearer, chosen)
        found.append(chosen)
    return found[0] if len(found) == 1 else torch.cat(found)


def k_means(
    vectors: Tensor, count: int, rounds: int = 10, seed: int = 0, spherical: bool = False
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from randomly drawn vectors: centroids (count, D) and how many vectors chose each (count,).

    With `spherical`, centroids are brought to length 1 in every round, as the vectors must be. With fewer vectors than
    centroids some are drawn twice and set apart by a little noise, so that no two codes are equal and revival can take
    over.
    """
    generator = torch.Generator().manual_seed(seed)
    n = len(vectors)
    drawn = torch.cat([torch.randperm(n, generator=generator) for _ in range(-(-count // n))])[:count]
    centroids = vectors[drawn.to(vectors.device)].clone()
    if count > n:
        noise = torch.randn(centroids.shape, generator=generator).to(vectors)
        centroids += 1e-3 * vectors.std(correction=0).clamp_min(1e-6) * noise
    counts = torch.zeros(count, device=vectors.device)
    for _ in range(rounds):
        chosen = nearest_code(vectors, centroids)
        counts = torch.bincount(chosen, minlength=count).to(vectors)
        sums = torch.zeros_like(centroids).index_add_(0, chosen, vectors)
        centroids = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centroids)
        if spherical:
            centroids = F.normalize(centroids, dim=1)
    return centroids, counts


def straight_through(z: Tensor, quantized: Tensor) -> Tensor:
    """The value of `quantized`, with its gradient handed to `z` as it is (Bengio et al. 2013, arXiv 1308.3432)."""
    return z + (quantized - z).detach()


def rotated(z: Tensor, quantized: Tensor) -> Tensor:
    """The value of `quantized`, as `z` (…, D) turned and scaled; the gradient goes back through that turn and scale.

    Both are constants to the gradient (Fifty et al. 2024, section 4.2: a Householder reflection twice). A latent of no
    length has no direction to turn, and goes straight through.
    """
    with torch.no_grad():
        start, end = F.normalize(z, dim=-1), F.normalize(quantized, dim=-1)
        middle = F.normalize(start + end, dim=-1)
        length = z.norm(dim=-1, keepdim=True)
        scale = quantized.norm(dim=-1, keepdim=True) / length.clamp_min(1e-6)
    turned = z - 2 * (z * middle).sum(-1, keepdim=True) * middle + 2 * (z * start).sum(-1, keepdim=True) * end
    return torch.where(length > 1e-6, scale * turned, straight_through(z, quantized))


ESTIMATORS = {"straight-through": straight_through, "rotation": rotated}


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
        self.spherical = config.metric == "cosine"
        if config.learn == "simvq":
            self.map = nn.Linear(config.dim, config.dim)
            start = torch.randn(config.codes, config.dim) * config.dim**-0.5
        else:
            start = torch.empty(config.codes, config.dim).uniform_(-1 / config.codes, 1 / config.codes)
        if config.learn == "gradient":
            self.codebook = nn.Parameter(start)
        else:
            self.register_buffer("codebook", start)
        # running counts and sums, not centroids: a code's mean is then exact however its count moves
        self.register_buffer("counts", torch.ones(config.codes))
        if config.learn == "ema":
            self.register_buffer("sums", start.clone())
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def table(self) -> Tensor:
        """The codes as they are compared and handed on: (K, dim)."""
        codes = self.map(self.codebook) if self.config.learn == "simvq" else self.codebook
        return F.normalize(codes, dim=1) if self.spherical else codes

    def lookup(self, codes: Tensor) -> Tensor:
        with full_precision(codes.device):
            return F.embedding(codes.squeeze(-1), self.table())

    def latent(self, z: Tensor) -> Tensor:
        z = z.float()
        return F.normalize(z, dim=-1) if self.spherical else z

    def forward(self, z: Tensor, moment: Moment | None = None) -> Quantized:
        with full_precision(z.device):
            z = self.latent(z)
            quantized, codes, terms, statistics = self.quantize(z)
            return Quantized(ESTIMATORS[self.config.estimator](z, quantized), codes, terms, statistics)

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor, list[Term], dict[str, Statistic]]:
        """The nearest codes of fp32 (B, N, dim) as vectors and indices, before any estimator, with what they cost."""
        flat, table = z.detach().reshape(-1, z.shape[-1]), self.table()
        chosen = nearest_code(flat, table.detach())
        quantized = F.embedding(chosen.view(z.shape[:-1]), table)
        # taken before the straight-through, after which the difference would be zero
        terms = [Term("commitment", (z - quantized.detach()).square().sum(), z.numel(), self.config.commitment)]
        if self.config.learn != "ema":
            terms.append(Term("codebook", (quantized - z.detach()).square().sum(), z.numel()))
        statistics = self._statistics(z, flat, chosen) if self.training else {}
        return quantized, chosen.view(*z.shape[:-1], 1), terms, statistics

    def _statistics(self, z: Tensor, flat: Tensor, chosen: Tensor) -> dict[str, Statistic]:
        seen = {"counts": Statistic(torch.bincount(chosen, minlength=self.size).to(flat))}
        if self.config.learn == "ema":
            seen["sums"] = Statistic(torch.zeros_like(self.sums).index_add_(0, chosen, flat))
        if self._looks_for_dead(int(self.steps) + 1):
            # the same positions of every row, so that splitting a batch over ranks changes nothing
            drawn = torch.randperm(z.shape[1], generator=self._generator())[: self.candidates_a_row]
            seen["candidates"] = Statistic(z.detach()[:, drawn.to(z.device)].flatten(0, 1), "gather")
        return seen

    def _looks_for_dead(self, step: int) -> bool:
        return self.config.revive_every > 0 and step % self.config.revive_every == 0

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(int(self.steps))

    @torch.no_grad()
    def initialise(self, vectors: Tensor) -> None:
        """Codes from k-means over real latents; sums and counts start together, so the first step moves none away.

        A frozen codebook keeps its codes; its map is given the latents' mean and spread.
        """
        vectors = self.latent(vectors)
        if self.config.learn == "simvq":
            centred = vectors - vectors.mean(0)
            spread = centred.t() @ centred / len(vectors) + 1e-6 * torch.eye(self.in_width, device=vectors.device)
            values, directions = torch.linalg.eigh(spread.double())
            # codes have variance 1 / dim in every direction
            self.map.weight.copy_(directions * (values.clamp_min(0) * self.in_width).sqrt() @ directions.t())
            self.map.bias.copy_(vectors.mean(0))
            return
        centroids, counts = k_means(vectors, self.size, spherical=self.spherical)
        self._place(torch.arange(self.size, device=vectors.device), centroids, counts.clamp_min(1))

    @torch.no_grad()
    def after_step(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        generator = self._generator()
        self.steps += 1
        keep = self.config.decay
        self.counts.mul_(keep).add_(statistics["counts"], alpha=1 - keep)
        if self.config.learn == "ema":
            self.sums.mul_(keep).add_(statistics["sums"], alpha=1 - keep)
            # a code nobody chose keeps its place: its sum and count fade together, until nothing is left of them
            known = self.counts[:, None] > 1e-6
            means = F.normalize(self.sums, dim=1) if self.spherical else self.sums / self.counts[:, None]
            self.codebook.copy_(torch.where(known, means, self.codebook))
        rate = self.counts.sum() / self.size
        dead = (self.counts < self.config.revive_below * rate).nonzero().squeeze(1)
        if len(dead) and self._looks_for_dead(int(self.steps)):
            candidates = statistics["candidates"]
            order = torch.randperm(len(candidates), generator=generator)[: len(dead)].to(dead.device)
            # a revived code starts at the uniform rate: with its old count the next mean would overwrite it
            self._place(dead[: len(order)], candidates[order], rate.expand(len(order)))
        used = (statistics["counts"] > 0).sum()
        return {"codes_used": used.item() / self.size, "codes_dead": float(len(dead))}

    def _place(self, which: Tensor, vectors: Tensor, counts: Tensor) -> None:
        """Put codes where these latents are."""
        self.counts[which] = counts
        if self.config.learn == "simvq":
            # what the map turns into the latent
            there = torch.linalg.lstsq(self.map.weight.double().cpu(), (vectors - self.map.bias).double().cpu().t())
            self.codebook[which] = there.solution.t().to(self.codebook)
            return
        self.codebook.data[which] = vectors
        if self.config.learn == "ema":
            self.sums[which] = vectors * counts[:, None]
