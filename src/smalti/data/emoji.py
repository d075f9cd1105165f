"""The emoji set: pictures of emoji by three artists, their words, and which of them belong together.

An emoji is written as its code points in hexadecimal, "1f468-200d-1f33e". Its *concept* is that without what makes
it a variant: skin tone, gender, hair, direction, colour. Pictures of one concept never stand in two splits.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from smalti.config import SignalSpec
from smalti.data.example import Detail, Item, Source, SplitName, part_of
from smalti.data.fetch import NodeArchive
from smalti.data.raster import fit_raster, from_pillow, quiet, reading
from smalti.errors import UserError

SIDE = 64  # pixels
DECODING = 1  # one more when pictures are decoded in another way, so that what is kept is done anew
ARTISTS = ("fluent", "google", "twitter")
GROUPS = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)

# File kept -> the package it is made from, and what of it.
ARCHIVES = {
    "fluent.zip": NodeArchive(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        ("assets/*.webp",),
        "5a5ab69554ad4e7afc043a48274a449d328ee0bb83c71a931214ef46d0f50cb4"
        "45d267bba207914232a87a10c75ee549d9069e720979c1106feb4954006de1ee",
    ),
    "google.zip": NodeArchive(
        "emoji-datasource-google",
        "16.0.0",
        ("img/google/64/*.png", "emoji.json"),
        "6517b17f3b3b315a0b9e6cd998db0ee132a19c0269e43fbe566e8fa54a47fe31"
        "104257a6a7797cf028d9f83a19d9f68cf51e10c5990e3c90a84fc0e53e17d0dc",
    ),
    "twitter.zip": NodeArchive(
        "emoji-datasource-twitter",
        "16.0.0",
        ("img/twitter/64/*.png",),
        "ec5fae0ae1c7fbb427adcd793f9b676ef2a483d13ab65ce2e0c9d3dae5b54653"
        "78a4b613cdae9c3ff76cb487d20ccb698c52d6b997b05a0f2305bb8bd9ec842d",
    ),
    "names.zip": NodeArchive(
        "unicode-emoji-json",
        "0.9.0",
        ("data-by-emoji.json",),
        "1ddad05bfed275b5d4b1377cb93013bfb2ef4099024a06c08110830ad3a143ac"
        "67dc4031fb164742d46788e5d624adf2c08a8f7a090d84fe14e046ee16c8909e",
    ),
    "keywords.zip": NodeArchive(
        "emojilib",
        "4.0.3",
        ("dist/emoji-en-US.json",),
        "29b5a262b7bd69149a3db1eb1d9233f739a833edb52c0b0ad55149b674e1d550"
        "ad584feb34c0ef8868504e6b1e94597de5d86ab46958db6887d25786e41b96d2",
    ),
}

_TONES = {
    "1f3fb": "light skin tone",
    "1f3fc": "medium-light skin tone",
    "1f3fd": "medium skin tone",
    "1f3fe": "medium-dark skin tone",
    "1f3ff": "dark skin tone",
}
_JOINER = "200d"
# What makes a variant when it is joined to something: gender signs, hair, directions, colours.
_ASIDE = {"2640", "2642", "1f9b0", "1f9b1", "1f9b2", "1f9b3", "27a1", "2194", "2195", "1f7e9", "1f7eb", "2b1b"}
_ADULT, _CHILD = "1f9d1", "1f9d2"
# Variants that have code points of their own; and different emoji that an artist draws alike.
_TWINS = {
    **dict.fromkeys(("1f468", "1f469", "1f471", "1f9d4"), _ADULT),  # man, woman, blond, bearded
    **dict.fromkeys(("1f466", "1f467"), _CHILD),
    **dict.fromkeys(("1f474", "1f475"), "1f9d3"),  # older people
    **dict.fromkeys(("1f478", "1f934"), "1fac5"),  # with a crown
    **dict.fromkeys(("1f936", "1f9d1-1f384"), "1f385"),  # Santa, Mrs. and Mx Claus
    **dict.fromkeys(("1f930", "1fac3"), "1fac4"),  # pregnant
    **dict.fromkeys(("1f46b", "1f46c"), "1f46d"),  # holding hands
    "1f57a": "1f483",  # dancing
    "1f6ba": "1f6b9",  # men's and women's room
    "1faf1-1faf2": "1f91d",  # two hands of two tones: a handshake
    "1f63a": "1f431",  # cats
    "1f64e": "1f64d",  # pouting, frowning
    "26c4": "2603",  # snowmen
    "1f508": "1f509",  # speakers
    "1f1ed-1f1f2": "1f1e6-1f1fa",  # flags from here on: Australia's
    "1f1e7-1f1fb": "1f1f3-1f1f4",  # Norway's
    "1f1f8-1f1ef": "1f1f3-1f1f4",
    "1f1e8-1f1f5": "1f1eb-1f1f7",  # France's
    "1f1f2-1f1eb": "1f1eb-1f1f7",
    "1f1e8-1f1f6": "1f1f8-1f1e6",  # Sark has Saudi Arabia's by google's mistake
    "1f1e9-1f1ec": "1f1ee-1f1f4",  # the British Indian Ocean Territory's
    "1f1ea-1f1e6": "1f1ea-1f1f8",  # Spain's
    "1f1fa-1f1f2": "1f1fa-1f1f8",  # the United States'
    "1f1f2-1f1e8": "1f1ee-1f1e9",  # Indonesia's, and Monaco's
}
# Several people, by what joins them: nothing, a kiss, a heart, a handshake.
_TOGETHER = {(): "1f46a", ("2764", "1f48b"): "1f48f", ("2764",): "1f491", ("1f91d",): "1f46d"}


@dataclass(frozen=True)
class Words:
    """What an emoji is called: `text` is its name, then keywords; `group` a place in GROUPS."""

    text: tuple[str, ...]
    group: int


@dataclass(frozen=True)
class Drawing:
    """One picture file: artist, a place in ARTISTS; the emoji's code; the file's name in the artist's archive."""

    artist: int
    code: str
    file: str

    @property
    def name(self) -> str:
        return f"emoji/{ARTISTS[self.artist]}/{self.code}"


