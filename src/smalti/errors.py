"""What a user can get wrong, said in one line. The command line prints it and exits with status 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what was asked, not in the code: says what was wrong, where, and what would be right."""


def nearest(word: str, choices: Iterable[str], limit: int = 3) -> str:
    """The end of an error message: the choices nearest to `word`, or all of them when none is near."""
    choices = [str(choice) for choice in choices]
    near = difflib.get_close_matches(word, choices, n=limit, cutoff=0.5)
    if near:
        return f"nearest: {', '.join(near)}"
    shown = ", ".join(choices[:20]) + (", …" if len(choices) > 20 else "")
    return f"known: {shown}" if choices else "there are none"
