"""Several sequences in one row of a fixed length, none of which sees another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smalti.errors import UserError


@dataclass(frozen=True)
class Packed:
    """Rows of `length` places, each with whole sequences one behind the other, and padding.

    `tokens` int64 (B, T); `examples` int64 (B, T): which sequence a place belongs to, -1 for padding; `positions` int64
    (B, T): its place in that sequence, 0 for padding.
    """

    tokens: Tensor
    examples: Tensor
    positions: Tensor

    @property
    def attend(self) -> Tensor:
        """What each place may look at, bool (B, 1, T, T): its own sequence up to itself; nothing for padding."""
        return self.own.tril().unsqueeze(1)

    @property
    def own(self) -> Tensor:
        """Which places are of one sequence, bool (B, T, T); those of padding are of none."""
        return (self.examples.unsqueeze(2) == self.examples.unsqueeze(1)) & (self.examples >= 0).unsqueeze(2)

    def attend_with(self, wholes: Tensor) -> Tensor:
        """`attend`, but what has one number in `wholes` (B, T), other than 0, is looked at from all of it."""
        return self.attend | (self.own & whole(wholes)).unsqueeze(1)

    def lay(self, values: Sequence[Tensor], padding: float = 0) -> Tensor:
        """Something else of every sequence's tokens, such as weights or positions, in the same places.

        One tensor (length of the sequence, …) for each sequence -> (B, T, …).
        """
        return _laid(values, self.examples, self.positions, padding)


def whole(numbers: Tensor) -> Tensor:
    """Which places have the same number, but 0: (B, T) -> bool (B, T, T)."""
    return (numbers.unsqueeze(2) == numbers.unsqueeze(1)) & (numbers > 0).unsqueeze(2)


def pack(sequences: Sequence[Tensor], length: int, padding: int, multiple: int = 1) -> Packed:
    """Lay sequences int64 (n,) in rows of `length`, each in the first row that has room for it, in the order given.

    There are a `multiple` of rows, the last of them empty where need be. Raises UserError on a sequence longer than a
    row.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for example, sequence in enumerate(sequences):
        if len(sequence) > length:
            raise UserError(f"sequence {example} has {len(sequence)} tokens, and a row holds {length}")
        row = next((row for row, left in enumerate(room) if left >= len(sequence)), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(length)
        rows[row].append(example)
        room[row] -= len(sequence)
    count = -(-len(rows) // multiple) * multiple
    examples = torch.full((count, length), -1)
    positions = torch.zeros(count, length, dtype=torch.int64)
    for row, inside in enumerate(rows):
        start = 0
        for example in inside:
            stop = start + len(sequences[example])
            examples[row, start:stop] = example
            positions[row, start:stop] = torch.arange(stop - start)
            start = stop
    return Packed(_laid(sequences, examples, positions, padding), examples, positions)


def _laid(values: Sequence[Tensor], examples: Tensor, positions: Tensor, padding: float) -> Tensor:
    if not values:
        raise ValueError("no sequences to pack")
    lengths = torch.tensor([len(each) for each in values])
    if not torch.equal(lengths, examples[examples >= 0].bincount(minlength=len(values))):
        raise ValueError("one value for each token, and tokens of other lengths were packed")
    starts = lengths.cumsum(0) - lengths
    places = torch.where(examples < 0, lengths.sum(), starts[examples] + positions)
    filling = values[0].new_full((1, *values[0].shape[1:]), padding)
    return torch.cat([*values, filling])[places]
