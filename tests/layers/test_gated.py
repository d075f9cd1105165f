from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from smalti.layers.gated import gated_sum, swiglu


def test_swiglu_is_the_definition_and_its_gradient_the_composed_one(generator):
    x = torch.randn(2, 3, 10, generator=generator, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    composed = F.silu(x[..., :5]) * x[..., 5:]
    torch.testing.assert_close(swiglu(x), composed)
    with torch.no_grad():  # another way through the code
        torch.testing.assert_close(swiglu(x), composed)
    torch.testing.assert_close(torch.autograd.grad(swiglu(x), x, upstream), torch.autograd.grad(composed, x, upstream))


@pytest.mark.parametrize("length", [1, 4])
def test_a_gated_sum_is_the_definition_and_its_gradient_the_composed_one(length, generator):
    x, change = torch.randn(2, 3, 4, 6, generator=generator, dtype=torch.float64).requires_grad_().unbind(0)
    gate = torch.randn(3, length, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    composed = x + gate * change
    torch.testing.assert_close(gated_sum(x, change, gate), composed)
    with torch.no_grad():
        torch.testing.assert_close(gated_sum(x, change, gate), composed)
    inputs = (x, change, gate)
    ours = torch.autograd.grad(gated_sum(*inputs), inputs, upstream)
    torch.testing.assert_close(ours, torch.autograd.grad(composed, inputs, upstream))


def test_a_change_in_bf16_is_added_in_full(generator):
    """The sum stays fp32: what bf16 would round away of x is still there."""
    x, change = torch.full((1, 2, 3), 256.125), torch.full((1, 2, 3), 1.0, dtype=torch.bfloat16)
    change.requires_grad_()
    out = gated_sum(x, change, torch.ones(1, 1, 3))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, torch.full((1, 2, 3), 257.125))
    (slope,) = torch.autograd.grad(out.sum(), change)
    assert slope.dtype == torch.bfloat16
