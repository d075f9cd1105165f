"""What is measured of a tokenizer besides its errors: the use and the cost of its codes, or the spread of its latent.

Both kinds are fed signals, give back reconstructions, and tell their figures at the end.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from smalti.device import autocast
from smalti.evaluation.codes import CodeMeter, rate, rate_of_original
from smalti.evaluation.latents import LatentMeter
from smalti.evaluation.reconstruction import ReconstructionMeter
from smalti.model import Tokenizer
from smalti.tokenizers.autoencoder import to_grid

AT_ONCE = 64  # signals through a continuous tokenizer
TOLD = ("tokens", "used", "usage", "perplexity", "perplexity_share", "entropy")


class CodeFigures:
    """Counts codes, and measures what the first 1, 2, … codebooks alone give back where the bottleneck allows it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.spec = tokenizer, tokenizer.network.codes
        self.meter = CodeMeter(self.spec.size, self.spec.codebooks)
        residual = tokenizer.network.bottleneck.fewer and self.spec.codebooks > 1
        self.first = [ReconstructionMeter() for _ in range(self.spec.codebooks if residual else 0)]

    def rebuild(self, x: Tensor) -> Tensor:
        """Signals (B, C, *space) in [-1, 1] through all codebooks and back."""
        codes = self.tokenizer.encode(x)
        self.meter.update(codes)
        whole = self.tokenizer.decode(codes)
        for q, errors in enumerate(self.first, start=1):
            errors.update(x, self.tokenizer.decode(codes[:, :q]) if q < self.spec.codebooks else whole)
        return whole

    def result(self) -> dict[str, Any]:
        """Figures ready for JSON: sizes, the use of the codes, and bits beside those of the original.

        With several codebooks, `each_codebook` has the use of each ("1", "2", …); with residual codes,
        `first_codebooks` has bits, errors and similarity when only the first q are decoded (q = "1", "2", …).
        """
        used, signal = self.meter.result(), self.tokenizer.signal
        figures: dict[str, Any] = {
            "codes": self.spec.size,
            "codebooks": self.spec.codebooks,
            "codes_a_picture": self.spec.length,
            **{key: used[key] for key in TOLD},
            **rate(self.spec, signal),
            **rate_of_original(signal),
        }
        if self.spec.codebooks > 1:
            figures["each_codebook"] = {
                str(q): {key: one[key] for key in TOLD} for q, one in enumerate(used["codebooks"], start=1)
            }
        if self.first:
            figures["first_codebooks"] = self.by_codebooks()
        return figures

    def by_codebooks(self) -> dict[str, dict[str, float]]:
        """Rate and distortion: for the first q codebooks ("1", "2", …) bits, mse, psnr and ssim; {} if not residual."""
        return {
            str(q): {**rate(self.spec, self.tokenizer.signal, q), **errors.result()}
            for q, errors in enumerate(self.first, start=1)
        }


class LatentFigures:
    """Gathers posterior means, and their divergence from the prior."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.meter = LatentMeter()

    @torch.no_grad()
    def rebuild(self, x: Tensor) -> Tensor:
        """Signals (B, C, *space) in [-1, 1] through the posterior mean and back."""
        network, device = self.tokenizer.network, self.tokenizer.device
        parts = []
        for part in x.split(AT_ONCE):
            with autocast(device):
                rebuilt, seen = network(part.to(device))
            means = to_grid(seen.vectors, tuple(side // network.stride for side in x.shape[2:]))
            # one sum of all units' divergences, whatever it is divided by in the loss
            nats = sum(float(term.sum) for term in seen.terms if term.name == "kl")
            self.meter.update(means, nats)
            parts.append(rebuilt.float().clamp(-1, 1).to(x.device))
        return torch.cat(parts)

    def result(self) -> dict[str, Any]:
        """`latent`: its size, spread, divergence and active units, ready for JSON; see `LatentMeter.result`."""
        return {"latent": self.meter.result()}


def figures_of(tokenizer: Tokenizer) -> CodeFigures | LatentFigures:
    """What suits the tokenizer: codes, or a continuous latent."""
    return LatentFigures(tokenizer) if tokenizer.network.continuous else CodeFigures(tokenizer)
