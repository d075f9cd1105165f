from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from smalti import checkpoint
from smalti.checkpoint import (
    model_folder,
    new_folder,
    read_config,
    read_weights,
    saving,
    settled,
    sha256,
    write_model,
    write_text,
)
from smalti.errors import UserError


def fill(path: Path, text: str) -> None:
    with new_folder(path) as fresh:
        (fresh / "a").write_text(text)


def told(path: Path) -> str:
    return (settled(path) / "a").read_text()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class Killed(BaseException):
    """What a test raises where a process would end."""


def kill_at(call: int, monkeypatch: pytest.MonkeyPatch, module=os, function: str = "replace") -> None:
    """The process ends right before the n-th call."""
    real, calls = getattr(module, function), []

    def counted(*args, **kwargs):
        calls.append(args)
        if len(calls) > call:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(module, function, counted)


# --- files and folders that appear whole or not at all ---------------------------------------------------------------


def test_text_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "old")
    write_text(path, "néw")
    assert path.read_text(encoding="utf-8") == "néw"
    with monkeypatch.context() as patch:
        kill_at(0, patch)
        with pytest.raises(Killed):
            write_text(path, "newer")
    assert path.read_text(encoding="utf-8") == "néw"
    assert names(path.parent) == {"file.txt"}


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk full"),
        (errno.EDQUOT, "disk full"),
        (errno.EACCES, "not allowed"),
        (errno.EROFS, "not allowed"),
    ],
)
def test_a_disk_that_refuses_is_put_into_words(number, words, tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(UserError, match=words):
            write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == {"file.txt"}


def test_other_troubles_keep_their_traceback(tmp_path):
    with pytest.raises(FileNotFoundError), saving(tmp_path):
        (tmp_path / "missing").read_text()


def test_a_folder_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "model"
    fill(path, "old")
    assert told(path) == "old"
    (path / "left over").touch()
    fill(path, "new")
    assert names(path) == {"a"}
    assert told(path) == "new"
    assert names(path.parent) == {"model"}


@pytest.mark.parametrize("error", [Killed, UserError, KeyboardInterrupt])
def test_a_folder_that_could_not_be_filled_changes_nothing(error, tmp_path):
    path = tmp_path / "model"
    fill(path, "old")

    def fail() -> None:
        with new_folder(path) as fresh:
            (fresh / "a").write_text("half of")
            raise error

    with pytest.raises(error):
        fail()
    assert told(path) == "old"
    assert names(tmp_path) == {"model"}


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("call", [0, 1])
def test_killed_between_the_renames(call, first, tmp_path, monkeypatch):
    """However it ends, one whole folder is found, and the next one can be written."""
    path = tmp_path / "model"
    if not first:
        fill(path, "old")
    with monkeypatch.context() as patch:
        kill_at(call, patch)
        if call == 1 and first:
            fill(path, "new")  # there was nothing to move away, so one rename is all
        else:
            with pytest.raises(Killed):
                fill(path, "new")
    expected = "new" if call == 1 or first else "old"
    assert told(path) == expected
    assert names(path) == {"a"}
    fill(path, "newer")
    assert told(path) == "newer"
    assert names(tmp_path) == {"model"}


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        ({"model": "old", "model.new": "half"}, "old"),
        ({"model.old": "old", "model.new": "half"}, "old"),
        ({"model.old": "old", "model.new": "whole"}, "whole"),
        ({"model.new": "whole"}, "whole"),
        ({"model": "whole", "model.old": "old"}, "whole"),
        ({"model.old": "old"}, "old"),
    ],
)
def test_whatever_a_kill_left(left, expected, tmp_path):
    """The states of the folder after a kill at each moment; only a whole new folder says that it is complete."""
    for name, text in left.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(text)
        if text == "whole":
            (tmp_path / name / ".complete").touch()
    assert told(tmp_path / "model") == expected
    assert names(tmp_path / "model") == {"a"}
    fill(tmp_path / "model", "newer")
    assert told(tmp_path / "model") == "newer"
    assert names(tmp_path) == {"model"}


