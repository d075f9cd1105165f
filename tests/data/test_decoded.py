from __future__ import annotations

import os

import pytest
import torch

from smalti.data import decoded
from smalti.data.decoded import decode
from smalti.data.sources import DataConfig, open_source


def opened(folder, **settings):
    return open_source(DataConfig(source=str(folder), validation=0, **settings))


def test_decoding_is_kept_and_not_done_twice(damaged, monkeypatch):
    first, broken = decode(opened(damaged), 0)
    assert set(broken) == {5, 6}
    monkeypatch.setattr(decoded, "_decode_all", None)
    again, broken_again = decode(opened(damaged), 0)
    assert torch.equal(first, again)
    assert broken_again == broken
    again[0] = 0  # a private copy: neither a warning nor a change of the file
    assert torch.equal(decode(opened(damaged), 0)[0], first)


def test_another_shape_fit_or_content_is_decoded_anew(damaged, paint):
    plain = decode(opened(damaged), 0)[0]
    assert decode(opened(damaged, shape=(8, 8)), 0)[0].shape == (41, 3, 8, 8)
    cropped, padded = (decode(opened(damaged, shape=(8, 12), fit=fit), 0)[0] for fit in ("crop", "pad"))
    assert not torch.equal(cropped, padded)
    assert decode(opened(damaged, channels=1), 0)[0].shape == (41, 1, 40, 40)
    paint(damaged / "00.png", 99, (40, 40))
    assert not torch.equal(decode(opened(damaged), 0)[0][0], plain[0])


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"nonsense" * 100])
def test_a_spoilt_cache_is_written_again(damaged, cache, content):
    first, _ = decode(opened(damaged), 0)
    first = first.clone()
    (file,) = (cache / "decoded").glob("*.npy")
    file.unlink()
    file.write_bytes(content)
    assert torch.equal(decode(opened(damaged), 0)[0], first)


def test_without_a_disk_to_keep_it_on_it_is_kept_in_memory(damaged, cache, monkeypatch, tmp_path):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    source = opened(damaged)
    first = decode(source, 0)[0].clone()
    for file in (cache / "decoded").iterdir():
        file.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(decoded.np, "save", full)
        assert torch.equal(decode(source, 0)[0], first)
    assert not list((cache / "decoded").glob("*.npy"))
    assert not list((cache / "decoded").glob("*.part"))
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SMALTI_CACHE", str(tmp_path / "file"))
    assert torch.equal(decode(source, 0)[0], first)


def test_what_was_not_used_for_longest_makes_room(damaged, cache, monkeypatch):
    kept = cache / "decoded"
    size = 41 * 3 * 8 * 8
    monkeypatch.setattr(decoded, "MOST_KEPT", int(2.5 * size))
    for day, width in enumerate((8, 4, 16)):  # areas of 64 pixels
        decode(opened(damaged, shape=(64 // width, width)), 0)
        (new,) = (file for file in kept.glob("*.npy") if file.stat().st_mtime > 1e9)
        os.utime(new, (day, day))
    assert [file.stat().st_mtime for file in kept.glob("*.npy")].count(0) == 0
    assert len(list(kept.glob("*.npy"))) == 2
    decode(opened(damaged, shape=(16, 4)), 0)  # used again
    decode(opened(damaged, shape=(2, 32)), 0)
    monkeypatch.setattr(decoded, "_decode_all", None)
    decode(opened(damaged, shape=(16, 4)), 0)
