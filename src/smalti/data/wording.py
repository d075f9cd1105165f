"""Scenes in plain English: captions, and questions with their answers; functions of the truth alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from smalti.data.scene import Place, Scene
from smalti.data.things import PLURAL, article, called

_NUMBERS = ("no", "one", "two", "three", "four")
_CORNERS = (("top left", "top right"), ("bottom left", "bottom right"))
_ACROSS = ("on the left", "on the right")
_DOWN = ("at the top", "at the bottom")


def captions(scene: Scene) -> tuple[str, ...]:
    """What is where on which ground, in every wording; each tells the whole truth but for the artists."""
    ground = scene.ground
    tails = (
        f", on {ground}",
        f" on {article(ground)} ground",
        f", on {article(ground)} background",
        f" against {ground}",
    )
    told = [what + tail for what in _arrangements(scene) for tail in tails]
    return *told, *(f"{article(ground)} ground with {what}" for what in _arrangements(scene))


def questions(scene: Scene) -> tuple[tuple[str, str], ...]:
    """(question, answer): how many, the ground, what is where, and what is beside what; only where one answer is right.

    Left, right, above and below are meant within one row or column.
    """
    asked = [
        ("how many things?", _NUMBERS[len(scene.things)]),
        ("what colour is the ground?", scene.ground),
    ]
    for thing, place in zip(scene.things, scene.places, strict=True):
        if spot := _spot(place, scene.shape):
            asked.append((f"what is {spot}?", called(thing)))
            asked.append((f"where {'are' if thing in PLURAL else 'is'} the {thing}?", spot))
        for side, there in _sides(place, scene).items():
            if len(there) == 1:
                asked.append((f"what is {side} the {thing}?", called(there[0])))
    return tuple(asked)


def _sides(place: Place, scene: Scene) -> dict[str, list[str]]:
    """What is left of, right of, above and below a place."""
    others = list(zip(scene.things, scene.places, strict=True))
    in_row = [(thing, other.column) for thing, other in others if other.row == place.row]
    in_column = [(thing, other.row) for thing, other in others if other.column == place.column]
    return {
        "left of": [thing for thing, at in in_row if at < place.column],
        "right of": [thing for thing, at in in_row if at > place.column],
        "above": [thing for thing, at in in_column if at < place.row],
        "below": [thing for thing, at in in_column if at > place.row],
    }


def _spot(place: Place, shape: tuple[int, int]) -> str:
    """What a place in rows and columns of this shape is called; "" for the only one."""
    rows, columns = shape
    if rows > 1 and columns > 1:
        return f"at the {_CORNERS[place.row][place.column]}"
    if columns > 1:
        return _ACROSS[place.column]
    return _DOWN[place.row] if rows > 1 else ""


def _arrangements(scene: Scene) -> Iterator[str]:
    """Wordings of what is where."""
    names = [called(thing) for thing in scene.things]
    rows, columns = scene.shape
    if len(names) == 1:
        yield from (names[0], f"nothing but {names[0]}")
        return
    if rows > 1 and columns > 1:
        yield from _in_a_grid(scene, names)
    else:
        yield from _in_two(names, across=columns > 1)
    yield _listed(f"{name} {_spot(place, scene.shape)}" for name, place in zip(names, scene.places, strict=True))


def _in_two(names: list[str], across: bool) -> Iterator[str]:
    yield f"{_listed(names)} from {'left to right' if across else 'top to bottom'}"
    first, second = names
    if across:
        yield from (f"{first} to the left of {second}", f"{second} to the right of {first}")
        yield from (f"{first} left of {second}", f"{second} right of {first}")
    else:
        yield from (f"{first} above {second}", f"{second} below {first}", f"{second} under {first}")


def _in_a_grid(scene: Scene, names: list[str]) -> Iterator[str]:
    corners = [_CORNERS[place.row][place.column] for place in scene.places]
    yield _listed(f"{name} {corner}" for name, corner in zip(names, corners, strict=True))
    yield _listed(
        f"{name} in the {corner} corner" for name, corner in zip(reversed(names), reversed(corners), strict=True)
    )
    if len(names) == 4:
        yield f"{names[0]} and {names[1]} above {names[2]} and {names[3]}"


def _listed(parts: Iterable[str]) -> str:
    """ "a, b and c"."""
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last
