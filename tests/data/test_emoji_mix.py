from __future__ import annotations

import numpy as np
import pytest
import torch

from smalti.data import emoji_mix
from smalti.data.emoji_mix import NO_SCENES, SCENES, VALIDATION, EmojiMix, read_mix
from smalti.data.emoji_pairs import PAIR_GROUPS, part_of_pair
from smalti.data.example import Detail
from smalti.data.naming import captions

N = 5
DETAILS = [Detail(f"emoji/{i}", (f"thing {i}", "word"), i % 3, str(i)) for i in range(N)]


class Plain:
    """Scenes that are their own numbers."""

    fingerprint = "plain"
    signal = None

    def __len__(self) -> int:
        return 1000

    def raster(self, i: int) -> np.ndarray:
        return np.full((3, 2, 2), 200, dtype=np.uint8)

    def text(self, i: int) -> tuple[str, ...]:
        return (f"scene {i}",)

    def questions(self, i: int):
        return (("which?", str(i)),)

    def tells_all(self, i: int) -> bool:
        return False

    def name_of(self, i: int) -> str:
        return f"scenes/{i}"


def mix(details=DETAILS, pixels=None) -> EmojiMix:
    drawn = np.arange(N, dtype=np.uint8)[:, None, None, None].repeat(3, 1).repeat(2, 2).repeat(2, 3)
    return EmojiMix(Plain(), drawn if pixels is None else pixels, np.arange(N), details)


def test_every_example_is_a_scene_or_a_drawing_as_a_whole():
    source, scenes, drawings = mix(), 0, set()
    for i in range(len(source)):
        item = source.item(i)
        assert item.text == source.text(i)
        assert torch.equal(item.pixels, torch.from_numpy(source.raster(i)))
        assert source.tells_all(i) == item.name.startswith("emoji/")
        if item.name == f"scenes/{i}":
            scenes += 1
            assert item.text == (f"scene {i}",)
            assert source.questions(i) == (("which?", str(i)),)
            assert int(item.pixels[0, 0, 0]) == 200
        else:
            number = int(item.pixels[0, 0, 0])
            drawings.add(number)
            assert item.name == f"emoji/{number}"
            assert item.text == captions(DETAILS[number])
            assert dict(source.questions(i))["which group?"] == PAIR_GROUPS[number]
    assert scenes / len(source) == pytest.approx(SCENES, abs=0.05)
    assert drawings == set(range(N))


def test_the_share_of_scenes_is_as_asked():
    source = EmojiMix(Plain(), mix().drawings, np.arange(N), DETAILS, share=0.9)
    scenes = sum(source.name_of(i).startswith("scenes") for i in range(len(source)))
    assert scenes / len(source) == pytest.approx(0.9, abs=0.03)
    assert source.fingerprint != mix().fingerprint


def test_the_fingerprint_knows_pictures_and_words():
    other = [Detail(f"emoji/{i}", ("another", "word"), i % 3, str(i)) for i in range(N)]
    assert mix().fingerprint == mix().fingerprint
    assert (
        len({mix().fingerprint, mix(other).fingerprint, mix(pixels=np.zeros((N, 3, 2, 2), np.uint8)).fingerprint}) == 3
    )


def test_a_split_has_its_pairs_and_no_variants_of_skin_tone(monkeypatch):
    names = [f"thing {i}" + (", dark skin tone" if i % 2 else "") for i in range(300)]
    details = [Detail(f"emoji/{i}", (name,), i % 3, str(i)) for i, name in enumerate(names)]
    pixels = np.arange(300).astype(np.uint8)[:, None, None, None].repeat(3, 1).repeat(2, 2).repeat(2, 3)
    monkeypatch.setattr(emoji_mix, "read_pairs", lambda contents: (pixels, np.arange(300) % 8, details))
    monkeypatch.setattr(
        emoji_mix, "read_scenes", lambda contents, **_: dict.fromkeys(("train", "validation", "test"), Plain())
    )
    for share in (SCENES, NO_SCENES):
        splits = read_mix({}, share)
        assert splits["train"].share == share
        assert splits["test"].share == splits["validation"].share == SCENES
        for split, source in splits.items():
            for detail, pixel in zip(source.details, source.drawings, strict=True):
                place = int(detail.kind)
                assert place % 2 == 0
                assert pixel[0, 0, 0] == place % 256
                assert part_of_pair(detail.kind, detail.artist, VALIDATION) == split
        assert sum(len(source.details) for source in splits.values()) == 150
