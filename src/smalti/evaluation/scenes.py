"""How well scenes are composed and read: things, places, colours and answers, checked against the truth."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from smalti.data.scene import GROUNDS, SIDE, Place, Scene
from smalti.data.scenes import Scenes
from smalti.data.things import THINGS, called
from smalti.data.wording import captions, questions
from smalti.evaluation.classifier import Classifier, ClassifierConfig, Progress, judge

WINDOW = 48  # pixels: as far as a thing may be from the middle of its cell
NEAR = 40  # how far a colour may be off, of 0 … 255, and be that of the ground; no two grounds are nearer than twice it
LEARNT = 20_000  # scenes that the judge learns from
# a thing may stand anywhere in its cell as it is, so the cells need little further moving about
RECIPE = ClassifierConfig(width=96, passes=6, shift=1)
_PLACES = {thing: place for place, thing in enumerate(THINGS)}


@dataclass(frozen=True)
class Found:
    """Shares in [0, 1]: of the things asked for, those that were found at their place; of the scenes, those with all
    things found, and those whose ground has the colour asked for."""

    things: float
    scenes: float
    ground: float


class SceneJudge:
    """A classifier of things, trained on cells of real scenes of the training split and kept in the cache."""

    def __init__(self, source: Scenes, progress: Progress | None = None) -> None:
        cells, names = [], []
        for i in range(min(LEARNT, len(source))):
            scene = source.scene(i)
            cells.append(cut_cells(torch.from_numpy(source.raster(i)), scene))
            names += [_PLACES[thing] for thing in scene.things]
        pixels, labels = torch.cat(cells), torch.tensor(names)
        found = judge(pixels, labels, source.fingerprint, config=RECIPE, progress=progress)
        assert isinstance(found, Classifier)
        self.classifier = found

    def found(self, pictures: Tensor, scenes: Sequence[Scene]) -> Found:
        """pictures uint8 (N, 3, 64, 64), and the scene that each one should show."""
        cells = torch.cat([cut_cells(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)])
        asked = torch.tensor([_PLACES[thing] for scene in scenes for thing in scene.things])
        right = self.classifier.predict(cells) == asked
        whole = [bool(each.all()) for each in right.split([len(scene.things) for scene in scenes])]
        ground = [ground_of(picture) == scene.ground for picture, scene in zip(pictures, scenes, strict=True)]
        return Found(right.double().mean().item(), float(np.mean(whole)), float(np.mean(ground)))


def cut_cells(picture: Tensor, scene: Scene) -> Tensor:
    """uint8 (3, 64, 64) -> uint8 (things, 3, 48, 48): the middle of each thing's cell, its edge repeated outside."""
    return torch.stack([_cell(picture, place, scene.shape) for place in scene.places])


def _cell(picture: Tensor, place: Place, shape: tuple[int, int]) -> Tensor:
    (top, bottom), (left, right) = (
        (SIDE * at // cells, SIDE * (at + 1) // cells)
        for at, cells in zip((place.row, place.column), shape, strict=True)
    )
    cell = picture[:, top:bottom, left:right]
    sides = [(length - WINDOW) // 2 for length in cell.shape[1:]]  # more than the window, or less
    down, across = (max(0, side) for side in sides)
    cell = cell[:, down : down + WINDOW, across : across + WINDOW]
    missing = [WINDOW - length for length in cell.shape[1:]]
    edges = (missing[1] // 2, missing[1] - missing[1] // 2, missing[0] // 2, missing[0] - missing[0] // 2)
    return F.pad(cell[None].float(), edges, mode="replicate")[0].to(torch.uint8)


def ground_of(picture: Tensor) -> str:
    """The ground whose colour most pixels of uint8 (3, 64, 64) have, or nearly."""
    pixels = picture.flatten(1).t().float()
    near = torch.cdist(pixels, torch.tensor(list(GROUNDS.values())).float()) < NEAR
    return list(GROUNDS)[int(near.sum(0).argmax())]


def kind_of(question: str) -> str:
    """What a question about a scene is about."""
    if question.startswith("how many"):
        return "how many"
    if question.startswith("what colour"):
        return "ground colour"
    if question.startswith("where"):
        return "where is it"
    return "what is beside it" if any(f" {side} the " in question for side in _SIDES) else "what is there"


_SIDES = ("left of", "right of", "above", "below")


def asked_of(scenes: Iterable[Scene], most: int | None = None) -> list[tuple[int, str, str]]:
    """(scene, question, answer): all that is asked of the scenes, or so many of each scene and kind."""
    asked = []
    for i, scene in enumerate(scenes):
        counts: dict[str, int] = defaultdict(int)
        for question, answer in questions(scene):
            counts[kind_of(question)] += 1
            if most is None or counts[kind_of(question)] <= most:
                asked.append((i, question, answer))
    return asked


def right_answers(asked: Sequence[tuple[int, str, str]], given: Sequence[str]) -> dict[str, float]:
    """The share of answers that are just what is right, by what is asked."""
    right: dict[str, list[bool]] = defaultdict(list)
    for (_, question, answer), said in zip(asked, given, strict=True):
        right[kind_of(question)].append(said == answer)
    return {kind: float(np.mean(each)) for kind, each in sorted(right.items())}


@dataclass(frozen=True)
class Told:
    """Shares in [0, 1] of captions: that name all things and no other; of those, with every place right; of all, with
    the right ground."""

    things: float
    places: float
    ground: float


def right_captions(scenes: Sequence[Scene], given: Sequence[str]) -> Told:
    """What captions tell of scenes, in any wording that scenes are told in."""
    things, places, grounds = [], [], []
    for scene, said in zip(scenes, given, strict=True):
        named = named_in(said)
        things.append(named == sorted(scene.things))
        grounds.append(ground_in(said) == scene.ground)
        if things[-1]:
            # the ground is counted apart
            places.append(any(said in captions(replace(scene, ground=ground)) for ground in GROUNDS))
    return Told(float(np.mean(things)), float(np.mean(places)) if places else 0.0, float(np.mean(grounds)))


def named_in(text: str) -> list[str]:
    """The things that a caption names, in the order of the alphabet."""
    found, left = [], f" {text.replace(',', ' ')} "
    for thing in sorted(THINGS, key=len, reverse=True):  # "a hot dog" has no dog
        name = f" {called(thing)} "
        while name in left:
            left = left.replace(name, "  ", 1)
            found.append(thing)
    return sorted(found)


def ground_in(text: str) -> str | None:
    """The colour that a caption says the ground has; None where it says none."""
    found = re.search(r"(?:\bon|\bagainst) (?:an? )?(\w+)(?: ground| background)?$|^an? (\w+) ground with\b", text)
    return next(filter(None, found.groups()), None) if found else None
