from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tokenizers.parts import VOCABULARY, several_parts

from smalti.config import CodeSpec
from smalti.errors import UserError
from smalti.tokenizers.grammar import Grammar, Walk
from smalti.tokenizers.vocabulary import Codes, Special, Text, Vocabulary, VocabularyConfig

GRAMMAR = Grammar(VOCABULARY)


# --- what may come next ----------------------------------------------------------------------------------------------


def language(vocabulary: Vocabulary, letters: list[int], length: int) -> list[tuple[int, ...]]:
    """Every sequence of so many letters that `split` takes, begun with all letters and tried one more at a time."""
    found: list[tuple[int, ...]] = [()]
    for place in range(1, length + 1):
        longer = [(*each, letter) for each in found for letter in letters]
        found = [each for each in longer if taken(vocabulary, each, unfinished=place < length)]
    return found


def taken(vocabulary: Vocabulary, tokens: tuple[int, ...], unfinished: bool) -> bool:
    try:
        vocabulary.split(torch.tensor(tokens))
    except UserError as error:
        return unfinished and "cut short" in str(error)
    return True


def test_a_token_is_allowed_just_where_a_whole_sequence_goes_on_with_it():
    """Against all sequences of a small vocabulary: whatever is begun must also fit."""
    vocabulary = Vocabulary(VocabularyConfig(text=1, image=CodeSpec(codebooks=2, grid=(1,), size=1), spare=1))
    letters = list(range(vocabulary.size))
    length = 5
    whole = language(vocabulary, letters, length)
    assert len(whole) > 1000
    grammar = Grammar(vocabulary)
    for begun in range(length):
        following: dict[tuple[int, ...], set[int]] = {}
        for each in whole:
            following.setdefault(each[:begun], set()).add(each[begun])
        prefixes = list(following)
        walk = Walk(grammar, len(prefixes), length)
        for place in range(begun):
            walk.take(torch.tensor([each[place] for each in prefixes]))
        for prefix, row in zip(prefixes, walk.allowed(), strict=True):
            assert set(row.nonzero().flatten().tolist()) == following[prefix]


@settings(max_examples=40)
@given(st.integers(0, 60), st.integers(0, 2**32))
def test_random_walks_split_cleanly(length, seed):
    generator = torch.Generator().manual_seed(seed)
    walk, written = Walk(GRAMMAR, 16, length), torch.zeros(16, length, dtype=torch.int64)
    for place in range(length):
        # what ends a sequence or a text is rare, or little else would be seen
        weight = walk.allowed().double()
        weight[:, VOCABULARY.id_of("padding")] *= 0.02
        weight[:, VOCABULARY.id_of("end_text")] *= 0.3
        written[:, place] = torch.multinomial(weight, 1, generator=generator).squeeze(1)
        walk.take(written[:, place])
    for row in written:
        VOCABULARY.split(row)
    assert not walk.allowed().any()


@settings(max_examples=40)
@given(several_parts, st.integers(0, 3))
def test_every_sequence_is_a_walk(parts, more):
    tokens = VOCABULARY.interleave(parts)
    walk = Walk(GRAMMAR, 1, len(tokens) + more)
    for token, turn in zip(tokens, GRAMMAR.turns(tokens[None])[0], strict=True):
        allowed = walk.allowed()[0]
        assert allowed[token]
        assert not (allowed & ~GRAMMAR.allowed[turn]).any()  # a turn is what may come where there is room
        walk.take(token[None])


def test_a_picture_begins_only_where_a_whole_one_fits():
    begin = VOCABULARY.id_of("begin_image")
    needed = len(VOCABULARY.interleave([Codes("image", torch.zeros(2, 2, 3, dtype=torch.int64))]))
    assert needed == 14
    assert [bool(Walk(GRAMMAR, 1, length).allowed()[0, begin]) for length in (needed - 1, needed)] == [False, True]


def test_rows_walk_on_their_own():
    parts = [[Text((1, 2, 3))], [Special("draw"), Special("answer"), Text((0,))]]
    tokens = torch.stack([VOCABULARY.interleave(each) for each in parts])
    together = Walk(GRAMMAR, 2, 20)
    alone = [Walk(GRAMMAR, 1, 20), Walk(GRAMMAR, 1, 20)]
    for place in range(tokens.shape[1]):
        assert together.allowed().equal(torch.cat([walk.allowed() for walk in alone]))
        together.take(tokens[:, place])
        for row, walk in enumerate(alone):
            walk.take(tokens[row, place : place + 1])


def test_a_walk_refuses_what_is_not_allowed():
    walk = Walk(GRAMMAR, 2, 9)
    walk.take(torch.tensor([VOCABULARY.id_of("begin_text"), VOCABULARY.id_of("draw")]))
    with pytest.raises(ValueError, match="not allowed"):
        walk.take(torch.tensor([0, 0]))  # a piece of text is no part of its own
    full = Walk(GRAMMAR, 1, 0)
    with pytest.raises(ValueError, match="not allowed"):
        full.take(torch.tensor([VOCABULARY.id_of("draw")]))


