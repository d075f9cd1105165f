"""Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv 1910.07467)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _RMSNorm(torch.autograd.Function):
    """The normalisation with its gradient written out: on a processor the composed one takes twice as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse = _inverse_rms(x, eps)
        normed = x * inverse
        ctx.save_for_backward(normed, inverse, weight)
        return normed * weight.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, inverse, weight = ctx.saved_tensors
        low = weight.to(normed.dtype)
        product = grad * normed
        mean = (product * low).mean(-1, keepdim=True)
        grad_weight = product.sum_to_size(weight.shape).to(weight.dtype)
        return (grad * low).addcmul_(normed, mean, value=-1).mul_(inverse), grad_weight, None


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the mean taken over the last axis; the dtype stays that of x.

    `shape` is the weight's, lined up with the last axes of x: (D,) for one weight a channel, (2, 1, D) for queries and
    keys (B, T, 2, H, D) at once, each with its own.
    """

    def __init__(self, *shape: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))
        self.eps = eps

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """`scale`, if there is one, multiplies the weight: (B, 1, D) for one of each example's own."""
        weight = self.weight if scale is None else self.weight * scale
        if torch.is_grad_enabled():
            return _RMSNorm.apply(x, weight, self.eps)
        return x * _inverse_rms(x, self.eps) * weight.to(x.dtype)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / rms over the last axis, summed in fp32 at least, in the dtype of x."""
    wide = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
    return torch.rsqrt(norm.square() / x.shape[-1] + eps).to(x.dtype)
