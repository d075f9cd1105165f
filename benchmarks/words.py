"""How well emoji are drawn from words and put into words: scenes of pairs never seen together, and single drawings.

`model` is a run, a model folder or the name of a model that comes with smalti; it was trained on `emoji-mix`. What is
asked for is drawn with the options of its recipe, seed 0, unpicked, and judged by what has only ever seen real
pictures of the training split:

- things and their places by a classifier of cut-out cells of scenes, which names real scenes beside it;
- single drawings by a model of pictures and captions, the recipe `emoji-judge`: the right name first among 100, as a
  share of what it reaches on the real drawings of the same prompts. It counts while it is right about 0.6 of those held
  out. Who drew them says a classifier of artists.

A near copy of a training drawing is nearer to one than twice the error that the tokenizer makes anyway.

With `--card` the figures also go into the model's card.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import arguments, median_seconds, table, write
from smalti.config import changed
from smalti.data.emoji import ARTISTS
from smalti.data.emoji_mix import EmojiMix
from smalti.data.example import Detail
from smalti.data.image import to_pixels, to_signal
from smalti.data.naming import prompts
from smalti.data.scene import Scene
from smalti.data.sources import DataConfig, open_source
from smalti.evaluation.alignment import hundreds, recall
from smalti.evaluation.classifier import Classifier, judge
from smalti.evaluation.drawings import near_copies, right_names
from smalti.evaluation.scenes import SceneJudge, asked_of, right_answers, right_captions
from smalti.model import Aligner, Generator, Reader, load, write_card
from smalti.sampling.files import drawing
from smalti.training.log import ProgressLine

SEED = 0
TRUSTED = 0.6  # of real held-out drawings whose caption the judge puts first; below, what it says is worth nothing
HOT = 1.5  # the temperature at which grids still have to come out whole
FEW = 25  # prompts of a kind there
KINDS = {
    "what is beside it": "what is left of, right of, above, below",
    "how many": "how many things",
    "ground colour": "colour of the ground",
    "what is there": "what is at a place",
    "where is it": "where a thing is",
}

Row = dict[str, Any]


def split(name: str) -> EmojiMix:
    """A split of the set; test are scenes with pairs never seen together, and drawings never seen."""
    source = open_source(DataConfig(source="emoji-mix"), name)  # type: ignore[arg-type]
    assert isinstance(source, EmojiMix)
    return source


class Drawings:
    """Some single drawings of a split, in random order: `real` uint8 (N, 3, 64, 64), and what is known of each."""

    def __init__(self, source: EmojiMix, most: int) -> None:
        chosen = torch.randperm(len(source.details), generator=torch.Generator().manual_seed(SEED))[:most].tolist()
        self.real = torch.from_numpy(source.drawings[chosen])
        self.details: Sequence[Detail] = [source.details[i] for i in chosen]
        self.names = [detail.text[0] for detail in self.details]
        self.prompts = [prompts(detail)[1] for detail in self.details]
        self.artists = torch.tensor([detail.artist for detail in self.details])


class Judges:
    """What has only seen real pictures of the training split."""

    def __init__(self, aligner: Path) -> None:
        model = load(aligner)
        assert isinstance(model, Aligner), f"{aligner} was not trained by the recipe emoji-judge"
        self.aligner = model

    @cached_property
    def train(self) -> EmojiMix:
        return split("train")

    @cached_property
    def scenes(self) -> SceneJudge:
        with ProgressLine("train the judge of scenes", 1) as line:
            return SceneJudge(self.train.scenes, line.told)

    @cached_property
    def artists(self) -> Classifier:
        pixels = torch.from_numpy(self.train.drawings)
        artists = torch.tensor([detail.artist for detail in self.train.details])
        with ProgressLine("train the judge of artists", 1) as line:
            found = judge(pixels, artists, f"{self.train.fingerprint}/artists", progress=line.told)
        assert isinstance(found, Classifier)
        return found

    def names(self, pixels: Tensor, names: Sequence[str]) -> float:
        """The share of pictures uint8 (N, 3, 64, 64) whose name comes first among a hundred."""
        fits = recall(self.aligner.pictures(to_signal(pixels)), self.aligner.texts(names), hundreds(names))
        return fits["caption_recall_at_1"]


def drawn(model: Generator, asked: Sequence[str]) -> Tensor:
    """A picture for each prompt, uint8 (N, 3, 64, 64)."""
    with drawing(len(asked)) as line:
        return to_pixels(model.sample(len(asked), asked, seed=SEED, progress=line.told))


def scenes_drawn(
    model: Generator, judges: Judges, scenes: Sequence[Scene], real: Tensor, asked: list[str]
) -> list[Row]:
    """Each asked thing at its place, and the ground."""
    columns = {
        "drawn": drawn(model, asked),
        "reconstructed": to_pixels(model.tokenizer.reconstruct(to_signal(real))),
        "real": real,
    }
    found = {name: judges.scenes.found(pixels, scenes) for name, pixels in columns.items()}
    what = {"things": "each thing at its place", "scenes": "all things at their place", "ground": "ground as asked"}
    return [
        {"drawn from captions of unseen pairs": title, **{name: getattr(each, key) for name, each in found.items()}}
        for key, title in what.items()
    ]


def scenes_read(model: Reader, scenes: Sequence[Scene], real: Tensor) -> list[Row]:
    """Questions about real scenes, and captions of them."""
    asked = asked_of(scenes, most=2)
    pictures = to_signal(real)[[i for i, _, _ in asked]]
    right = right_answers(asked, model.ask(pictures, [question for _, question, _ in asked], seed=SEED))
    told = right_captions(scenes, model.caption(to_signal(real), seed=SEED))
    rows = {KINDS[kind]: share for kind, share in right.items()}
    rows |= {"caption: all things, no other": told.things, "caption: then all places": told.places}
    rows["caption: ground"] = told.ground
    return [{"read off scenes of unseen pairs": what, "right": share} for what, share in rows.items()]


def single(model: Generator, judges: Judges, chosen: Drawings, title: str) -> Row:
    """Drawings asked for by name and artist, beside the real ones and their reconstructions."""
    ours = drawn(model, chosen.prompts)
    again = model.tokenizer.reconstruct(to_signal(chosen.real))
    rebuilt = to_pixels(again)
    error = (again - to_signal(chosen.real)).div(2).square().mean().sqrt().item()
    of_real = judges.names(chosen.real, chosen.names)
    named = judges.names(ours, chosen.names)
    artists = judges.artists
    return {
        "drawings": title,
        "name first": named,
        "reconstructed": judges.names(rebuilt, chosen.names),
        "real": of_real,
        "share of real": named / of_real,
        "artist": artists.agreement(ours, chosen.artists),
        "artist reconstructed": artists.agreement(rebuilt, chosen.artists),
        "artist of real": artists.agreement(chosen.real, chosen.artists),
        "near copies": near_copies(ours, torch.from_numpy(judges.train.drawings), error),
    }


def drawings_read(model: Reader, chosen: Drawings, title: str) -> Row:
    """What real drawings are called."""
    told = right_names(chosen.details, model.caption(to_signal(chosen.real), seed=SEED))
    return {"drawings read": title, "exact name": told.name, "any keyword": told.keyword}


def hot(model: Reader, asked: list[str], n: int) -> Row:
    """Pictures drawn hot: how many grids are whole, of their own codes."""
    options = changed(model.options, {"temperature": HOT, "top_k": None, "top_p": None, "best_of": 1})
    with drawing(n) as line:
        grids = model.draw(n, [asked[i % len(asked)] for i in range(n)], seed=SEED, options=options, progress=line.told)
    spec = model.network.codes
    assert grids.shape[1:] == (spec.codebooks, *spec.grid)
    whole = ((grids >= 0) & (grids < spec.size)).flatten(1).all(1)
    return {"at temperature": HOT, "pictures": n, "whole": int(whole.sum())}


def seconds(model: str) -> float:
    """From the command to the file, in a fresh process; the median of five."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "smalti.cli", "sample", model, "red heart", "--n", "1", "--out", f"{folder}/out"]
        return median_seconds(lambda: subprocess.run(words, check=True, capture_output=True), 5)


