from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from smalti.errors import UserError
from smalti.evaluation import best as room
from smalti.evaluation.best import best_of, judge_of
from smalti.model import Generator, load
from smalti.model import generator as generators
from smalti.paradigms.autoregressive import AutoregressiveOptions


@pytest.fixture
def generator_model(tiny) -> Generator:
    return load(tiny.run, "cpu")


@pytest.fixture
def eye() -> SimpleNamespace:
    """A judge that takes what is bright for the first label, and what is dark for the second."""

    def logits(x: torch.Tensor) -> torch.Tensor:
        light = x.mean((1, 2, 3))
        return torch.stack([light, -light], 1)

    return SimpleNamespace(logits=logits)


def test_of_each_samples_candidates_the_likeliest_is_kept(generator_model, eye, monkeypatch):
    """Against all candidates drawn at once and compared one by one."""
    labels, options = [0, 1, 1, 0, 1], AutoregressiveOptions(temperature=1.5)
    everyone = [label for label in labels for _ in range(4)]
    x, expected = generator_model.sample(20, everyone, seed=3, options=options), []
    for i, label in enumerate(labels):
        own = sorted(range(4 * i, 4 * i + 4), key=lambda j: float(x[j].mean()))
        expected.append(x[own[0] if label else own[-1]])
    found = best_of(generator_model, 5, labels, 4, seed=3, options=options, judge=eye)
    assert torch.equal(found, torch.stack(expected))
    assert not torch.equal(found, x[::4])
    # neither batches nor how many are asked for make a difference
    monkeypatch.setattr(generators, "BATCH", 9)
    assert torch.equal(best_of(generator_model, 5, labels, 4, seed=3, options=options, judge=eye), found)
    assert torch.equal(best_of(generator_model, 3, labels[:3], 4, seed=3, options=options, judge=eye), found[:3])
    monkeypatch.setattr(generators, "BATCH", 2)  # fewer than one sample's candidates
    assert torch.equal(best_of(generator_model, 5, labels, 4, seed=3, options=options, judge=eye), found)


def test_the_best_of_one_is_that_one(generator_model, eye):
    alone = best_of(generator_model, 3, "Standing", 1, seed=2, judge=eye)
    assert torch.equal(alone, generator_model.sample(3, "Standing", seed=2))
    assert best_of(generator_model, 0, "Standing", 4, judge=eye).shape == (0, 1, 16, 16)


@pytest.mark.usefixtures("quick_judge")
def test_the_judge_is_a_classifier_of_the_real_pictures(generator_model):
    judge = judge_of(generator_model)
    each = generator_model.sample(32, "Standing", seed=1)
    best = best_of(generator_model, 4, "Standing", 8, seed=1)
    theirs, ours = (judge.logits(x).log_softmax(1)[:, 1] for x in (each, best))
    torch.testing.assert_close(ours, theirs.view(4, 8).amax(1))
    assert ours.mean() > theirs.mean()


def test_without_a_label_nothing_is_best(generator_model, eye):
    with pytest.raises(UserError, match="--label"):
        best_of(generator_model, 2, None, 4, judge=eye)
    with pytest.raises(UserError, match="best of 0"):
        best_of(generator_model, 2, "Standing", 0, judge=eye)
    generator_model.examples = generator_model.examples.model_copy(update={"labels": ("Lying flat", "Fallen")})
    with pytest.raises(UserError, match="no longer has the labels"):
        best_of(generator_model, 2, "Fallen", 4)
    generator_model.examples = generator_model.examples.model_copy(update={"labels": ()})
    for label in (0, None):
        with pytest.raises(UserError, match="without labels"):
            best_of(generator_model, 2, label, 4)


def test_one_label_alone_has_no_judge(generator_model, monkeypatch):
    real = room.to_learn

    def of_one_label(config):
        source, held = real(config)
        return source, held.at(held.labels == 0)

    monkeypatch.setattr(room, "to_learn", of_one_label)
    with pytest.raises(UserError, match="no judge"):
        judge_of(generator_model)
