"""Diffusion that is told captions: P(picture | text)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from smalti.config import Examples, SignalSpec, TextSpec
from smalti.data.batch import Batch
from smalti.errors import UserError
from smalti.layers.transformer import TransformerConfig
from smalti.paradigms import diffusion
from smalti.paradigms.diffusion import Diffusion, DiffusionConfig, DiffusionOptions
from smalti.paradigms.text_encoder import TextEncoderConfig
from smalti.tokenizers.text import TextTokenizer
from smalti.training.totals import Totals

WORDS = ["a red dog", "a blue cat", "two green birds, on white", "nothing"]
TEXT = TextTokenizer.trained(WORDS * 3, 280)
SMALL = TransformerConfig(layers=2, width=24, heads=2, dropout=0.0)
EXAMPLES = Examples(
    signal=SignalSpec(channels=2, shape=(4, 6)), labels=("a", "b"), text=TextSpec(pieces=TEXT.size, sha256=TEXT.sha256)
)
READER = TextEncoderConfig(layers=1, heads=2)
FEW = DiffusionOptions(steps=4)


def made(**settings) -> Diffusion:
    """A model that says something, and hears: an untrained one says 0."""
    torch.manual_seed(0)
    model = DiffusionConfig(**{"text": READER, **settings}).build(SMALL, EXAMPLES, 10).eval()
    model.text = TEXT
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        std = 0.5 if "cross" in name or "encoder" in name else 0.15
        torch.nn.init.normal_(parameter, std=std, generator=generator)
    model.initialise(torch.randn(64, 2, generator=generator) * 0.4 - 0.2)
    return model


def data_of(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 2, 4, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def without_sweeps(model: Diffusion) -> Diffusion:
    model.sweeps.of = lambda *_: None  # the network itself
    return model


def test_what_is_said_hangs_on_the_text_and_on_the_context_of_its_own():
    """On the pieces also where the vector of the whole is the same: the network reads, and is not only tinted."""
    model, x, t = made(), data_of(2), torch.full((2,), 0.7)
    with torch.no_grad():
        one, other = (model.encoder([text, "nothing"], TEXT) for text in WORDS[:2])
        said, moved = model(x, t, one)[0], model(x, t, other)[0]
        torch.testing.assert_close(said[1], moved[1])
        assert (said[0] - moved[0]).abs().max() > 1e-2
        other.pooled = one.pooled
        assert (said[0] - model(x, t, other)[0][0]).abs().max() > 1e-3
        one.mask = one.mask & False
        other.mask = other.mask & False
        torch.testing.assert_close(model(x, t, one)[0], model(x, t, other)[0])


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_a_sample_depends_neither_on_the_split_nor_on_the_prompts_beside_it(guidance):
    model, prompts = made(), [WORDS[0], "", WORDS[2], None, WORDS[1]]
    options = DiffusionOptions(steps=3, guidance=guidance)
    whole = model.sample(5, prompts, seed=4, options=options)
    parts = [
        model.sample(end - start, prompts[start:end], seed=4, options=options, first=start)
        for start, end in ((0, 1), (1, 2), (2, 5))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-4, rtol=1e-4)
    assert whole.std() > 0.05
    torch.testing.assert_close(
        without_sweeps(model).sample(5, prompts, seed=4, options=options), whole, atol=1e-4, rtol=1e-4
    )


def test_no_guidance_at_all_is_no_text():
    """u + 0 (c - u): what the prompts say counts for nothing, and a prompt that is open is not guided."""
    model, none = made(), DiffusionOptions(steps=4, guidance=0)
    free = model.sample(2, options=FEW)
    torch.testing.assert_close(model.sample(2, WORDS[:2], options=none), free, atol=1e-4, rtol=1e-4)
    assert (model.sample(2, WORDS[:2], options=FEW) - free).abs().amax((1, 2, 3)).min() > 1e-2
    hard = model.sample(2, [WORDS[0], ""], options=DiffusionOptions(steps=4, guidance=3))
    torch.testing.assert_close(hard[1], free[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scale", [0.0, 1.5, 4.0])
@pytest.mark.parametrize("swept", [False, True])
def test_guidance_is_that_of_labels(scale, swept):
    model, x, t = made(), data_of(2), torch.full((2,), 0.7)
    sweep = model.sweeps.of(model.network, model.positions) if swept else None
    with torch.no_grad():
        told = model.encoder(WORDS[:2], TEXT)
        c, u = model(x, t, told)[0], model(x, t, model.encoder(["", ""], TEXT))[0]
        said, _ = model._said(x, 0.7, told, scale, sweep)
    torch.testing.assert_close(said, u + scale * (c - u), atol=1e-4, rtol=1e-4)


def test_a_text_is_read_once_a_sample(monkeypatch):
    model, read = made(), []
    encode, swept = model.encoder.forward, diffusion.Sweep.told
    monkeypatch.setattr(model.encoder, "forward", lambda texts, cut: read.append(list(texts)) or encode(texts, cut))
    monkeypatch.setattr(diffusion.Sweep, "told", lambda *given: read.append("keys") or swept(*given))
    model.sample(2, WORDS[:2], options=DiffusionOptions(steps=5, guidance=2))
    assert read == [WORDS[:2], "keys"]
    read.clear()
    model.sample(2, WORDS[:2], options=DiffusionOptions(steps=5, guidance=2, guidance_from=0.5))
    assert read == [WORDS[:2], "keys", "keys"]  # alone, and beside rows of none


def test_captions_are_hidden_while_training_alone(monkeypatch):
    model, seen = made(text=READER.model_copy(update={"caption_dropout": 0.3})), []
    monkeypatch.setattr(model, "forward", lambda x, t, told, sweep=None: seen.append(told.mask.any(1)) or (x, None))
    rows = torch.arange(300)
    batch = Batch(2, rows, rows, data_of(300), rows % 2, [WORDS[i % 4] for i in range(300)])
    for training in (True, False):
        model.train(training).loss("network", batch, 0)
    assert 0.2 < 1 - seen[0].float().mean() < 0.4
    assert seen[1].all()


def test_labels_are_not_used():
    model, rows = made(), torch.arange(4)
    assert not any("label" in name for name in model.state_dict())
    losses = [model.loss("network", Batch(0, rows, rows, data_of(4), labels, WORDS), 0) for labels in (None, rows % 2)]
    assert torch.equal(losses[0].terms[0].sum, losses[1].terms[0].sum)


def test_variations_likelihoods_and_noise_take_prompts():
    model, x = made(), data_of(2)
    torch.testing.assert_close(
        model.vary(x, 1.0, WORDS[:2], seed=3, options=FEW), model.sample(2, WORDS[:2], seed=3, options=FEW)
    )
    told, open_ = (model.log_likelihood(x, prompts, steps=5) for prompts in (WORDS[:2], None))
    assert told.isfinite().all()
    assert ((told - open_).abs() > 1e-3).all()
    torch.testing.assert_close(model.log_likelihood(x, ["", None], steps=5), open_)
    noises = [model.noise_of(x, prompts, FEW) for prompts in (WORDS[:2], None)]
    assert (noises[0] - noises[1]).abs().max() > 1e-3


def test_no_samples():
    assert made().sample(0, [], options=FEW).shape == (0, 2, 4, 6)


WRONG = {
    "labels": torch.tensor([0, 1]),
    "one text": "ab",
    "another number": WORDS[:3],
    "numbers": [1, 2],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_prompt_is_refused_in_one_line(wrong):
    with pytest.raises(UserError, match="2 prompts") as error:
        made().sample(2, WRONG[wrong], options=FEW)
    assert "\n" not in str(error.value)


def test_prompts_are_refused_without_text():
    model = DiffusionConfig().build(SMALL, EXAMPLES, 10)
    with pytest.raises(UserError, match="without text"):
        model.sample(2, WORDS[:2], options=FEW)


def test_it_needs_captions():
    with pytest.raises(UserError, match="captions"):
        DiffusionConfig(text=READER).build(SMALL, EXAMPLES.model_copy(update={"text": None}), 10)


def test_words_are_told_where_there_is_an_encoder_for_them():
    assert not DiffusionConfig().words
    assert DiffusionConfig().pieces is None
    assert DiffusionConfig(text=READER).words
    assert DiffusionConfig(text=READER).pieces == 1024
    assert DiffusionConfig(text=TextEncoderConfig(folder="somewhere")).pieces is None


def test_it_learns_what_two_captions_say():
    """A bright picture and a dark one, told apart by captions alone: the prompt decides, no prompt is both."""
    torch.manual_seed(0)
    config = DiffusionConfig(text=READER.model_copy(update={"caption_dropout": 0.2}), path="flow", predict="velocity")
    model = config.build(TransformerConfig(layers=1, width=32, heads=2, dropout=0.0), EXAMPLES, 10)
    model.text = TEXT
    optimizer, rows, steps = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.99)), torch.arange(32), 200
    bright = torch.where(rows % 2 == 0, 0.7, -0.7)
    x = bright.view(-1, 1, 1, 1).expand(-1, *model.shape).clone()
    texts = [WORDS[i % 2] for i in range(32)]
    model.initialise(model.first_latents(Batch(0, rows, rows, x)))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * (1 - step / steps)
        totals = Totals()
        totals.add(model.train().loss("network", Batch(step, rows, rows, x, None, texts), step).terms).backward()
        optimizer.step()
        optimizer.zero_grad()
    options = DiffusionOptions(steps=15)
    drawn = model.eval().sample(32, texts, options=options)
    assert (drawn.mean((1, 2, 3)) - bright).abs().max() < 0.2
    free = model.sample(64, options=options).mean((1, 2, 3))
    assert 0.2 < (free > 0).float().mean() < 0.8