def code_of(name: str) -> str:
    """A file's name without its ending, or code points in any hand -> one way to write them.

    Lower case, no zeros in front, without what only asks for colour (fe0f) or ends a flag (e007f).
    """
    parts = (part.lstrip("0") for part in name.lower().replace("_", "-").split("-"))
    return "-".join(part for part in parts if part not in ("fe0f", "e007f"))


def concept_of(code: str) -> str:
    """The code of what an emoji shows, whatever its skin tone, gender, hair, direction or colour.

    It needs nothing but the code, so that a set of the same emoji in another form can be split alike.
    """
    parts = [part for part in code.split("-") if part not in _TONES]
    if _JOINER in parts:
        parts = [part for part in parts if part not in _ASIDE and part != _JOINER]
    parts = [_TWINS.get(part, part) for part in parts]
    people = [part for part in parts if part in (_ADULT, _CHILD)]
    things = tuple(part for part in parts if part not in people)
    if len(people) > 1 and things in _TOGETHER:
        return _TOGETHER[things]
    concept = "-".join(parts)
    return _TWINS.get(concept, concept)


def split_of(name: str, validation: float) -> SplitName:
    """The split of the emoji in a file of this name (without its ending), in any set of emoji."""
    return part_of(concept_of(code_of(name)), validation)


def read_emoji(contents: Mapping[str, bytes]) -> tuple[np.ndarray, np.ndarray, list[Detail]]:
    """The set's files -> pixels uint8 (N, 3, 64, 64) on white, labels int64 (N,), and what is known of each picture.

    Ordered by artist, then code. A picture that has no words is left out: bare skin tones. The pixels are decoded
    once and kept in the cache.
    """
    from smalti.data.decoded import decode

    words = read_words(contents)
    drawings, archives = find_drawings(contents)
    drawings = [each for each in drawings if each.code in words]
    if not drawings:
        raise UserError("emoji: there are no pictures in its files")
    key = [DECODING, *(hashlib.sha256(contents[name]).hexdigest() for name in sorted(contents))]
    drawn = _Drawn(drawings, archives, hashlib.sha256(repr(key).encode()).hexdigest())
    decoded, broken = decode(drawn, workers=0, checked=True)
    if broken:  # their bytes are right, so it is the reader
        raise UserError(f"emoji: Pillow cannot read {len(broken)} pictures here ({next(iter(broken.values()))})")
    pixels = decoded.numpy()
    found = [words[each.code] for each in drawings]
    kinds = _kinds(drawings, found, pixels)
    details = [
        Detail(each.name, called.text, each.artist, kind)
        for each, called, kind in zip(drawings, found, kinds, strict=True)
    ]
    return pixels, np.array([called.group for called in found], dtype=np.int64), details


