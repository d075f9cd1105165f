from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from smalti.data.order import draws, indices, uniform

MASK = (1 << 64) - 1


def mix(bits: int) -> int:
    """SplitMix64 in plain integers."""
    bits = (bits + 0x9E3779B97F4A7C15) & MASK
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & MASK
    return bits ^ (bits >> 31)


def naive_uniform(seed: int, step: int, row: int, stream: int) -> float:
    state = 0
    for key in (seed, step, stream):
        state = mix((state + key) & MASK)
    return (mix((state + mix(row)) & MASK) >> 11) / 2**53


def test_the_generator_is_splitmix64():
    # the first number that the published generator gives for the seed 0
    assert mix(0) == 0xE220A8397B1DCDAF


@given(seed=st.integers(-(2**63), 2**63), step=st.integers(0, 2**40), stream=st.integers(0, 9))
def test_draws_are_uniform_of_the_first_rows(seed, step, stream):
    assert draws(5, seed, step, stream) == uniform(seed, step, torch.arange(5), stream).tolist()


@given(
    seed=st.integers(-(2**63), 2**63), step=st.integers(0, 2**40), row=st.integers(0, 2**40), stream=st.integers(0, 9)
)
def test_uniform_is_the_plain_formula(seed, step, row, stream):
    assert uniform(seed, step, torch.tensor([row]), stream).item() == naive_uniform(seed, step, row, stream)


@given(length=st.integers(1, 50), batch=st.integers(1, 70), seed=st.integers(0, 5))
def test_every_epoch_is_a_permutation(length, batch, seed):
    steps = math.ceil(3 * length / batch)
    stream = torch.cat([indices(length, batch, step, seed) for step in range(steps)])
    assert stream.dtype == torch.int64
    epochs = stream[: 3 * length].reshape(3, length)
    assert (epochs.sort(1).values == torch.arange(length)).all()


def test_the_order_does_not_depend_on_the_batch():
    by_ten = torch.cat([indices(37, 10, step, 3) for step in range(12)])
    by_twelve = torch.cat([indices(37, 12, step, 3) for step in range(10)])
    assert torch.equal(by_ten, by_twelve)


def test_epochs_and_seeds_differ():
    first, second = indices(1000, 1000, 0, 0), indices(1000, 1000, 1, 0)
    other = indices(1000, 1000, 0, 1)
    for a, b in [(first, second), (first, other)]:
        assert (a == b).float().mean() < 0.02  # two random permutations agree in one place


def test_a_far_step_is_as_near_as_the_first():
    assert indices(60_000, 128, 10**9, 0).shape == (128,)


def test_numbers_are_even_and_unrelated():
    rows = torch.arange(20_000)
    draws = torch.stack([uniform(*key[:2], rows, key[2]) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]])
    assert draws.dtype == torch.float64
    assert draws.min() >= 0
    assert draws.max() < 1
    gap = (draws.sort(1).values - (rows + 0.5) / len(rows)).abs().max()
    assert gap < 1.95 / len(rows) ** 0.5  # Kolmogorov–Smirnov at 0.1 %
    assert (torch.corrcoef(draws) - torch.eye(4)).abs().max() < 0.03
    assert torch.corrcoef(torch.stack([draws[0, 1:], draws[0, :-1]]))[0, 1].abs() < 0.03


def test_a_row_keeps_its_number_however_the_batch_is_split():
    rows = torch.arange(64)
    whole = uniform(7, 3, rows, 2)
    assert torch.equal(torch.cat([uniform(7, 3, part, 2) for part in rows.split(10)]), whole)
    assert uniform(7, 3, rows.reshape(8, 8), 2).shape == (8, 8)


def test_the_order_stays_what_it_was():
    # A change here makes every earlier run impossible to continue.
    assert indices(10, 5, 0, 0).tolist() == [9, 6, 8, 0, 4]
    assert uniform(0, 0, torch.arange(2)).tolist() == [0.5081202132256754, 0.7232725248945671]
