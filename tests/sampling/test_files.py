from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.tiny import cut

from smalti.data.image import read_text
from smalti.errors import UserError
from smalti.model import load
from smalti.recipe import parse
from smalti.sampling import files


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("T-shirt/top", "t-shirt-top"),
        ("Ankle boot", "ankle-boot"),
        ("0", "0"),
        ("  A  --  B!", "a-b"),
        ("Ünlü", "ünlü"),
        ("猫 и собака", "猫-и-собака"),
        ("🐙", "sample-35642a24"),
        ("猫" * 80, "猫" * 26),
    ],
)
def test_slug(label, expected):
    assert files.slug(label) == expected


@given(st.text())
def test_a_slug_is_always_a_plain_name(label):
    slug = files.slug(label)
    assert all(each.isalnum() or each == "-" for each in slug)
    assert len(slug.encode()) <= files.LONGEST_SLUG
    assert slug
    assert "--" not in slug
    assert slug.strip("-") == slug


def test_samples_replace_those_of_before_and_no_other_file(tiny, tmp_path):
    model, x = load(tiny.run, "cpu"), torch.zeros(2, 1, 16, 16)
    for seed in (1, 2):
        list(files.write_samples(x, tmp_path, model, seed))
    assert read_text(tmp_path / "sample_00001.png")["smalti:seed"] == "2"
    (tmp_path / "sample_00001.png").write_text("precious")
    with pytest.raises(UserError, match="smalti did not write it"):
        list(files.write_samples(x, tmp_path, model, 3))
    assert (tmp_path / "sample_00001.png").read_text() == "precious"


def test_samples_carry_where_they_came_from(tiny, tmp_path):
    model = load(tiny.run, "cpu")
    x = model.sample(4, "Lying flat", seed=7)
    paths = list(files.write_samples(x, tmp_path / "new", model, 7, "Lying flat", {"smalti:options": "{}"}))
    assert [path.name for path in paths] == [f"lying-flat_0000{i}.png" for i in range(4)]
    told = read_text(paths[3])
    assert (told["smalti:seed"], told["smalti:index"], told["smalti:label"]) == ("7", "3", "Lying flat")
    assert parse(json.loads(told["smalti:recipe"]), "a picture") == model.recipe
    assert told["smalti:model"] == model.sha256
    for path, picture in zip(paths, x, strict=True):
        np.testing.assert_allclose(np.asarray(Image.open(path)), (picture[0] + 1) * 127.5, atol=0.501)


def test_t_shirt_top_3(tiny, tmp_path):
    x = torch.zeros(4, 1, 16, 16)
    paths = list(files.write_samples(x, tmp_path, load(tiny.run, "cpu"), 0, "T-shirt/top"))
    assert paths[3].name == "t-shirt-top_00003.png"
    assert list(files.write_samples(x, tmp_path, load(tiny.run, "cpu"), 0))[3].name == "sample_00003.png"


def test_samples_are_written_as_they_come_and_outlive_an_interrupt(tiny, tmp_path):
    def drawn() -> Iterator[torch.Tensor]:
        for i in range(3):
            assert len(list(tmp_path.iterdir())) == i  # the one before is written before the next is asked for
            yield torch.zeros(1, 16, 16)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(files.write_samples(drawn(), tmp_path, load(tiny.run, "cpu"), 0))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"sample_0000{i}.png" for i in range(3)]
    assert all(files.written_here(path) for path in tmp_path.iterdir())


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 9))
def test_padding_repeats_the_last_row_and_column(height, width, stride):
    x = torch.randn(2, height, width)
    padded = files.padded(x, stride)
    assert torch.equal(padded[:, :height, :width], x)
    assert padded.shape[1] % stride == padded.shape[2] % stride == 0
    assert padded.shape[1] < height + stride
    assert padded.shape[2] < width + stride
    for row in range(padded.shape[1]):
        for column in range(padded.shape[2]):
            assert torch.equal(padded[:, row, column], x[:, min(row, height - 1), min(column, width - 1)])


