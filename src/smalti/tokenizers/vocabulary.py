"""One vocabulary of several modalities: text pieces, then codes, then specials, in one id space.

A sequence is a row of parts. Text stands as begin_text, its pieces, end_text. A picture stands as begin_image, its
codes in raster order with the codebooks of each position one after the other, end_image (Chameleon, arXiv 2405.09818).
Other specials stand alone. Padding may follow the last part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from smalti.config import CodeSpec, Config
from smalti.errors import UserError, nearest

CodeKind = Literal["image", "sound", "video"]
CODE_KINDS: tuple[CodeKind, ...] = ("image", "sound", "video")
PADDING = "padding"  # where a model says it, the sequence has ended
# what stands alone in a sequence: tasks, and what takes the condition's place for guidance
ALONE = ("draw", "describe", "answer", "no_condition")


@dataclass(frozen=True)
class Text:
    """A text as piece ids, each in [0, pieces of the vocabulary)."""

    pieces: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Codes:
    """One signal's codes, int64 (Q, *grid)."""

    kind: CodeKind
    codes: Tensor


@dataclass(frozen=True)
class Special:
    """A token that stands alone: one of `ALONE`."""

    name: str


Part = Text | Codes | Special


class VocabularyConfig(Config):
    """How many ids of each kind there are.

    The specials of sound and video are there also where their codes are not; `spare` ids more have no meaning yet.
    """

    text: int = Field(ge=1, description="pieces of text")
    image: CodeSpec | None = None
    sound: CodeSpec | None = None
    video: CodeSpec | None = None
    spare: int = Field(16, ge=0)

    @property
    def codes(self) -> dict[CodeKind, CodeSpec]:
        """What has codes here, in the order of their ids."""
        found = {kind: getattr(self, kind) for kind in CODE_KINDS}
        return {kind: spec for kind, spec in found.items() if spec is not None}


