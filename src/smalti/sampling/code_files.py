"""Files of codes: pictures cut by one model, to be laid again by the same.

A safetensors file with one tensor (Q, *grid) a picture, of the smallest type that holds its codes, and in its metadata
the model's checksum and each picture's name and true size. Codes that are more than one file should hold stand in
several and an index, named as Hugging Face names weights:

codes.safetensors                      or
codes-00001-of-00003.safetensors …     and codes.safetensors.index.json
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from smalti.checkpoint import saving, sha256, write_text
from smalti.errors import UserError
from smalti.model import Tokenizer

SHARD_BYTES = 256 << 20  # of codes in one file; writing it takes twice as much memory
MOST_IN_SHARD = 100_000  # pictures: readers refuse a header of 100 MB
INDEX = ".index.json"
COMPLETE = ".complete"  # the one commit point: what stands beside it is whole
LONGEST_NAME = 200  # bytes of one part of a path: file systems end at 255, and names are numbered and given endings
TYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class Encoded:
    """One picture's codes (Q, *grid), its name, a relative path with forward slashes, and its true size (H, W)."""

    name: str
    size: tuple[int, ...]
    codes: Tensor


# --- writing ---------------------------------------------------------------------------------------------------------


class CodeWriter:
    """Writes codes as they come: one file, or where they exceed `shard_bytes` several and an index.

    All of it is written in a hidden folder and put in the place of what was there when the `with` block ends, whole or
    not at all; a kill while it is being put there is made good by whoever reads or writes that name next. `place`,
    known at the end, is the file or the index.
    """

    def __init__(self, tokenizer: Tokenizer, out: Path, shard_bytes: int = SHARD_BYTES) -> None:
        if out.is_dir():
            raise UserError(f"could not write {out}: a folder is in the way; choose another --out")
        for there in (out, out.with_name(out.name + INDEX)):
            if there.exists() and not _is_codes(there):  # a picture, or somebody's weights
                raise UserError(f"{there} would be overwritten, and it is no file of codes; choose another --out")
        self.out = self.place = out
        self.model, self.shard_bytes = tokenizer.sha256, shard_bytes
        self.dtype = smallest(tokenizer.network.codes.size)
        self.folder = _hidden(out)
        self.shards: list[tuple[Path, list[str]]] = []  # each with the keys of its tensors
        self.tensors: dict[str, Tensor] = {}
        self.listing: list[dict[str, Any]] = []
        self.bytes = self.total_bytes = self.count = 0

    def __enter__(self) -> CodeWriter:
        with saving(self.out):
            settle(self.out)
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._finish()
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, encoded: Encoded) -> None:
        """Add a picture's codes."""
        codes = encoded.codes.to("cpu", self.dtype).contiguous()
        if self.tensors and (self.bytes + codes.nbytes > self.shard_bytes or len(self.tensors) == MOST_IN_SHARD):
            self._write(part=len(self.shards) + 1)
        self.tensors[f"{self.count:08d}"] = codes
        self.listing.append({"name": _proper(encoded.name), "size": list(encoded.size)})
        self.bytes += codes.nbytes
        self.count += 1

    def _write(self, part: int | None) -> None:
        """Write what is pending; a part says that it is one, lest it be taken for the whole."""
        metadata = {"smalti": "codes", "model_sha256": self.model, "files": json.dumps(self.listing)}
        if part is not None:
            metadata["part"] = str(part)
        path = self.folder / str(part or 1)
        with saving(self.out):
            save_file(self.tensors, path, metadata)
        self.shards.append((path, list(self.tensors)))
        self.total_bytes += self.bytes
        self.tensors, self.listing, self.bytes = {}, [], 0

    def _finish(self) -> None:
        try:
            self._write(len(self.shards) + 1 if self.shards else None)
            with saving(self.out):
                names = self._named()
                write_text(self.folder / COMPLETE, json.dumps(names))
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        settle(self.out)

    def _named(self) -> list[str]:
        """Give all files the names they will have; the index is the last of them."""
        if len(self.shards) == 1:
            os.replace(self.shards[0][0], self.folder / self.out.name)
            return [self.out.name]
        names = [
            f"{_stem(self.out)}-{i:05d}-of-{len(self.shards):05d}.safetensors" for i in range(1, len(self.shards) + 1)
        ]
        sums, places = {}, {}
        for name, (path, keys) in zip(names, self.shards, strict=True):
            sums[name] = sha256(path)
            places.update(dict.fromkeys(keys, name))
            os.replace(path, self.folder / name)
        about = {"smalti": "codes", "model_sha256": self.model, "total_size": self.total_bytes, "sha256": sums}
        self.place = self.out.with_name(self.out.name + INDEX)
        write_text(
            self.folder / self.place.name, json.dumps({"metadata": about, "weight_map": places}, indent=1) + "\n"
        )
        return [*names, self.place.name]


