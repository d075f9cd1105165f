"""Scaled dot-product attention, by the way that is fastest where it runs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# up to this many scores a head the products are written out on a processor: torch's fused kernel takes five times as
# long there for short sequences in bf16, above all backward, and is a quarter quicker in fp32 (benchmarks/attention.py)
WRITTEN_OUT = 256 * 256


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """q (B, H, T, D), k and v (B, H, S, D) -> (B, H, T, D).

    mask: bool, True where q may look at k, broadcastable to (B, H, T, S). causal: token t sees those up to t, with the
    last tokens of q and k at the same place. A row that may look at nothing gives zeros.
    """
    length, seen = q.shape[2], k.shape[2]
    may_see_nothing = mask is not None or (causal and length > seen)
    if causal and length > 1:
        lower = torch.ones(length, seen, dtype=torch.bool, device=q.device).tril(seen - length)
        mask = lower if mask is None else mask & lower
    if q.device.type == "cpu" and length > 1 and length * seen <= WRITTEN_OUT:
        out = _written_out(q, k, v, mask)
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if mask is not None and may_see_nothing:
        out = out.masked_fill(~mask.any(-1, keepdim=True), 0)
    return out


def _written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    batch, heads, length, width = q.shape
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    if mask is None:
        scores = torch.bmm(q, k.transpose(1, 2)) * width**-0.5
    else:
        # a large finite number, for a row of -inf would become NaN
        bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, -1e4)
        bias = bias.expand(batch, heads, length, k.shape[1]).flatten(0, 1)
        scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=width**-0.5)
    weights = scores.softmax(-1)  # sums in fp32 inside, also when the scores are bf16
    return torch.bmm(weights, v).unflatten(0, (batch, heads))
