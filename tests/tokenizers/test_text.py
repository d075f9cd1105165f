from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalti.errors import UserError
from smalti.tokenizers.text import BYTES, FILE, TextTokenizer

CAPTIONS = [
    f"{size} {thing} {place} {ground}"
    for size in ("a big", "a small", "an old")
    for thing in ("red apple", "octopus", "🐙", "Äpfel", "תפוח")
    for place in ("on", "left of a house on", "above the sea, on")
    for ground in ("blue", "white", "红色")
]
TOKENIZER = TextTokenizer.trained(CAPTIONS, pieces=400)

# any character but halves of one; those that are easily lost come often
texts = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("\0\n\r\t  é\u0301ﬁ👩\u200d🎨🏽ש‏")))
likely = st.lists(st.one_of(texts, st.sampled_from(CAPTIONS)), max_size=4).map(" ".join)


@given(likely)
def test_any_text_comes_back(text):
    pieces = TOKENIZER.encode(text)
    assert TOKENIZER.decode(pieces.ids) == text
    assert not pieces.cut
    assert all(0 <= each < TOKENIZER.size for each in pieces.ids)


def test_a_text_without_end_and_without_blanks_is_read_soon():
    tokenizer = TextTokenizer.trained([*CAPTIONS, "a" * 300_000], pieces=400)
    text = "b" * 1_000_000
    part = tokenizer.encode(text, 64)
    assert len(part.ids) == 64
    assert part.cut
    assert tokenizer.decode(part.ids) == text[: len(tokenizer.decode(part.ids))]


@given(likely, st.integers(0, 12))
def test_what_is_cut_is_the_beginning_in_whole_characters(text, most):
    whole, part = TOKENIZER.encode(text), TOKENIZER.encode(text, most)
    assert len(part.ids) <= most
    assert part.ids == whole.ids[: len(part.ids)]
    assert text.startswith(TOKENIZER.decode(part.ids))
    assert part.cut == (len(whole.ids) > most)
    if not part.cut:
        assert part == whole


def test_a_character_of_four_bytes_is_kept_or_left_out():
    bytewise = TextTokenizer.trained([], pieces=256)
    assert [len(bytewise.encode("🦜🦜", most).ids) for most in range(9)] == [0, 0, 0, 0, 4, 4, 4, 4, 8]


def test_nothing_is_no_pieces():
    assert TOKENIZER.encode("", most=0).ids == ()
    assert TOKENIZER.decode([]) == ""
    assert not TOKENIZER.encode("", most=0).cut


def test_captions_make_longer_pieces():
    assert 256 < TOKENIZER.size <= 400
    caption = CAPTIONS[0]
    assert len(TOKENIZER.encode(caption).ids) < len(caption) / 2
    assert len(TextTokenizer.trained(CAPTIONS, pieces=256).encode(caption).ids) == len(caption.encode())


def test_a_long_text_is_cut_and_says_so():
    pieces = TOKENIZER.encode("octopus " * 10_000, most=256)
    assert (len(pieces.ids), pieces.cut) == (256, True)


def test_the_order_of_captions_changes_nothing(tmp_path):
    TOKENIZER.save(tmp_path)
    expected = (tmp_path / FILE).read_bytes()
    for seed in range(5):
        shuffled = CAPTIONS.copy()
        random.Random(seed).shuffle(shuffled)
        TextTokenizer.trained(iter(shuffled), pieces=400).save(tmp_path)
        assert (tmp_path / FILE).read_bytes() == expected


@pytest.mark.parametrize("captions", [[], ["", ""], ["once"]])
def test_few_captions_leave_the_bytes(captions):
    tokenizer = TextTokenizer.trained(captions, pieces=1000)
    assert tokenizer.size == 256
    assert tokenizer.decode(tokenizer.encode("a 🐙").ids) == "a 🐙"


def test_it_is_saved_in_the_library_s_own_format(tmp_path):
    from tokenizers import Tokenizer

    TOKENIZER.save(tmp_path / "text")
    loaded, theirs = TextTokenizer.load(tmp_path / "text"), Tokenizer.from_file(str(tmp_path / "text" / FILE))
    for caption in [*CAPTIONS, "\0 \n"]:
        ids = TOKENIZER.encode(caption).ids
        assert loaded.encode(caption).ids == ids
        assert theirs.encode(caption).ids == list(ids)
    assert loaded.size == TOKENIZER.size


# --- wrong input -----------------------------------------------------------------------------------------------------


def test_too_few_pieces():
    with pytest.raises(UserError, match="255 pieces are too few"):
        TextTokenizer.trained(CAPTIONS, pieces=255)


def test_half_a_character():
    for broken in ("red \ud83d apple", "\udcff"):  # from broken JSON, from bytes on a command line
        with pytest.raises(UserError, match="half a character at"):
            TOKENIZER.encode(broken)
        with pytest.raises(UserError, match="half a character at"):
            TextTokenizer.trained(["fine", broken], pieces=300)


@pytest.mark.parametrize("ids", [[-1], [0, 100_000]])
def test_no_such_piece(ids):
    with pytest.raises(UserError, match="is no piece of text"):
        TOKENIZER.decode(ids)


def test_bytes_that_make_no_character():
    pieces = TOKENIZER.encode("🦜").ids
    assert TOKENIZER.decode(pieces[:2]) == "\ufffd"


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="holds no text tokenizer"):
        TextTokenizer.load(tmp_path)


def spoilt(folder: Path, **changes: object) -> None:
    TOKENIZER.save(folder)
    tree = json.loads((folder / FILE).read_text(encoding="utf-8"))
    (folder / FILE).write_text(json.dumps(tree | changes), encoding="utf-8")


def test_a_damaged_file(tmp_path):
    TOKENIZER.save(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    damaged = [whole[: len(whole) * part // 10] for part in range(10)]
    damaged += [b"\xff" + whole, b"[]", b"{}", whole.replace(BYTES[5].encode(), b"zz", 1)]
    for each in damaged:
        (tmp_path / FILE).write_bytes(each)
        with pytest.raises(UserError, match=r"tokenizer\.json is damaged: .*copy the folder again$"):
            TextTokenizer.load(tmp_path)


@pytest.mark.parametrize("kind", ["NFC", "NFKC", "Lowercase"])
def test_a_file_that_would_change_text(kind, tmp_path):
    spoilt(tmp_path, normalizer={"type": kind})
    with pytest.raises(UserError, match="does not give back the text"):
        TextTokenizer.load(tmp_path)


def test_a_file_whose_ids_have_gaps(tmp_path):
    TOKENIZER.save(tmp_path)
    model = json.loads((tmp_path / FILE).read_text(encoding="utf-8"))["model"]
    last = max(model["vocab"], key=model["vocab"].get)
    model["vocab"][last] += 1
    spoilt(tmp_path, model=model)
    with pytest.raises(UserError, match="not numbered one by one"):
        TextTokenizer.load(tmp_path)


def test_a_file_that_cuts_or_fills_up_loads_without_that(tmp_path):
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    spoilt(tmp_path, truncation=cut)
    assert TextTokenizer.load(tmp_path).encode(CAPTIONS[0]) == TOKENIZER.encode(CAPTIONS[0])
