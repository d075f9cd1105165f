from __future__ import annotations

import pytest
import torch

from smalti.data.batch import Batch
from smalti.errors import UserError
from smalti.layers.transformer import TransformerConfig
from smalti.paradigms.text_encoder import TextEncoder, TextEncoderConfig, padded, shown_texts
from smalti.tokenizers.text import TextTokenizer

WORDS = ["a red dog", "a blue cat", "two green birds, on white", "nothing"]
TEXT = TextTokenizer.trained(WORDS * 3, 280)
NETWORK = TransformerConfig(layers=1, width=24, heads=2, dropout=0.0)


def made(**settings) -> TextEncoder:
    """An encoder that says something of every weight."""
    torch.manual_seed(0)
    encoder = TextEncoder(TextEncoderConfig(heads=2, **settings), NETWORK, TEXT.size).eval()
    generator = torch.Generator().manual_seed(1)
    for weight in encoder.parameters():
        torch.nn.init.normal_(weight, std=0.4, generator=generator)
    return encoder


def test_a_text_does_not_depend_on_those_beside_it():
    """Padding, order and repetition: alone or among others, it is told alike."""
    encoder, texts = made(), [WORDS[0], "", WORDS[2], WORDS[0]]
    together = encoder(texts, TEXT)
    assert together.mask.sum(1).tolist() == [len(TEXT.encode(text).ids) for text in texts]
    for i, text in enumerate(texts):
        alone = encoder([text], TEXT)
        count = int(alone.mask.sum())
        torch.testing.assert_close(together.pieces[i, :count], alone.pieces[0, :count])
        torch.testing.assert_close(together.pooled[i], alone.pooled[0])


def test_every_piece_sees_all_others():
    """What the last piece is tells on the first: the encoder is not causal."""
    encoder = made()
    one, other = encoder([WORDS[3] + "a"], TEXT), encoder([WORDS[3] + "b"], TEXT)
    assert one.pieces.shape == other.pieces.shape
    assert (one.pieces[0, 0] - other.pieces[0, 0]).abs().max() > 1e-3


def test_the_vector_is_the_mean_of_the_pieces_projected():
    encoder = made()
    told = encoder([WORDS[2], WORDS[0]], TEXT)
    for i in range(2):
        mean = torch.stack([piece for piece, here in zip(told.pieces[i], told.mask[i], strict=True) if here]).mean(0)
        torch.testing.assert_close(told.pooled[i], encoder.pool(mean))


def test_no_text_is_an_empty_context_and_a_vector_that_is_learnt():
    encoder = made()
    told = encoder(["", WORDS[0], ""], TEXT)
    assert told.mask.any(1).tolist() == [False, True, False]
    assert torch.equal(told.pooled[0], encoder.open)
    assert encoder([], TEXT).pooled.shape == (0, 24)
    alone = encoder(["", ""], TEXT)
    assert alone.pieces.shape == (2, 1, 24)  # a place to look at, of which nothing counts
    assert not alone.mask.any()


def test_a_text_too_long_is_cut_and_one_cut_to_nothing_is_none():
    encoder = made(longest=3)
    assert encoder([WORDS[2]], TEXT).mask.sum() == 3
    told = encoder(["👩"], TEXT)  # four bytes, of which none is a character
    assert not told.mask.any()
    assert torch.equal(told.pooled[0], encoder.open)


def test_beside_the_texts_stand_as_many_of_none():
    encoder = made()
    told = encoder([WORDS[0], WORDS[1]], TEXT)
    both, expected = told.beside_open, encoder([WORDS[0], WORDS[1], "", ""], TEXT)
    assert torch.equal(both.mask, expected.mask)
    torch.testing.assert_close(both.pooled, expected.pooled)
    assert told.beside_open is both  # it is made once


def test_pieces_are_laid_side_by_side():
    ids, mask = padded([[5, 6, 7], [], [8]], torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [0, 0, 0], [8, 0, 0]]
    assert mask.tolist() == [[True] * 3, [False] * 3, [True, False, False]]


def test_a_share_of_the_captions_is_hidden_by_rows():
    rows, texts = torch.arange(2000), [f"number {i}" for i in range(2000)]
    batch = Batch(4, rows, rows, torch.zeros(2000, 1), None, texts, seed=3)
    shown = shown_texts(batch, 0.3)
    assert 0.27 < shown.count("") / 2000 < 0.33
    assert all(said in ("", text) for said, text in zip(shown, texts, strict=True))
    assert [each for part in batch.split(300) for each in shown_texts(part, 0.3)] == shown
    assert shown_texts(batch, 0.0) == texts
    assert shown_texts(Batch(4, rows, rows, torch.zeros(2000, 1)), 0.3) == [""] * 2000
    assert shown_texts(Batch(5, rows, rows, torch.zeros(2000, 1), None, texts, seed=3), 0.3) != shown


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UserError, match="text encoder"):
        TextEncoder(TextEncoderConfig(heads=5), NETWORK, TEXT.size)
