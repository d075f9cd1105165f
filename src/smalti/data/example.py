"""What a source is: numbered examples, what they look like, and a fingerprint that tells when they changed.

Importing this does not import torch: the processes that read files do without, and start quickly.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from smalti.config import SignalSpec

if TYPE_CHECKING:
    from torch import Tensor

SplitName = Literal["train", "validation", "test"]
Questions = tuple[tuple[str, str], ...]  # (question, answer) each
TEST_SHARE = 0.1  # of a set that has no test split of its own


@dataclass(frozen=True)
class Item:
    """One example: `pixels` uint8 (C, H, W) in the source's shape; `label` is a place in the source's `labels`."""

    pixels: Tensor
    label: int | None
    text: tuple[str, ...]
    name: str


@dataclass(frozen=True)
class Detail:
    """What is known of one picture of a set: its name, its texts, the place of its artist in the set's `artists`.

    Pictures of one `kind` belong in one split.
    """

    name: str
    text: tuple[str, ...]
    artist: int
    kind: str


class Source(ABC):
    """Examples 0 … len - 1, every one in the shape of `signal`.

    `item` raises BrokenFile where a file cannot be read; what is known to be broken stands in `broken` as
    (name, reason). `fingerprint` changes when any example does.
    """

    name: str
    signal: SignalSpec
    labels: tuple[str, ...]
    artists: tuple[str, ...] = ()
    fingerprint: str
    broken: Sequence[tuple[str, str]] = ()
    made: bool = False  # computed, without end: nothing in it can be broken, and nobody counts through it

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def item(self, i: int) -> Item: ...

    def raster(self, i: int) -> np.ndarray:
        """The pixels of example i as an array; what the processes that read files call."""
        return self.item(i).pixels.numpy()

    def name_of(self, i: int) -> str:
        """What to call example i in a message."""
        return f"{self.name}/{i}"

    def named(self, broken: Mapping[int, str]) -> list[tuple[str, str]]:
        """(name, reason) for broken examples given as index -> reason."""
        return [(self.name_of(i), reason) for i, reason in sorted(broken.items())]

    def pixels(self) -> Tensor | None:
        """All examples as uint8 (N, C, H, W) where they are in memory anyway, else None."""
        return None

    @property
    def label_ids(self) -> Tensor | None:
        """int64 (N,), or None when the source has no labels."""
        return None

    @property
    def artist_ids(self) -> Tensor | None:
        """int64 (N,): for each example a place in `artists`; None when there are none."""
        return None

    @property
    def pixels_key(self) -> str:
        """Changes when any picture, or the way it is brought to shape, does."""
        return self.fingerprint

    def text(self, i: int) -> tuple[str, ...]:
        """The texts that belong to example i; () when there are none."""
        return ()

    def questions(self, i: int) -> Questions:
        """(question, answer) about example i; () when there are none."""
        return ()

    def tells_all(self, i: int) -> bool:
        """Whether the texts of example i tell all there is to see, as the name of a drawing does."""
        return True

    @property
    def has_text(self) -> bool:
        """Whether any example has a text."""
        return False


class MemorySource(Source):
    """Pictures already in memory: uint8 (N, C, H, W), with labels int64 (N,), N details and questions, or without."""

    def __init__(
        self,
        name: str,
        pixels: Tensor,
        label_ids: Tensor | None = None,
        labels: tuple[str, ...] = (),
        details: Sequence[Detail] = (),
        artists: tuple[str, ...] = (),
        questions: Sequence[Questions] = (),
    ) -> None:
        if str(pixels.dtype) != "torch.uint8" or pixels.ndim != 4:
            raise ValueError(f"pixels must be uint8 (N, C, H, W), not {pixels.dtype} {tuple(pixels.shape)}")
        self.name = name
        self.signal = SignalSpec(channels=pixels.shape[1], shape=tuple(pixels.shape[2:]))
        self.labels = labels
        self.artists = artists
        self._pixels = pixels
        self._label_ids = label_ids
        self._details = details
        self._questions = questions
        digest = hashlib.sha256(repr((tuple(pixels.shape), labels)).encode())
        if details:
            digest.update(repr((artists, details)).encode())
        if questions:
            digest.update(repr(questions).encode())
        digest.update(np.ascontiguousarray(pixels.numpy()).data)
        if label_ids is not None:
            digest.update(np.ascontiguousarray(label_ids.numpy()).data)
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._pixels)

    def item(self, i: int) -> Item:
        label = None if self._label_ids is None else int(self._label_ids[i])
        return Item(self._pixels[i], label, self.text(i), self.name_of(i))

    def pixels(self) -> Tensor:
        return self._pixels

    @property
    def label_ids(self) -> Tensor | None:
        return self._label_ids

    @property
    def artist_ids(self) -> Tensor | None:
        import torch

        return torch.tensor([detail.artist for detail in self._details]) if self.artists else None

    def text(self, i: int) -> tuple[str, ...]:
        return self._details[i].text if self._details else ()

    def questions(self, i: int) -> Questions:
        return self._questions[i] if self._questions else ()

    @property
    def has_text(self) -> bool:
        return any(detail.text for detail in self._details)

    def name_of(self, i: int) -> str:
        return self._details[i].name if self._details else super().name_of(i)


class Some(Source):
    """Chosen examples of another source, by their numbers, int64 (n,)."""

    def __init__(self, source: Source, chosen: Tensor) -> None:
        self.name, self.signal, self.labels = source.name, source.signal, source.labels
        self.artists, self.broken, self.made = source.artists, source.broken, source.made
        self._source, self._chosen = source, chosen
        digest = hashlib.sha256(chosen.numpy().tobytes())
        self.fingerprint, self._pixels_key = (
            hashlib.sha256(f"{key}/{digest.hexdigest()}".encode()).hexdigest()
            for key in (source.fingerprint, source.pixels_key)
        )

    def __len__(self) -> int:
        return len(self._chosen)

    def item(self, i: int) -> Item:
        return self._source.item(int(self._chosen[i]))

    def raster(self, i: int) -> np.ndarray:
        return self._source.raster(int(self._chosen[i]))

    def name_of(self, i: int) -> str:
        return self._source.name_of(int(self._chosen[i]))

    def pixels(self) -> Tensor | None:
        pixels = self._source.pixels()
        return None if pixels is None else pixels[self._chosen]

    @property
    def label_ids(self) -> Tensor | None:
        ids = self._source.label_ids
        return None if ids is None else ids[self._chosen]

    @property
    def artist_ids(self) -> Tensor | None:
        ids = self._source.artist_ids
        return None if ids is None else ids[self._chosen]

    @property
    def pixels_key(self) -> str:
        return self._pixels_key

    def text(self, i: int) -> tuple[str, ...]:
        return self._source.text(int(self._chosen[i]))

    def questions(self, i: int) -> Questions:
        return self._source.questions(int(self._chosen[i]))

    def tells_all(self, i: int) -> bool:
        return self._source.tells_all(int(self._chosen[i]))

    @property
    def has_text(self) -> bool:
        return self._source.has_text


def part_of(kind: str, validation: float) -> SplitName:
    """The split of all examples of a kind: test for a tenth of the kinds, `validation` for that share of the others.

    It depends on the kind alone, so a set of the same things in another form is split alike.
    """
    at = lot(kind, "split")
    if at < TEST_SHARE:
        return "test"
    return "validation" if at < TEST_SHARE + (1 - TEST_SHARE) * validation else "train"


def lot(kind: str, purpose: str) -> float:
    """In [0, 1): what a kind draws for a purpose, by a hash; the same on every machine."""
    return (
        int.from_bytes(hashlib.blake2b(kind.encode(), digest_size=8, person=purpose.encode()).digest(), "big") / 2**64
    )


def held_out(contents: Sequence[bytes], share: float) -> np.ndarray:
    """bool (N,): which examples to hold out, about `share` of them and at least one; equal contents stay together.

    Examples are taken in the order of a hash of their contents until the share is reached: no seed, no dependence on
    the order of files, and a picture added later moves at most a few others.
    """
    hashes = [hashlib.blake2b(content, digest_size=16).digest() for content in contents]
    kinds = sorted(set(hashes))
    if share <= 0 or len(kinds) < 2:
        return np.zeros(len(hashes), dtype=bool)
    counts: dict[bytes, int] = dict.fromkeys(kinds, 0)
    for each in hashes:
        counts[each] += 1
    wanted, taken, chosen = max(1, round(share * len(hashes))), 0, set()
    for kind in kinds[:-1]:  # something must be left to train on
        if taken >= wanted:
            break
        chosen.add(kind)
        taken += counts[kind]
    return np.array([each in chosen for each in hashes])
