"""Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv 1910.07467)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _RMSNorm(torch.autograd.Function):
    """The normalisation with its gradient written out: on a processor the composed one takes twice as long.

    What follows the mean runs in the dtype of the result: a product in bf16 has its input without one more pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, shift: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
        inverse = inverse_rms(x, eps)
        normed, weight = (x * inverse).to(dtype), weight.to(dtype)
        ctx.save_for_backward(normed, inverse, weight)
        ctx.shift = None if shift is None else (shift.shape, shift.dtype)
        return normed * weight if shift is None else torch.addcmul(shift.to(dtype), normed, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        normed, inverse, weight = ctx.saved_tensors
        product = grad * normed
        of_shift = None if ctx.shift is None else grad.sum_to_size(ctx.shift[0]).to(ctx.shift[1])
        of_x = norm_slope(grad * weight, product.mul(weight), normed, inverse)
        return of_x, product.sum_to_size(weight.shape).to(inverse.dtype), of_shift, None, None


def norm_slope(grad: Tensor, product: Tensor, normed: Tensor, inverse: Tensor) -> Tensor:
    """The gradient of x, from that of x * inverse and from its product with it, in the dtype of `inverse`."""
    return grad.addcmul_(normed, product.mean(-1, keepdim=True), value=-1).to(inverse.dtype).mul_(inverse)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the mean taken over the last axis."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """x (…, D) -> the same, in another dtype if one is given.

        `scale` multiplies the weight and `shift` is added: (B, 1, D) for one of each example's own.
        """
        weight = self.weight if scale is None else self.weight * scale
        dtype = dtype or x.dtype
        if torch.is_grad_enabled():
            return _RMSNorm.apply(x, weight, shift, self.eps, dtype)
        normed, weight = (x * inverse_rms(x, self.eps)).to(dtype), weight.to(dtype)
        return normed * weight if shift is None else torch.addcmul(shift.to(dtype), normed, weight)


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / rms over the last axis, summed in fp32 at least, in the dtype of x."""
    wide = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
    return torch.rsqrt(norm.square() / x.shape[-1] + eps).to(x.dtype)
