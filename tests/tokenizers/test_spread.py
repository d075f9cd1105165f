from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from smalti.tokenizers.bottlenecks.spread import FLOOR, Spread

parts_of_every_kind = pytest.mark.parametrize("sizes", [(7,), (4, 3), (2, 3, 4), (2, 2, 2, 2), (3, 2, 2, 2, 2)])


def distributions(sizes: tuple[int, ...], rows: int = 6, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.softmax(2 * torch.randn(rows, size, generator=generator), -1) for size in sizes]


def joint(parts: list[Tensor]) -> Tensor:
    """(rows, codes): the probability of every code, one number at a time, the last part fastest."""
    rows, sizes = len(parts[0]), [part.shape[1] for part in parts]
    table = torch.zeros(rows, math.prod(sizes), dtype=torch.float64)
    for row in range(rows):
        for code, places in enumerate(product(*map(range, sizes))):
            table[row, code] = math.prod(float(part[row, k]) for part, k in zip(parts, places, strict=True))
    return table


def unequal(spread: Spread, seed: int = 1) -> Tensor:
    """Give it a mean that is not uniform: (codes,)."""
    mean = torch.softmax(torch.randn(spread.mean.numel(), generator=torch.Generator().manual_seed(seed)), -1)
    spread.mean.copy_(mean.view_as(spread.mean))
    return mean.double()


@parts_of_every_kind
def test_the_loss_is_the_sum_over_rows_of_p_log_m(sizes):
    spread, parts = Spread(sizes), distributions(sizes)
    mean = unequal(spread)
    expected = (joint(parts) * (mean * len(mean)).log()).sum()
    torch.testing.assert_close(spread.loss(*parts).double(), expected)


@parts_of_every_kind
def test_its_gradient_is_that_of_the_mean_assignments_negative_entropy(sizes):
    """When m is that mean: what the whole batch would be needed for is had row by row."""
    spread, parts = Spread(sizes), distributions(sizes)
    logits = [part.log().double().requires_grad_() for part in parts]
    soft = [torch.softmax(logit, -1) for logit in logits]
    whole = soft[0]
    for part in soft[1:]:
        whole = (whole[:, :, None] * part[:, None, :]).flatten(1)
    mean = whole.mean(0)
    (mean * mean.log()).sum().backward()
    expected = [logit.grad for logit in logits]
    spread.double().mean.copy_(mean.detach().view_as(spread.mean))
    leaves = [part.log().double().requires_grad_() for part in parts]
    (spread.loss(*[torch.softmax(leaf, -1) for leaf in leaves]) / len(parts[0])).backward()
    for leaf, slope in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad, slope)


@parts_of_every_kind
def test_an_even_mean_pulls_nowhere(sizes):
    spread = Spread(sizes)
    leaves = [part.log().requires_grad_() for part in distributions(sizes)]
    loss = spread.loss(*[torch.softmax(leaf, -1) for leaf in leaves])
    assert loss.detach().abs() < 1e-5
    loss.backward()
    assert all(leaf.grad.abs().max() < 1e-6 for leaf in leaves)


def test_the_pull_is_away_from_what_is_common():
    spread = Spread((4,))
    spread.mean.copy_(torch.tensor([0.7, 0.1, 0.1, 0.1])[:, None])
    logits = torch.zeros(3, 4, requires_grad=True)
    spread.loss(torch.softmax(logits, -1)).backward()
    assert (logits.grad[:, 0] > 0).all()
    assert (logits.grad[:, 1:] < 0).all()


def test_a_code_nobody_chooses_pulls_no_harder_than_the_floor():
    spread = Spread((4,))
    spread.mean.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0])[:, None])
    one = torch.eye(4)
    assert float(spread.loss(one[:1])) == pytest.approx(math.log(4))
    assert float(spread.loss(one[1:2])) == pytest.approx(math.log(FLOOR))


@parts_of_every_kind
def test_the_mean_runs_after_the_codes_really_chosen(sizes):
    spread = Spread(sizes, decay=0.8)
    count = math.prod(sizes)
    mean = torch.full((count,), 1 / count, dtype=torch.float64)
    for step in range(6):
        codes = torch.randint(0, count, (3, 5, 1), generator=torch.Generator().manual_seed(step))
        figures = spread.after_step({key: each.value for key, each in spread.statistics(codes).items()})
        shares = torch.tensor([(codes == code).double().mean() for code in range(count)])
        mean = 0.8 * mean + 0.2 * shares
        torch.testing.assert_close(spread.mean.flatten().double(), mean)
        assert figures["spread_perplexity"] == pytest.approx(float((-(mean * mean.log()).sum()).exp()), rel=1e-4)
    assert float(spread.mean.sum()) == pytest.approx(1)


def test_two_halves_of_a_batch_are_the_whole():
    spread, parts = Spread((2, 3, 4)), distributions((2, 3, 4))
    unequal(spread)
    halves = [spread.loss(*[part[rows] for part in parts]) for rows in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(sum(halves), spread.loss(*parts))
    codes = torch.arange(24).view(4, 6, 1)
    counted = [spread.statistics(codes[rows])["chosen"].value for rows in (slice(0, 1), slice(1, 4))]
    assert torch.equal(sum(counted), spread.statistics(codes)["chosen"].value)


def test_followed_it_makes_all_codes_equally_common():
    """Six rows of one opinion each, and nothing but this loss: they end at six different codes."""
    spread = Spread((6,), decay=0.5)
    logits = (0.1 * torch.randn(6, 6, generator=torch.Generator().manual_seed(0)) + torch.eye(6)[0]).requires_grad_()
    sure = torch.optim.SGD([logits], lr=0.3)
    for _ in range(200):
        p = torch.softmax(4 * logits, -1)
        sure.zero_grad()
        spread.loss(p).backward()
        sure.step()
        spread.after_step({"chosen": spread.statistics(p.argmax(-1))["chosen"].value})
    assert float((-(spread.mean * spread.mean.log()).sum()).exp()) > 4
