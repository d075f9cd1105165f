"""What is known of every picture file without decoding it: checksum, size, and whether its header can be read.

The results are remembered by path, size and times, so that a second look at a large folder is quick.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from smalti.data.fetch import cache_dir
from smalti.data.raster import BrokenFile, quiet, read_header


@dataclass(frozen=True)
class Seen:
    """`stamp`: size and times in ns, by which a change is noticed; `reason`: why it is broken, "" if it is not."""

    stamp: tuple[int, int, int]
    sha256: str
    height: int = 0
    width: int = 0
    grey: bool = False
    reason: str = ""


def scan(root: Path, names: Iterable[str]) -> dict[str, Seen]:
    """Name -> what was seen, for files inside `root`; a missing or unreadable file has a `reason`."""
    names = list(names)
    memory = cache_dir() / "folders" / f"{hashlib.sha256(str(root).encode()).hexdigest()[:32]}.json"
    known = _recall(memory)
    with quiet(), ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        seen = dict(zip(names, pool.map(lambda name: _look(root / name, known.get(name)), names), strict=True))
    if seen != known:
        _remember(memory, seen)
    return seen


def _look(path: Path, known: Seen | None) -> Seen:
    try:
        status = path.stat()
        stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if known is not None and known.stamp == stamp:
            return known
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return Seen((0, 0, 0), "", reason=error.strerror or str(error))
    try:
        header = read_header(path)
    except BrokenFile as broken:
        return Seen(stamp, sha256, reason=broken.reason)
    return Seen(stamp, sha256, header.height, header.width, header.grey)


def _recall(memory: Path) -> dict[str, Seen]:
    try:
        rows = json.loads(memory.read_text())
        return {name: Seen(**{**row, "stamp": tuple(row["stamp"])}) for name, row in rows.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}  # never seen, or written by another version


def _remember(memory: Path, seen: dict[str, Seen]) -> None:
    rows = {name: asdict(each) for name, each in seen.items() if each.sha256}
    temporary = memory.with_suffix(f".{os.getpid()}.part")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(rows))
        os.replace(temporary, memory)
    except OSError:  # a memory that cannot be written only costs time
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
