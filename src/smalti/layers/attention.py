"""Scaled dot-product attention, by the way that is fastest where it runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
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
    batch, heads = q.shape[:2]
    bias = None
    if mask is not None:
        # a large finite number, for a row of -inf would become NaN
        bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, -1e4)
        # a mask that is the same for all queries stays small: the product spreads it out
        bias = bias.expand(batch, heads, -1, k.shape[2]).flatten(0, 1)
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    out = _Products.apply(q, k, v, bias) if torch.is_grad_enabled() else torch.bmm(_weights(q, k, bias), v)
    return out.unflatten(0, (batch, heads))


class _Products(torch.autograd.Function):
    """q, k, v (N, T or S, D) and a bias (N, T or 1, S) or None -> (N, T, D); backward, products carry the scale too."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        weights = _weights(q, k, bias)
        ctx.save_for_backward(q, k, v, weights)
        return torch.bmm(weights, v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        of_weights = torch.bmm(grad, v.transpose(1, 2))
        of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        scale = q.shape[-1] ** -0.5
        of_q, of_k = _scaled(of_scores, k, scale), _scaled(of_scores.transpose(1, 2), q, scale)
        return of_q, of_k, torch.bmm(weights.transpose(1, 2), grad), None


def _weights(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """The shares (N, T, S) of attention; sums are fp32 inside, also of bf16."""
    return _scaled(q, k.transpose(1, 2), q.shape[-1] ** -0.5, bias).softmax(-1)


def _scaled(a: Tensor, b: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """scale * a @ b + bias, in one operation."""
    if bias is None:
        return torch.baddbmm(a.new_empty(1), a, b, beta=0, alpha=scale)  # what is added counts for nothing
    return torch.baddbmm(bias, a, b, alpha=scale)
