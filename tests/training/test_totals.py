from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.term import Term
from smalti.training.totals import Totals


def terms(weight: torch.Tensor, x: torch.Tensor) -> list[Term]:
    """Three terms of one batch (n, 4) that count different things."""
    y = x * weight
    return [
        Term("error", (y - 1).square().sum(), x.numel()),
        Term("told", y.detach().abs().sum(), x.numel(), 0.0),
        Term("norm", y.square().sum(), len(x), 0.3),
    ]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
@settings(max_examples=30)
def test_parts_of_any_size_divide_as_the_whole(sizes):
    generator = torch.Generator().manual_seed(len(sizes))
    x = torch.randn(sum(sizes), 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True)
    loss = (x * weight - 1).square().mean() + 0.3 * (x * weight).square().sum(1).mean()
    (expected,) = torch.autograd.grad(loss, weight)
    totals = Totals()
    objective = sum(totals.add(terms(weight, part)) for part in x.split(sizes))
    (slope,) = torch.autograd.grad(objective, weight)
    torch.testing.assert_close(slope / totals.counted, expected)
    assert totals.loss() == pytest.approx(loss.item())
    assert totals.means()["told"] == pytest.approx((x * weight).abs().mean().item())


def test_sums_are_taken_in_double_precision():
    totals = Totals()
    for value in (1e8, 1.0, -1e8):
        totals.add([Term("a", torch.tensor(value), 1.0)])
    assert totals.means()["a"] == pytest.approx(1 / 3)


def test_terms_in_another_proportion_are_refused():
    totals, one = Totals(), torch.tensor(1.0)
    totals.add([Term("a", one, 10), Term("b", one, 5)])
    totals.add([Term("a", one, 4), Term("b", one, 2)])
    with pytest.raises(ValueError, match="'b' counts in another proportion"):
        totals.add([Term("a", one, 10), Term("b", one, 4)])


def test_a_loss_of_reports_alone_is_a_bug():
    with pytest.raises(AssertionError, match="coefficient"):
        Totals().add([Term("a", torch.tensor(1.0), 1, 0.0)])