def smallest(size: int) -> torch.dtype:
    """The smallest plain type for codes in [0, size)."""
    return torch.uint8 if size <= 1 << 8 else torch.int16 if size <= 1 << 15 else torch.int32


def _proper(name: str) -> str:
    """A name that can be printed and written anywhere: `_` for odd characters, long parts cut."""
    plain = "".join(letter if letter.isprintable() else "_" for letter in name)
    return "/".join(part.encode()[:LONGEST_NAME].decode(errors="ignore") for part in plain.split("/"))


def settle(out: Path) -> None:
    """Put codes that were written whole in the place of those before them, also after a kill in the midst of that."""
    folder = _hidden(out)
    try:
        told = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    # names from a file that somebody may have handed us: only this set's own are touched
    fresh = [name for name in told if _belongs(name, out)] if isinstance(told, list) else []
    with saving(out):
        for path in [out.with_name(out.name + INDEX), out, *out.parent.iterdir()]:  # the index first
            if _belongs(path.name, out) and path.name not in fresh and _is_codes(path):
                path.unlink(missing_ok=True)
        for name in fresh:
            if (folder / name).exists():
                os.replace(folder / name, out.with_name(name))
        shutil.rmtree(folder)


def _hidden(out: Path) -> Path:
    return out.with_name(f".{out.name}.new")


def _stem(out: Path) -> str:
    return out.name.removesuffix(".safetensors")


def _belongs(name: object, out: Path) -> bool:
    """Whether a file's name is one that codes written to `out` may have."""
    shard = re.escape(_stem(out)) + r"-\d{5}-of-\d{5}\.safetensors"
    return isinstance(name, str) and (name in (out.name, out.name + INDEX) or re.fullmatch(shard, name) is not None)


def _is_codes(path: Path) -> bool:
    """Whether a file, or an index, is one of codes and not of somebody's weights."""
    try:
        if path.name.endswith(INDEX):
            return json.loads(path.read_text(encoding="utf-8"))["metadata"]["smalti"] == "codes"
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("smalti") == "codes"
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return False


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """Where one picture's codes stand, its name and its true size."""

    file: Path
    key: str
    name: str
    size: tuple[int, ...]


