from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smalti.data.packing import pack
from smalti.errors import UserError
from smalti.layers.transformer import Transformer, TransformerConfig

PADDING = 99
several = st.lists(st.integers(0, 9), min_size=1, max_size=12)


def numbered(lengths: list[int]) -> list[torch.Tensor]:
    """Sequences whose tokens say whose they are and where they stand."""
    return [10 * example + torch.arange(length) for example, length in enumerate(lengths)]


@given(several)
def test_every_sequence_stands_whole_in_one_row(lengths):
    packed = pack(numbered(lengths), 9, padding=-5)
    assert packed.tokens.shape == packed.examples.shape == packed.positions.shape
    for example, length in enumerate(lengths):
        row, place = torch.where(packed.examples == example)
        assert len(set(row.tolist())) == (length > 0)
        assert place.tolist() == list(range(place[0], place[0] + length) if length else [])
        assert packed.positions[row, place].tolist() == list(range(length))
        assert packed.tokens[row, place].tolist() == [10 * example + i for i in range(length)]
    assert (packed.tokens == -5).equal(packed.examples == -1)
    assert int((packed.examples >= 0).sum()) == sum(lengths)


def test_first_fit():
    packed = pack(numbered([5, 4, 3, 2, 6, 1]), 8, PADDING)
    assert packed.examples.tolist() == [
        [0, 0, 0, 0, 0, 2, 2, 2],
        [1, 1, 1, 1, 3, 3, 5, -1],
        [4, 4, 4, 4, 4, 4, -1, -1],
    ]
    assert packed.tokens[1].tolist() == [10, 11, 12, 13, 30, 31, 50, PADDING]
    assert packed.positions[1].tolist() == [0, 1, 2, 3, 0, 1, 0, 0]


@given(several)
def test_the_mask_is_causal_in_blocks(lengths):
    packed = pack(numbered(lengths), 9, PADDING)
    assert packed.attend.shape == (len(packed.tokens), 1, 9, 9)
    for examples, seen in zip(packed.examples.tolist(), packed.attend[:, 0].tolist(), strict=True):
        for t in range(9):
            assert seen[t] == [s <= t and examples[s] == examples[t] != -1 for s in range(9)]


@given(several)
def test_what_belongs_to_the_tokens_lies_where_they_do(lengths):
    sequences = numbered(lengths)
    packed = pack(sequences, 9, PADDING)
    laid = packed.lay([torch.stack([each, -each], -1) / 4 for each in sequences])
    kept = packed.examples >= 0
    assert laid.shape == (*packed.tokens.shape, 2)
    assert laid[kept].equal(torch.stack([packed.tokens, -packed.tokens], -1)[kept] / 4)
    assert not laid[~kept].any()


# --- no leak ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def network() -> Transformer:
    """None of whose weights is zero, for an untrained one passes nothing from token to token."""
    network = Transformer(TransformerConfig(layers=2, width=16, heads=2, hidden=24, dropout=0.0)).double()
    generator = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return network.eval()


def test_no_example_reaches_another(network, generator):
    lengths = [3, 4, 2, 5]
    packed = pack(numbered(lengths), 9, PADDING)
    x = torch.randn(2, 9, 16, generator=generator, dtype=torch.float64).requires_grad_()
    out = network(x, packed.positions.unsqueeze(-1), packed.attend)
    for example in range(len(lengths)):
        own = packed.examples == example
        (slope,) = torch.autograd.grad(out[own].square().sum(), x, retain_graph=True)
        assert (slope.abs().sum(-1) > 0).equal(own)


@pytest.mark.parametrize("axes", [1, 2])
def test_an_example_in_a_row_is_as_it_is_alone(axes, network, generator):
    lengths = [3, 4, 2, 5]
    inputs = [torch.randn(length, 16, generator=generator, dtype=torch.float64) for length in lengths]
    where = [torch.randint(0, 9, (length, axes), generator=generator) for length in lengths]
    packed = pack(numbered(lengths), 9, PADDING)
    together = network(packed.lay(inputs), packed.lay(where), packed.attend)
    for example, (x, positions) in enumerate(zip(inputs, where, strict=True)):
        torch.testing.assert_close(together[packed.examples == example], network(x[None], positions)[0])


# --- wrong input -----------------------------------------------------------------------------------------------------


def test_a_sequence_longer_than_a_row():
    with pytest.raises(UserError, match="sequence 1 has 10 tokens, and a row holds 9"):
        pack(numbered([3, 10]), 9, PADDING)


def test_no_sequences():
    with pytest.raises(ValueError, match="no sequences"):
        pack([], 9, PADDING)


@pytest.mark.parametrize("lengths", [[3, 5], [4, 4], [3], [3, 4, 1]])
def test_values_of_other_lengths(lengths):
    packed = pack(numbered([3, 4]), 9, PADDING)
    with pytest.raises(ValueError, match="one value for each token"):
        packed.lay(numbered(lengths))


def test_rows_come_in_multiples_and_the_last_may_be_empty():
    packed = pack([torch.tensor([1, 2, 3])] * 5, 4, padding=9, multiple=4)
    assert packed.tokens.shape == (8, 4)
    assert (packed.examples[5:] == -1).all()
    assert (packed.tokens[5:] == 9).all()
    assert not packed.attend[5:].any()
