from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from smalti.layers.norm import RMSNorm


def made(width: int, dtype: torch.dtype = torch.float64) -> RMSNorm:
    norm = RMSNorm(width).to(dtype)
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    return norm


@pytest.mark.parametrize("shape", [(3, 8), (2, 5, 8), (2, 3, 4, 6)])
def test_forward_is_the_definition(shape, generator):
    x, norm = torch.randn(shape, generator=generator, dtype=torch.float64) * 3, made(shape[-1])
    expected = x / (x.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)
    with torch.no_grad():  # another way through the code
        torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("shape", [(3, 8), (2, 5, 8), (2, 3, 4, 6)])
def test_the_written_gradient_is_the_composed_one(shape, generator):
    x = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    norm, upstream = made(shape[-1]), torch.randn(shape, generator=generator, dtype=torch.float64)
    ours = torch.autograd.grad(norm(x), (x, norm.weight), upstream)
    composed = F.rms_norm(x, norm.weight.shape, norm.weight, norm.eps)
    theirs = torch.autograd.grad(composed, (x, norm.weight), upstream)
    torch.testing.assert_close(ours, theirs)


def test_the_written_gradient_is_the_numerical_one(generator):
    x, norm = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True), made(5)
    assert torch.autograd.gradcheck(
        lambda x, weight: torch.func.functional_call(norm, {"weight": weight}, (x,)), (x, norm.weight)
    )


def test_a_second_derivative_is_refused_rather_than_wrong(generator):
    x, norm = torch.randn(2, 5, generator=generator, dtype=torch.float64, requires_grad=True), made(5)
    (slope,) = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("training", [False, True])
def test_in_bf16_the_mean_is_summed_in_full(training, generator):
    """4,096 squares added up in bf16 would stop growing at a few hundred."""
    x, norm = (torch.randn(4, 4096, generator=generator) + 3).bfloat16(), made(4096, torch.float32)
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16):
        out = norm(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), norm(x.float()), atol=0.03, rtol=0.02)


@pytest.mark.parametrize("rows", [(2, 1, 6), (6,)])
def test_scale_and_shift_of_each_example(rows, generator):
    x = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    scale, shift = torch.randn(2, *rows, generator=generator, dtype=torch.float64).requires_grad_().unbind(0)
    norm, upstream = made(6), torch.randn(x.shape, generator=generator, dtype=torch.float64)
    composed = x / (x.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * (norm.weight * scale) + shift
    torch.testing.assert_close(norm(x, scale, shift), composed)
    with torch.no_grad():
        torch.testing.assert_close(norm(x, scale, shift), composed)
    inputs = (x, norm.weight, scale, shift)
    ours = torch.autograd.grad(norm(x, scale, shift), inputs, upstream)
    torch.testing.assert_close(ours, torch.autograd.grad(composed, inputs, upstream))


@pytest.mark.parametrize("training", [False, True])
def test_another_dtype_comes_out_and_gradients_keep_theirs(training, generator):
    x = torch.randn(3, 64, generator=generator, requires_grad=True)
    norm, shift = made(64, torch.float32), torch.randn(64, generator=generator, requires_grad=True)
    with torch.set_grad_enabled(training):
        out = norm(x, None, shift, torch.bfloat16)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), norm(x, None, shift), atol=0.05, rtol=0.02)
    if training:
        upstream = torch.randn(x.shape, generator=generator)
        low = torch.autograd.grad(out, (x, norm.weight, shift), upstream.bfloat16())
        full = torch.autograd.grad(norm(x, None, shift), (x, norm.weight, shift), upstream)
        assert all(each.dtype == torch.float32 for each in low)
        torch.testing.assert_close(low, full, atol=0.05, rtol=0.05)


def test_a_row_of_zeros_is_no_division_by_zero():
    norm, x = made(4), torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    norm(x).sum().backward()
    assert norm(x).isfinite().all()
    assert x.grad.isfinite().all()
