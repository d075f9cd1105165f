from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from smalti.data.named import NAMED_SETS, NamedSet
from smalti.data.sources import DataConfig, describe, open_source
from smalti.errors import UserError


class Hand:
    """A way that hands over what it has."""

    name = "by hand"

    def bring(self, names, into):
        (into / names[0]).write_bytes(b"content")


@pytest.fixture
def digits(monkeypatch):
    """A named set of 200 pictures in 4 classes, sorted by label and without a test split, as mnist-5k is."""
    pixels = np.random.default_rng(0).integers(0, 256, (200, 1, 8, 8), dtype=np.uint8)
    pixels[1] = pixels[0]
    labels = np.repeat(np.arange(4), 50)
    named = NamedSet(
        title="digits",
        files={"digits.bin": hashlib.sha256(b"content").hexdigest()},
        ways=(Hand(),),
        read=lambda contents: {"train": (pixels, labels)},
        labels=("a", "b", "c", "d"),
        licence="MIT",
        attribution="nobody",
    )
    monkeypatch.setitem(NAMED_SETS, "digits", named)
    return pixels, labels


def test_a_named_set_is_split_into_three_without_overlap(digits):
    pixels, labels = digits
    parts = [open_source(DataConfig(source="digits", validation=0.1), s) for s in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [162, 18, 20]
    where = {picture.tobytes(): label for picture, label in zip(pixels, labels, strict=True)}
    seen = [{picture.numpy().tobytes() for picture in part.pixels()} for part in parts]
    assert not seen[0] & seen[1]
    assert not (seen[0] | seen[1]) & seen[2]
    assert set.union(*seen) == set(where)
    for part in parts:
        assert part.labels == ("a", "b", "c", "d")
        assert part.label_ids.tolist() == [where[picture.numpy().tobytes()] for picture in part.pixels()]
        assert len(part.label_ids.unique()) == 4


def test_most_takes_so_many_of_the_training_examples_alone(digits):
    everything = open_source(DataConfig(source="digits", validation=0.1))
    some = open_source(DataConfig(source="digits", validation=0.1, most=60))
    assert len(some) == 60
    assert len(some.label_ids.unique()) == 4  # of a set that is sorted by label
    where = [everything.name_of(i) for i in range(len(everything))].index
    for i in (0, 7, 59):
        item = some.item(i)
        other = where(item.name)
        assert torch.equal(item.pixels, everything.item(other).pixels)
        assert torch.equal(some.pixels()[i], item.pixels)
        assert (some.raster(i) == item.pixels.numpy()).all()
        assert item.label == some.label_ids[i] == everything.label_ids[other]
    again = open_source(DataConfig(source="digits", validation=0.1, most=60))
    fewer = open_source(DataConfig(source="digits", validation=0.1, most=59))
    assert again.fingerprint == some.fingerprint != fewer.fingerprint != everything.fingerprint
    assert again.pixels_key == some.pixels_key != fewer.pixels_key
    assert len(open_source(DataConfig(source="digits", validation=0.1, most=1000))) == len(everything)
    assert len(open_source(DataConfig(source="digits", validation=0.1, most=3), "test")) == 20


def test_a_named_set_in_another_shape(digits):
    source = open_source(DataConfig(source="digits", shape=(12, 16), channels=3, fit="pad"))
    assert source.signal.shape == (12, 16)
    assert source.pixels().shape == (180 - 9, 3, 12, 16)
    assert (source.pixels()[:, :, :, :2] == 255).all()


def test_the_same_choice_every_time(digits):
    config = DataConfig(source="digits")
    assert open_source(config).fingerprint == open_source(config).fingerprint
    assert open_source(config).fingerprint != open_source(config, "test").fingerprint


def test_a_description_is_plain_json(digits, tmp_path, paint):
    about = describe(DataConfig(source="digits"))
    assert json.loads(json.dumps(about)) == about
    assert about["way"] == "by hand"
    assert about["licence"] == "MIT"
    assert sum(about["splits"]["test"]["labels"].values()) == about["splits"]["test"]["pictures"] == 20
    for i in range(20):
        paint(tmp_path / "ab"[i % 2] / f"{i}.png", i, (4, 4 + i % 3))
    (tmp_path / "a" / "bad.png").write_text("no")
    about = describe(DataConfig(source=str(tmp_path), validation=0))
    assert json.loads(json.dumps(about)) == about
    assert about["splits"]["train"]["pictures"] == 20
    assert "validation" not in about["splits"]
    assert about["broken"][0][0] == "a/bad.png"
    assert about["different_sizes"] == 3


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("", "no data source given"),
        ("fashion-mnits", "no folder fashion-mnits.*fashion-mnist"),
        ("cifar-10", "nearest: cifar10"),
        ("/no/such/folder", "no folder /no/such/folder.*known: .*mnist-5k"),
    ],
)
def test_a_source_that_is_not_there(source, says):
    with pytest.raises(UserError, match=says):
        open_source(DataConfig(source=source))


def test_a_file_is_no_source(tmp_path, paint):
    paint(tmp_path / "a.png", 0)
    with pytest.raises(UserError, match="is a file"):
        open_source(DataConfig(source=str(tmp_path / "a.png")))


def test_an_unknown_split(digits):
    with pytest.raises(UserError, match="nearest: train"):
        open_source(DataConfig(source="digits"), "training")


@pytest.mark.parametrize(
    "wrong", [{"shape": (0, 8)}, {"channels": 5}, {"validation": 0.9}, {"shift": -1}, {"fits": "pad"}]
)
def test_settings_are_checked(wrong):
    with pytest.raises(ValidationError):
        DataConfig(**wrong)


def test_settings_survive_json():
    config = DataConfig(source="a", shape=(8, 9), flip=True)
    assert DataConfig.model_validate_json(config.model_dump_json()) == config
    assert torch.Size(config.shape) == (8, 9)
