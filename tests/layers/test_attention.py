from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from smalti.layers import attention
from smalti.layers.attention import attend

SHAPES = [(1, 1), (5, 5), (3, 7), (1, 6), (6, 2)]


@pytest.fixture(params=["written out", "fused"])
def way(request, monkeypatch):
    """Both ways through the code."""
    monkeypatch.setattr(attention, "WRITTEN_OUT", 1 << 16 if request.param == "written out" else 0)


def drawn(generator: torch.Generator, length: int, seen: int) -> list[torch.Tensor]:
    return [torch.randn(2, 3, n, 4, generator=generator, dtype=torch.float64) for n in (length, seen, seen)]


def naive(q, k, v, allowed) -> torch.Tensor:
    """One query at a time over the keys it may see."""
    allowed = allowed.expand(*q.shape[:3], k.shape[2])
    out = torch.zeros_like(q)
    for b, h, t in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        keys = allowed[b, h, t].nonzero().squeeze(1)
        if len(keys):
            weights = (k[b, h, keys] @ q[b, h, t] / q.shape[3] ** 0.5).softmax(0)
            out[b, h, t] = weights @ v[b, h, keys]
    return out


def causal_mask(length: int, seen: int) -> torch.Tensor:
    return torch.arange(seen) <= torch.arange(length)[:, None] + seen - length


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("length", "seen"), SHAPES)
@pytest.mark.parametrize("causal", [False, True])
def test_without_a_mask(length, seen, causal, generator):
    q, k, v = drawn(generator, length, seen)
    allowed = causal_mask(length, seen) if causal else torch.ones(length, seen, dtype=torch.bool)
    torch.testing.assert_close(attend(q, k, v, None, causal), naive(q, k, v, allowed))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("length", "seen"), SHAPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("axes", [2, 3, 4])
def test_with_a_mask_in_which_some_rows_see_nothing(length, seen, causal, axes, generator):
    q, k, v = drawn(generator, length, seen)
    shape = {2: (length, seen), 3: (1, length, seen), 4: (2, 1, length, seen)}[axes]
    mask = torch.rand(shape, generator=generator) < 0.4
    mask[..., 0, :] = False
    allowed = mask & causal_mask(length, seen) if causal else mask
    out = attend(q, k, v, mask, causal)
    torch.testing.assert_close(out, naive(q, k, v, allowed))
    assert (out[:, :, 0] == 0).all()


@pytest.mark.usefixtures("way")
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("length", "seen"), [(5, 5), (3, 7)])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_those_of_the_naive_way(length, seen, masked, generator):
    """All three differ, so that a product with the wrong one of them shows."""
    q, k, v = (t.requires_grad_() for t in drawn(generator, length, seen))
    mask = (torch.rand(length, seen, generator=generator) < 0.6) | (torch.arange(seen) == 0) if masked else None
    allowed = torch.ones(length, seen, dtype=torch.bool) if mask is None else mask
    upstream = torch.randn(q.shape, generator=generator, dtype=torch.float64)
    ours = torch.autograd.grad(attend(q, k, v, mask, False), (q, k, v), upstream)
    torch.testing.assert_close(ours, torch.autograd.grad(naive(q, k, v, allowed), (q, k, v), upstream))


def test_gradients_past_a_row_that_sees_nothing_are_finite(generator):
    q, k, v = (t.requires_grad_() for t in drawn(generator, 4, 4))
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[2] = False
    attend(q, k, v, mask, False).sum().backward()
    assert all(t.grad.isfinite().all() for t in (q, k, v))
    assert (q.grad[:, :, 2] == 0).all()


def test_written_out_equals_torch(generator, monkeypatch):
    q, k, v = drawn(generator, 9, 9)
    torch.testing.assert_close(attend(q, k, v, None, True), F.scaled_dot_product_attention(q, k, v, is_causal=True))
    mask = torch.rand(2, 3, 9, 9, generator=generator) < 0.7
    mask[..., 0] = True
    torch.testing.assert_close(attend(q, k, v, mask, False), F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def test_both_ways_agree_in_bf16(generator, monkeypatch):
    q, k, v = (t.bfloat16() for t in drawn(generator, 9, 12))
    written = attend(q, k, v, None, True)
    monkeypatch.setattr(attention, "WRITTEN_OUT", 0)
    torch.testing.assert_close(written, attend(q, k, v, None, True), atol=0.03, rtol=0.03)
