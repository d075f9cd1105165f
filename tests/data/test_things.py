from __future__ import annotations

import re

import pytest

from smalti.data.emoji import code_of, concept_of, read_words
from smalti.data.fetch import cache_dir
from smalti.data.things import PLURAL, THINGS, article, called

REAL_SET = cache_dir() / "sets" / "emoji"  # before each test gets a cache of its own


def test_things_are_many_and_no_two_are_variants_of_one():
    assert 140 <= len(THINGS) <= 170
    assert all(code_of(code) == code for code in THINGS.values())
    assert len({concept_of(code) for code in THINGS.values()}) == len(THINGS)
    assert set(THINGS) > PLURAL


def test_a_and_an():
    for word in ("octopus", "umbrella", "ice cream", "elephant", "airplane", "owl", "hourglass", "orange ground"):
        assert article(word) == f"an {word}"
    for word in ("dog", "unicorn", "house", "yellow ground", "Christmas tree", "t-shirt"):
        assert article(word) == f"a {word}"
    assert {called(thing) for thing in PLURAL} == PLURAL
    spoken = [called(thing) for thing in THINGS if thing not in PLURAL]
    silent = {"an hourglass", "a unicorn"}
    for one in set(spoken) - silent:
        assert re.match("an [aeiou]|a [^aeiou]", one), one
    assert silent < set(spoken)


@pytest.mark.slow
@pytest.mark.skipif(not REAL_SET.is_dir(), reason="the emoji set is not in the cache")
def test_things_are_what_the_emoji_set_calls_them():
    words = read_words({name: (REAL_SET / name).read_bytes() for name in ("names.zip", "keywords.zip", "google.zip")})
    for thing, code in THINGS.items():
        text = " ".join(words[code].text).casefold()
        assert any(part.rstrip("s") in text for part in thing.casefold().split()), (thing, text)
