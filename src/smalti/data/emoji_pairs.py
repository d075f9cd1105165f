"""Emoji held out by pairs of concept and artist, for a model that reads and draws them by their words.

Of a pair that is held out, the model has seen the concept by other artists and the artist on other concepts.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

import numpy as np

from smalti.data.emoji import ARTISTS, GROUPS, read_emoji
from smalti.data.example import Detail, SplitName, lot

TEST = 0.25  # of the concepts, one artist's drawings each: a twelfth of the pairs
PAIR_GROUPS = tuple(group for group in GROUPS if group != "Flags")


def part_of_pair(concept: str, artist: int, validation: float) -> SplitName:
    """The split of an artist's drawings of a concept; at most one artist's are not for training.

    `validation`: the share of the pairs that are not in the test split to hold out, as near as that allows.
    """
    at = lot(concept, "artist")
    if at < TEST:
        return "test" if int(at / TEST * len(ARTISTS)) == artist else "train"
    share = min(1.0, validation * (len(ARTISTS) - TEST) / (1 - TEST))
    at = (at - TEST) / (1 - TEST)
    return "validation" if at < share and int(at / share * len(ARTISTS)) == artist else "train"


def unseen_artist(concept: str) -> int | None:
    """The artist whose drawings of a concept no training may show, a place in ARTISTS; None for most concepts."""
    return next((artist for artist in range(len(ARTISTS)) if part_of_pair(concept, artist, 0) == "test"), None)


def read_pairs(contents: Mapping[str, bytes]) -> tuple[np.ndarray, np.ndarray, list[Detail]]:
    """The set's files -> what `read_emoji` gives, of the pictures that can stand for a pair.

    Left out are flags, what a single artist has drawn, and a picture that looks the same as one of another pair.
    """
    pixels, labels, details = read_emoji(contents)
    looks = [hashlib.sha256(picture.data).digest() for picture in pixels]
    pairs = [(detail.kind, detail.artist) for detail in details]
    artists = Counter(kind for kind, _ in set(pairs))
    first = dict(zip(reversed(looks), reversed(pairs), strict=True))  # the first pair that looks like this
    chosen = [
        i
        for i, (look, pair) in enumerate(zip(looks, pairs, strict=True))
        if GROUPS[labels[i]] != "Flags" and artists[pair[0]] > 1 and first[look] == pair
    ]
    places = np.array([PAIR_GROUPS.index(GROUPS[labels[i]]) for i in chosen], dtype=np.int64)
    return pixels[chosen], places, [details[i] for i in chosen]
