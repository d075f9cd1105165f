"""Pictures from files put into words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path

import torch
from torch import Tensor

from smalti.config import Config
from smalti.model import BATCH, Reader
from smalti.sampling.files import listed, read_fitted, readable


def caption_files(
    reader: Reader, files: Sequence[str | Path], seed: int = 0, options: Config | None = None
) -> Iterator[tuple[Path, str]]:
    """Each file and what is in it, some after the other; broken ones are named and left out.

    Raises UserError as `listed` and `readable` do.
    """
    return _told(reader, files, lambda x, first: reader.caption(x, seed, options, first))


def ask_files(
    reader: Reader, files: Sequence[str | Path], question: str, seed: int = 0, options: Config | None = None
) -> Iterator[tuple[Path, str]]:
    """Each file and the answer to a question about it. Raises UserError as `caption_files`, and as `Reader.ask`."""
    return _told(reader, files, lambda x, first: reader.ask(x, question, seed, options, first))


def _told(
    reader: Reader, files: Sequence[str | Path], tell: Callable[[Tensor, int], list[str]]
) -> Iterator[tuple[Path, str]]:
    found = iter(readable(listed(files), lambda path: read_fitted(path, reader), "read"))
    for first in count(0, BATCH):
        some = list(islice(found, BATCH))
        if not some:
            return
        yield from zip([path for path, _ in some], tell(torch.stack([x for _, x in some]), first), strict=True)
