from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from smalti.data.scene import GROUNDS, SIDES, Part, Place, Scene, draw_scene
from smalti.data.things import THINGS
from smalti.data.wording import captions, questions
from smalti.evaluation import scenes as room
from smalti.evaluation.classifier import ClassifierConfig
from smalti.evaluation.scenes import (
    SceneJudge,
    asked_of,
    cut_cells,
    ground_in,
    ground_of,
    kind_of,
    named_in,
    right_answers,
    right_captions,
)

NOTHING_MELTS = np.zeros((len(THINGS), 3, len(GROUNDS)), dtype=bool)


def scenes(n: int, part: Part = "train") -> list[Scene]:
    return [draw_scene(part, i, NOTHING_MELTS) for i in range(n)]


class Blocks:
    """Scenes whose things are squares, one shade of grey a thing."""

    fingerprint = "blocks"

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def scene(self, i: int) -> Scene:
        return draw_scene("train", i, NOTHING_MELTS)

    def raster(self, i: int) -> np.ndarray:
        return picture(self.scene(i))


def picture(scene: Scene) -> np.ndarray:
    drawn = np.empty((3, 64, 64), dtype=np.uint8)
    drawn[:] = np.array(GROUNDS[scene.ground])[:, None, None]
    for thing, place in zip(scene.things, scene.places, strict=True):
        value = list(THINGS).index(thing)
        drawn[:, place.top : place.top + place.side, place.left : place.left + place.side] = np.array(
            [value, 255 - value, value * 7 % 256], dtype=np.uint8
        )[:, None, None]
    return drawn


def test_a_cell_holds_its_thing_and_no_other():
    for scene in scenes(300):
        whole = np.zeros((3, 64, 64), dtype=np.uint8)
        for number, place in enumerate(scene.places, start=1):
            whole[:, place.top : place.top + place.side, place.left : place.left + place.side] = number
        for number, cell in enumerate(cut_cells(torch.from_numpy(whole), scene), start=1):
            assert cell.shape == (3, 48, 48)
            inside = cell.unique()
            assert set(inside.tolist()) <= {0, number}
            side = scene.places[number - 1].side
            assert int((cell[0] == number).sum()) >= side * side  # all of it


def test_the_ground_is_what_most_of_a_picture_is():
    for scene in scenes(100):
        assert ground_of(torch.from_numpy(picture(scene))) == scene.ground


def test_a_judge_finds_things_where_they_are(monkeypatch):
    monkeypatch.setattr(room, "LEARNT", 600)
    monkeypatch.setattr(room, "RECIPE", ClassifierConfig(width=32, passes=1, least_steps=250, batch=64, shift=1))
    judge = SceneJudge(Blocks(600))
    some = scenes(200, "validation")
    pictures = torch.stack([torch.from_numpy(picture(scene)) for scene in some])
    found = judge.found(pictures, some)
    assert found.things > 0.2  # of 146
    assert found.ground == 1
    wrong = judge.found(pictures.roll(1, 0), some)
    assert wrong.things < found.things / 2
    assert wrong.ground < 0.4
    assert found.scenes <= found.things


def test_questions_are_told_apart():
    kinds = {kind_of(question) for scene in scenes(50) for question, _ in questions(scene)}
    assert kinds == {"how many", "ground colour", "what is there", "where is it", "what is beside it"}
    assert kind_of("what is left of the dog?") == "what is beside it"
    assert kind_of("what is at the top left?") == kind_of("what is on the left?") == "what is there"


def test_right_answers_count_by_kind():
    some = scenes(40)
    asked = asked_of(some)
    assert right_answers(asked, [answer for *_, answer in asked]) == dict.fromkeys(
        ["ground colour", "how many", "what is beside it", "what is there", "where is it"], 1.0
    )
    wrong = ["one" if kind_of(question) == "how many" else answer for _, question, answer in asked]
    share = np.mean([len(scene.things) == 1 for scene in some])
    assert right_answers(asked, wrong)["how many"] == pytest.approx(share)
    few = asked_of(some, most=1)
    assert len([1 for i, question, _ in few if i == 3 and kind_of(question) == "what is there"]) <= 1


def test_every_wording_of_a_scene_is_right():
    some = scenes(200)
    for scene in some:
        for text in captions(scene):
            assert named_in(text) == sorted(scene.things), text
            assert ground_in(text) == scene.ground, text
    told = right_captions(some, [captions(scene)[-1] for scene in some])
    assert (told.things, told.places, told.ground) == (1, 1, 1)


def test_what_is_wrong_in_a_caption_counts_where_it_is_wrong():
    places = (Place(0, 0, 4, 2, 24), Place(0, 1, 20, 36, 24))
    scene = Scene(("dog", "red apple"), (0, 1), places, "blue")
    swapped = replace(scene, things=("red apple", "dog"))
    told = right_captions(
        [scene] * 4,
        [
            captions(swapped)[0],
            captions(replace(scene, ground="red"))[0],
            "a dog, on blue",
            "a dog left of a red apple",
        ],
    )
    assert told.things == 3 / 4
    assert told.places == pytest.approx(1 / 3)  # without its ground, a caption is no wording either
    assert told.ground == 2 / 4


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a hot dog and a dog, on blue", ["dog", "hot dog"]),
        ("a dog left of a dog", ["dog", "dog"]),
        ("an ear of corn, on a red ground", ["ear of corn"]),
        ("dogs", []),
        ("", []),
    ],
)
def test_names_are_found_whole(text, named):
    assert named_in(text) == named


def test_sizes_fit_the_window():
    assert max(SIDES) + 2 * 8 <= 48


def test_no_two_grounds_are_near_each_other():
    colours = torch.tensor(list(GROUNDS.values())).float()
    apart = torch.cdist(colours, colours) + torch.eye(len(colours)) * 1000
    assert apart.min() >= 2 * room.NEAR
