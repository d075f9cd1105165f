"""Draws the pictures of the documentation.

python docs/pictures.py labels runs/fashion docs/pictures/fashion.png
python docs/pictures.py rebuilt runs/bottlenecks/600s/* docs/pictures/bottlenecks.png

`labels`: new pictures for each label of a run, seed 0, unpicked. `rebuilt`: held-out pictures, and below them what each
tokenizer makes of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

import smalti
from smalti.data.image import to_signal
from smalti.evaluation.evaluate import data_of, held_out
from smalti.evaluation.plots import picture_rows
from smalti.model import Generator, Tokenizer

EACH = 12  # pictures in a row


def labels(run: str) -> dict[str, Tensor]:
    """A row for each label."""
    model = smalti.load(run)
    assert isinstance(model, Generator), f"{run} is no generator"
    ids = torch.arange(len(model.labels)).repeat_interleave(EACH)
    x = model.sample(len(ids), ids, seed=0)
    return {name: x[EACH * i : EACH * (i + 1)] for i, name in enumerate(model.labels)}


def rebuilt(*runs: str) -> dict[str, Tensor]:
    """A row for the originals, and one for each run."""
    rows: dict[str, Tensor] = {}
    for run in runs:
        model = smalti.load(run)
        assert isinstance(model, Tokenizer), f"{run} is no tokenizer"
        if not rows:
            rows["held-out"] = to_signal(held_out(data_of(model, None), 10 * EACH).pixels[::10])
        rows[Path(run).name] = model.reconstruct(rows["held-out"])
    return rows


def main(sheet: str, *paths: str) -> None:
    """Draw one sheet; the last path is where it goes."""
    rows = {"labels": labels, "rebuilt": rebuilt}[sheet](*paths[:-1])
    out = Path(paths[-1])
    out.parent.mkdir(parents=True, exist_ok=True)
    picture_rows(rows).save(out, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
