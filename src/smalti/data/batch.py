"""The examples of one step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One step's examples of this rank.

    `rows` int64 (B,): their places in the global batch; `indices` int64 (B,): their places in the source, of the
    examples really used; `x`: float32 (B, C, *space) in [-1, 1], or codes int64 (B, Q, *grid); `labels` int64 (B,);
    `texts`: one each, "" for none. Whatever is drawn for an example comes from (`seed`, `step`, its row).
    """

    step: int
    rows: Tensor
    indices: Tensor
    x: Tensor
    labels: Tensor | None = None
    texts: list[str] | None = None
    seed: int = 0

    def to(self, device: torch.device) -> Batch:
        """The same with examples and labels on a device; rows and indices stay on the processor."""
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
            )
