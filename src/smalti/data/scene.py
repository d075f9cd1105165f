"""The truth of a scene: one to four well-known things by several artists, side by side on a ground of one colour.

Scene i of a part is a pure function of (part, i). Some pairs of things, and some drawings, are never in a scene for
training, so that a model has to compose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np

from smalti.data.emoji import ARTISTS, concept_of
from smalti.data.emoji_pairs import unseen_artist
from smalti.data.example import lot
from smalti.data.order import draws
from smalti.data.things import THINGS

SIDE = 64  # pixels
GROUNDS = {  # red, green and blue in 0 … 255
    "white": (255, 255, 255),
    "grey": (150, 150, 150),
    "black": (16, 16, 16),
    "red": (214, 40, 40),
    "orange": (255, 140, 0),
    "yellow": (255, 222, 60),
    "green": (40, 160, 70),
    "blue": (40, 90, 225),
    "purple": (120, 45, 165),
    "pink": (255, 155, 195),
}
SIDES = (24,)  # pixels that a thing may have; of 16, a tokenizer that cuts squares of eight shows half to nobody
JITTER = 8  # pixels from the middle of its cell, at most
# places are a multiple of this many pixels: a tokenizer that cuts pictures in squares of eight cuts a thing alike
# wherever it stands, so a small model need not learn each thing in 64 ways
LATTICE = 8
UNSEEN = 0.15  # of all pairs of things

# train, validation: only pairs and drawings for training. unseen-pairs: at least one pair that training never shows.
# unseen-drawings: one such drawing, in pairs for training. things: single ones, to learn their names from.
Part = Literal["train", "validation", "unseen-pairs", "unseen-drawings", "things"]

_SEED = 5
_NAMES = tuple(THINGS)
# things in a scene; several of them say more about things than one, for the same number of codes
_HOW_MANY: dict[Part, tuple[int, ...]] = {
    "train": (1, 2, 2, 3, 4, 4),
    "validation": (1, 2, 2, 3, 4, 4),
    "unseen-pairs": (2, 2, 2, 2, 3, 3, 4, 4),
    "unseen-drawings": (1, 2, 2, 2, 3, 3, 4, 4),
    "things": (1,),
}
_SHAPES = {1: ((1, 1),), 2: ((1, 2), (2, 1)), 3: ((2, 2),), 4: ((2, 2),)}  # rows and columns
_MOST_NUMBERS = 32  # that one scene takes

_T = TypeVar("_T")


class Place(NamedTuple):
    """Where a thing is: `row` and `column` among the things, from 0 at the top and left; its square in pixels."""

    row: int
    column: int
    top: int
    left: int
    side: int


@dataclass(frozen=True)
class Scene:
    """`things` are names in THINGS, in the order of rows, then columns; `artists` who drew each, places in ARTISTS;
    `places` where each is; `ground` is a name in GROUNDS."""

    things: tuple[str, ...]
    artists: tuple[int, ...]
    places: tuple[Place, ...]
    ground: str

    @property
    def shape(self) -> tuple[int, int]:
        """How many rows and columns of things there are."""
        return 1 + max(place.row for place in self.places), 1 + max(place.column for place in self.places)


def unseen_pair(one: str, other: str) -> bool:
    """Whether these two things are never together in a scene for training."""
    return lot(" + ".join(sorted((one, other))), "scenes") < UNSEEN


def draw_scene(part: Part, i: int, melts: np.ndarray) -> Scene:
    """Scene i of a part. `melts` bool (things, artists, grounds): what is hard to see on which ground."""
    draw = _Draw(draws(_MOST_NUMBERS, _SEED, i, get_args(Part).index(part)))
    count = draw.one(_HOW_MANY[part])
    things = draw.shuffled(_draw_things(part, count, draw))
    rows, columns = draw.one(_SHAPES[count])
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    if len(cells) > count:
        cells.remove(draw.one(cells))
    side = draw.one(SIDES)
    places = [
        Place(row, column, draw.start(row, rows, side), draw.start(column, columns, side), side)
        for row, column in cells
    ]
    hidden = np.any([melts[thing, artist] for thing, artist in things], axis=0)
    grounds = [ground for ground, bad in zip(GROUNDS, hidden, strict=True) if not bad] or list(GROUNDS)
    return Scene(
        things=tuple(_NAMES[thing] for thing, _ in things),
        artists=tuple(artist for _, artist in things),
        places=tuple(places),
        ground=draw.one(grounds),
    )


class _Draw:
    """Decisions from random numbers in [0, 1), one after the other."""

    def __init__(self, numbers: Sequence[float]) -> None:
        self._numbers = iter(numbers)

    def one(self, choices: Sequence[_T]) -> _T:
        return choices[int(next(self._numbers) * len(choices))]

    def shuffled(self, things: Sequence[_T]) -> list[_T]:
        return sorted(things, key=lambda _: next(self._numbers))

    def start(self, cell: int, cells: int, side: int) -> int:
        """Where a side begins in one of the cells of a picture: on the lattice, not far off the middle."""
        low, high = SIDE * cell // cells, SIDE * (cell + 1) // cells - side
        off = max((high - low) // 2 - JITTER, 0)
        return self.one([at for at in range(low + off, high - off + 1) if at % LATTICE == 0])


def _draw_things(part: Part, count: int, draw: _Draw) -> list[tuple[int, int]]:
    """(thing, artist), places in THINGS and ARTISTS."""
    unseen, known = _never_together(), _known_artists()
    everything = range(len(_NAMES))
    if part == "unseen-drawings":
        first = draw.one([thing for thing in everything if len(known[thing]) < len(ARTISTS)])
        chosen = [(first, next(artist for artist in range(len(ARTISTS)) if artist not in known[first]))]
    else:
        first = draw.one(everything)
        chosen = [(first, draw.one(known[first]))]
    while len(chosen) < count:
        things = [thing for thing, _ in chosen]
        if part == "unseen-pairs":
            fit = unseen[first] if len(chosen) == 1 else np.ones(len(_NAMES), dtype=bool)
        else:
            fit = ~unseen[things].any(0)
        thing = draw.one([int(other) for other in np.flatnonzero(fit) if other not in things])
        chosen.append((thing, draw.one(known[thing])))
    return chosen


@cache
def _never_together() -> np.ndarray:
    """bool (things, things)."""
    return np.array([[one != other and unseen_pair(one, other) for other in _NAMES] for one in _NAMES])


@cache
def _known_artists() -> list[tuple[int, ...]]:
    """For each thing, the artists whose drawings of it training shows, places in ARTISTS."""
    unseen = [unseen_artist(concept_of(code)) for code in THINGS.values()]
    return [tuple(artist for artist in range(len(ARTISTS)) if artist != out) for out in unseen]