def read_words(contents: Mapping[str, bytes]) -> dict[str, Words]:
    """Code -> words, for every emoji and its variants of skin tone."""
    names = _json(contents, "names.zip", "data-by-emoji.json")
    keywords = _json(contents, "keywords.zip", "dist/emoji-en-US.json")
    try:
        words = {}
        for emoji, about in names.items():
            name = about["name"]
            others = [keyword.replace("_", " ") for keyword in keywords.get(emoji, ())]
            text = dict.fromkeys([name, *(other for other in others if other.casefold() != name.casefold())])
            words[code_of("-".join(f"{ord(c):x}" for c in emoji))] = Words(tuple(text), GROUPS.index(about["group"]))
        return words | dict(_toned(_json(contents, "google.zip", "emoji.json"), words))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"emoji: its words are not in the form expected ({type(error).__name__}: {error})") from None


def _toned(emoji: Iterable[Mapping[str, Any]], words: Mapping[str, Words]) -> Iterator[tuple[str, Words]]:
    """Words of the variants of skin tone: the emoji's name with its tones, and its keywords."""
    for each in emoji:
        base = words.get(code_of(each["unified"]))
        if base is None:
            continue
        for variation in each.get("skin_variations", {}).values():
            code = code_of(variation["unified"])
            tones = [_TONES[part] for part in code.split("-") if part in _TONES]
            yield code, Words((", ".join([base.text[0], *tones]), *base.text[1:]), base.group)


def find_drawings(contents: Mapping[str, bytes]) -> tuple[list[Drawing], list[zipfile.ZipFile]]:
    """Every picture file, ordered by artist, then code, and the artists' archives."""
    archives = [_opened(contents, f"{artist}.zip") for artist in ARTISTS]
    found = [
        Drawing(artist, code_of(file.stem), str(file))
        for artist, archive in enumerate(archives)
        for file in map(PurePosixPath, archive.namelist())
        if file.suffix in (".webp", ".png")
    ]
    return sorted(found, key=lambda each: (each.artist, each.code)), archives


class _Drawn(Source):
    """The picture files as they are decoded: on white, uint8 (3, 64, 64)."""

    def __init__(self, drawings: Sequence[Drawing], archives: Sequence[zipfile.ZipFile], fingerprint: str) -> None:
        self.name = "emoji"
        self.signal = SignalSpec(channels=3, shape=(SIDE, SIDE))
        self.labels = ()
        self.fingerprint = fingerprint
        self._drawings = drawings
        self._archives = archives

    def __len__(self) -> int:
        return len(self._drawings)

    def item(self, i: int) -> Item:
        import torch

        return Item(torch.from_numpy(self.raster(i)), None, (), self.name_of(i))

    def raster(self, i: int) -> np.ndarray:
        drawing = self._drawings[i]
        with quiet(), reading(drawing.name):
            content = self._archives[drawing.artist].read(drawing.file)
            with Image.open(io.BytesIO(content)) as picture:
                # on white before it is made smaller: no dark seams where colours fade out
                return fit_raster(from_pillow(picture, 3), (SIDE, SIDE), "pad")

    def name_of(self, i: int) -> str:
        return self._drawings[i].name


def _kinds(drawings: Sequence[Drawing], words: Sequence[Words], pixels: np.ndarray) -> list[str]:
    """For each picture, the first of the concepts that hang together by identical pictures or an equal name."""
    concepts = [concept_of(each.code) for each in drawings]
    first = {concept: concept for concept in concepts}

    def root(concept: str) -> str:
        while first[concept] != concept:
            concept = first[concept]
        return concept

    owner: dict[object, str] = {}
    for concept, each, picture in zip(concepts, words, pixels, strict=True):
        for token in (hashlib.sha256(picture.data).digest(), each.text[0].casefold()):
            low, high = sorted((root(concept), root(owner.setdefault(token, concept))))
            first[high] = low
    return [root(concept) for concept in concepts]


def _json(contents: Mapping[str, bytes], archive: str, name: str) -> Any:
    try:
        return json.loads(_opened(contents, archive).read(name))
    except KeyError:
        raise UserError(f"emoji: {archive} has no {name}") from None
    except ValueError as error:
        raise UserError(f"emoji: {name} in {archive} is not JSON ({error})") from None


def _opened(contents: Mapping[str, bytes], archive: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(io.BytesIO(contents[archive]))
    except zipfile.BadZipFile as error:
        raise UserError(f"emoji: {archive} is not a readable archive ({error})") from None
