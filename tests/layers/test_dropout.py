from __future__ import annotations

import pytest
import torch

from smalti.layers.dropout import Dropout


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_is_dropped_and_the_mean_stays(p, dtype):
    torch.manual_seed(0)
    out = Dropout(p)(torch.ones(401, 499, dtype=dtype))  # not a multiple of four
    assert out.dtype == dtype
    assert (out == 0).float().mean().item() == pytest.approx(p, abs=0.005)
    assert out.double().mean().item() == pytest.approx(1, abs=0.03)
    assert len(out.unique()) == 2


def test_neighbours_are_dropped_apart():
    """Four decisions share one number drawn: none may tell of another."""
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(4 * 50_000)) > 0).double().view(-1, 4)
    off = torch.corrcoef(kept.T) - torch.eye(4, dtype=torch.float64)
    assert off.abs().max() < 0.02
    assert kept.mean(0).sub(0.5).abs().max() < 0.01  # each of the four alike


def test_the_gradient_passes_where_the_number_passed():
    torch.manual_seed(0)
    x = torch.ones(1000, requires_grad=True)
    out = Dropout(0.3)(x)
    (slope,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(slope, out.detach())


def test_nothing_happens_in_use_or_without_a_share(generator):
    x = torch.randn(7, 5, generator=generator)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert Dropout(0.999999)(x).isfinite().all()


def test_a_seed_repeats_it(generator):
    x = torch.randn(7, 5, generator=generator)
    first, second = (torch.manual_seed(3) and Dropout(0.5)(x) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
