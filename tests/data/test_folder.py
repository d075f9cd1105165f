from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from smalti.data.folder import read_folder
from smalti.data.image import fit, read_image
from smalti.data.sources import DataConfig, open_source
from smalti.errors import UserError


def opened(root: Path, split: str = "train", **settings):
    return open_source(DataConfig(source=str(root), **settings), split)


def names(source) -> list[str]:
    return [source.item(i).name for i in range(len(source))]


@pytest.fixture
def classes(tmp_path, paint) -> Path:
    for i in range(40):
        paint(tmp_path / "pets" / ("cat", "dog")[i % 2] / f"{i:02}.png", i, (10, 12))
    return tmp_path / "pets"


def test_class_folders_give_labels(classes):
    source = opened(classes)
    assert source.labels == ("cat", "dog")
    for i in range(len(source)):
        item = source.item(i)
        assert item.name.startswith(source.labels[item.label])
        assert source.label_ids[i] == item.label
        assert torch.equal(item.pixels, read_image(classes / item.name))
    assert (source.signal.channels, source.signal.shape) == (3, (10, 12))
    assert source.pixels() is None


def test_the_automatic_split_parts_all_pictures(classes):
    train, held, test = (opened(classes, split, validation=0.2) for split in ("train", "validation", "test"))
    assert len(held) == 8
    assert not set(names(train)) & set(names(held))
    assert len(names(train)) + len(names(held)) == 40
    assert names(test) == names(held)
    assert train.labels == held.labels
    assert train.fingerprint != held.fingerprint


def test_equal_files_stay_on_one_side(tmp_path, paint):
    for i in range(30):
        paint(tmp_path / f"{i:02}.png", i % 10)
    train, held = opened(tmp_path, validation=0.3), opened(tmp_path, "validation", validation=0.3)
    kinds = [{int(name[:2]) % 10 for name in names(source)} for source in (train, held)]
    assert not kinds[0] & kinds[1]
    assert len(held) >= 3


def test_the_fingerprint_follows_content_not_the_file_system(classes, tmp_path, paint):
    before = opened(classes).fingerprint
    copy = tmp_path / "copy"
    for file in sorted(classes.rglob("*.png"), reverse=True):  # written in another order, at another time
        (copy / file.relative_to(classes).parent).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy / file.relative_to(classes))
    assert opened(copy).fingerprint == before
    seen = {before}
    train = sorted(names(opened(copy)))
    paint(copy / train[0], 1000, (10, 12))  # another content
    seen.add(opened(copy).fingerprint)
    (copy / train[1]).rename(copy / "cat" / "another-name.png")
    seen.add(opened(copy).fingerprint)
    (copy / train[2]).unlink()
    seen.add(opened(copy).fingerprint)
    assert len(seen) == 4


def test_given_splits_are_kept(tmp_path, paint):
    for i in range(20):
        split = "train" if i < 14 else ("val" if i < 17 else "test")
        paint(tmp_path / split / "ab"[i % 2] / f"{i:02}.png", i)
    sizes = {split: len(opened(tmp_path, split)) for split in ("train", "validation", "test")}
    assert sizes == {"train": 14, "validation": 3, "test": 3}
    assert opened(tmp_path, "test").labels == ("a", "b")
    shutil.rmtree(tmp_path / "val")
    assert len(opened(tmp_path, "validation", validation=0.2)) == 3
    assert len(opened(tmp_path, "train", validation=0.2)) == 11
    shutil.rmtree(tmp_path / "test")
    assert names(opened(tmp_path, "test")) == names(opened(tmp_path, "validation"))


def test_a_class_called_train_is_a_class(tmp_path, paint):
    for i in range(12):
        paint(tmp_path / ("bus", "car", "train")[i % 3] / f"{i}.png", i)
    assert opened(tmp_path).labels == ("bus", "car", "train")


def test_numbers_as_class_names_are_ordered_as_numbers(tmp_path, paint):
    for i in (1, 2, 10):
        paint(tmp_path / str(i) / "a.png", i)
    assert opened(tmp_path).labels == ("1", "2", "10")