def of_card(found: dict[str, list[Row]], n: int) -> dict[str, float]:
    """The figures as a card lists them: "scenes drawn: each thing at its place, real" -> 0.99."""
    flat: dict[str, float] = {f"pictures of each figure, seed {SEED}": n}
    for title, rows in found.items():
        for row in rows:
            what, *figures = row.items()
            name = f"{what[1]}" if isinstance(what[1], str) else f"{what[0]} {what[1]}"
            flat |= {f"{title}: {name}, {column}": figure for column, figure in figures}
    return flat


def main() -> None:
    """Draw, read, judge, print."""
    parser = arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a run, a model folder, or the name of a model that comes with smalti")
    parser.add_argument("--judge", type=Path, required=True, help="a run of the recipe emoji-judge")
    parser.add_argument("--name", default="words", help="of the file of results")
    parser.add_argument("--card", action="store_true", help="keep the figures in the model's card")
    options = parser.parse_args()
    n, many = (50, 100) if options.quick else (1000, 10_000)
    model, judges, test = load(options.model), Judges(options.judge), split("test")
    assert isinstance(model, Generator), f"{options.model} draws nothing"

    trust = judges.names(torch.from_numpy(test.drawings), [detail.text[0] for detail in test.details])
    print(f"the judge of captions is right about {trust:.3f} of real held-out drawings, {TRUSTED} are needed")
    scenes = [test.scenes.scene(i) for i in range(n)]
    real = torch.from_numpy(np.stack([test.scenes.raster(i) for i in range(n)]))
    captions = [test.scenes.text(i)[0] for i in range(n)]
    seen, unseen = Drawings(judges.train, n), Drawings(test, n)

    found: dict[str, list[Row]] = {"scenes drawn": scenes_drawn(model, judges, scenes, real, captions)}
    found["drawings"] = [
        single(model, judges, seen, "seen in training"),
        single(model, judges, unseen, "an artist's of a thing seen by others only"),
    ]
    if isinstance(model, Reader):
        found["scenes read"] = scenes_read(model, scenes, real)
        found["drawings read"] = [
            drawings_read(model, seen, "seen in training"),
            drawings_read(model, unseen, "never seen"),
        ]
        few = captions[:FEW] + unseen.prompts[:FEW]  # prompts of one length are drawn together
        found["hot"] = [hot(model, few, many)]
    found["seconds"] = [{"a fresh process": "from prompt to PNG", "seconds": seconds(options.model)}]
    for title, rows in found.items():
        table(f"{title}, {options.model}, n = {n}, seed {SEED}", rows)
    if options.card and not options.quick:
        write_card(options.model, of_card(found, n))
    write(
        options.name, __doc__ or "", options.quick, model=str(options.model), judge=trust, n=n, artists=ARTISTS, **found
    )


if __name__ == "__main__":
    main()
