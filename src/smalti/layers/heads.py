"""Queries, keys and values as attention wants them: normalised, turned by their positions, laid out head by head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from smalti.layers.norm import inverse_rms, norm_slope
from smalti.layers.rope import rotate


class Heads(nn.Module):
    """qkv (B, T, 3, H, D) -> queries, keys, values (B, H, T, D), each in a block of memory of its own.

    Queries and keys are divided by their rms and multiplied by a weight (Henry et al. 2020, arXiv 2010.04245), then
    turned (`smalti.layers.rope`). It is one operation with its gradient written out, for done one by one its parts read
    and write everything three times as often.
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 1, width))
        self.eps = eps

    def forward(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """cos, sin: (T, D) or (B, T, D), as `rotations` gives them."""
        if torch.is_grad_enabled():
            return _Heads.apply(qkv, self.weight, cos, sin, self.eps)
        both, v, _, _ = _split(qkv, self.weight, cos, sin, self.eps)
        return both[0], both[1], v


def turned_heads(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same without the normalisation."""
    q, k, v = qkv.unbind(2)
    return rotate(q, cos, sin).transpose(1, 2), rotate(k, cos, sin).transpose(1, 2), v.transpose(1, 2)


class _Heads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        both, v, normed, inverse = _split(qkv, weight, cos, sin, eps)
        ctx.save_for_backward(normed, inverse, weight, *(each.unsqueeze(-3).to(qkv.dtype) for each in (cos, sin)))
        return both[0], both[1], v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        normed, inverse, weight, cos, sin = ctx.saved_tensors
        rows, heads, length, width = grads[2].shape
        of_qkv = grads[2].new_empty(rows, length, 3, heads, width)
        by_head, of_weight, low = of_qkv.permute(2, 0, 3, 1, 4), torch.empty_like(weight), weight.to(normed.dtype)
        by_head[2].copy_(grads[2])
        for i in range(2):
            grad = _turned(grads[i] * cos, grads[i], sin.roll(width // 2, -1))  # turned back
            product = grad * normed[i]
            of_weight[i, 0] = product.sum((0, 1, 2))
            by_head[i].copy_(norm_slope(grad.mul_(low[i]), product.mul_(low[i]), normed[i], inverse[i]))
        return of_qkv, of_weight, None, None, None


def _split(qkv: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries and keys (2, B, H, T, D), values (B, H, T, D); and of the former the normalised and 1 / rms."""
    by_head = qkv.permute(2, 0, 3, 1, 4)
    both, half = by_head[:2], qkv.shape[-1] // 2
    inverse = inverse_rms(both, eps)
    normed = torch.mul(both, inverse, out=both.new_empty(both.shape))
    # the weight and the turn are one product
    weight, cos, sin = weight[:, None, None], cos.unsqueeze(-3), sin.unsqueeze(-3)
    turned = _turned(normed * (weight * cos).to(qkv.dtype), normed, (weight.roll(half, -1) * sin).to(qkv.dtype))
    return turned, by_head[2].contiguous(), normed, inverse


def _turned(x: Tensor, other: Tensor, sin: Tensor) -> Tensor:
    """x plus, in place, the other half of `other` times the sines."""
    half = x.shape[-1] // 2
    x[..., :half].addcmul_(other[..., half:], sin[..., :half])
    x[..., half:].addcmul_(other[..., :half], sin[..., half:])
    return x
