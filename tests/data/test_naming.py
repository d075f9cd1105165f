from __future__ import annotations

from smalti.data.example import Detail
from smalti.data.naming import captions, questions

APPLE = Detail("emoji/twitter/1f34e", ("red apple", "fruit", "mac", "school", "tree"), 2, "1f34e")


def test_a_drawing_is_asked_for_by_name_artist_and_words():
    assert captions(APPLE) == (
        "red apple",
        "red apple, twitter style",
        "red apple by twitter",
        "red apple, drawn by twitter",
        "fruit, mac, school",
    )
    assert len(captions(Detail("x", ("key",), 0, "x"))) == 4  # known by its name alone


def test_what_is_asked_about_a_drawing():
    assert dict(questions(APPLE, "Food & Drink")) == {
        "what is it?": "red apple",
        "who drew it?": "twitter",
        "which group?": "Food & Drink",
        "how many things?": "one",
    }