def test_what_a_kill_left_outlives_the_next_failure(tmp_path):
    """The whole folder that waits beside its place is put there first, not thrown away as left over."""
    (tmp_path / "model.new").mkdir()
    (tmp_path / "model.new" / "a").write_text("whole")
    (tmp_path / "model.new" / ".complete").touch()

    def fail() -> None:
        with new_folder(tmp_path / "model"):
            raise Killed

    with pytest.raises(Killed):
        fail()
    assert told(tmp_path / "model") == "whole"


def test_half_a_new_folder_alone_is_nothing(tmp_path):
    (tmp_path / "model.new").mkdir()
    assert not settled(tmp_path / "model").exists()


def test_settling_a_sound_folder_writes_nothing(tmp_path, monkeypatch):
    """A model on a read-only disk can be loaded."""
    fill(tmp_path / "model", "old")

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    for function in ("unlink", "replace", "rename", "mkdir"):
        monkeypatch.setattr(os, function, refuse)
    assert told(tmp_path / "model") == "old"


# --- model folders ---------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "run" / "model"
    write_model(folder, {"what": "a test"}, {"w": torch.arange(6.0).view(2, 3).t(), "n": torch.tensor(3)}, "# card\n")
    return folder


def test_a_model_comes_back(model):
    config = read_config(model)
    assert config["what"] == "a test"
    assert config["format"] == checkpoint.FORMAT
    weights = read_weights(model, config)
    assert torch.equal(weights["w"], torch.arange(6.0).view(2, 3).t())
    assert weights["n"].dtype == torch.int64
    assert (model / "README.md").read_text() == "# card\n"


def test_tokenizers_travel_along(model, tmp_path):
    write_model(tmp_path / "other", {}, {}, "", {"first": model})
    assert read_config(tmp_path / "other" / "tokenizers" / "first")["what"] == "a test"


@pytest.mark.parametrize("place", [0, 8, 40, -1])
def test_a_byte_changed_in_the_weights(place, model):
    path = model / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged.*checksum"):
        read_weights(model, read_config(model))


def test_weights_cut_short(model):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="damaged"):
        read_weights(model, read_config(model))


def test_weights_that_are_none_though_their_checksum_is_right(model):
    (model / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="damaged"):
        read_weights(model, {"weights_sha256": sha256(model / "model.safetensors")})


def test_weights_that_are_missing(model):
    (model / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        read_weights(model, read_config(model))


def test_a_future_format(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"format": checkpoint.FORMAT + 1}))
    with pytest.raises(UserError, match=rf"format {checkpoint.FORMAT + 1}.*install a newer smalti"):
        read_config(model)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "7", '{"format": ', "\udcff"])
def test_a_damaged_config(text, model):
    (model / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        read_config(model)


def test_a_run_or_its_model_folder(model):
    assert model_folder(model) == model
    assert model_folder(str(model.parent)) == model


def test_a_run_whose_model_was_being_replaced(model):
    shutil.move(model, model.with_name("model.old"))
    assert model_folder(model.parent) == model


def test_where_there_is_no_model(tmp_path):
    with pytest.raises(UserError, match="no run at"):
        model_folder(tmp_path / "nothing")
    with pytest.raises(UserError, match="is not a run"):
        model_folder(tmp_path)
    (tmp_path / "recipe.json").touch()
    with pytest.raises(UserError, match=r"holds no model yet.*--resume"):
        model_folder(tmp_path)
    with pytest.raises(UserError, match="is not a run"):
        model_folder(tmp_path / "recipe.json")


def test_a_full_disk_keeps_the_earlier_model(model, monkeypatch):
    real, calls = checkpoint.save_file, []

    def full(tensors, path) -> None:
        calls.append(path)
        real(tensors, path)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match=r"disk full.*untouched"):
        write_model(model, {"what": "a newer one"}, {"w": torch.zeros(2)}, "")
    assert calls
    assert read_config(model)["what"] == "a test"
    assert names(model.parent) == {"model"}
