from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from smalti.data import emoji_pairs, sources
from smalti.data.emoji import ARTISTS, GROUPS
from smalti.data.emoji_pairs import PAIR_GROUPS, part_of_pair, read_pairs, unseen_artist
from smalti.data.example import Detail
from smalti.data.fetch import cache_dir
from smalti.data.named import Pictures
from smalti.data.naming import captions, prompts, questions
from smalti.data.sources import DataConfig, open_source

REAL_CACHE = cache_dir()  # before each test gets a cache of its own
CONCEPTS = [f"{0x1F300 + i:x}" for i in range(3000)]


def parts(concept: str, validation: float) -> list[str]:
    return [part_of_pair(concept, artist, validation) for artist in range(len(ARTISTS))]


@pytest.mark.parametrize(("validation", "held"), [(0.0, 0.0), (0.05, 0.05), (0.2, 0.2), (0.5, 0.25 / (1 - 0.25 / 3))])
def test_at_most_one_artist_of_a_concept_is_held_out(validation, held):
    found = [parts(concept, validation) for concept in CONCEPTS]
    assert all(each.count("train") >= 2 for each in found)
    counts = Counter(part for each in found for part in each)
    assert counts["test"] / (3 * len(CONCEPTS)) == pytest.approx(1 / 12, abs=0.01)
    assert counts["validation"] / (counts["validation"] + counts["train"]) == pytest.approx(held, abs=0.012)
    for part in {"test", "validation"} & set(counts):
        shares = Counter(each.index(part) for each in found if part in each)
        assert min(shares.values()) > 0.25 * counts[part]  # every artist alike


def test_the_test_split_does_not_hang_on_validation():
    for concept in CONCEPTS[:300]:
        tests = {tuple(part == "test" for part in parts(concept, validation)) for validation in (0, 0.05, 0.5)}
        assert len(tests) == 1
        out = unseen_artist(concept)
        assert next(iter(tests)) == tuple(artist == out for artist in range(len(ARTISTS)))


@pytest.fixture
def whole(monkeypatch) -> tuple[np.ndarray, np.ndarray, list[Detail]]:
    """What `read_emoji` gives: two concepts and a flag by all, one thing by one artist, two that are drawn alike."""
    kinds = [("a", 0), ("a", 1), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("f", 0), ("f", 1), ("alone", 2), ("b", 2)]
    pixels = np.random.default_rng(0).integers(0, 256, (len(kinds), 3, 4, 4), dtype=np.uint8)
    pixels[2] = pixels[1]  # variants of one pair that look the same
    pixels[9] = pixels[3]  # another pair that does
    labels = np.array([GROUPS.index("Flags") if kind == "f" else 3 for kind, _ in kinds])
    details = [Detail(f"emoji/{i}", (kind,), artist, kind) for i, (kind, artist) in enumerate(kinds)]
    monkeypatch.setattr(emoji_pairs, "read_emoji", lambda contents: (pixels, labels, details))
    return pixels, labels, details


def test_flags_single_artists_and_pictures_of_two_pairs_are_left_out(whole):
    pixels, labels, details = read_pairs({})
    chosen = [0, 1, 2, 3, 4, 5]
    assert np.array_equal(pixels, whole[0][chosen])
    assert details == [whole[2][i] for i in chosen]
    assert [PAIR_GROUPS[label] for label in labels] == [GROUPS[3]] * 6
    assert set(PAIR_GROUPS) == set(GROUPS) - {"Flags"}


def test_the_set_is_told_in_plain_captions_with_questions(monkeypatch):
    """What stands in the files stays as it is: other sets split by it, and word it in their own way."""
    details = [Detail(f"emoji/{i}", ("red apple", "fruit", "food"), i % 3, CONCEPTS[i]) for i in range(60)]
    pixels, labels = np.zeros((60, 3, 4, 4), dtype=np.uint8), np.arange(60) % len(PAIR_GROUPS)
    monkeypatch.setattr(sources, "_read_named", lambda *_: ({"train": Pictures(pixels, labels, details)}, "by hand"))
    source = open_source(DataConfig(source="emoji-pairs"), "train")
    kept = [detail for detail in details if part_of_pair(detail.kind, detail.artist, 0.05) == "train"]
    for i, detail in enumerate(kept):
        assert source.text(i) == prompts(detail) == captions(detail)[:2]
        assert source.text(i) == ("red apple", f"red apple, {ARTISTS[detail.artist]} style")
        assert source.questions(i) == questions(detail, PAIR_GROUPS[int(source.label_ids[i])])
    plain = open_source(DataConfig(source="emoji"), "train")
    assert plain.text(0) == ("red apple", "fruit", "food")
    assert plain.questions(0) == ()
    assert plain.fingerprint != source.fingerprint


@pytest.mark.slow
@pytest.mark.skipif(not (REAL_CACHE / "sets" / "emoji").is_dir(), reason="the emoji set is not in the cache")
def test_the_real_set(monkeypatch):
    monkeypatch.setenv("SMALTI_CACHE", str(REAL_CACHE))
    sources._read_named.cache_clear()
    splits = [open_source(DataConfig(source="emoji-pairs"), split) for split in ("train", "validation", "test")]
    whole = sources._read_named("emoji-pairs", str(REAL_CACHE))[0]["train"]
    assert sum(map(len, splits)) == len(whole.details) > 10_000
    kinds = {detail.name: (detail.kind, detail.artist) for detail in whole.details}
    pairs = [{kinds[part.name_of(i)] for i in range(len(part))} for part in splits]
    seen = {picture.numpy().tobytes() for picture in splits[0].pixels()}
    for held in (1, 2):
        assert not pairs[0] & pairs[held]
        assert {kind for kind, _ in pairs[held]} <= {kind for kind, _ in pairs[0]}
        assert not any(picture.numpy().tobytes() in seen for picture in splits[held].pixels())
        assert len({artist for _, artist in pairs[held]}) == len(ARTISTS)
    assert not {kind for kind, _ in pairs[1]} & {kind for kind, _ in pairs[2]}
    assert len(pairs[2]) > 300
