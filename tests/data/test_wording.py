"""Captions are read back by a parser that shares nothing with what wrote them; answers are found from positions."""

from __future__ import annotations

import re

import numpy as np
import pytest

from smalti.data.emoji import ARTISTS
from smalti.data.scene import GROUNDS, Place, Scene, draw_scene
from smalti.data.things import PLURAL, THINGS
from smalti.data.wording import captions, questions


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    melts = np.zeros((len(THINGS), len(ARTISTS), len(GROUNDS)), dtype=bool)
    return [draw_scene("train", i, melts) for i in range(600)]


def bare(name: str) -> str:
    """A thing without its article, which has to be there and the right one."""
    if name in PLURAL:
        return name
    said, thing = name.split(" ", 1)
    assert said == ("an" if thing[0] in "aeio" or thing in ("umbrella", "hourglass") else "a"), name
    return thing


def listed(text: str) -> list[str]:
    assert re.fullmatch(r"([^,]+(, [^,]+)* and )?[^,]+", text), text
    return re.split(", | and ", text)


def read_ground(caption: str) -> tuple[str, str]:
    for pattern in (
        r"(?P<a>an?) (?P<ground>\w+) ground with (?P<what>.+)",
        r"(?P<what>.+) on (?P<a>an?) (?P<ground>\w+) ground",
        r"(?P<what>.+), on (?P<a>an?) (?P<ground>\w+) background",
        r"(?P<what>.+), on (?P<a>)(?P<ground>\w+)",
        r"(?P<what>.+) against (?P<a>)(?P<ground>\w+)",
    ):
        if found := re.fullmatch(pattern, caption):
            assert found["a"] in ("", "an" if found["ground"] == "orange" else "a")
            return found["ground"], found["what"]
    raise AssertionError(caption)


def read_caption(caption: str) -> tuple[str, dict[tuple[int, int], str]]:
    """The ground, and (row, column) -> thing."""
    ground, what = read_ground(caption)
    if found := re.fullmatch("(.+) from left to right", what):
        cells = {(0, i): name for i, name in enumerate(listed(found[1]))}
    elif found := re.fullmatch("(.+) from top to bottom", what):
        cells = {(i, 0): name for i, name in enumerate(listed(found[1]))}
    elif found := re.fullmatch("(.+?) (?:to the left|left) of (.+)", what):
        cells = {(0, 0): found[1], (0, 1): found[2]}
    elif found := re.fullmatch("(.+?) (?:to the right|right) of (.+)", what):
        cells = {(0, 1): found[1], (0, 0): found[2]}
    elif found := re.fullmatch("(.+) above (.+)", what):
        above, below = listed(found[1]), listed(found[2])
        cells = {(r, c): name for r, row in enumerate((above, below)) for c, name in enumerate(row)}
    elif found := re.fullmatch("(.+) (?:below|under) (.+)", what):
        cells = {(1, 0): found[1], (0, 0): found[2]}
    elif re.search(" (top|bottom|left|right|corner)$", what):
        parts = [re.fullmatch(r"(.+?) (?:(?:at|on|in) the )?(\w+( left| right)?)( corner)?", p) for p in listed(what)]
        spots = {part[2]: part[1] for part in parts}
        if any(" " in spot for spot in spots):
            rows, columns = ("top", "bottom"), ("left", "right")
            cells = {(rows.index(s.split()[0]), columns.index(s.split()[1])): name for s, name in spots.items()}
        else:
            order = [s for s in ("top", "left", "bottom", "right") if s in spots]
            cells = {((i, 0) if "top" in spots else (0, i)): spots[spot] for i, spot in enumerate(order)}
    else:
        cells = {(0, 0): what.removeprefix("nothing but ")}
    return ground, {cell: bare(name) for cell, name in cells.items()}


def test_captions_read_back_to_the_truth(scenes):
    for scene in scenes:
        truth = {(place.row, place.column): thing for thing, place in zip(scene.things, scene.places, strict=True)}
        told = captions(scene)
        assert len(told) == len(set(told)) >= 10
        for caption in told:
            assert read_caption(caption) == (scene.ground, truth), caption


def test_a_question_has_the_answer_that_the_positions_give(scenes):
    asked = 0
    for scene in scenes:
        middle = {
            name: (place.top + place.side / 2, place.left + place.side / 2)
            for name, place in zip(scene.things, scene.places, strict=True)
        }
        told = dict(questions(scene))
        assert len(told) == len(questions(scene))
        assert told.pop("how many things?") == ["one", "two", "three", "four"][len(middle) - 1]
        assert told.pop("what colour is the ground?") == scene.ground
        for question, answer in told.items():
            if found := re.fullmatch("what is (left of|right of|above|below) the (.+)\\?", question):
                assert beside(middle, found[2], found[1]) == [bare(answer)], (scene, question)
                asked += 1
            elif found := re.fullmatch("what is (?:at|on|in) the (.+)\\?", question):
                assert stands(middle, bare(answer), found[1]), (scene, question)
            else:
                found = re.fullmatch("where (is|are) the (.+)\\?", question)
                assert (found[1] == "are") == (found[2] in PLURAL)
                assert stands(middle, found[2], re.fullmatch("(?:at|on|in) the (.+)", answer)[1]), (scene, question)
        if len(middle) == 1:
            assert not told
    assert asked > 1000


def beside(middle: dict[str, tuple[float, float]], name: str, side: str) -> list[str]:
    """The things on one side of a thing, and not so far off to another side as the next row or column is."""
    y, x = middle[name]
    away = {other: (v - y, u - x) for other, (v, u) in middle.items()}
    if side in ("left of", "right of"):
        away = {other: (across, down) for other, (down, across) in away.items()}
    back = side in ("left of", "above")
    return [other for other, (along, off) in away.items() if abs(off) <= 20 and (along < -16 if back else along > 16)]


def stands(middle: dict[str, tuple[float, float]], name: str, spot: str) -> bool:
    """Whether a thing is at a spot, by the middles of all things alone."""
    y, x = middle[name]
    checks = {"top": y < 28, "bottom": y > 36, "left": x < 28, "right": x > 36}
    return all(checks[word] for word in spot.split())


def test_in_a_corner_only_its_row_and_its_column_are_beside_it():
    places = tuple(Place(row, column, 4 + 32 * row, 4 + 32 * column, 24) for row, column in ((0, 0), (0, 1), (1, 1)))
    told = dict(questions(Scene(("dog", "cherries", "owl"), (0, 1, 2), places, "orange")))
    assert told["what is left of the cherries?"] == "a dog"
    assert told["what is below the cherries?"] == "an owl"
    assert told["where are the cherries?"] == "at the top right"
    assert told["what is at the top left?"] == "a dog"
    assert "what is below the dog?" not in told  # nothing is, and the owl stands across
    assert "what is left of the owl?" not in told
