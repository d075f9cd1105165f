from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.tokenizers.parts import CONFIG, VOCABULARY, plain, several_parts

from smalti.config import CodeSpec
from smalti.errors import UserError
from smalti.tokenizers.vocabulary import ALONE, Codes, Special, Text, Vocabulary, VocabularyConfig

IMAGE = torch.tensor([[[0, 1, 2], [3, 4, 0]], [[4, 3, 2], [1, 0, 4]]])


def ids(*names: str) -> torch.Tensor:
    """The first id of each named range."""
    return torch.tensor([VOCABULARY.ranges[name].start for name in names])


# --- ranges ----------------------------------------------------------------------------------------------------------


def test_ranges_follow_one_another_text_first_specials_last():
    ranges = VOCABULARY.ranges
    assert [each for one in ranges.values() for each in one] == list(range(VOCABULARY.size))
    assert list(ranges)[:5] == ["text", "image_0", "image_1", "video_0", "padding"]
    assert (ranges["text"], ranges["image_1"], ranges["video_0"]) == (range(7), range(12, 17), range(17, 21))
    assert all(len(one) == 1 for one in list(ranges.values())[4:])


def test_specials_of_every_kind_are_kept():
    names = {"padding", *ALONE, "spare_0", "spare_1", "spare_2"}
    names |= {f"{end}_{kind}" for end in ("begin", "end") for kind in ("text", "image", "sound", "video")}
    assert set(list(VOCABULARY.ranges)[4:]) == names


def test_the_kind_of_every_id():
    tokens = torch.arange(VOCABULARY.size)
    found = VOCABULARY.kind_of(tokens.view(1, -1))
    assert found.shape == (1, VOCABULARY.size)
    for token, kind in zip(tokens.tolist(), found[0].tolist(), strict=True):
        assert token in VOCABULARY.ranges[VOCABULARY.kinds[kind]]


def test_text_alone():
    vocabulary = Vocabulary(VocabularyConfig(text=3))
    assert list(vocabulary.ranges)[:2] == ["text", "padding"]
    assert vocabulary.codes == {}


def test_the_config_is_json_both_ways():
    assert VocabularyConfig.model_validate_json(CONFIG.model_dump_json()) == CONFIG
    with pytest.raises(ValidationError):
        VocabularyConfig(text=0)
    with pytest.raises(ValidationError):
        VocabularyConfig(text=3, smell=CONFIG.image)


# --- parts and sequences ---------------------------------------------------------------------------------------------


@given(several_parts)
def test_split_is_the_inverse_of_interleave(parts):
    tokens = VOCABULARY.interleave(parts)
    assert tokens.dtype == torch.int64
    assert plain(VOCABULARY.split(tokens)) == plain(parts)
    assert VOCABULARY.interleave(VOCABULARY.split(tokens)).equal(tokens)


@given(st.lists(st.integers(0, VOCABULARY.size - 1), max_size=6).map(torch.tensor))
def test_what_split_takes_interleave_gives_back(tokens):
    tokens = tokens.long()
    try:
        parts = VOCABULARY.split(tokens)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        kept = tokens.tolist()
        while kept and kept[-1] == VOCABULARY.id_of("padding"):
            kept.pop()
        assert VOCABULARY.interleave(parts).tolist() == kept


def test_a_sequence_by_hand():
    parts = [Special("draw"), Text((3, 0)), Codes("image", IMAGE)]
    names = [VOCABULARY.kinds[kind] for kind in VOCABULARY.kind_of(VOCABULARY.interleave(parts)).tolist()]
    assert names == [
        *["draw", "begin_text", "text", "text", "end_text"],
        *["begin_image", *["image_0", "image_1"] * 6, "end_image"],
    ]
    codes = VOCABULARY.interleave(parts)[6:-1].tolist()
    assert codes == [7, 16, 8, 15, 9, 14, 10, 13, 11, 12, 7, 16]  # row by row, the two codebooks of each position


