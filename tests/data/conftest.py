"""Small picture files, and a cache folder of its own for every test."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smalti.data import sources


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SMALTI_CACHE", str(folder))
    sources._read_named.cache_clear()
    return folder


@pytest.fixture
def paint() -> Callable[..., np.ndarray]:
    """paint(path, seed, size=(H, W), mode="RGB") writes a picture of random pixels and returns them."""

    def write(path: Path, seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> np.ndarray:
        bands = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
        pixels = np.random.default_rng(seed).integers(0, 256, (*size, *bands), dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels, mode if mode == "CMYK" else None).save(path)
        return pixels

    return write


@pytest.fixture
def huge_header() -> Callable[[Path, int], None]:
    """huge_header(path, side): a PNG of a few bytes that says it is side × side."""

    def write(path: Path, side: int = 60_000) -> None:
        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        picture = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + picture)

    return write


@pytest.fixture
def cut_short() -> Callable[[Path], None]:
    """cut_short(path): keep a file's header and the first part of its pixels."""

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return cut


@pytest.fixture
def damaged(tmp_path: Path, paint: Callable[..., np.ndarray], cut_short: Callable[[Path], None]) -> Path:
    """A folder of 41 pictures of 40 × 40, of which 05 and 06 are cut short: that shows only when they are decoded."""
    folder = tmp_path / "pictures"
    for i in range(41):
        paint(folder / f"{i:02}.png", i, (40, 40))
    for i in (5, 6):
        cut_short(folder / f"{i:02}.png")
    return folder
