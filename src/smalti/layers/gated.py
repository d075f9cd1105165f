"""Products of activations with what opens and shuts them, their gradients written out to read and write less."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def swiglu(gate_up: Tensor) -> Tensor:
    """(…, 2 * D), gate and value side by side -> silu(gate) * value (…, D) (Shazeer 2020, arXiv 2002.05202)."""
    if torch.is_grad_enabled():
        return _SwiGLU.apply(gate_up)
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate).mul_(up)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        opened = F.silu(gate)
        ctx.save_for_backward(gate_up, opened)
        return opened * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        gate_up, opened = ctx.saved_tensors
        of_both = torch.empty_like(gate_up)
        (gate, up), (of_gate, of_up) = gate_up.chunk(2, -1), of_both.chunk(2, -1)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=of_gate)
        torch.mul(grad, opened, out=of_up)
        return of_both


def gated_sum(x: Tensor, change: Tensor, gate: Tensor) -> Tensor:
    """x + gate * change: x and change (B, T, D), of which change may be of a lower dtype; gate (B, 1 or T, D)."""
    if torch.is_grad_enabled():
        return _GatedSum.apply(x, change, gate)
    return torch.addcmul(x, change.to(x.dtype), gate.to(x.dtype))


class _GatedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(change, gate)
        return torch.addcmul(x, change.to(x.dtype), gate.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        change, gate = ctx.saved_tensors
        low = grad.to(change.dtype)
        return grad, low * gate.to(low.dtype), (low * change).sum_to_size(gate.shape).to(gate.dtype)
