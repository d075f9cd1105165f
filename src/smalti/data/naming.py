"""Single drawings in plain English: what one asks for them by, and questions with their answers."""

from __future__ import annotations

from smalti.data.emoji import ARTISTS
from smalti.data.example import Detail


def prompts(drawn: Detail) -> tuple[str, str]:
    """The two plainest ways to ask for a drawing: its name, with and without who drew it."""
    return drawn.text[0], f"{drawn.text[0]}, {ARTISTS[drawn.artist]} style"


def captions(drawn: Detail) -> tuple[str, ...]:
    """What one may ask for a drawing by: its name, with and without who drew it, and what else it is known by."""
    name, *others = drawn.text
    artist = ARTISTS[drawn.artist]
    told = (*prompts(drawn), f"{name} by {artist}", f"{name}, drawn by {artist}")
    return (*told, ", ".join(others[:3])) if others else told


def questions(drawn: Detail, group: str) -> tuple[tuple[str, str], ...]:
    """(question, answer): what it is, who drew it, which group of emoji it belongs to, how many things there are."""
    return (
        ("what is it?", drawn.text[0]),
        ("who drew it?", ARTISTS[drawn.artist]),
        ("which group?", group),
        ("how many things?", "one"),
    )
