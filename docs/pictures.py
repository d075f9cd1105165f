"""Draws the README's picture: ten new pictures for each label of a run, seed 0, unpicked.

python docs/pictures.py runs/fashion docs/pictures/fashion.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import smalti
from smalti.evaluation.plots import picture_rows
from smalti.model import Generator


def main(run: str, out: str, each: int = 12) -> None:
    """Sample `each` pictures a label and write them as one sheet."""
    model = smalti.load(run)
    assert isinstance(model, Generator), f"{run} is no generator"
    ids = torch.arange(len(model.labels)).repeat_interleave(each)
    x = model.sample(len(ids), ids, seed=0)
    sheet = picture_rows({name: x[each * i : each * (i + 1)] for i, name in enumerate(model.labels)})
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:3])