def test_padding_at_the_end_is_left_out():
    tokens = torch.cat([VOCABULARY.interleave([Special("draw"), Text()]), ids("padding").expand(3)])
    assert VOCABULARY.split(tokens) == [Special("draw"), Text()]
    assert VOCABULARY.split(ids("padding")) == VOCABULARY.split(torch.zeros(0, dtype=torch.int64)) == []


# --- wrong input -----------------------------------------------------------------------------------------------------

WHOLE = VOCABULARY.interleave([Text((1, 2)), Codes("image", IMAGE)])

MALFORMED = {
    "a grid cut short": (WHOLE[:9], "begin_image begins at position 4 is cut short at position 9"),
    "a grid without its end": (WHOLE[:-1], "cut short at position 17"),
    "a text cut short": (WHOLE[:2], "begin_text begins at position 0 is cut short at position 2"),
    "another kind in a grid": (
        torch.cat([WHOLE[:9], ids("text"), WHOLE[10:]]),
        "text at position 9, inside what begin_image begins at 4: image_0 belongs there",
    ),
    "another codebook in a grid": (
        torch.cat([WHOLE[:9], ids("image_1"), WHOLE[10:]]),
        "image_1 at position 9, inside what begin_image begins at 4: image_0 belongs there",
    ),
    "a grid too long": (
        torch.cat([WHOLE[:17], ids("image_0"), WHOLE[17:]]),
        "image_0 at position 17, inside what begin_image begins at 4: end_image belongs there",
    ),
    "a picture in a text": (ids("begin_text", "begin_image"), "begin_image at position 1"),
    "codes without a beginning": (ids("draw", "image_0"), "image_0 at position 1 begins no part"),
    "an end without a beginning": (ids("end_text"), "end_text at position 0 begins no part"),
    "a kind without codes": (ids("begin_sound"), "begin_sound at position 0 begins no part"),
    "a spare id": (ids("spare_1"), "spare_1 at position 0 begins no part"),
    "padding before the end": (ids("padding", "draw"), "padding at position 0 begins no part"),
    "padding in a text": (ids("begin_text", "padding", "padding"), "cut short at position 1"),
    "no such id": (torch.tensor([VOCABULARY.size]), "outside the vocabulary: its ids are 0 to"),
    "a negative id": (torch.tensor([-1]), "token -1 is outside the vocabulary"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_sequence(case):
    tokens, told = MALFORMED[case]
    with pytest.raises(UserError, match=told):
        VOCABULARY.split(tokens)


NOT_HELD = {
    "a piece of another tokenizer": (Text((6, 7)), "text piece 7 is outside the vocabulary, which has 7"),
    "a kind without codes": (Codes("sound", IMAGE), "no codes of sound; known: image, video"),
    "another grid": (Codes("image", IMAGE[:, :1]), r"image codes must be \(2, 2, 3\); got \(2, 1, 3\)"),
    "a code too large": (Codes("image", IMAGE + 1), r"image codes must lie in \[0, 5\)"),
    "a code too small": (Codes("image", IMAGE - 1), r"image codes must lie in \[0, 5\)"),
    "an unknown special": (Special("drew"), "drew does not stand alone; nearest: draw"),
    "half a part": (Special("begin_image"), "begin_image does not stand alone"),
    "padding": (Special("padding"), "padding does not stand alone"),
    "a spare id": (Special("spare_0"), "spare_0 does not stand alone"),
}


@pytest.mark.parametrize("case", NOT_HELD)
def test_a_part_the_vocabulary_does_not_hold(case):
    part, told = NOT_HELD[case]
    with pytest.raises(UserError, match=told):
        VOCABULARY.interleave([part])


def test_one_code_for_a_whole_signal():
    vocabulary = Vocabulary(VocabularyConfig(text=1, sound=CodeSpec(codebooks=1, grid=(), size=3)))
    codes = Codes("sound", torch.tensor([2]))
    assert plain(vocabulary.split(vocabulary.interleave([codes]))) == plain([codes])