@given(st.lists(st.sampled_from(["a/x.png", "b/x.jpg", "x_1.png", "X.png", "c/x_1.gif", "y"]), max_size=8))
def test_no_two_outputs_share_a_name(names):
    found = files.unique_names(names)
    assert len({name.lower() for name in found}) == len(names)
    assert all(name.lower().startswith(given.rsplit(".")[0].lower()) for name, given in zip(found, names, strict=True))
    assert all(Path(name).parent == Path(given).parent for name, given in zip(found, names, strict=True))
    assert all(name.endswith(".png") for name in found)


def test_an_output_never_replaces_its_picture(tmp_path):
    with pytest.raises(UserError, match="would be overwritten"):
        files.outputs([tmp_path / "x.png"], tmp_path)
    assert files.outputs([tmp_path / "x.jpg"], tmp_path) == {tmp_path / "x.jpg": tmp_path / "x.png"}
    with pytest.raises(UserError, match=r"a/x\.png would be overwritten"):
        files.outputs({tmp_path / "a" / "x.png": "a/x.png"}, tmp_path)


def test_an_output_never_replaces_somebody_elses_picture(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"x\.png would be overwritten, and smalti did not write it"):
        files.outputs([tmp_path / "elsewhere" / "x.jpg"], tmp_path)
    files.write_picture(tmp_path / "x.png", torch.zeros(1, 4, 4), {"smalti:model": "0"})
    assert files.outputs([tmp_path / "elsewhere" / "x.jpg"], tmp_path)


def test_names_inside_a_folder(tmp_path):
    for name in ("b/x.png", "b/c/x.png", "a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = files.named([tmp_path, tmp_path / "b" / "x.png"])  # which is there already
    assert list(found.values()) == ["a.png", "b/c/x.png", "b/x.png"]
    found = files.named([tmp_path / "b" / "x.png", tmp_path / "b" / "c"])
    assert list(found.values()) == ["x.png", "x.png"]
    places = files.outputs(files.named([tmp_path]), tmp_path / "out")
    assert [str(place.relative_to(tmp_path / "out")) for place in places.values()] == list(
        files.named([tmp_path]).values()
    )


def test_pictures_of_ours_and_of_others(tmp_path):
    files.write_picture(tmp_path / "ours.png", torch.zeros(1, 4, 4), {"smalti:model": "0"})
    Image.new("L", (4, 4)).save(tmp_path / "theirs.png")
    (tmp_path / "words.png").write_text("words")
    assert files.written_here(tmp_path / "ours.png")
    assert not files.written_here(tmp_path / "theirs.png")
    assert not files.written_here(tmp_path / "words.png")


def test_listing(tmp_path, tiny):
    found = files.listed([tiny.data / "Standing", tiny.picture, tiny.data / "Lying flat"])
    assert found == [*sorted((tiny.data / "Standing").iterdir()), *sorted((tiny.data / "Lying flat").iterdir())]
    with pytest.raises(UserError, match="no file"):
        files.listed([tmp_path / "nothing.png"])
    (tmp_path / "words.txt").write_text("words")
    with pytest.raises(UserError, match="no pictures in"):
        files.listed([tmp_path])


def test_broken_files_are_named_and_left_out(tmp_path, capsys):
    paths = []
    for i in range(40):
        paths.append(tmp_path / f"{i:02}.png")
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(paths[-1])
    cut(paths[3])

    def mean(path: Path) -> float:
        return files.read_image(path).float().mean().item()

    assert [value for _, value in files.readable(paths, mean, "read")] == [i for i in range(40) if i != 3]
    assert f"left out: cannot read {paths[3]}" in capsys.readouterr().err
    for path in (paths[4], paths[5]):
        cut(path)
    with pytest.raises(UserError, match="3 of 40 pictures are broken"):
        list(files.readable(paths, mean, "read"))
    with pytest.raises(UserError, match=r"cannot read .*03\.png"):
        list(files.readable(paths[3:4], mean, "read"))