# --- whose turn it is ------------------------------------------------------------------------------------------------


def names_at(tokens: torch.Tensor) -> list[set[str]]:
    """The kinds that compete at each place of a sequence."""
    allowed = GRAMMAR.allowed[GRAMMAR.turns(tokens[None])[0]]
    kinds = [VOCABULARY.kind_of(row.nonzero().flatten()) for row in allowed]
    return [{VOCABULARY.kinds[kind] for kind in each.tolist()} for each in kinds]


def test_turns_by_hand():
    free = {"padding", "begin_text", "begin_image", "begin_video", "draw", "describe", "answer", "no_condition"}
    text = {"text", "end_text"}
    parts = [Special("draw"), Text((1, 2)), Codes("image", torch.zeros(2, 2, 3, dtype=torch.int64)), Special("answer")]
    expected = [free, free, text, text, text, free, *[{"image_0"}, {"image_1"}] * 6, {"end_image"}, free]
    assert names_at(VOCABULARY.interleave(parts)) == expected
    assert names_at(torch.tensor([VOCABULARY.id_of("padding")] * 2)) == [free, {"padding"}]


@settings(max_examples=40)
@given(st.lists(several_parts, min_size=1, max_size=3))
def test_turns_of_packed_sequences_are_those_of_each(several):
    each = [VOCABULARY.interleave(parts) for parts in several]
    apart = [GRAMMAR.turns(tokens[None])[0] for tokens in each]
    assert GRAMMAR.turns(torch.cat(each)[None])[0].equal(torch.cat(apart))


def test_turns_name_the_row_and_place_that_are_wrong():
    right = VOCABULARY.interleave([Text((1, 2))])
    wrong = right.clone()
    wrong[2] = VOCABULARY.id_of("draw")
    with pytest.raises(UserError, match="draw may not stand at position 2 of sequence 1"):
        GRAMMAR.turns(torch.stack([right, wrong]))


# --- where tokens stand ----------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(several_parts)
def test_no_two_tokens_stand_at_one_place(parts):
    tokens = VOCABULARY.interleave(parts)
    places = GRAMMAR.positions(tokens[None])[0]
    assert places.shape == (len(tokens), 3)
    assert len(set(map(tuple, places.tolist()))) == len(tokens)


@settings(max_examples=40)
@given(several_parts)
def test_positions_against_a_walk_over_the_parts(parts):
    expected, at = [], 0
    for part in parts:
        if isinstance(part, Special):
            expected.append((at,) * 3)
            at += 1
        elif isinstance(part, Text):
            expected += [(at + i,) * 3 for i in range(len(part.pieces) + 2)]
            at += len(part.pieces) + 2
        else:
            expected.append((at,) * 3)
            if part.kind == "image":  # rows, columns, codebooks
                expected += [(at + 1 + y, at + 1 + x, at + 1 + q) for y in range(2) for x in range(3) for q in range(2)]
                at += 1 + 3
            else:  # frames, rows, columns
                expected += [(at + 1 + t, at + 1, at + 1 + x) for t in range(2) for x in range(2)]
                at += 1 + 2
            expected.append((at,) * 3)
            at += 1
    tokens = VOCABULARY.interleave(parts)
    assert [tuple(place) for place in GRAMMAR.positions(tokens[None])[0].tolist()] == expected


@settings(max_examples=40)
@given(several_parts)
def test_a_walk_knows_the_positions_step_by_step(parts):
    tokens = VOCABULARY.interleave(parts)
    walk = Walk(GRAMMAR, 2, len(tokens))
    for token, place in zip(tokens, GRAMMAR.positions(tokens[None])[0], strict=True):
        assert walk.positions().equal(place.expand(2, -1))
        walk.take(token.expand(2))


def test_text_alone_has_one_axis_and_counts():
    grammar = Grammar(Vocabulary(VocabularyConfig(text=3)))
    tokens = grammar.vocabulary.interleave([Special("answer"), Text((2, 1))])
    assert grammar.positions(tokens[None])[0].tolist() == [[0], [1], [2], [3], [4]]


def test_a_picture_of_one_codebook_has_rows_and_columns():
    vocabulary = Vocabulary(VocabularyConfig(text=3, image=CodeSpec(codebooks=1, grid=(2, 2), size=4)))
    codes = Codes("image", torch.tensor([[[0, 1], [2, 3]]]))
    places = Grammar(vocabulary).positions(vocabulary.interleave([codes, Text()])[None])
    assert places[0].tolist() == [[0, 0], [1, 1], [1, 2], [2, 1], [2, 2], [3, 3], [4, 4], [5, 5]]


def test_one_code_for_a_whole_signal():
    vocabulary = Vocabulary(VocabularyConfig(text=1, sound=CodeSpec(codebooks=1, grid=(), size=3)))
    tokens = vocabulary.interleave([Codes("sound", torch.tensor([2])), Text()])
    assert Grammar(vocabulary).positions(tokens[None])[0].tolist() == [[0], [1], [2], [3], [4]]
