"""What every paradigm promises, for each of the table."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from smalti.config import CodeSpec, Config, Examples, SignalSpec, TextSpec
from smalti.data.batch import Batch
from smalti.data.sources import DataConfig
from smalti.layers.transformer import TransformerConfig
from smalti.paradigms import PARADIGMS
from smalti.paradigms.adversarial import AdversarialConfig
from smalti.paradigms.autoencode import AutoencodeConfig
from smalti.paradigms.autoregressive import AutoregressiveConfig
from smalti.paradigms.base import Paradigm
from smalti.paradigms.contrastive import ContrastiveConfig
from smalti.paradigms.diffusion import DiffusionConfig
from smalti.paradigms.discrete_diffusion import DiscreteDiffusionConfig
from smalti.paradigms.interleaved import InterleavedConfig
from smalti.paradigms.text_encoder import TextEncoderConfig
from smalti.recipe import Recipe, TrainingConfig
from smalti.tokenizers.autoencoder import AutoencoderConfig
from smalti.tokenizers.bottlenecks.vq import VQConfig
from smalti.tokenizers.text import TextTokenizer
from smalti.training.totals import Totals

WORDS = [f"{colour} {thing}" for colour in ("red", "green") for thing in ("dog", "cat", "bird", "fish")]
TEXT = TextTokenizer.trained(WORDS, 270)
EXAMPLES = Examples(
    signal=SignalSpec(channels=1, shape=(8, 8)),
    codes=CodeSpec(codebooks=1, grid=(2, 3), size=8),
    labels=("a", "b"),
    text=TextSpec(pieces=TEXT.size, sha256=TEXT.sha256),
)
AUTOENCODER = AutoencoderConfig(width=16, strides=(4,), blocks=1, bottleneck=VQConfig(codes=8, dim=4))
TRANSFORMER = TransformerConfig(layers=1, width=16, heads=2, dropout=0.0)


class Case(NamedTuple):
    config: Config
    model: Config
    of_codes: bool


# every kind in the table, and what changes a kind much; a new paradigm adds a line here
CASES = {
    "autoencode": Case(AutoencodeConfig(), AUTOENCODER, False),
    "adversarial": Case(AdversarialConfig(start=0, critic_first=0, ramp=0, adaptive=False), AUTOENCODER, False),
    "autoregressive": Case(AutoregressiveConfig(label_dropout=0.5), TRANSFORMER, True),
    "autoregressive in random order": Case(
        AutoregressiveConfig(label_dropout=0.5, order="random", anneal_from=0.1), TRANSFORMER, True
    ),
    "diffusion": Case(DiffusionConfig(label_dropout=0.5), TRANSFORMER, False),
    "diffusion with text": Case(
        DiffusionConfig(text=TextEncoderConfig(layers=1, heads=2, caption_dropout=0.5)), TRANSFORMER, False
    ),
    "discrete-diffusion": Case(
        DiscreteDiffusionConfig(scheme="mask-and-replace", label_dropout=0.5), TRANSFORMER, True
    ),
    "interleaved": Case(InterleavedConfig(row=32), TRANSFORMER, True),
    "contrastive": Case(ContrastiveConfig(width=8, picture_width=16, strides=(2, 2), blocks=1), TRANSFORMER, False),
    "contrastive by sigmoid": Case(
        ContrastiveConfig(loss="sigmoid", width=8, picture_width=16, strides=(2, 2), blocks=1), TRANSFORMER, False
    ),
}
WHOLE = [name for name, case in CASES.items() if case.config.whole_batch]
every_in_parts = pytest.mark.parametrize("name", [name for name in CASES if name not in WHOLE])
every = pytest.mark.parametrize("name", CASES)


def made(name: str) -> Paradigm:
    torch.manual_seed(0)
    paradigm = CASES[name].config.build(CASES[name].model, EXAMPLES, steps=10)
    paradigm.text = TEXT
    return paradigm


def batch_of(name: str, n: int = 8, step: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(step)
    x = torch.rand(n, 1, 8, 8, generator=generator) * 2 - 1
    if CASES[name].of_codes:
        x = torch.randint(0, 8, (n, 1, 2, 3), generator=generator)
    return Batch(step, torch.arange(n), torch.arange(n), x, torch.arange(n) % 2, WORDS[:n], seed=5)


def state(paradigm: Paradigm) -> list[Tensor]:
    return [tensor.clone() for tensor in paradigm.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_every_paradigm_of_the_table_is_tested():
    assert {case.config.kind: type(case.config) for case in CASES.values()} == PARADIGMS


@every
def test_kinds_are_names_in_the_table_and_say_what_they_train(name):
    assert PARADIGMS[CASES[name].config.kind] is type(CASES[name].config)
    assert CASES[name].config.trains == CASES[name].model.kind


@every
def test_players_hold_every_weight(name):
    paradigm = made(name)
    held = {id(p) for player in paradigm.players().values() for p in player.parameters()}
    assert held == {id(p) for p in paradigm.parameters()}


@every
def test_a_loss_is_finite_terms_of_scalars(name):
    paradigm = made(name).train()
    for player in paradigm.players():
        loss = paradigm.loss(player, batch_of(name), 3)
        assert len({term.name for term in loss.terms}) == len(loss.terms)
        assert any(term.coefficient for term in loss.terms)
        for term in loss.terms:
            assert term.sum.ndim == 0
            assert term.sum.isfinite()
            assert term.weight > 0


@every
def test_every_weight_has_a_gradient(name):
    paradigm = made(name).train()
    for player, network in paradigm.players().items():
        Totals().add(paradigm.loss(player, batch_of(name), 3).terms).backward()
        assert [key for key, p in network.named_parameters() if p.grad is None] == []


@every
def test_the_same_batch_gives_the_same_loss_and_changes_no_state(name):
    paradigm = made(name).train()
    before = state(paradigm)
    player = next(iter(paradigm.players()))
    first, second = ([term.sum for term in paradigm.loss(player, batch_of(name), 3).terms] for _ in range(2))
    assert same(first, second)
    assert same(before, state(paradigm))


@every_in_parts
@pytest.mark.parametrize("training", [False, True])
def test_halves_add_up_to_the_whole(name, training):
    paradigm, batch = made(name).train(training), batch_of(name)
    player = next(iter(paradigm.players()))
    whole, halves = Totals(), Totals()
    expected = whole.add(paradigm.loss(player, batch, 3).terms)
    slopes = torch.autograd.grad(expected, list(paradigm.parameters()), allow_unused=True)
    objectives = [halves.add(paradigm.loss(player, part, 3).terms) for part in batch.split(2)]
    parts = torch.autograd.grad(sum(objectives), list(paradigm.parameters()), allow_unused=True)
    assert halves.weights == whole.weights
    for key, mean in whole.means().items():
        assert halves.means()[key] == pytest.approx(mean, rel=1e-5)
    for ours, theirs in zip(parts, slopes, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours / halves.counted, theirs / whole.counted, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", WHOLE)
def test_a_loss_over_the_whole_batch_takes_no_micro_batches(name):
    """Its halves would not add up to the whole: each sees fewer to compare with. So a recipe refuses them."""
    batch, totals = batch_of(name), {True: Totals(), False: Totals()}
    for split, total in totals.items():
        for part in batch.split(4 if split else len(batch.rows)):
            total.add(made(name).loss("network", part, 3).terms)
    assert totals[True].loss() != pytest.approx(totals[False].loss(), rel=1e-4)

    def recipe(**training: int) -> Recipe:
        case, config = CASES[name], TrainingConfig(**training)
        return Recipe(name="x", data=DataConfig(), model=case.model, paradigm=case.config, training=config)

    assert recipe(batch=8, micro_batch=8).training.micro_batch == 8
    with pytest.raises(ValueError, match=r"leave training\.micro_batch out"):
        recipe(batch=8, micro_batch=4)
    with pytest.raises(ValueError, match=r"training\.batch must be 2 or more"):
        recipe(batch=1)


@every_in_parts
def test_the_last_part_of_a_split_may_be_smaller(name):
    paradigm, totals = made(name).train(), Totals()
    player = next(iter(paradigm.players()))
    for part in batch_of(name).split(3):
        totals.add(paradigm.loss(player, part, 3).terms)
    whole = Totals()
    whole.add(paradigm.loss(player, batch_of(name), 3).terms)
    assert totals.loss() == pytest.approx(whole.loss(), rel=1e-5)


@every
def test_a_few_steps_learn(name):
    paradigm, batch = made(name), batch_of(name)
    latents = paradigm.first_latents(batch)
    if latents is not None:
        assert latents.ndim == 2
        paradigm.initialise(latents.detach())
    optimizer, losses = torch.optim.Adam(paradigm.parameters(), lr=3e-3), []
    for _ in range(40):
        paradigm.train()
        totals, statistics = Totals(), {}
        for player in paradigm.players():
            loss = paradigm.loss(player, batch, 3)
            statistics |= {key: each.value for key, each in loss.statistics.items()}
            optimizer.zero_grad()
            part = Totals()
            part.add(loss.terms).backward()
            optimizer.step()
            totals.add(loss.terms)
        paradigm.after_step(statistics)
        losses.append(next(iter(totals.means().values())))  # what is to be learnt; a critic's is no measure of it
    assert losses[-1] < 0.8 * losses[0]


@every
def test_saved_and_loaded(name):
    paradigm, other = made(name), made(name)
    with torch.no_grad():
        for parameter in paradigm.parameters():
            parameter.add_(0.1)
    other.load_state_dict(paradigm.state_dict())
    player = next(iter(paradigm.players()))
    ours, theirs = (
        [term.sum for term in each.eval().loss(player, batch_of(name), 3).terms] for each in (paradigm, other)
    )
    assert same(ours, theirs)