def test_pictures_without_class_folders_have_no_labels(tmp_path, paint):
    for i in range(4):
        paint(tmp_path / "only" / f"{i}.png", i)
    assert opened(tmp_path).labels == ()
    assert opened(tmp_path).label_ids is None
    paint(tmp_path / "other" / "5.png", 5)
    paint(tmp_path / "loose.png", 6)
    assert opened(tmp_path).item(0).label is None


def test_hidden_files_and_links_in_circles_do_no_harm(classes):
    shutil.copy(classes / "cat" / "00.png", classes / "cat" / "._00.png")
    (classes / ".thumbnails").mkdir()
    shutil.copy(classes / "cat" / "00.png", classes / ".thumbnails" / "00.png")
    (classes / "cat" / "notes.txt").write_text("not a picture")
    os.symlink(classes, classes / "cat" / "round")
    folder = read_folder(classes, 0.1)
    assert len(folder.entries) == 40
    assert folder.labels == ("cat", "dog")


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_metadata_gives_texts_and_labels(tmp_path, paint, kind):
    for i in range(6):
        paint(tmp_path / "files" / f"{i}.png", i)
    paint(tmp_path / "unlisted.png", 7)
    rows = [
        {"file_name": f"files/{i}.png", "text": f"picture, {i}\né", "label": "odd" if i % 2 else "even"}
        for i in range(6)
    ]
    with open(tmp_path / f"metadata.{kind}", "w", encoding="utf-8-sig") as file:  # with a byte order mark
        if kind == "jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            file.write("file_name,text,label\n")
            file.writelines(f'{row["file_name"]},"{row["text"]}",{row["label"]}\n' for row in rows)
    parts = [opened(tmp_path, split) for split in ("train", "validation")]
    found = {item.name: item for part in parts for item in (part.item(i) for i in range(len(part)))}
    assert set(found) == {row["file_name"] for row in rows}
    for row in rows:
        assert found[row["file_name"]].text == (row["text"],)
        assert parts[0].labels[found[row["file_name"]].label] == row["label"]
    assert parts[0].has_text


def test_several_texts_for_one_picture_and_labels_that_are_numbers(tmp_path, paint):
    rows = [
        {"file_name": "0.png", "text": ["one", "two"], "label": 10},
        {"file_name": "0.png", "text": "three", "label": 10},
        {"file_name": "1.png", "text": None, "label": 9},
        {"file_name": "2.png", "label": 9},
    ]
    for i in range(3):
        paint(tmp_path / f"{i}.png", i)
    (tmp_path / "metadata.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    folder = read_folder(tmp_path, 0.0)
    assert folder.labels == ("9", "10")
    assert {entry.name: entry.text for entry in folder.entries} == {
        "0.png": ("one", "two", "three"), "1.png": (), "2.png": (),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"file_name": "0.png"}\n{"text": "x"}', "line 2: no file_name"),
        ('{"file_name": "0.png"', "metadata.jsonl"),
        ("[1]", "line 1: not a JSON object"),
        ('{"file_name": "../0.png"}', "outside"),
        ('{"file_name": "0.png", "label": "a"}\n{"file_name": "1.png"}', "1 of 2 pictures have no label"),
        ('{"file_name": "0.png", "label": "a"}\n{"file_name": "0.png", "label": "b"}', "two labels, a and b"),
        ("", "lists no pictures"),
        ('{"file_name": "0.png"}\nnot json', "line 2: no JSON"),
        ('{"file_name": "0.png", "text": ' + "[" * 200_000, "line 1: no JSON"),
        ('{"file_name": "0.png", "text": ' + "9" * 5000 + "}", "line 1: no JSON"),
        ('{"file_name": "a\\u0000b.png"}', "line 1: .* is no name that a file can have"),
        ('{"file_name": "a\\ud800b.png"}', "line 1: .* is no name that a file can have"),
        ('{"file_name": "0.png", "text": "half \\ud800"}', "line 1: its text has half a character"),
        ('{"file_name": "0.png"}\n{"file_name": "1.png", "text": {"a": 1}}', "line 2: a text is .*, not dict"),
        ('{"file_name": "0.png", "text": NaN}', "line 1: a text is .*, not NaN"),
        ('{"file_name": "0.png", "text": true}', "line 1: a text is .*, not bool"),
        ('{"file_name": "0.png", "label": "\\ud800"}', "line 1: its label has half a character"),
        ('{"file_name": "0.png", "label": ["a"]}', "line 1: a label is .*, not list"),
        ('{"file_name": "0.png", "text": ["a", ["b"]]}', "line 1: a text is .*, not list"),
        ('{"file_name": "0.png"}\n' * 1 + "".join(f'{{"file_name": "gone{i}.png"}}\n' for i in range(3)), "3 of 4"),
    ],
)
def test_wrong_metadata_says_where(tmp_path, paint, text, says):
    for i in range(2):
        paint(tmp_path / f"{i}.png", i)
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(UserError, match=says):
        opened(tmp_path)


