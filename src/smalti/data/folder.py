"""A folder of pictures as a source: class folders, or metadata.jsonl|csv, with given splits or an automatic one."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from smalti.config import SignalSpec
from smalti.data.example import Item, Source, held_out
from smalti.data.raster import Fit, fit_raster, read_raster
from smalti.data.scan import Seen, scan
from smalti.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jfif",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".tga",
    ".jp2",
    ".avif",
    ".ico",
)
SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}
METADATA = ("metadata.jsonl", "metadata.csv")
MOST_BROKEN = 0.05  # a larger share of broken files stops the run
LARGEST_NATURAL = 256  # the side a shape chosen here may have at most


@dataclass(frozen=True)
class Entry:
    """One picture: `name` is its path inside the folder, with forward slashes."""

    name: str
    seen: Seen
    label: str | None
    text: tuple[str, ...]


@dataclass(frozen=True)
class Folder:
    """All that stands in a folder of pictures: its readable entries by split, and what is broken, by name."""

    root: Path
    splits: Mapping[str, Sequence[Entry]]
    labels: tuple[str, ...]
    broken: tuple[tuple[str, str], ...]

    @property
    def entries(self) -> list[Entry]:
        """Every readable picture once, though it may stand in two splits."""
        return list({entry.name: entry for entries in self.splits.values() for entry in entries}.values())

    @property
    def channels(self) -> int:
        """1 when every picture is grey, else 3."""
        return 1 if all(entry.seen.grey for entry in self.entries) else 3

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W): the pictures' own size where all agree on a moderate one; else a square of the median short side."""
        sizes = {(entry.seen.height, entry.seen.width) for entry in self.entries}
        if len(sizes) == 1 and max(next(iter(sizes))) <= LARGEST_NATURAL:
            return next(iter(sizes))
        median = statistics.median(min(entry.seen.height, entry.seen.width) for entry in self.entries)
        side = min(int(median), LARGEST_NATURAL)
        return (side // 8 * 8, side // 8 * 8) if side >= 8 else (side, side)


class FolderSource(Source):
    """One split of a folder; pictures are read when asked for, in `signal`'s shape."""

    def __init__(self, folder: Folder, split: str, entries: Sequence[Entry], signal: SignalSpec, how: Fit) -> None:
        self.name = str(folder.root)
        self.root = folder.root
        self.split = split
        self.entries = tuple(sorted(entries, key=lambda entry: entry.name))
        self.signal = signal
        self.how: Fit = how
        self.labels = folder.labels
        self.broken = folder.broken
        lines = [[entry.name, entry.seen.sha256, entry.label, entry.text] for entry in self.entries]
        self.fingerprint = _digest([lines, self.labels])
        place = {label: i for i, label in enumerate(self.labels)}
        self._label_ids = np.array([place.get(entry.label or "", -1) for entry in self.entries], dtype=np.int64)
        self._has_text = any(entry.text for entry in self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def item(self, i: int) -> Item:
        import torch

        label = int(self._label_ids[i]) if self.labels else None
        return Item(torch.from_numpy(self.raster(i)), label, self.entries[i].text, self.entries[i].name)

    def raster(self, i: int) -> np.ndarray:
        height, width = self.signal.shape
        picture = read_raster(self.root / self.entries[i].name, self.signal.channels, at_least=(height, width))
        return fit_raster(picture, (height, width), self.how)

    @property
    def pixels_key(self) -> str:
        files = [entry.seen.sha256 for entry in self.entries]
        return _digest([files, self.signal.channels, self.signal.shape, self.how])

    @property
    def label_ids(self) -> Tensor | None:
        import torch

        return torch.from_numpy(self._label_ids) if self.labels else None

    def text(self, i: int) -> tuple[str, ...]:
        return self.entries[i].text

    @property
    def has_text(self) -> bool:
        return self._has_text

    def name_of(self, i: int) -> str:
        return self.entries[i].name


def read_folder(root: Path, validation: float) -> Folder:
    """Look a folder through. `validation` is the share held out where the folder has no split of its own.

    Without a validation split one is taken from the training pictures, equal files together; without a test split
    it is the validation split. Raises UserError where there is no picture, or too many are broken.
    """
    root = root.resolve()
    given = _given_splits(root)
    parts = [root] if _metadata_file(root) or not given else [root / name for name in given.values()]
    listed: dict[str, tuple[str | None, tuple[str, ...]]] = {}
    for part in parts:
        listed |= _listed(root, part, split_folder=part != root)
    _check_labels(root, [label for label, _ in listed.values()])
    seen = scan(root, listed)
    broken = tuple((name, seen[name].reason) for name in listed if seen[name].reason)
    check_broken(broken, len(listed), str(root))
    entries = [Entry(name, seen[name], label, text) for name, (label, text) in listed.items() if not seen[name].reason]
    labels = tuple(_sorted_labels({entry.label for entry in entries if entry.label is not None}))
    splits: dict[str, Sequence[Entry]] = {"train": entries}
    if given:
        splits = {split: [e for e in entries if e.name.split("/")[0] == name] for split, name in given.items()}
    if not splits["train"]:
        raise UserError(f"{root}: no pictures to train on{_what_is_there(root)}")
    if not splits.get("validation"):
        out = held_out([bytes.fromhex(entry.seen.sha256) for entry in splits["train"]], validation)
        splits["validation"] = [entry for entry, held in zip(splits["train"], out, strict=True) if held]
        splits["train"] = [entry for entry, held in zip(splits["train"], out, strict=True) if not held]
    if not splits.get("test"):
        splits["test"] = splits["validation"]
    return Folder(root, splits, labels, broken)


def check_broken(broken: Sequence[tuple[str, str]], total: int, where: str) -> None:
    """Raise UserError with the list when more than 5 % of the files are broken; one among good ones is let by."""
    if len(broken) > max(1, MOST_BROKEN * total) or 0 < total == len(broken):
        shown = "; ".join(f"{name} ({reason})" for name, reason in broken[:20])
        more = f"; and {len(broken) - 20} more" if len(broken) > 20 else ""
        raise UserError(
            f"{where}: {len(broken)} of {total} pictures are broken, more than {MOST_BROKEN:.0%}; "
            f"repair or remove them: {shown}{more}"
        )


def _given_splits(root: Path) -> dict[str, str]:
    """Split -> its sub-folder. {} where there is no train/, or where it is one class among others (bus, car, train)."""
    given: dict[str, str] = {}
    for split, names in SPLIT_FOLDERS.items():
        for name in names:
            if (root / name).is_dir():
                given.setdefault(split, name)
    others = [each for each in root.iterdir() if each.is_dir() and each.name not in given.values()]
    if "train" not in given or any(next(_pictures(root, other), None) for other in others):
        return {}
    return given


def _listed(root: Path, part: Path, split_folder: bool) -> dict[str, tuple[str | None, tuple[str, ...]]]:
    """Picture name -> (label, texts) for one part of the folder."""
    if metadata := _metadata_file(part):
        return _from_metadata(root, part, metadata)
    names = sorted(_pictures(root, part))
    if not names:
        raise UserError(f"{part}: no pictures{_what_is_there(part)}")
    depth = 1 if split_folder else 0
    folders = [name.split("/")[depth] if name.count("/") > depth else None for name in names]
    classes = len(set(folders)) > 1 and None not in folders
    return {name: (folder if classes else None, ()) for name, folder in zip(names, folders, strict=True)}


def _pictures(root: Path, part: Path) -> Iterator[str]:
    been = set()
    for here, folders, files in os.walk(part, followlinks=True):
        real = os.path.realpath(here)
        if real in been:  # links may lead in circles
            folders.clear()
            continue
        been.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
        for file in files:
            if not file.startswith(".") and Path(file).suffix.lower() in SUFFIXES:
                yield Path(here, file).relative_to(root).as_posix()


def _metadata_file(part: Path) -> Path | None:
    return next((part / name for name in METADATA if (part / name).is_file()), None)


def _from_metadata(root: Path, part: Path, file: Path) -> dict[str, tuple[str | None, tuple[str, ...]]]:
    listed: dict[str, tuple[str | None, tuple[str, ...]]] = {}
    for line, row in _rows(file):
        name = row.get("file_name")
        if not isinstance(name, str) or not name:
            raise UserError(f"{file}, line {line}: no file_name")
        if "\0" in name or not _is_unicode(name):
            raise UserError(f"{file}, line {line}: {name!a} is no name that a file can have")
        path = Path(os.path.normpath(part / name))
        if not path.is_relative_to(root):
            raise UserError(f"{file}, line {line}: {name} lies outside {root}")
        label, text = row.get("label"), row.get("text")
        label = _label(label, f"{file}, line {line}")
        texts = _texts(text, f"{file}, line {line}")
        key = path.relative_to(root).as_posix()
        if key in listed:  # a picture with several texts may stand on several lines
            before, texts_before = listed[key]
            if before != label:
                raise UserError(f"{file}, line {line}: {name} has two labels, {before} and {label}")
            texts = texts_before + texts
        listed[key] = (label, texts)
    if not listed:
        raise UserError(f"{file}: it lists no pictures")
    return listed


def _label(told: object, where: str) -> str | None:
    """A class; a number is one too. Raises UserError on what is neither, and on half a character."""
    if told is None or told == "":
        return None
    if not isinstance(told, str | int | float) or told != told:
        raise UserError(f"{where}: a label is a string or a number, not {_kind(told)}")
    if not _is_unicode(str(told)):
        raise UserError(f"{where}: its label has half a character (\\ud800 … \\udfff), which is no proper Unicode")
    return str(told)


def _kind(told: object) -> str:
    return "NaN" if told != told else type(told).__name__


def _texts(told: object, where: str) -> tuple[str, ...]:
    """A caption, or a list of them, without those that are empty. Numbers are texts too. Raises UserError on others."""
    texts = []
    for text in told if isinstance(told, list) else [told]:
        if text is None or (isinstance(text, str) and not text.strip()):
            continue
        if not isinstance(text, str | int | float) or isinstance(text, bool) or text != text:
            raise UserError(f"{where}: a text is a string or a list of strings, not {_kind(text)}")
        if not _is_unicode(str(text)):
            raise UserError(f"{where}: its text has half a character (\\ud800 … \\udfff), which is no proper Unicode")
        texts.append(str(text))
    return tuple(texts)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _rows(file: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    """(line number, row); a byte order mark is taken as such."""
    try:
        with file.open(encoding="utf-8-sig", newline="" if file.suffix == ".csv" else None) as lines:
            if file.suffix == ".csv":
                reader = csv.DictReader(lines, strict=True)  # or an open quote would swallow all that follows
                yield from ((reader.line_num, row) for row in reader)
                return
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise UserError(f"{file}, line {number}: no JSON that can be read: {error}") from None
                if not isinstance(row, dict):
                    raise UserError(f"{file}, line {number}: not a JSON object")
                yield number, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: {error}") from None


def _check_labels(root: Path, labels: Sequence[str | None]) -> None:
    missing = sum(label is None for label in labels)
    if 0 < missing < len(labels):
        raise UserError(f"{root}: {missing} of {len(labels)} pictures have no label; label all of them, or none")


def _sorted_labels(labels: Iterable[str]) -> list[str]:
    labels = list(labels)
    return sorted(labels, key=int) if all(label.isdecimal() for label in labels) else sorted(labels)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _what_is_there(part: Path) -> str:
    kinds = sorted({Path(file).suffix.lower() or "without ending" for _, _, files in os.walk(part) for file in files})
    if not kinds:
        return " (the folder is empty)"
    return f" (only files {', '.join(kinds[:8])}); pictures end in .png, .jpg, .webp, .gif, .bmp, .tif …"
