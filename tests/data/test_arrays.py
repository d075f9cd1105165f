from __future__ import annotations

import torch

from smalti.config import SignalSpec
from smalti.data.arrays import Held
from smalti.data.example import Some, Source


class Numbered(Source):
    """Example i is called by its number; only even ones are told as a whole."""

    name, labels, signal = "numbers", (), SignalSpec(channels=1, shape=(1, 1))
    fingerprint = "numbers"
    has_text = True

    def __len__(self) -> int:
        return 40

    def item(self, i: int):
        raise AssertionError("nobody looks at pictures here")

    def text(self, i: int):
        return (f"number {i}",)

    def questions(self, i: int):
        return (("which?", str(i)),)

    def tells_all(self, i: int) -> bool:
        return i % 2 == 0


def test_what_is_told_of_an_example_is_told_by_its_number():
    numbers = torch.tensor([7, 8, 30, 31, 2])
    values = torch.arange(5).view(1, 5, 1, 1)
    chosen = torch.tensor([4, 0, 2])
    asked = Some(Numbered(), torch.arange(40).flip(0))
    for words, theirs in ((Numbered(), [2, 7, 30]), (asked, [37, 32, 9])):
        held = Held(values, rows=numbers, words=words)
        batch = held.batch(0, torch.arange(3), chosen, 0, seed=1)
        assert batch.x.flatten().tolist() == chosen.tolist()
        assert batch.texts == [f"number {i}" for i in theirs]
        assert batch.questions == [(("which?", str(i)),) for i in theirs]
        assert batch.tell_all.tolist() == [i % 2 == 0 for i in theirs]


def test_of_an_example_nothing_is_told_of_no_words_are_looked_for():
    batch = Held(torch.zeros(2, 3, 1, 1)).batch(0, torch.arange(2), torch.tensor([1, 2]), 1, seed=None)
    assert (batch.texts, batch.questions, batch.tell_all) == (None, None, None)
