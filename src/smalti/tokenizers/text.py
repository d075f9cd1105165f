"""Text as pieces: byte-level byte-pair encoding learned from captions.

Sennrich et al. 2016 (arXiv 1508.07909), over bytes as in Radford et al. 2019 (GPT-2, section 2.2). All 256 bytes are
pieces of their own, so any text goes in and the same text comes out, whatever it was trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from smalti.checkpoint import write_text
from smalti.errors import UserError

FILE = "tokenizer.json"
LONGEST_WORD = 128  # characters that are read as one word; no language of words has longer ones
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())  # the letters that stand for the 256 bytes
# what a tokenizer that lowers, trims or composes would not give back
PROBE = "\tÀ la  carte:\r\n e\u0301 ≠ é, ﬁ ≠ fi, 👩🏽‍🎨 שלום \u0000 "


@dataclass(frozen=True)
class Pieces:
    """The piece ids of a text, each in [0, size); `cut` says whether the text went on."""

    ids: tuple[int, ...]
    cut: bool


class TextTokenizer:
    """Text to pieces and back. `TextTokenizer.trained` makes one, `TextTokenizer.load` reads one."""

    def __init__(self, pieces: Tokenizer) -> None:
        self._pieces = pieces
        self._longest = max(map(len, pieces.get_vocab()), default=1)  # bytes of a piece, and no fewer characters

    @classmethod
    def trained(cls, captions: Iterable[str], pieces: int) -> TextTokenizer:
        """At most `pieces` pieces, fewer where the captions repeat too little; the captions' order changes nothing.

        Raises UserError on fewer pieces than there are bytes, and on a caption that is no proper Unicode.
        """
        if pieces < len(BYTES):
            raise UserError(f"{pieces} pieces are too few: each of the {len(BYTES)} bytes is one")
        made = Tokenizer(models.BPE())
        # merging takes time that grows with the square of a word's length
        short = pre_tokenizers.Split(Regex(rf"\S{{{LONGEST_WORD}}}"), "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([short, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=pieces, min_frequency=2, initial_alphabet=BYTES, show_progress=False)
        made.train_from_iterator(map(_proper, captions), trainer)
        return cls(made)

    @classmethod
    def load(cls, folder: Path) -> TextTokenizer:
        """The tokenizer that was saved in a folder. Raises UserError where there is none or it is damaged."""
        path = folder / FILE
        if not path.is_file():
            raise UserError(f"{path} is missing: the folder holds no text tokenizer")
        try:
            made = Tokenizer.from_str(path.read_text(encoding="utf-8"))
            made.no_truncation()
            made.no_padding()
            _check(made)
        except Exception as error:  # the library has no exceptions of its own
            told = " ".join(str(error).split())[:200]
            raise UserError(f"{path} is damaged: {told}; copy the folder again") from error
        return cls(made)

    def save(self, folder: Path) -> None:
        """Write the tokenizer into a folder."""
        write_text(folder / FILE, self.json_text())

    def json_text(self) -> str:
        """The whole tokenizer, in the format of Hugging Face `tokenizers`."""
        return self._pieces.to_str(pretty=True) + "\n"

    def __deepcopy__(self, memo: dict[int, Any]) -> TextTokenizer:
        return self  # nothing changes it

    @property
    def sha256(self) -> str:
        """Of the file that `save` writes, in hexadecimal."""
        return hashlib.sha256(self.json_text().encode()).hexdigest()

    @property
    def size(self) -> int:
        """How many pieces there are, the 256 bytes among them."""
        return self._pieces.get_vocab_size()

    def encode(self, text: str, most: int | None = None) -> Pieces:
        """The pieces of a text, at most `most` of them; a text is never cut within a character.

        Raises UserError on text that is no proper Unicode.
        """
        # of a text too long for so many pieces the rest need not be looked at: what is left still has more than that
        read = _proper(text) if most is None else _proper(text)[: self._longest * most + LONGEST_WORD]
        found = self._pieces.encode(read, add_special_tokens=False)
        ids, spans = found.ids, found.offsets  # a span is the characters that a piece has a part of
        if most is None or len(ids) <= most:
            return Pieces(tuple(ids), cut=False)
        end = most
        while end and spans[end - 1][1] > spans[end][0]:
            end -= 1
        return Pieces(tuple(ids[:end]), cut=True)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of pieces; bytes that make no character, as a model may say them, become U+FFFD.

        Raises UserError on an id that is no piece.
        """
        wrong = [each for each in ids if not 0 <= each < self.size]
        if wrong:
            raise UserError(f"{wrong[0]} is no piece of text: they are 0 to {self.size - 1}")
        return self._pieces.decode(list(ids), skip_special_tokens=False)


def _proper(text: str) -> str:
    """The text itself. Raises UserError on half a character, as broken JSON or bytes on a command line give."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        shown = ascii(text[max(0, error.start - 20) : error.end])
        raise UserError(f"text is no proper Unicode: half a character at {error.start}, in {shown}") from error
    return text


def _check(pieces: Tokenizer) -> None:
    """Raises ValueError where a tokenizer's ids have gaps, or text would not come back as it was."""
    known = pieces.get_vocab()
    if sorted(known.values()) != list(range(len(known))) or not known.keys() >= set(BYTES):
        raise ValueError("its pieces are not numbered one by one, all bytes among them")
    if pieces.decode(pieces.encode(PROBE, add_special_tokens=False).ids, skip_special_tokens=False) != PROBE:
        raise ValueError("it does not give back the text that it is given")
