"""The set of scenes: pictures and captions drawn without end from the emoji set's drawings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from smalti.config import SignalSpec
from smalti.data.cutouts import lay, melts, read_cutouts, scaled
from smalti.data.example import Item, Questions, Source
from smalti.data.order import draws
from smalti.data.scene import GROUNDS, SIDE, SIDES, Part, Scene, draw_scene
from smalti.data.things import THINGS
from smalti.data.wording import captions, questions

LENGTHS: dict[Part, int] = {
    "train": 1_000_000,
    "validation": 2_000,
    "unseen-pairs": 2_000,
    "unseen-drawings": 2_000,
    "things": 1_000_000,
}
_WORDING = 6  # the seed of which caption comes first
_PLACES = {thing: place for place, thing in enumerate(THINGS)}


class Cutouts:
    """Every thing by every artist, in the sizes that scenes need."""

    def __init__(self, contents: Mapping[str, bytes]) -> None:
        large = read_cutouts(contents, tuple(THINGS.values()), 2 * max(SIDES))
        self.sized = {side: scaled(large, side) for side in SIDES}
        self.melts = np.stack([melts(self.sized[min(SIDES)], colour) for colour in GROUNDS.values()], -1)

    def picture(self, scene: Scene) -> np.ndarray:
        """A scene as uint8 (3, 64, 64)."""
        drawn = np.empty((3, SIDE, SIDE), dtype=np.uint8)
        drawn[:] = np.array(GROUNDS[scene.ground], dtype=np.uint8)[:, None, None]
        for thing, artist, place in zip(scene.things, scene.artists, scene.places, strict=True):
            lay(self.sized[place.side][_PLACES[thing], artist], drawn, place.top, place.left)
        return drawn


class Scenes(Source):
    """The scenes of a part. The texts of each are its captions in all wordings, first one that is drawn for it."""

    made = True
    has_text = True

    def __init__(self, part: Part, cutouts: Cutouts) -> None:
        self.name = "emoji-scenes"
        self.signal = SignalSpec(channels=3, shape=(SIDE, SIDE))
        self.labels = ()
        self._part = part
        self._cutouts = cutouts
        digest = hashlib.sha256(repr((part, len(self), tuple(THINGS), GROUNDS)).encode())
        for drawn in cutouts.sized.values():
            digest.update(drawn.tobytes())
        for i in range(64):  # how they are drawn and worded, too
            digest.update(self.raster(i).tobytes() + repr((self.scene(i), self.text(i), self.questions(i))).encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return LENGTHS[self._part]

    def scene(self, i: int) -> Scene:
        """The truth of example i."""
        return draw_scene(self._part, i, self._cutouts.melts)

    def item(self, i: int) -> Item:
        import torch

        return Item(torch.from_numpy(self.raster(i)), None, self.text(i), self.name_of(i))

    def raster(self, i: int) -> np.ndarray:
        return self._cutouts.picture(self.scene(i))

    def text(self, i: int) -> tuple[str, ...]:
        told = captions(self.scene(i))
        first = int(draws(1, _WORDING, i)[0] * len(told))
        return told[first:] + told[:first]

    def questions(self, i: int) -> Questions:
        return questions(self.scene(i))

    def tells_all(self, i: int) -> bool:
        return False  # who drew the things, and where just they stand, is left open

    def name_of(self, i: int) -> str:
        return f"{self.name}/{self._part}/{i}"


def read_scenes(contents: Mapping[str, bytes], test: Part, train: Part = "train") -> dict[str, Scenes]:
    """The emoji set's files -> the splits of the scenes, with these parts for the test and for training."""
    cutouts = Cutouts(contents)
    return {
        "train": Scenes(train, cutouts),
        "validation": Scenes("validation", cutouts),
        "test": Scenes(test, cutouts),
    }
