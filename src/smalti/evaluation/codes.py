"""Which codes of a codebook are in use, and how evenly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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

    def result(self) -> dict[str, Any]:
        """All codebooks together, and each under `codebooks` with its counts; ready for JSON.

        Together: `tokens` and `used` are sums, `usage` is used / all codes, `entropy` (bits a token) the mean over
        codebooks, and `perplexity` 2 to that power.
        """
        each = [usage(counts) for counts in self.counts]
        entropy = sum(one["entropy"] for one in each) / len(each)
        return {
            "size": self.size,
            "tokens": sum(one["tokens"] for one in each),
            "used": sum(one["used"] for one in each),
            "usage": sum(one["usage"] for one in each) / len(each),
            "entropy": entropy,
            "perplexity": 2**entropy,
            "codebooks": [{**one, "counts": counts.tolist()} for one, counts in zip(each, self.counts, strict=True)],
        }


def usage(counts: Tensor) -> dict[str, Any]:
    """Figures of one codebook from its counts (K,).

    `tokens` counted, codes `used`, their share `usage` in [0, 1], `entropy` in bits a token, and `perplexity`
    2^entropy: as many codes as, used evenly, would have this entropy (0 when nothing was counted).
    """
    tokens = int(counts.sum())
    used = int((counts > 0).sum())
    share = counts[counts > 0].double() / max(tokens, 1)
    entropy = max(0.0, -(share * share.log2()).sum().item())
    return {
        "tokens": tokens,
        "used": used,
        "usage": used / len(counts),
        "entropy": entropy,
        "perplexity": 2**entropy if tokens else 0.0,
    }
