"""Draws the pictures of the documentation.

python docs/pictures.py labels runs/fashion docs/pictures/fashion.png
python docs/pictures.py rebuilt runs/bottlenecks/600s/* docs/pictures/bottlenecks.png
python docs/pictures.py words emoji docs/pictures/words.png
python docs/pictures.py scenes emoji docs/pictures/words/scenes.png
python docs/pictures.py scenes runs/emoji-text-dit docs/pictures/words/scenes-dit.png
python docs/pictures.py failures emoji docs/pictures/words/failures.png
python docs/pictures.py drawings emoji docs/pictures/words/drawings.png

`labels`: new pictures for each label of a run, seed 0, unpicked. `rebuilt`: held-out pictures, and below them what each
tokenizer makes of them. `words`: pictures for each of some prompts. `scenes`: the first held-out scenes, each beside
three that are drawn from its caption; `failures`: the first of them of which the judge misses a thing. `drawings`: the
same of held-out single drawings. All unpicked, seed 0.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import smalti
from smalti.data.emoji_mix import EmojiMix
from smalti.data.image import to_pixels, to_signal
from smalti.data.naming import prompts
from smalti.data.sources import DataConfig, open_source
from smalti.evaluation.evaluate import data_of, held_out
from smalti.evaluation.plots import picture_rows
from smalti.evaluation.scenes import SceneJudge
from smalti.model import Generator, Tokenizer

EACH = 12  # pictures in a row
THREE = 3  # that are drawn beside a real one
PROMPTS = (
    "red heart",
    "red apple, twitter style",
    "red apple, fluent style",
    "dog face, google style",
    "grinning face",
    "rocket",
    "a rocket, on black",
    "a cat to the left of a red apple, on blue",
    "an octopus above a red apple, on yellow",
    "a rainbow and a unicorn from left to right, on white",
)


def labels(run: str) -> dict[str, Tensor]:
    """A row for each label."""
    model = _generator(run)
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


def words(run: str) -> dict[str, Tensor]:
    """A row for each of PROMPTS."""
    model = _generator(run)
    return {prompt: model.sample(EACH, prompt, seed=0) for prompt in PROMPTS}


def scenes(run: str) -> dict[str, Tensor]:
    """A row for each of the first held-out scenes: the real one, then what is drawn from its caption."""
    source = _mix("test").scenes
    return _beside(run, [(source.text(i)[0], torch.from_numpy(source.raster(i))) for i in range(EACH)])


def failures(run: str) -> dict[str, Tensor]:
    """The same of the first scenes of which the judge does not find every thing in the first picture drawn."""
    source, model = _mix("test").scenes, _generator(run)
    eye, few = SceneJudge(_mix("train").scenes), range(10 * EACH)
    drawn = to_pixels(model.sample(len(few), [source.text(i)[0] for i in few], seed=0))
    missed = [i for i in few if eye.found(drawn[i : i + 1], [source.scene(i)]).scenes < 1][:EACH]
    real = [torch.from_numpy(source.raster(i)) for i in missed]
    return {
        source.text(i)[0]: torch.stack([to_signal(one), to_signal(drawn[i])])
        for i, one in zip(missed, real, strict=True)
    }


def drawings(run: str) -> dict[str, Tensor]:
    """A row for each of some held-out single drawings: the real one, then what is drawn from its name and artist."""
    source = _mix("test")
    chosen = range(0, len(source.details), max(1, len(source.details) // EACH))[:EACH]
    return _beside(run, [(prompts(source.details[i])[1], torch.from_numpy(source.drawings[i])) for i in chosen])


def _beside(run: str, wanted: Sequence[tuple[str, Tensor]]) -> dict[str, Tensor]:
    model = _generator(run)
    asked = [prompt for prompt, _ in wanted for _ in range(THREE)]
    drawn = model.sample(len(asked), asked, seed=0).split(THREE)
    return {prompt: torch.cat([to_signal(real)[None], x]) for (prompt, real), x in zip(wanted, drawn, strict=True)}


def _mix(split: str) -> EmojiMix:
    source = open_source(DataConfig(source="emoji-mix"), split)  # type: ignore[arg-type]
    assert isinstance(source, EmojiMix)
    return source


def _generator(run: str) -> Generator:
    model = smalti.load(run)
    assert isinstance(model, Generator), f"{run} is no generator"
    return model


def main(sheet: str, *paths: str) -> None:
    """Draw one sheet; the last path is where it goes."""
    sheets: tuple[Callable[..., dict[str, Tensor]], ...] = (labels, rebuilt, words, scenes, failures, drawings)
    rows = {each.__name__: each for each in sheets}[sheet](*paths[:-1])
    out = Path(paths[-1])
    out.parent.mkdir(parents=True, exist_ok=True)
    picture_rows(rows).save(out, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
