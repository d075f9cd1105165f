from __future__ import annotations

import hashlib
import os

from smalti.data import scan as scanning
from smalti.data.scan import scan


def test_what_is_seen_of_good_and_broken_files(tmp_path, paint, huge_header):
    paint(tmp_path / "a.png", 0, (4, 6))
    paint(tmp_path / "b" / "grey.png", 1, (5, 3), "L")
    huge_header(tmp_path / "huge.png")
    (tmp_path / "text.png").write_text("hello")
    seen = scan(tmp_path, ["a.png", "b/grey.png", "huge.png", "text.png", "gone.png"])
    assert (seen["a.png"].height, seen["a.png"].width, seen["a.png"].grey, seen["a.png"].reason) == (4, 6, False, "")
    assert (seen["b/grey.png"].height, seen["b/grey.png"].grey) == (5, True)
    assert seen["a.png"].sha256 == hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    assert all(seen[name].reason for name in ("huge.png", "text.png", "gone.png"))


def test_a_second_look_opens_only_what_changed(tmp_path, paint, monkeypatch):
    for i in range(4):
        paint(tmp_path / f"{i}.png", i)
    names = [f"{i}.png" for i in range(4)]
    first = scan(tmp_path, names)
    paint(tmp_path / "2.png", 99)
    (tmp_path / "3.png").unlink()
    opened = []
    read = scanning.read_header
    monkeypatch.setattr(scanning, "read_header", lambda path: opened.append(path.name) or read(path))
    second = scan(tmp_path, names)
    assert opened == ["2.png"]
    assert second["0.png"] == first["0.png"]
    assert second["2.png"].sha256 != first["2.png"].sha256
    assert second["3.png"].reason


def test_a_change_that_keeps_size_and_time_of_writing_is_seen(tmp_path, paint):
    paint(tmp_path / "a.png", 0)
    before, status = scan(tmp_path, ["a.png"])["a.png"], (tmp_path / "a.png").stat()
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[-20] ^= 1
    (tmp_path / "a.png").write_bytes(bytes(content))
    os.utime(tmp_path / "a.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert scan(tmp_path, ["a.png"])["a.png"].sha256 != before.sha256


def test_a_spoilt_or_impossible_memory_only_costs_time(tmp_path, paint, cache, monkeypatch):
    paint(tmp_path / "a.png", 0)
    first = scan(tmp_path, ["a.png"])
    (memory,) = (cache / "folders").iterdir()
    for spoilt in ("", "[]", "{}", '{"a.png": {"sha256": 3}}', '{"a.png": null}'):
        memory.write_text(spoilt)
        assert scan(tmp_path, ["a.png"]) == first
    monkeypatch.setenv("SMALTI_CACHE", str(tmp_path / "a.png"))
    assert scan(tmp_path, ["a.png"]) == first
