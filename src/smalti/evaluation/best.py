"""Best of several: more candidates are drawn than asked for, and a classifier of real pictures says which are kept.

Rejection by a classifier, as Razavi et al. 2019 (arXiv 1906.00446, section 3.3) do it, among a fixed number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smalti.config import Config
from smalti.data.sources import open_source
from smalti.errors import UserError
from smalti.evaluation.classifier import Classifier
from smalti.evaluation.evaluate import data_of, gathered, trained_judge
from smalti.model import BATCH, Generator, Labels


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
    if candidates < 1:
        raise UserError(f"the best of {candidates} is none; ask for the best of 2 or more")
    labels = generator.label_ids(condition, n)
    if labels is None:
        if not generator.labels:
            raise UserError("this model was trained without labels, so nothing tells which of several is best")
        raise UserError("the best of several is the one that likeliest carries its label; say which with --label")
    judge = judge or judge_of(generator)
    at_once, kept = max(1, BATCH // candidates), []
    for start in range(0, n, at_once):
        own = labels[start : start + at_once]
        asked = own.repeat_interleave(candidates)
        x = generator.sample(len(asked), asked, seed=seed, options=options, first=start * candidates)
        sure = judge.logits(x).log_softmax(1).gather(1, asked[:, None]).view(-1, candidates)
        kept.append(x[torch.arange(len(own)) * candidates + sure.argmax(1)])
    return torch.cat(kept) if kept else generator.sample(0)


def judge_of(generator: Generator) -> Classifier:
    """The classifier of the real pictures that a generator was trained on, from the cache or trained now.

    Raises UserError where there are not two labels to tell apart, and where they are not the generator's.
    """
    config = data_of(generator, None)
    source = open_source(config, "train")
    if source.labels != generator.labels:
        raise UserError(f"{config.source} no longer has the labels that this model was trained with")
    judge = trained_judge(source, gathered(source, config), None, config)
    if not isinstance(judge, Classifier):
        raise UserError(f"{config.source} has no two labels to tell apart, so there is no judge of what is best")
    return judge
