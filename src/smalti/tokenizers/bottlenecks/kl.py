"""The Gaussian latent of a VAE: reparameterised, held near the standard normal.

Kingma & Welling 2013 (arXiv 1312.6114), section 3.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from smalti.config import Config
from smalti.device import full_precision
from smalti.term import Term
from smalti.tokenizers.bottlenecks.base import Bottleneck, Moment, Quantized

NOISE = 110  # stream of random numbers


class KLConfig(Config):
    """`weight` is the coefficient of the divergence, in nats a latent number, beside the mean squared error a value.

    The ELBO of a Gaussian decoder with variance v has weight 2 v * (latent numbers) / (values of the signal).
    """

    kind: Literal["kl"] = "kl"
    dim: int = Field(8, ge=1, description="latent channels")
    weight: float = Field(1e-3, ge=0, description="of the divergence from the standard normal")

    def build(self) -> KL:
        return KL(self)


class KL(Bottleneck):
    """(B, N, 2 dim), mean and log-variance -> one draw (B, N, dim) while training, the mean otherwise."""

    def __init__(self, config: KLConfig) -> None:
        super().__init__()
        self.config = config
        self.in_width, self.out_width = 2 * config.dim, config.dim
        self.codebooks = self.size = 0

    def posterior(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, each fp32 (B, N, dim). The bounds keep an untrained encoder finite."""
        mean, log_variance = z.float().chunk(2, -1)
        return mean, log_variance.clamp(-30, 20)

    def latent(self, z: Tensor) -> Tensor:
        return self.posterior(z)[0]

    def forward(self, z: Tensor, moment: Moment | None = None) -> Quantized:
        with full_precision(z.device):
            mean, log_variance = self.posterior(z)
            nats = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)  # the paper's appendix B
            vectors = mean
            if moment is not None:
                vectors = mean + (0.5 * log_variance).exp() * moment.normal(NOISE, tuple(mean.shape[1:]), mean.device)
            return Quantized(vectors, None, [Term("kl", nats.sum(), mean.numel(), self.config.weight)])
