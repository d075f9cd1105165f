"""The set of scenes, on made-up drawings of which each has a colour of its own: the picture shows what is where."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.drawings import archives, colour_of
from tests.tiny import generator_recipe, tokenizer_recipe

from smalti.data.loader import Loader, broken_in
from smalti.data.named import NAMED_SETS
from smalti.data.scene import GROUNDS, SIDE, SIDES
from smalti.data.scenes import LENGTHS, Cutouts, Scenes
from smalti.data.sources import DataConfig, describe, open_source
from smalti.data.things import THINGS
from smalti.data.workers import read_each
from smalti.errors import UserError
from smalti.evaluation.evaluate import to_learn
from smalti.runs import train

CONFIG = DataConfig(source="emoji-scenes", workers=0)


class Hand:
    """A way that hands over what it has."""

    name = "by hand"

    def __init__(self, contents: dict[str, bytes]) -> None:
        self.contents = contents

    def bring(self, names: list[str], into: Path) -> None:
        for name in names:
            (into / name).write_bytes(self.contents[name])


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    return archives() | {"names.zip": b"not", "keywords.zip": b"looked at"}


@pytest.fixture(scope="module")
def cutouts(contents) -> Cutouts:
    return Cutouts(contents)


@pytest.fixture
def set_by_hand(contents, cutouts, monkeypatch) -> None:
    files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setitem(NAMED_SETS, "emoji", replace(NAMED_SETS["emoji"], files=files, ways=(Hand(contents),)))
    monkeypatch.setattr("smalti.data.scenes.Cutouts", lambda contents: cutouts)  # cut once for all tests


@pytest.mark.parametrize("part", LENGTHS)
def test_a_picture_shows_its_truth(cutouts, part):
    source = Scenes(part, cutouts)
    for i in range(100):
        scene, picture = source.scene(i), source.raster(i)
        assert picture.shape == (3, SIDE, SIDE)
        assert (picture[:, [0, 0, -1, -1], [0, -1, 0, -1]] == np.array(GROUNDS[scene.ground])[:, None]).all()
        left = np.ones((SIDE, SIDE), dtype=bool)
        for thing, artist, place in zip(scene.things, scene.artists, scene.places, strict=True):
            y, x = np.nonzero((picture == np.array(colour_of(thing, artist))[:, None, None]).all(0))
            assert len(y) > 0.4 * place.side**2
            assert abs(y.mean() - (place.top + (place.side - 1) / 2)) < 1
            assert abs(x.mean() - (place.left + (place.side - 1) / 2)) < 1
            left[place.top : place.top + place.side, place.left : place.left + place.side] = False
        assert (picture[:, left] == np.array(GROUNDS[scene.ground])[:, None]).all()


def test_scenes_are_the_same_in_another_process_and_come_with_captions(cutouts):
    source = Scenes("train", cutouts)
    other = pickle.loads(pickle.dumps(source))
    item = source.item(7)
    assert len(source) == 1_000_000
    assert np.array_equal(read_each(other, [7])[0][0], item.pixels.numpy())
    assert item.text == source.text(7) == other.text(7)
    assert item.label is None
    assert item.name == source.name_of(7) == "emoji-scenes/train/7"
    assert source.has_text
    firsts = {"on the" in source.text(i)[0] for i in range(20)} | {" with " in source.text(i)[0] for i in range(20)}
    assert firsts == {True, False}  # not always the same wording


def test_the_fingerprint_tells_the_part_and_the_drawings(cutouts, contents):
    marks = {Scenes(part, cutouts).fingerprint for part in LENGTHS}
    assert len(marks) == len(LENGTHS)
    repainted = Cutouts(contents | {"google.zip": contents["twitter.zip"]})
    assert Scenes("train", repainted).fingerprint not in marks
    assert Scenes("train", Cutouts(contents)).fingerprint in marks


def test_things_come_in_the_sizes_that_scenes_need(cutouts):
    assert set(SIDES) == set(cutouts.sized)
    assert all(bank.shape == (len(THINGS), 3, 4, side, side) for side, bank in cutouts.sized.items())


def test_the_named_sets(set_by_hand):
    train, validation, test = (open_source(CONFIG, split) for split in ("train", "validation", "test"))
    drawings = CONFIG.model_copy(update={"source": "emoji-scenes-drawings"})
    assert [source.name_of(0).split("/")[1] for source in (train, validation, test, open_source(drawings, "test"))] == [
        "train",
        "validation",
        "unseen-pairs",
        "unseen-drawings",
    ]
    assert open_source(drawings).fingerprint == train.fingerprint
    assert train.label_ids is None
    assert train.artist_ids is None
    with Loader(train, CONFIG, batch=4, seed=0) as loader:
        batch = next(iter(loader))
    assert batch.x.shape == (4, 3, SIDE, SIDE)
    for row, i in enumerate(batch.indices.tolist()):
        assert torch.equal(batch.x[row], train.item(i).pixels / 127.5 - 1)
        assert batch.texts[row] in train.text(i)


def test_nobody_counts_through_a_million_scenes(set_by_hand, monkeypatch):
    about = describe(CONFIG)
    monkeypatch.setattr(Scenes, "raster", None)
    monkeypatch.setattr(Scenes, "text", None)
    sizes = {split: each["pictures"] for split, each in describe(CONFIG)["splits"].items()}
    assert about["splits"]["train"]["with_text"] == sizes["train"] == 1_000_000
    assert sizes["test"] == sizes["validation"] == 2_000
    assert about["shape"] == [SIDE, SIDE]
    assert broken_in(open_source(CONFIG), CONFIG) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shape": (32, 32)}, "made as 64×64 in 3 channels"),
        ({"channels": 1}, "made as 64×64 in 3 channels"),
        ({"flip": True}, "left and right, so data.flip must be false"),
    ],
)
def test_what_scenes_cannot_be(set_by_hand, changes, says):
    with pytest.raises(UserError, match=f"emoji-scenes: .*{says}"):
        open_source(CONFIG.model_copy(update=changes))
    same = CONFIG.model_copy(update={"shape": (64, 64), "channels": 3})
    assert open_source(same).fingerprint == open_source(CONFIG).fingerprint


def test_models_are_trained_on_as_many_as_one_says(set_by_hand, tmp_path, monkeypatch):
    data = CONFIG.model_copy(update={"most": 40})
    monkeypatch.setattr("smalti.evaluation.evaluate.MADE", 30)
    monkeypatch.setattr("smalti.data.scenes.LENGTHS", dict.fromkeys(LENGTHS, 50) | {"train": LENGTHS["train"]})
    _, held = to_learn(CONFIG)
    assert len(held) == 30

    small = {"model.width": 8, "model.strides": (8, 8), "training.steps": 2, "training.batch": 4}
    tokenizer = tokenizer_recipe(tmp_path, 2).model_copy(update={"data": data}).changed(**small)
    assert train(tokenizer, out=tmp_path / "tokenizer", device="cpu").finished
    generator = generator_recipe(tmp_path, str(tmp_path / "tokenizer"), 2)
    assert train(generator.model_copy(update={"data": data}), out=tmp_path / "generator", device="cpu").finished
    with pytest.raises(UserError, match=r"without end.*--data.most"):
        train(generator.model_copy(update={"data": CONFIG}), out=tmp_path / "other", device="cpu")
