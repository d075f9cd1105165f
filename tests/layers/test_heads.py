from __future__ import annotations

import pytest
import torch
from torch import Tensor

from smalti.layers.heads import Heads
from smalti.layers.rope import rotate, rotations


def made(generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Heads:
    heads = Heads(8).to(dtype)
    torch.nn.init.normal_(heads.weight, generator=generator)
    return heads


def one_by_one(qkv: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor) -> list[Tensor]:
    """Each of the three by the definitions: (B, H, T, D)."""
    q, k, v = qkv.unbind(2)
    ready = [
        rotate(x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * own, cos, sin)
        for x, own in zip((q, k), weight, strict=True)
    ]
    return [x.transpose(1, 2) for x in (*ready, v)]


@pytest.fixture(params=["the same places", "places of their own"])
def turn(request, generator) -> tuple[Tensor, Tensor]:
    shape = (5, 2) if request.param == "the same places" else (2, 5, 2)
    cos, sin = rotations(torch.randint(0, 9, shape, generator=generator), 8)
    return cos.double(), sin.double()


def test_all_three_are_the_definition(turn, generator):
    qkv, heads = torch.randn(2, 5, 3, 4, 8, generator=generator, dtype=torch.float64), made(generator)
    expected = one_by_one(qkv, heads.weight, heads.eps, *turn)
    torch.testing.assert_close(list(heads(qkv, *turn)), expected)
    with torch.no_grad():  # another way through the code
        found = heads(qkv, *turn)
    torch.testing.assert_close(list(found), expected)
    assert all(each.is_contiguous() for each in found)


def test_the_written_gradient_is_the_composed_one(turn, generator):
    qkv = torch.randn(2, 5, 3, 4, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    heads, upstream = made(generator), torch.randn(3, 2, 4, 5, 8, generator=generator, dtype=torch.float64).unbind(0)
    ours = torch.autograd.grad(heads(qkv, *turn), (qkv, heads.weight), upstream)
    composed = one_by_one(qkv, heads.weight, heads.eps, *turn)
    torch.testing.assert_close(ours, torch.autograd.grad(composed, (qkv, heads.weight), upstream))


@pytest.mark.parametrize("training", [False, True])
def test_in_bf16_near_the_full_precision(training, generator):
    qkv, heads = torch.randn(2, 5, 3, 4, 8, generator=generator), made(generator, torch.float32)
    turn = rotations(torch.arange(5)[:, None], 8)
    with torch.set_grad_enabled(training):
        low = heads(qkv.bfloat16(), *turn)
    assert all(each.dtype == torch.bfloat16 for each in low)
    torch.testing.assert_close([x.float() for x in low], list(heads(qkv, *turn)), atol=0.05, rtol=0.03)