def test_a_quote_left_open_is_told(tmp_path, paint):
    for i in range(3):
        paint(tmp_path / f"{i}.png", i)
    (tmp_path / "metadata.csv").write_text('file_name,text\n0.png,"one\n1.png,two\n2.png,three\n')
    with pytest.raises(UserError, match=r"metadata.csv: unexpected end of data"):
        opened(tmp_path)


def test_every_kind_of_file_in_one_folder(tmp_path, paint, huge_header, cut_short):
    for i in range(60):
        mode, kind = [("RGB", "png"), ("RGBA", "webp"), ("LA", "png"), ("CMYK", "jpg"), ("L", "jpg")][i % 5]
        paint(tmp_path / f"{i:02}.{kind}", i, (9 + i % 7, 20 - i % 9), mode)
    huge_header(tmp_path / "huge.png")
    source = opened(tmp_path, channels=3, shape=(16, 16))
    assert source.broken[0][0] == "huge.png"
    assert "100,000,000 pixels" in source.broken[0][1]
    for i in range(len(source)):
        assert source.item(i).pixels.shape == (3, 16, 16)
    padded = opened(tmp_path, channels=3, shape=(16, 16), fit="pad").item(3)
    assert torch.equal(padded.pixels, fit(read_image(tmp_path / padded.name, 3), (16, 16), "pad"))


def test_more_than_a_twentieth_broken_stops_with_the_list(tmp_path, paint):
    for i in range(38):
        paint(tmp_path / f"{i:02}.png", i)
    for name in ("x.png", "y.png"):
        (tmp_path / name).write_text("no picture")
    assert len(opened(tmp_path).broken) == 2
    (tmp_path / "z.png").write_text("no picture")
    with pytest.raises(UserError, match=r"3 of 41 .*x\.png \(not a picture.*z\.png"):
        opened(tmp_path)


def test_the_shape_and_channels_a_folder_suggests(tmp_path, paint):
    for i in range(6):
        paint(tmp_path / "same" / f"{i}.png", i, (20, 30), "L")
        paint(tmp_path / "mixed" / f"{i}.png", i, (50 + 10 * i, 300), "L" if i else "RGB")
        paint(tmp_path / "large" / f"{i}.png", i, (300, 400), "L")
    suggested = {name: read_folder(tmp_path / name, 0.1) for name in ("same", "mixed", "large")}
    assert (suggested["same"].shape, suggested["same"].channels) == ((20, 30), 1)
    assert (suggested["mixed"].shape, suggested["mixed"].channels) == ((72, 72), 3)
    assert suggested["large"].shape == (256, 256)


def test_folders_that_hold_no_pictures(tmp_path, paint):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no pictures \(the folder is empty\)"):
        opened(tmp_path / "empty")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("hello")
    with pytest.raises(UserError, match=r"only files \.txt"):
        opened(tmp_path / "texts")
    paint(tmp_path / "one" / "a.png", 0)
    assert len(opened(tmp_path / "one")) == 1
    with pytest.raises(UserError, match="two different pictures"):
        opened(tmp_path / "one", "validation")
    paint(tmp_path / "one" / "b.png", 1)
    with pytest.raises(UserError, match=r"data\.validation is 0"):
        opened(tmp_path / "one", "validation", validation=0)


def test_one_picture_that_is_broken(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(UserError, match=r"a\.png"):
        opened(tmp_path)
