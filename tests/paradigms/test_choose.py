from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.data.order import uniform
from smalti.paradigms.choose import ChoiceConfig, choose, limited


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


@pytest.fixture(scope="module")
def warpers():
    pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own
        from transformers.generation import logits_process
    return logits_process


@pytest.mark.parametrize("k", [1, 2, 7, 11, 40])
def test_top_k_is_that_of_another_library(k, warpers):
    logits = drawn(5, 11)
    theirs = warpers.TopKLogitsWarper(k)(None, logits.clone())
    assert torch.equal(limited(logits, ChoiceConfig(top_k=k)), theirs)


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_top_p_is_that_of_another_library(p, warpers):
    logits = drawn(20, 11)
    theirs = warpers.TopPLogitsWarper(p)(None, logits.clone())
    assert torch.equal(limited(logits, ChoiceConfig(top_p=p)), theirs)


@pytest.mark.parametrize("temperature", [0.3, 1.7])
def test_all_three_in_the_usual_order(temperature, warpers):
    logits = drawn(20, 11)
    theirs = warpers.TemperatureLogitsWarper(temperature)(None, logits)
    theirs = warpers.TopPLogitsWarper(0.8)(None, warpers.TopKLogitsWarper(5)(None, theirs))
    torch.testing.assert_close(limited(logits, ChoiceConfig(temperature=temperature, top_k=5, top_p=0.8)), theirs)


@given(st.integers(1, 12), st.floats(0.01, 1), st.integers(0, 20))
@settings(max_examples=50)
def test_top_p_by_hand(size, p, seed):
    logits = drawn(1, size, seed=seed)
    kept = limited(logits, ChoiceConfig(top_p=p))[0].isfinite()
    likeliest, total, expected = logits[0].softmax(0).sort(descending=True), 0.0, set()
    for probability, token in zip(*(part.tolist() for part in likeliest), strict=True):
        if total >= p:
            break
        expected.add(token)
        total += probability
    assert set(kept.nonzero().flatten().tolist()) == expected


def test_no_limits_change_nothing():
    logits = drawn(3, 5)
    assert torch.equal(limited(logits, ChoiceConfig()), logits)
    assert torch.equal(limited(logits, ChoiceConfig(top_k=5, top_p=1.0)), logits)


def test_temperature_zero_takes_the_likeliest():
    logits = drawn(50, 9)
    assert torch.equal(choose(logits, torch.rand(50).double(), ChoiceConfig(temperature=0)), logits.argmax(-1))
    low = choose(logits, torch.rand(50).double(), ChoiceConfig(temperature=1e-6))
    assert torch.equal(low, logits.argmax(-1))  # the limit is where it goes


@pytest.mark.parametrize(
    "config", [ChoiceConfig(), ChoiceConfig(temperature=0.5), ChoiceConfig(top_k=4), ChoiceConfig(top_p=0.8)]
)
def test_draws_match_the_probabilities(config):
    """Pearson's chi-square against 40,000 draws; 30 is beyond the 99.9th percentile of 7 degrees of freedom (24.3)."""
    logits, n = drawn(1, 8, seed=4), 40_000
    tokens = choose(logits.expand(n, -1), uniform(0, 0, torch.arange(n), 2), config)
    expected = limited(logits, config).softmax(-1)[0] * n
    counts = torch.bincount(tokens, minlength=8).double()
    possible = expected > 0
    assert (counts[~possible] == 0).all()
    assert ((counts - expected).square() / expected)[possible].sum() < 30


def test_the_ends_of_the_range_never_draw_what_was_left_out():
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 2.0, -torch.inf]])
    nearly_one = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert choose(logits, torch.zeros(1, dtype=torch.float64), ChoiceConfig()).item() == 1
    assert choose(logits, nearly_one, ChoiceConfig()).item() == 3


def test_an_unlikely_token_is_not_rounded_away():
    """In fp32 the last token's share of the cumulative sum would be nothing."""
    logits = torch.tensor([[0.0, 0.0, -25.0]])
    assert choose(logits, torch.tensor([1 - 1e-12], dtype=torch.float64), ChoiceConfig()).item() == 2


def test_each_row_depends_on_its_own_number_alone():
    logits, noise = drawn(6, 9), uniform(1, 2, torch.arange(6), 2)
    together = choose(logits, noise, ChoiceConfig(top_k=5))
    alone = torch.cat([choose(logits[i : i + 1], noise[i : i + 1], ChoiceConfig(top_k=5)) for i in range(6)])
    assert torch.equal(together, alone)