class Vocabulary:
    """Named ranges of ids: `text`, `image_0`, `image_1`, … one for each codebook, and one of a single id a special.

    `ranges` holds them by name; `kinds` are their names, in the order of their ids, and a kind's id is its place there.
    """

    def __init__(self, config: VocabularyConfig) -> None:
        self.config, self.codes = config, config.codes
        sizes = {"text": config.text}
        sizes |= {f"{kind}_{q}": spec.size for kind, spec in self.codes.items() for q in range(spec.codebooks)}
        specials = [PADDING, *(f"{end}_{kind}" for kind in ("text", *CODE_KINDS) for end in ("begin", "end")), *ALONE]
        sizes |= dict.fromkeys([*specials, *(f"spare_{i}" for i in range(config.spare))], 1)
        stops = list(accumulate(sizes.values()))
        self.ranges = {name: range(stop - size, stop) for (name, size), stop in zip(sizes.items(), stops, strict=True)}
        self.kinds = tuple(sizes)
        self.size = stops[-1]
        self._stops = torch.tensor(stops)

    def id_of(self, special: str) -> int:
        """The id of a special."""
        return self.ranges[special].start

    def kind_of(self, tokens: Tensor) -> Tensor:
        """Kind ids int64, the shape of `tokens`. Raises UserError on ids outside the vocabulary."""
        wrong = tokens[(tokens < 0) | (tokens >= self.size)]
        if len(wrong):
            raise UserError(f"token {int(wrong[0])} is outside the vocabulary: its ids are 0 to {self.size - 1}")
        return torch.bucketize(tokens, self._stops.to(tokens.device), right=True)

    def interleave(self, parts: Sequence[Part]) -> Tensor:
        """Parts as one sequence, int64 (T,). Raises UserError on what the vocabulary does not hold."""
        tokens: list[int] = []
        for part in parts:
            if isinstance(part, Special):
                if part.name not in ALONE:
                    raise UserError(f"{part.name} does not stand alone; {nearest(part.name, ALONE)}")
                tokens.append(self.id_of(part.name))
            else:
                kind, inner = ("text", self._pieces(part)) if isinstance(part, Text) else (part.kind, self._laid(part))
                tokens += [self.id_of(f"begin_{kind}"), *inner, self.id_of(f"end_{kind}")]
        return torch.tensor(tokens, dtype=torch.int64)

    def split(self, tokens: Tensor) -> list[Part]:
        """The parts of a sequence int64 (T,), the inverse of `interleave`; padding at its end is left out.

        Raises UserError on what is no sequence of parts, with the position where it goes wrong.
        """
        names = [self.kinds[kind] for kind in self.kind_of(tokens).tolist()]
        while names and names[-1] == PADDING:
            names.pop()
        parts: list[Part] = []
        at = 0
        while at < len(names):
            kind = names[at].removeprefix("begin_")
            if kind in ALONE:
                parts.append(Special(kind))
                at += 1
                continue
            if kind == names[at] or (kind != "text" and kind not in self.codes):
                raise UserError(f"{names[at]} at position {at} begins no part")
            if kind == "text":
                inner = list(takewhile(lambda name: name == "text", names[at + 1 :]))
            else:
                inner = self.reading_order(kind)
            stop = at + 1 + len(inner)
            _follow(names, at, [*inner, f"end_{kind}"])
            found = tokens[at + 1 : stop]
            parts.append(Text(tuple(found.tolist())) if kind == "text" else self._lifted(kind, found))
            at = stop + 1
        return parts

    def reading_order(self, kind: CodeKind) -> list[str]:
        """The names of the ranges that the codes of one signal come from, one after the other."""
        spec = self.codes[kind]
        return [f"{kind}_{place % spec.codebooks}" for place in range(spec.length)]

    def _pieces(self, part: Text) -> tuple[int, ...]:
        wrong = [piece for piece in part.pieces if not 0 <= piece < self.config.text]
        if wrong:
            raise UserError(
                f"text piece {wrong[0]} is outside the vocabulary, which has {self.config.text}: "
                "use the text tokenizer that it was made for"
            )
        return part.pieces

    def _laid(self, part: Codes) -> list[int]:
        """Codes as tokens in reading order."""
        if part.kind not in self.codes:
            raise UserError(f"the vocabulary has no codes of {part.kind}; {nearest(part.kind, self.codes)}")
        spec, codes = self.codes[part.kind], part.codes
        if codes.shape != (spec.codebooks, *spec.grid):
            raise UserError(f"{part.kind} codes must be {(spec.codebooks, *spec.grid)}; got {tuple(codes.shape)}")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < spec.size:
            raise UserError(f"{part.kind} codes must lie in [0, {spec.size})")
        return (codes.reshape(spec.codebooks, -1).t() + self._starts(part.kind).to(codes.device)).flatten().tolist()

    def _lifted(self, kind: CodeKind, tokens: Tensor) -> Codes:
        """The inverse of `_laid`."""
        spec = self.codes[kind]
        codes = tokens.unflatten(0, (-1, spec.codebooks)) - self._starts(kind).to(tokens.device)
        return Codes(kind, codes.t().reshape(spec.codebooks, *spec.grid))

    def _starts(self, kind: CodeKind) -> Tensor:
        """Where the range of each codebook begins: (Q,)."""
        return torch.tensor([self.ranges[f"{kind}_{q}"].start for q in range(self.codes[kind].codebooks)])


def _follow(names: Sequence[str], at: int, wanted: Sequence[str]) -> None:
    """Raises UserError unless just the wanted names follow what begins at a position."""
    for place, name in enumerate(wanted, at + 1):
        if place >= len(names):
            raise UserError(f"what {names[at]} begins at position {at} is cut short at position {place}")
        if names[place] != name:
            raise UserError(
                f"{names[place]} at position {place}, inside what {names[at]} begins at {at}: {name} belongs there"
            )