class CodeReader:
    """A file of codes, an index, or the plain name of what an index stands for: looked through, then read one by one.

    Raises UserError when there is none, when it was made by another model, is not whole or is damaged, and when its
    codes do not fit the tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, path: Path) -> None:
        self.tokenizer, self.path = tokenizer, path
        spec = tokenizer.network.codes
        self.size, self.most = spec.size, spec.codebooks
        self.least = 1 if tokenizer.network.bottleneck.fewer else self.most
        if path.is_dir():
            raise UserError(f"{path} is a folder; name the file of codes, or the index, in it")
        index = path if path.name.endswith(INDEX) else path.with_name(path.name + INDEX)
        settle(path.with_name(index.name.removesuffix(INDEX)))
        if path != index and path.is_file():
            self.entries = list(self._look_through(path, part=False))
        elif index.is_file():
            self.entries = self._look_through_set(index)
        else:
            raise UserError(f"no file {path}")

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Encoded]:
        for path, entries in groupby(self.entries, key=lambda entry: entry.file):
            with safe_open(path, "pt") as file:
                for entry in entries:
                    yield Encoded(entry.name, entry.size, file.get_tensor(entry.key).long())

    def _look_through_set(self, index: Path) -> list[Entry]:
        try:
            told = json.loads(index.read_text(encoding="utf-8"))
            self._check_origin(told["metadata"], index)
            entries: list[Entry] = []
            for name, wanted in told["metadata"]["sha256"].items():
                file = index.with_name(name)
                if not file.is_file():
                    raise UserError(f"{file} is missing, so the codes are not whole; copy it from where they were made")
                if sha256(file) != wanted:
                    raise UserError(f"{file} is damaged or cut short: its checksum is not the one in {index.name}")
                entries += self._look_through(file, part=True)
            if {entry.key: entry.file.name for entry in entries} != told["weight_map"]:
                raise ValueError("its files hold other pictures than it says")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{index} is damaged: {_told(error)}") from error
        return entries

    def _look_through(self, path: Path, part: bool) -> Iterator[Entry]:
        """What one file holds, each picture checked."""
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                self._check_origin(metadata, path)
                if "part" in metadata and not part:
                    raise UserError(f"{path} is one of several parts; name their index, which ends in {INDEX}")
                listing, keys = json.loads(metadata["files"]), sorted(file.keys())
                if len(listing) != len(keys):
                    raise ValueError(f"it names {len(listing)} pictures and holds the codes of {len(keys)}")
                for key, each in zip(keys, listing, strict=True):
                    entry = Entry(path, key, each["name"], tuple(each["size"]))
                    self._check(entry, file.get_tensor(key))
                    yield entry
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is damaged or cut short: {_told(error)}") from error

    def _check_origin(self, metadata: dict[str, Any], path: Path) -> None:
        if metadata.get("smalti") != "codes":
            raise UserError(f"{path} is not a file of codes; `smalti encode` writes them")
        if metadata.get("model_sha256") != self.tokenizer.sha256:
            raise UserError(f"{path} was made by another model; decode it with the one that encoded it")

    def _check(self, entry: Entry, codes: Tensor) -> None:
        """Raises UserError where codes do not fit the tokenizer, ValueError where the file contradicts itself."""
        if not isinstance(entry.name, str) or not entry.name.isprintable():
            raise ValueError("a picture has no proper name")
        path = PurePosixPath(entry.name)
        if not path.parts or path.is_absolute() or ".." in path.parts:
            raise UserError(f"{entry.file} is refused: its name {entry.name!r} leads out of the folder")
        if any(len(part.encode()) > LONGEST_NAME for part in path.parts):
            raise ValueError(f"the name {entry.name[:20]!r}… is longer than a file's may be")
        if len(entry.size) != len(self.tokenizer.signal.shape) or not all(
            isinstance(side, int) and side > 0 for side in entry.size
        ):
            raise ValueError(f"{entry.name!r} has no proper size")
        if codes.ndim != 1 + len(entry.size) or codes.dtype not in TYPES:
            raise ValueError(f"{entry.name!r} has no proper codes")
        if not self.least <= len(codes) <= self.most:
            expected = f"{self.least} to {self.most}" if self.least < self.most else f"{self.most}"
            raise UserError(f"{entry.file}: {entry.name!r} has {len(codes)} codebooks, and this model {expected}")
        stride = self.tokenizer.network.stride
        if list(codes.shape[1:]) != [-(-side // stride) for side in entry.size]:
            raise ValueError(f"the codes of {entry.name!r} do not fit its size")
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= self.size:
            raise UserError(
                f"{entry.file}: {entry.name!r} has codes in [{low}, {high}], and this model's are 0 to {self.size - 1}"
            )


def _told(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
