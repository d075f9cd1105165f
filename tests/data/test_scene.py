"""The truth of scenes, without a picture: what is drawn for each part, and what is kept from training."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from smalti.data.emoji import ARTISTS, concept_of
from smalti.data.emoji_pairs import unseen_artist
from smalti.data.scene import GROUNDS, LATTICE, SIDE, Place, Scene, draw_scene, unseen_pair
from smalti.data.things import THINGS

MANY = 5_000
NOTHING_MELTS = np.zeros((len(THINGS), len(ARTISTS), len(GROUNDS)), dtype=bool)


def scenes(part: str, count: int, melts: np.ndarray = NOTHING_MELTS) -> list[Scene]:
    return [draw_scene(part, i, melts) for i in range(count)]


@pytest.fixture(scope="module")
def training() -> list[Scene]:
    return scenes("train", MANY)


def unseen_pairs(scene: Scene) -> int:
    return sum(unseen_pair(*two) for two in itertools.combinations(scene.things, 2))


def unseen_drawings(scene: Scene) -> int:
    return sum(
        unseen_artist(concept_of(THINGS[thing])) == artist
        for thing, artist in zip(scene.things, scene.artists, strict=True)
    )


def test_training_never_shows_what_is_held_out(training):
    for scene in [*training, *scenes("validation", 1000)]:
        assert not unseen_pairs(scene)
        assert not unseen_drawings(scene)


def test_each_test_part_always_shows_what_it_is_for():
    pairs, drawings = scenes("unseen-pairs", 1000), scenes("unseen-drawings", 1000)
    assert all(unseen_pairs(scene) and not unseen_drawings(scene) for scene in pairs)
    assert all(unseen_drawings(scene) == 1 and not unseen_pairs(scene) for scene in drawings)
    where = Counter(
        tuple(unseen_pair(scene.things[0], other) for other in scene.things[1:])
        for scene in pairs
        if len(scene.things) == 4
    )
    assert len(where) == 8  # the pair may stand anywhere


def test_every_thing_is_seen_with_most_others_and_by_two_artists():
    unseen = [unseen_pair(*two) for two in itertools.combinations(THINGS, 2)]
    assert 0.13 < np.mean(unseen) < 0.17
    for thing in THINGS:
        assert sum(unseen_pair(thing, other) for other in THINGS if other != thing) < 0.27 * len(THINGS)
        assert unseen_pair(thing, "dog") == unseen_pair("dog", thing)
    drawings = sum(unseen_artist(concept_of(code)) is not None for code in THINGS.values())
    assert 0.06 < drawings / len(THINGS) / len(ARTISTS) < 0.1


def test_to_learn_names_from_there_is_one_thing_each_and_every_drawing_for_training(training):
    things = scenes("things", 3000)
    assert {len(scene.things) for scene in things} == {1}
    drawn = {(scene.things[0], scene.artists[0]) for scene in things}
    known = {pair for scene in training for pair in zip(scene.things, scene.artists, strict=True)}
    assert drawn <= known
    assert len(drawn) > 0.95 * len(known)


def test_all_kinds_of_scenes_come_up(training):
    assert min(Counter(scene.ground for scene in training).values()) > 0.8 * MANY / len(GROUNDS)
    assert min(Counter(len(scene.things) for scene in training).values()) > 0.1 * MANY
    shapes = Counter((len(scene.things), scene.shape) for scene in training)
    assert set(shapes) == {(1, (1, 1)), (2, (1, 2)), (2, (2, 1)), (3, (2, 2)), (4, (2, 2))}
    assert shapes[2, (1, 2)] > 0.4 * (shapes[2, (1, 2)] + shapes[2, (2, 1)])
    seen = Counter(zip((t for s in training for t in s.things), (a for s in training for a in s.artists), strict=True))
    assert len(seen) == 3 * len(THINGS) - sum(unseen_artist(concept_of(code)) is not None for code in THINGS.values())
    corners = Counter(p[:2] for s in training if len(s.things) == 3 and s.shape == (2, 2) for p in s.places)
    assert len(corners) == 4
    for scene in training:
        assert len(set(scene.things)) == len(scene.things) == len(scene.artists) == len(scene.places)


def test_things_stand_apart_inside_the_picture_and_in_their_row_and_column(training):
    for scene in training:
        assert [place[:2] for place in scene.places] == sorted(place[:2] for place in scene.places)
        for place in scene.places:
            assert min(place.top, place.left) >= 0
            assert max(place.top, place.left) + place.side <= SIDE
            assert place.top % LATTICE == place.left % LATTICE == 0
        for one, other in itertools.combinations(scene.places, 2):
            gap = max(
                max(one.top, other.top) - min(one.top, other.top) - one.side,
                max(one.left, other.left) - min(one.left, other.left) - one.side,
            )
            assert gap >= 0
            if one.row < other.row:
                assert one.top + one.side <= other.top
            if one.column < other.column:
                assert one.left + one.side <= other.left
    offsets = {place.left for scene in training if scene.shape == (2, 1) for place in scene.places}
    assert len(offsets) > 1


def test_no_thing_stands_on_a_ground_it_melts_into():
    melts = NOTHING_MELTS.copy()
    melts[:, 1, :8] = True
    for scene in scenes("train", 500, melts):
        assert 1 not in scene.artists or scene.ground in list(GROUNDS)[8:]
    assert {scene.ground for scene in scenes("train", 500, ~NOTHING_MELTS)} == set(GROUNDS)  # better than none


def test_grounds_are_well_apart():
    for one, other in itertools.combinations(GROUNDS.values(), 2):
        assert np.linalg.norm(np.subtract(one, other)) > 80


def test_a_scene_is_the_same_on_every_machine():
    places = (
        Place(0, 0, 0, 8, 24),
        Place(0, 1, 8, 40, 24),
        Place(1, 0, 32, 8, 24),
        Place(1, 1, 32, 40, 24),
    )
    scene = Scene(("banana", "eggplant", "headphones", "balloon"), (0, 2, 2, 2), places, "grey")
    assert draw_scene("train", 3, NOTHING_MELTS) == scene
    assert draw_scene("train", 3, NOTHING_MELTS) != draw_scene("validation", 3, NOTHING_MELTS)
