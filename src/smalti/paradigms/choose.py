"""From logits to a choice: temperature, top-k, top-p, and a draw that depends on its own number alone."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from smalti.config import Config


class ChoiceConfig(Config):
    """How a token is chosen. Temperature 0 takes the likeliest; None switches a limit off."""

    temperature: float = Field(1.0, ge=0)
    top_k: int | None = Field(None, ge=1, description="only the k likeliest")
    top_p: float | None = Field(None, gt=0, le=1, description="only the likeliest that together reach p")


def limited(logits: Tensor, config: ChoiceConfig) -> Tensor:
    """Logits (B, K) with temperature taken and all that top-k and top-p leave out at -inf.

    Top-p keeps the smallest set of likeliest tokens whose probability reaches p (Holtzman et al. 2019,
    arXiv 1904.09751), at least one. Equal logits at top-k's edge all stay.
    """
    logits = logits / config.temperature if config.temperature != 1 else logits
    if config.top_k is not None and config.top_k < logits.shape[-1]:
        edge = logits.topk(config.top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < edge, -torch.inf)
    if config.top_p is not None and config.top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        probability = ordered.softmax(-1)
        before = probability.cumsum(-1) - probability
        left_out = torch.empty_like(before, dtype=torch.bool).scatter_(-1, order, before >= config.top_p)
        logits = logits.masked_fill(left_out, -torch.inf)
    return logits


def choose(logits: Tensor, uniform: Tensor, config: ChoiceConfig) -> Tensor:
    """One token for each row: logits (B, K), uniform (B,) in [0, 1) -> (B,) int64.

    The draw is in float64, where no token's probability is rounded away.
    """
    if config.temperature == 0:
        return logits.argmax(-1)
    return drawn(limited(logits.double(), config).softmax(-1), uniform)


def drawn(probability: Tensor, uniform: Tensor) -> Tensor:
    """The column at which the cumulative probability (B, K), float64, passes uniform (B,): (B,) int64."""
    cumulative = probability.cumsum(-1)
    target = uniform.to(cumulative).unsqueeze(-1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp_max(probability.shape[-1] - 1)
