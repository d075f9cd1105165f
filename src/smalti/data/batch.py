"""The examples of one step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from smalti.data.augment import TEXT
from smalti.data.example import Questions, Source
from smalti.data.order import uniform


@dataclass(frozen=True)
class Batch:
    """One step's examples of this rank.

    `rows` int64 (B,): their places in the global batch; `indices` int64 (B,): their places in the source, of the
    examples really used; `x`: float32 (B, C, *space) in [-1, 1], or codes int64 (B, Q, *grid); `labels` int64 (B,);
    `texts`: one each, "" for none; `questions`: (question, answer) about each, as many as there are; `again`:
    other codes of the same, as `x`; `tell_all` bool (B,): whose texts tell all there is to see, or None, as all do.
    Whatever is drawn for an example comes from (`seed`, `step`, its row).
    """

    step: int
    rows: Tensor
    indices: Tensor
    x: Tensor
    labels: Tensor | None = None
    texts: list[str] | None = None
    questions: list[Questions] | None = None
    again: Tensor | None = None
    tell_all: Tensor | None = None
    seed: int = 0

    def to(self, device: torch.device) -> Batch:
        """The same with examples and labels on a device; all else stays on the processor."""
        labels = None if self.labels is None else self.labels.to(device, non_blocking=True)
        return replace(self, x=self.x.to(device, non_blocking=True), labels=labels)

    def split(self, size: int) -> Iterator[Batch]:
        """Parts of at most `size` examples, in order."""
        if size >= len(self.rows):
            yield self
            return
        for start in range(0, len(self.rows), size):
            part = slice(start, start + size)
            yield replace(
                self,
                rows=self.rows[part],
                indices=self.indices[part],
                x=self.x[part],
                labels=None if self.labels is None else self.labels[part],
                texts=None if self.texts is None else self.texts[part],
                questions=None if self.questions is None else self.questions[part],
                again=None if self.again is None else self.again[part],
                tell_all=None if self.tell_all is None else self.tell_all[part],
            )


def texts_of(source: Source, indices: Tensor, step: int, rows: Tensor, seed: int | None) -> list[str] | None:
    """A text of each example (B,), "" for none; None where none has any.

    Where there are several it is another each time, drawn from (seed, step, row), or the first without a seed.
    """
    if not source.has_text:
        return None
    at = [0.0] * len(indices) if seed is None else uniform(seed, step, rows, TEXT).tolist()
    several = [source.text(i) or ("",) for i in indices.tolist()]
    return [each[int(place * len(each))] for each, place in zip(several, at, strict=True)]
