"""Decoding a whole source once, and keeping the result in the cache for the next time and for other processes."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from smalti.data.example import Source
from smalti.data.fetch import cache_dir
from smalti.data.folder import check_broken
from smalti.data.workers import Workers

CHUNK = 64  # pictures a worker reads at a time
MOST_KEPT = 8 << 30  # bytes of decoded pictures in the cache; what was not used for longest goes first


def decode(source: Source, workers: int, checked: bool = False) -> tuple[Tensor, dict[int, str]]:
    """All of a source's pictures as uint8 (N, C, H, W), and why broken ones (black there) are; kept in the cache.

    `checked`: what was kept is read through, and decoded anew where it is not what was written.
    Raises UserError when more than 5 % are broken.
    """
    file = cache_dir() / "decoded" / f"{source.pixels_key}.npy"
    if (kept := _recall(file, source, checked)) is not None:
        return kept
    with _only_one(file):
        if (kept := _recall(file, source, checked)) is not None:  # another process decoded them while this one waited
            return kept
        pixels, broken = _decode_all(source, workers)
        check_broken(source.named(broken), len(source), source.name)
        if _remember(file, pixels, broken) and (kept := _recall(file, source, False)) is not None:
            return kept  # mapped from the file: several processes share it
    return torch.from_numpy(pixels), broken


def _decode_all(source: Source, count: int) -> tuple[np.ndarray, dict[int, str]]:
    length = len(source)
    pixels = np.zeros((length, source.signal.channels, *source.signal.shape), dtype=np.uint8)
    broken: dict[int, str] = {}
    workers = Workers(source, count)
    told = begun = time.monotonic()
    try:
        jobs = deque((at, workers.submit(range(at, min(at + CHUNK, length)))) for at in range(0, length, CHUNK))
        while jobs:
            at, job = jobs.popleft()  # and let go of: what it holds is copied
            for i, (picture, reason) in enumerate(job.result(), at):
                if picture is None:
                    broken[i] = reason
                else:
                    pixels[i] = picture
            if time.monotonic() - told > 10:
                told = time.monotonic()
                left = (told - begun) / (at + CHUNK) * (length - at - CHUNK)
                print(f"reading pictures: {at + CHUNK} of {length}, {max(left, 0):.0f} s left", file=sys.stderr)
    finally:
        workers.close()
    return pixels, broken


def _recall(file: Path, source: Source, checked: bool) -> tuple[Tensor, dict[int, str]] | None:
    try:
        pixels = np.load(file, mmap_mode="c")  # "c": private to this process, should anything ever write to it
        about = json.loads(file.with_suffix(".json").read_text())
        broken = {int(i): str(reason) for i, reason in about["broken"].items()}
        if checked and zlib.crc32(pixels.data) != about["crc32"]:
            return None
    except (OSError, ValueError, AttributeError, EOFError, KeyError, TypeError):
        return None
    if pixels.dtype != np.uint8 or pixels.shape != (len(source), source.signal.channels, *source.signal.shape):
        return None
    with contextlib.suppress(OSError):
        os.utime(file)  # used just now
    return torch.from_numpy(pixels), broken


def _remember(file: Path, pixels: np.ndarray, broken: dict[int, str]) -> bool:
    """Write both files, the pixels last: with them the pair is complete. False where the disk does not allow it."""
    temporary = file.with_suffix(f".{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"broken": broken, "crc32": zlib.crc32(pixels.data)}))
        os.replace(temporary, file.with_suffix(".json"))
        with temporary.open("wb") as out:
            np.save(out, pixels)
        os.replace(temporary, file)
        _make_room(file.parent)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        return False
    return True


@contextlib.contextmanager
def _only_one(file: Path) -> Iterator[None]:
    """One process at a time; without a cache folder to lock in, each for itself."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file.with_suffix(".lock"))
        lock.acquire()
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _make_room(folder: Path) -> None:
    """Remove the decoded pictures that were not used for longest, until what is kept is not too much."""
    files = sorted(folder.glob("*.npy"), key=lambda file: file.stat().st_mtime, reverse=True)
    total = 0
    for file in files:
        total += file.stat().st_size
        if total > MOST_KEPT:
            for each in (file, file.with_suffix(".json"), file.with_suffix(".lock")):
                with contextlib.suppress(OSError):
                    each.unlink()
