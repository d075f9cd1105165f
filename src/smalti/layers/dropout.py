"""Dropout (Srivastava et al. 2014) with a cheap mask: torch's own takes a seventh of a training step on a processor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LEVELS = 1 << 16  # a share is a whole number of these


class Dropout(nn.Module):
    """While training, sets a share `p` of the numbers to zero and scales the others up, so that the mean stays.

    Four decisions come from one 64-bit number of torch's generator, so p is rounded to 1 / 65,536.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.dropped = min(round(p * LEVELS), LEVELS - 1)

    def forward(self, x: Tensor) -> Tensor:
        return _Dropout.apply(x, self.dropped) if self.training and self.dropped else x


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int) -> Tensor:
        drawn = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
        drawn = drawn.random_(-(1 << 63), None).view(torch.int16)[: x.numel()].view(x.shape)
        kept = (drawn >= dropped - LEVELS // 2).to(x.dtype).mul_(LEVELS / (LEVELS - dropped))
        ctx.save_for_backward(kept)
        return x * kept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return grad * kept, None
