"""Scenes and single drawings in one set, without end: scenes to learn composing from, drawings for their breadth."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from smalti.data.emoji_pairs import PAIR_GROUPS, part_of_pair, read_pairs
from smalti.data.example import Detail, Item, Questions, Source
from smalti.data.naming import captions, questions
from smalti.data.order import draws
from smalti.data.scene import Part
from smalti.data.scenes import Scenes, read_scenes

SCENES = 0.5  # of all examples
NO_SCENES = 0.0  # the same where single drawings are learnt by name
THINGS = 0.9  # the same where all scenes hold one thing
VALIDATION = 0.05  # of the pairs of concept and artist that are not for the test, those held out to choose a model by
TONE = "skin tone"  # in the names of variants
_SEED = 7


class EmojiMix(Source):
    """Example i is scene i, or a drawing, as chance has it: a pure function of i.

    `share` of the examples are scenes. `scenes` are those of this split, `drawings` uint8 (N, 3, H, W) its single
    drawings, with what is known of each in `details` and its place in PAIR_GROUPS in `groups` int64 (N,).
    """

    made = True
    has_text = True

    def __init__(
        self,
        scenes: Scenes,
        drawings: np.ndarray,
        groups: np.ndarray,
        details: Sequence[Detail],
        share: float = SCENES,
    ) -> None:
        self.name, self.share = "emoji-mix", share
        self.signal, self.labels = scenes.signal, ()
        self.scenes, self.drawings, self.details, self._groups = scenes, drawings, details, groups
        told = repr((scenes.fingerprint, share, _SEED, groups.tolist(), details))
        digest = hashlib.sha256(told.encode())
        digest.update(np.ascontiguousarray(drawings).data)
        for detail in details[:8]:  # how they are worded, too
            digest.update(repr((captions(detail), questions(detail, ""))).encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.scenes)

    def item(self, i: int) -> Item:
        import torch

        return Item(torch.from_numpy(self.raster(i)), None, self.text(i), self.name_of(i))

    def raster(self, i: int) -> np.ndarray:
        drawing = self._drawing(i)
        return self.scenes.raster(i) if drawing is None else self.drawings[drawing]

    def text(self, i: int) -> tuple[str, ...]:
        drawing = self._drawing(i)
        return self.scenes.text(i) if drawing is None else captions(self.details[drawing])

    def questions(self, i: int) -> Questions:
        drawing = self._drawing(i)
        if drawing is None:
            return self.scenes.questions(i)
        return questions(self.details[drawing], PAIR_GROUPS[self._groups[drawing]])

    def tells_all(self, i: int) -> bool:
        return self._drawing(i) is not None or self.scenes.tells_all(i)

    def name_of(self, i: int) -> str:
        drawing = self._drawing(i)
        return self.scenes.name_of(i) if drawing is None else self.details[drawing].name

    def _drawing(self, i: int) -> int | None:
        """Which drawing example i is; None for a scene."""
        which, at = draws(2, _SEED, i)
        return None if which < self.share else int(at * len(self.details))


def read_mix(contents: Mapping[str, bytes], share: float = SCENES, train: Part = "train") -> dict[str, EmojiMix]:
    """The emoji set's files -> the splits of the mix: test are scenes with unseen pairs, and unseen drawings.

    Of the examples for training `share` are scenes, those of the part `train`. Variants of skin tone are left out: they
    are half of all drawings, and nearly the same as one another.
    """
    scenes = read_scenes(contents, test="unseen-pairs", train=train)
    pixels, groups, details = read_pairs(contents)
    found = np.array(
        ["" if TONE in detail.text[0] else part_of_pair(detail.kind, detail.artist, VALIDATION) for detail in details]
    )
    mix = {}
    for split, of_scenes in scenes.items():
        chosen = np.flatnonzero(found == split)
        of_split = share if split == "train" else SCENES
        mix[split] = EmojiMix(of_scenes, pixels[chosen], groups[chosen], [details[i] for i in chosen], of_split)
    return mix
