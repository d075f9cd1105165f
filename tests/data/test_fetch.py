from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import os
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from smalti.data.fetch import DebianPackage, Publisher, PythonPackage, WayFailed, cache_dir, obtain
from smalti.errors import UserError

CONTENT = {"a.gz": b"alpha" * 50, "b.bin": b"beta"}
FILES = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
on_posix = pytest.mark.skipif(os.name != "posix", reason="stands in for programs with shell scripts")


def put(folder: Path, **changed: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.gz").write_bytes(changed.get("a", gzip.compress(CONTENT["a.gz"])))
    (folder / "b.bin").write_bytes(changed.get("b", CONTENT["b.bin"]))


class FakeWay:
    def __init__(self, name: str, fails: str = "", **changed: bytes) -> None:
        self.name, self.fails, self.changed, self.tried = name, fails, changed, 0

    def bring(self, names, into):
        self.tried += 1
        if self.fails:
            (into / "b.bin").write_bytes(b"be")  # it broke off in the middle
            raise WayFailed(self.fails)
        put(into, **self.changed)


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)


def test_the_first_way_that_works_is_used_once(cache):
    ways = [FakeWay("one", fails="closed on Sundays"), FakeWay("two"), FakeWay("three")]
    assert obtain("set", FILES, ways, []) == (CONTENT, "two")
    contents, way = obtain("set", FILES, ways, [])
    assert contents == CONTENT
    assert way == f"already on disk: {cache / 'sets' / 'set'}"
    assert [each.tried for each in ways] == [1, 1, 0]
    assert {path.name for path in (cache / "sets").iterdir()} - {"set.lock"} == {"set"}  # nothing half-fetched stays


def test_a_folder_of_the_system_comes_before_any_way(tmp_path):
    put(tmp_path / "usr")
    never = FakeWay("never")
    contents, way = obtain("set", FILES, [never], [tmp_path / "nowhere", tmp_path / "usr"])
    assert contents == CONTENT
    assert str(tmp_path / "usr") in way
    assert never.tried == 0


def test_when_all_ways_fail_each_is_named_with_its_reason():
    ways = [FakeWay("one", fails="no net"), FakeWay("two", b=b"bet4"), FakeWay("three", a=b"not gzip")]
    with pytest.raises(UserError) as caught:
        obtain("set", FILES, ways, [])
    message = str(caught.value)
    assert "one: no net" in message
    assert "b.bin is damaged" in message
    assert "a.gz" in message.split("three: ")[1]
    assert "\n" not in message
    assert not (cache_dir() / "sets" / "set").exists()


def test_a_damaged_copy_is_fetched_again(cache):
    put(cache / "sets" / "set", b=b"bets")
    way = FakeWay("again")
    assert obtain("set", FILES, [way], []) == (CONTENT, "again")
    assert (cache / "sets" / "set" / "b.bin").read_bytes() == CONTENT["b.bin"]


def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SMALTI_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="SMALTI_CACHE"):
        obtain("set", FILES, [FakeWay("one")], [])


def test_without_a_wish_the_cache_is_the_platforms(monkeypatch):
    monkeypatch.delenv("SMALTI_CACHE")
    assert cache_dir().name == "smalti"


@pytest.fixture
def server(tmp_path):
    put(tmp_path / "served")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}/"
        served.shutdown()
        thread.join()


def test_a_publisher_sends_files(server):
    hashes = {"b.bin": "md5:" + hashlib.md5(CONTENT["b.bin"]).hexdigest()}
    contents, way = obtain("set", FILES, [Publisher(server, hashes)], [])
    assert contents == CONTENT
    assert server in way


def test_a_publisher_that_sends_something_else_or_nothing_fails(server, tmp_path):
    with pytest.raises(WayFailed, match="hash"):
        Publisher(server, {"b.bin": "md5:" + "0" * 32}).bring(["b.bin"], tmp_path)
    with pytest.raises(WayFailed, match="404"):
        Publisher(server).bring(["c.bin"], tmp_path)
    with pytest.raises(WayFailed, match="cannot be reached"):
        Publisher("http://127.0.0.1:9/").bring(["b.bin"], tmp_path)


@on_posix
def test_a_debian_package_is_unpacked_with_lists_refreshed_once(tmp_path, monkeypatch):
    put(tmp_path / "in_package" / "usr" / "share" / "set")
    log = tmp_path / "log"
    script(tmp_path / "bin" / "dpkg", f'mkdir -p "$3"; cp -r {tmp_path}/in_package/* "$3"')
    script(
        tmp_path / "bin" / "apt-get",  # knows no package until it has been refreshed, in the lists it was given
        f'echo "$@" >> {log}\n'
        'for last in "$@"; do :; done\n'
        'case "$1" in -oDir::State::lists=*) lists="${1#*=}";; esac\n'
        'case "$last" in update) touch "$lists/known";; *)\n'
        '  [ -n "$lists" ] && [ -e "$lists/known" ] || { echo "E: Unable to locate package $last" >&2; exit 100; }\n'
        "  touch set_1_all.deb;; esac\n",
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert obtain("set", FILES, [DebianPackage("set", "usr/share/set")], []) == (CONTENT, "the Debian package set")
    assert log.read_text().count("update") == 1
    with pytest.raises(WayFailed, match=r"no c\.bin"):
        DebianPackage("set", "usr/share/set").bring(["c.bin"], tmp_path)


@on_posix
def test_a_debian_package_that_nobody_knows_gives_the_tools_last_word(tmp_path, monkeypatch):
    script(tmp_path / "apt-get", 'echo "W: warm" >&2; echo "E: Unable to locate package x" >&2; exit 100')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("shutil.which", lambda tool: tool)
    with pytest.raises(WayFailed, match="Unable to locate package x"):
        DebianPackage("x", "usr").bring(["b.bin"], tmp_path)


def test_no_debian_here(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda tool: None)
    with pytest.raises(WayFailed, match="no apt-get here"):
        DebianPackage("x", "usr").bring(["b.bin"], tmp_path)


@on_posix
def test_a_python_package_is_unpacked(tmp_path, monkeypatch):
    put(tmp_path / "files")
    with zipfile.ZipFile(tmp_path / "set.whl", "w") as wheel:
        for name in CONTENT:
            wheel.write(tmp_path / "files" / name, f"set/data/{name}")
    script(
        tmp_path / "python",
        f'while [ "$1" != --dest ]; do shift; done; cp {tmp_path}/set.whl "$2/set-1-py3-none-any.whl"',
    )
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert obtain("set", FILES, [PythonPackage("set", "set/data")], []) == (CONTENT, "the Python package set")
    with pytest.raises(WayFailed, match=r"c\.bin"):
        PythonPackage("set", "set/data").bring(["c.bin"], tmp_path)
