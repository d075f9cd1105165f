"""Which codes of a codebook are in use, how evenly, and how many bits they take."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from smalti.config import CodeSpec, SignalSpec

EACH_VALUE = 8  # bits of a value in a picture's file


class CodeMeter:
    """Counts codes, each codebook on its own. A share in use means little without the number of tokens counted."""

    def __init__(self, size: int, codebooks: int = 1) -> None:
        self.size = size
        self.counts = torch.zeros(codebooks, size, dtype=torch.int64)

    def update(self, codes: Tensor) -> None:
        """Add int64 codes (B, Q, *grid) in [0, size). Raises ValueError for another Q or a code outside."""
        codebooks = len(self.counts)
        if codes.ndim < 2 or codes.shape[1] != codebooks:
            raise ValueError(f"codes are (B, {codebooks}, *grid) here, not {tuple(codes.shape)}")
        if not codes.numel():
            return
        if codes.min() < 0 or codes.max() >= self.size:
            raise ValueError(f"codes reach from {codes.min()} to {codes.max()}, outside [0, {self.size})")
        # one bincount for all codebooks: codebook q counts in its own stretch of the line
        line = codes.transpose(0, 1).flatten(1) + self.size * torch.arange(codebooks, device=codes.device)[:, None]
        self.counts += torch.bincount(line.flatten(), minlength=self.counts.numel()).view_as(self.counts).cpu()

    def used(self, codebook: int = 0) -> Tensor:
        """The codes that occurred, int64, in order."""
        return self.counts[codebook].nonzero().flatten()

    def most_used(self, codebook: int = 0, most: int | None = None) -> Tensor:
        """The codes that occurred, the most used first, at most so many: int64; equals stand in order."""
        order = self.counts[codebook].argsort(descending=True, stable=True)
        return order[: int((self.counts[codebook] > 0).sum())][:most]

    def result(self) -> dict[str, Any]:
        """All codebooks together, and each under `codebooks` with its used codes and all counts; ready for JSON.

        Together: `tokens` and `used` are sums, `usage` is used / all codes, `entropy` (bits a token) the mean over
        codebooks, `perplexity` 2 to that power, and `perplexity_share` its share of the codebook's size.
        """
        each = [usage(counts) for counts in self.counts]
        entropy = sum(one["entropy"] for one in each) / len(each)
        perplexity = 2**entropy if self.counts.any() else 0.0
        return {
            "size": self.size,
            "tokens": sum(one["tokens"] for one in each),
            "used": sum(one["used"] for one in each),
            "usage": sum(one["usage"] for one in each) / len(each),
            "entropy": entropy,
            "perplexity": perplexity,
            "perplexity_share": perplexity / self.size,
            "codebooks": [
                {**one, "used_codes": self.used(q).tolist(), "counts": self.counts[q].tolist()}
                for q, one in enumerate(each)
            ],
        }


def usage(counts: Tensor) -> dict[str, Any]:
    """Figures of one codebook from its counts (K,).

    `tokens` counted, codes `used`, their share `usage` in [0, 1], `entropy` in bits a token, `perplexity` 2^entropy:
    as many codes as, used evenly, would have this entropy (0 when nothing was counted), and `perplexity_share`, that
    over K.
    """
    tokens = int(counts.sum())
    used = int((counts > 0).sum())
    share = counts[counts > 0].double() / max(tokens, 1)
    entropy = max(0.0, -(share * share.log2()).sum().item())
    perplexity = 2**entropy if tokens else 0.0
    return {
        "tokens": tokens,
        "used": used,
        "usage": used / len(counts),
        "entropy": entropy,
        "perplexity": perplexity,
        "perplexity_share": perplexity / len(counts),
    }


def rate(codes: CodeSpec, signal: SignalSpec, codebooks: int | None = None) -> dict[str, float]:
    """What the first `codebooks` codes of each position take, every code counted at log2 of its codebook's size.

    `bits_a_picture`, and `bits_a_pixel`: that over the places of the signal, whatever its channels.
    """
    bits = (codebooks or codes.codebooks) * math.prod(codes.grid) * math.log2(codes.size)
    return {"bits_a_picture": bits, "bits_a_pixel": bits / math.prod(signal.shape)}


def rate_of_original(signal: SignalSpec) -> dict[str, int]:
    """What the signal itself takes at 8 bits a value: `bits_a_picture_of_original`, `bits_a_pixel_of_original`."""
    bits = signal.channels * EACH_VALUE
    return {"bits_a_picture_of_original": bits * math.prod(signal.shape), "bits_a_pixel_of_original": bits}
