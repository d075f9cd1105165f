"""Best of several: more candidates are drawn than asked for, and a classifier of real pictures says which are kept.

Rejection by a classifier, as Razavi et al. 2019 (arXiv 1906.00446, section 3.3) do it, among a fixed number.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from smalti.config import Config
from smalti.data.sources import open_source
from smalti.errors import UserError
from smalti.evaluation.classifier import Classifier
from smalti.evaluation.evaluate import data_of, to_learn, trained_judge
from smalti.model import Generator, Labels
from smalti.paradigms.base import Progress, untold


def best_of(
    generator: Generator,
    n: int,
    condition: Labels,
    candidates: int,
    seed: int = 0,
    options: Config | None = None,
    judge: Classifier | None = None,
) -> Tensor:
    """New signals (n, C, *space) in [-1, 1], each the one of its candidates that likeliest carries its label.

    condition: labels by name or id, one for all or n of them. Sample i's candidates are the samples i * candidates to
    (i + 1) * candidates - 1 of the seed. judge: `judge_of` the generator unless given, its classes the generator's
    labels. Raises UserError without labels, and as `Generator.draw` and `judge_of` do.
    """
    parts = list(bests(generator, n, condition, candidates, seed, options, judge))
    return torch.cat(parts) if parts else generator.sample(0)


def bests(
    generator: Generator,
    n: int,
    condition: Labels,
    candidates: int,
    seed: int = 0,
    options: Config | None = None,
    judge: Classifier | None = None,
    progress: Progress = untold,
) -> Iterator[Tensor]:
    """`best_of`, some signals (B, C, *space) after the other. `progress` is told of all candidates' steps."""
    if candidates < 1:
        raise UserError(f"the best of {candidates} is none; ask for the best of 2 or more")
    labels = generator.label_ids(condition, n)
    if labels is None:
        if not generator.labels:
            raise UserError("this model was trained without labels, so nothing tells which of several is best")
        raise UserError("the best of several is the one that likeliest carries its label; say which with --label")
    judge = judge or judge_of(generator)
    at_once = max(1, generator.at_once // candidates)
    for start in range(0, n, at_once):
        own = labels[start : start + at_once]
        asked, begin = own.repeat_interleave(candidates), start * candidates
        told = partial(_told_of_all, progress, begin, len(asked), n * candidates)
        x = generator.sample(len(asked), asked, seed=seed, options=options, first=begin, progress=told)
        sure = judge.logits(x).log_softmax(1).gather(1, asked[:, None]).view(-1, candidates)
        yield x[torch.arange(len(own)) * candidates + sure.argmax(1)]


def _told_of_all(progress: Progress, begin: int, count: int, n: int, done: int, total: int) -> None:
    """What is told of the steps of `count` candidates, as steps of all n."""
    steps = total // count
    progress(begin * steps + done, n * steps)


def judge_of(generator: Generator) -> Classifier:
    """The classifier of the real pictures that a generator was trained on, from the cache or trained now.

    Raises UserError where there are not two labels to tell apart, and where they are not the generator's.
    """
    config = data_of(generator, None)
    source = open_source(config, "train")
    if source.labels != generator.labels:
        raise UserError(f"{config.source} no longer has the labels that this model was trained with")
    judge = trained_judge(*to_learn(config), None, config)
    if not isinstance(judge, Classifier):
        raise UserError(f"{config.source} has no two labels to tell apart, so there is no judge of what is best")
    return judge
