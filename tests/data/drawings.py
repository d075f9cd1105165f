"""The files of an emoji set of things in a scene, made up: a disc of its own colour for each thing by each artist."""

from __future__ import annotations

import io
import zipfile

from PIL import Image, ImageDraw

from smalti.data.emoji import ARTISTS
from smalti.data.things import THINGS


def colour_of(thing: str, artist: int) -> tuple[int, int, int]:
    """Unlike that of any other drawing, and never near all grounds at once."""
    number = list(THINGS).index(thing) * len(ARTISTS) + artist
    return 60 + number % 8 * 25, 60 + number // 8 % 8 * 25, 60 + number // 64 * 20


def drawing(colour: tuple[int, int, int]) -> bytes:
    """A wide oval on nothing, off the middle."""
    drawn = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(drawn).ellipse((2, 20, 50, 60), (*colour, 255))
    out = io.BytesIO()
    drawn.save(out, "PNG")
    return out.getvalue()


def archives(left_out: str = "") -> dict[str, bytes]:
    """The artists' archives, without the drawing file of this name."""
    contents = {}
    for artist, name in enumerate(ARTISTS):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for thing, code in THINGS.items():
                if f"{name}/{code}" != left_out:
                    archive.writestr(f"img/{code}.png", drawing(colour_of(thing, artist)))
        contents[f"{name}.zip"] = out.getvalue()
    return contents
