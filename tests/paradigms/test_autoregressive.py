from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from smalti.config import CodeSpec, Examples, SignalSpec
from smalti.data.batch import Batch
from smalti.errors import UserError
from smalti.layers.transformer import TransformerConfig
from smalti.paradigms.autoregressive import (
    Autoregressive,
    AutoregressiveConfig,
    AutoregressiveOptions,
)
from smalti.paradigms.choose import choose
from smalti.paradigms.codes import grid_positions

SPECS = {
    "one codebook": CodeSpec(codebooks=1, grid=(2, 3), size=7),
    "two codebooks": CodeSpec(codebooks=2, grid=(2, 3), size=7),
    "sound": CodeSpec(codebooks=2, grid=(5,), size=7),
    "video": CodeSpec(codebooks=1, grid=(2, 2, 2), size=7),
}
every_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))
SMALL = TransformerConfig(layers=2, width=24, heads=2, dropout=0.0)
GREEDY = AutoregressiveOptions(temperature=0)


def made(codes: CodeSpec, classes: int = 3, **settings) -> Autoregressive:
    """A model that prefers something: an untrained one is nearly indifferent."""
    torch.manual_seed(0)
    model = Autoregressive(AutoregressiveConfig(**settings), SMALL, codes, classes).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


def codes_of(spec: CodeSpec, n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, spec.size, (n, spec.codebooks, *spec.grid), generator=generator)


def batch_of(x: Tensor, labels: Tensor | None = None, step: int = 0) -> Batch:
    return Batch(step, torch.arange(len(x)), torch.arange(len(x)), x, labels)


def first(spec: CodeSpec, counts: Tensor) -> Tensor:
    """A mask of the first `counts[i]` codes of row i, in reading order."""
    flat = torch.arange(spec.length) < counts[:, None]
    return flat.unflatten(1, (-1, spec.codebooks)).transpose(1, 2).unflatten(2, spec.grid)


# --- reading order ---------------------------------------------------------------------------------------------------


@given(st.integers(1, 3), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(1, 3))
@settings(max_examples=30)
def test_sequence_and_grid_are_inverse(codebooks, grid, n):
    spec = CodeSpec(codebooks=codebooks, grid=tuple(grid), size=5)
    model, x = Autoregressive(AutoregressiveConfig(), SMALL.model_copy(update={"layers": 1}), spec), codes_of(spec, n)
    sequence = model.sequence(x)
    assert sequence.shape == (n, spec.length)
    assert torch.equal(model.grid(sequence), x)


def test_reading_order_is_raster_with_the_codebooks_of_a_place_together():
    spec = SPECS["two codebooks"]
    x = torch.arange(12).view(1, 2, 2, 3)
    sequence = made(spec).sequence(x)[0].tolist()
    assert sequence == [int(x[0, q, i, j]) for i in range(2) for j in range(3) for q in range(2)]
    assert grid_positions(spec).tolist() == [[i, j] for i in range(2) for j in range(3) for _ in range(2)]


# --- what is asked for, and where ------------------------------------------------------------------------------------


@every_spec
def test_logits_of_a_code_see_the_codes_before_it_alone(spec):
    model, labels = made(spec), torch.tensor([1])
    sequence = model.sequence(codes_of(spec, 1))
    before = model.logits(labels, sequence)
    for t in range(spec.length):
        changed = sequence.clone()
        changed[0, t] = (changed[0, t] + 1) % spec.size
        moved = (model.logits(labels, changed) - before).abs().amax(-1)[0] > 1e-6
        assert moved.tolist() == [s > t for s in range(spec.length)]
    assert ((model.logits(torch.tensor([2]), sequence) - before).abs().amax(-1) > 1e-6).all()


@every_spec
def test_the_loss_is_the_cross_entropy_of_each_code_under_its_own_logits(spec):
    model, x, labels = made(spec), codes_of(spec, 4), torch.tensor([0, 1, 2, 1])
    terms = {term.name: term for term in model.loss("network", batch_of(x, labels), 0).terms}
    logits, nats, hits = model.logits(labels, model.sequence(x)), 0.0, 0
    for row, t in product(range(4), range(spec.length)):
        target = model.sequence(x)[row, t]
        nats += F.cross_entropy(logits[row, t], target)
        hits += int(logits[row, t].argmax() == target)
    assert terms["nats_a_code"].weight == 4 * spec.length
    torch.testing.assert_close(terms["nats_a_code"].sum, nats)
    assert terms["accuracy"].sum == hits


@every_spec
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_sampling_takes_the_likeliest_of_the_training_logits(spec, guidance):
    """Uncached logits, one whole sequence at a time, against the cached sampler: alignment and cache at once."""
    model, labels = made(spec), torch.tensor([0, 1, 2, 1])
    sequence = torch.zeros(4, spec.length, dtype=torch.int64)
    with torch.no_grad():
        for t in range(spec.length):
            c, u = model.logits(labels, sequence)[:, t], model.logits(torch.full((4,), 3), sequence)[:, t]
            sequence[:, t] = (u.log_softmax(-1) + guidance * (c.log_softmax(-1) - u.log_softmax(-1))).argmax(-1)
    drawn = model.sample(4, labels, options=GREEDY.model_copy(update={"guidance": guidance}))
    assert torch.equal(model.sequence(drawn), sequence)


@pytest.mark.parametrize("kept", range(6))
def test_cached_logits_are_the_uncached_ones_after_any_prefix(kept, monkeypatch):
    spec = SPECS["one codebook"]
    model, x, labels, seen = made(spec), codes_of(spec, 3), torch.tensor([0, 1, 2]), []
    monkeypatch.setattr(
        "smalti.paradigms.autoregressive.choose",
        lambda logits, *rest: seen.append(logits) or choose(logits, *rest),
    )
    drawn = model.sample(3, labels, x, first(spec, torch.tensor([kept] * 3)), options=AutoregressiveOptions())
    with torch.no_grad():
        expected = model.logits(labels, model.sequence(drawn))
    torch.testing.assert_close(torch.stack(seen, 1), expected[:, kept:], rtol=1e-4, atol=1e-4)


def test_weights_that_moved_are_arranged_anew():
    spec = SPECS["one codebook"]
    model = made(spec)
    before = model.sample(4, options=GREEDY)
    with torch.no_grad():
        for weight in model.network.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(5)))
    fresh = made(spec)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(model.sample(4, options=GREEDY), fresh.sample(4, options=GREEDY))
    assert not torch.equal(model.sample(4, options=GREEDY), before)


# --- the test that would have caught every shift by one --------------------------------------------------------------


def test_a_rule_over_the_two_codes_before_is_sampled_exactly():
    """Every code is a fixed function of the two before it; from any start, greedy sampling must follow the rule."""
    size, length = 6, 10
    spec = CodeSpec(codebooks=1, grid=(2, 5), size=size)
    # a permutation for each last code, so that sequences do not run together
    generator = torch.Generator().manual_seed(8)
    table = torch.stack([torch.randperm(size, generator=generator) for _ in range(size)], 1)

    def follow(starts: Tensor) -> Tensor:
        sequence = [starts[:, 0], starts[:, 1]]
        while len(sequence) < length:
            sequence.append(table[sequence[-2], sequence[-1]])
        return torch.stack(sequence, 1)

    starts = torch.tensor(list(product(range(size), repeat=2)))
    truth = follow(starts)
    # a shift by one must not go unnoticed, so few codes may equal the one before them
    assert (truth[:, 1:] == truth[:, :-1]).float().mean() < 0.4
    torch.manual_seed(0)
    network = TransformerConfig(layers=2, width=48, heads=2, dropout=0.0)
    model = Autoregressive(AutoregressiveConfig(), network, spec)
    x, mask = model.grid(truth), first(spec, torch.full((len(starts),), 2))

    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95))
    for step in range(400):
        model.train()
        terms = {term.name: term for term in model.loss("network", batch_of(x, step=step), step).terms}
        optimizer.zero_grad()
        (terms["nats_a_code"].sum / terms["nats_a_code"].weight).backward()
        optimizer.step()
        # the first two codes cannot be known: of 36 starts each first code has 6 followers
        if step % 10 == 0:
            drawn = model.eval().sample(len(starts), known=x, mask=mask, options=GREEDY)
            if torch.equal(drawn, x):
                break
    assert torch.equal(model.sequence(drawn), truth), f"after {step} steps"
    # and where the known codes differ in number from row to row
    counts = torch.arange(len(starts)) % (length - 1) + 2
    assert torch.equal(model.sample(len(starts), known=x, mask=first(spec, counts), options=GREEDY), x)


# --- sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_sample_does_not_depend_on_how_the_batch_was_split(guidance):
    model, labels = made(SPECS["two codebooks"]), torch.arange(9) % 3
    options = AutoregressiveOptions(guidance=guidance, top_p=0.95)
    whole = model.sample(9, labels, seed=4, options=options)
    parts = [
        model.sample(end - start, labels[start:end], seed=4, options=options, first=start)
        for start, end in ((0, 1), (1, 5), (5, 9))
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_seeds_and_rows_draw_differently():
    model = made(SPECS["one codebook"])
    draws = [model.sample(6, seed=seed) for seed in range(3)]
    assert len({tuple(row.flatten().tolist()) for draw in draws for row in draw}) == 18
    assert torch.equal(model.sample(6, seed=1), draws[1])


def test_draws_follow_the_models_own_probabilities():
    spec = CodeSpec(codebooks=1, grid=(2,), size=3)
    model, n = made(spec, classes=0), 20_000
    counts = torch.bincount(model.sample(n).flatten(1) @ torch.tensor([3, 1]), minlength=9).double()
    pairs = torch.tensor(list(product(range(3), repeat=2)))
    with torch.no_grad():
        log = model.logits(torch.zeros(9, dtype=torch.int64), pairs).double().log_softmax(-1)
    expected = log.gather(-1, pairs[..., None]).sum((1, 2)).exp() * n
    assert ((counts - expected).square() / expected).sum() < 30  # 99.9th percentile of 8 degrees of freedom: 26.1


@every_spec
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_known_codes_are_kept_bit_for_bit(spec, guidance):
    model, x = made(spec), codes_of(spec, spec.length + 1)
    counts, labels = torch.arange(spec.length + 1), torch.arange(spec.length + 1) % 3
    for each in (counts, counts.clamp_min(2), counts.flip(0)):
        mask = first(spec, each)
        drawn = model.sample(len(x), labels, x, mask, options=AutoregressiveOptions(guidance=guidance))
        assert torch.equal(drawn[mask], x[mask])
        assert 0 <= drawn.min() <= drawn.max() < spec.size
    everything = torch.ones_like(x, dtype=torch.bool)
    assert torch.equal(model.sample(len(x), labels, x, everything), x)


def test_what_is_known_of_one_row_changes_no_other():
    spec = SPECS["one codebook"]
    model, x = made(spec), codes_of(spec, 4)
    some = model.sample(4, None, x, first(spec, torch.tensor([0, 3, 6, 1])))
    for row, count in enumerate([0, 3, 6, 1]):
        alone = model.sample(1, None, x[row : row + 1], first(spec, torch.tensor([count])), first=row)
        assert torch.equal(alone[0], some[row])


def test_codes_outside_the_mask_are_not_looked_at():
    spec = SPECS["one codebook"]
    model, x, mask = made(spec), codes_of(spec, 3), first(spec, torch.tensor([2, 2, 2]))
    assert torch.equal(model.sample(3, None, x, mask), model.sample(3, None, torch.where(mask, x, 10**6), mask))


WRONG = {
    "a hole": lambda m, x: m.sample(2, None, x, first(m.codes, torch.tensor([3, 6])) & (torch.arange(3) != 1)),
    "the end": lambda m, x: m.sample(2, None, x, ~first(m.codes, torch.tensor([3, 3]))),
    "known without a mask": lambda m, x: m.sample(2, None, x),
    "a mask without known": lambda m, x: m.sample(2, None, None, torch.ones_like(x).bool()),
    "another shape": lambda m, x: m.sample(2, None, x[:, :, :1], torch.ones_like(x[:, :, :1]).bool()),
    "another number": lambda m, x: m.sample(3, None, x, torch.ones_like(x).bool()),
    "too many labels": lambda m, x: m.sample(2, torch.zeros(3, dtype=torch.int64)),
    "an unknown label": lambda m, x: m.sample(2, torch.tensor([0, 3])),
    "a negative label": lambda m, x: m.sample(2, torch.tensor([0, -1])),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_honoured_is_refused_in_words(wrong):
    spec = SPECS["one codebook"]
    with pytest.raises(UserError):
        WRONG[wrong](made(spec), codes_of(spec, 2))


@pytest.mark.parametrize("wrong", ["a hole", "the end"])
def test_a_mask_that_is_no_prefix_is_refused_with_the_option_that_would_take_it(wrong):
    spec = SPECS["one codebook"]
    with pytest.raises(UserError, match=r"paradigm\.order random"):
        WRONG[wrong](made(spec), codes_of(spec, 2))
    WRONG[wrong](made(spec, order="random"), codes_of(spec, 2))


def test_no_samples():
    assert made(SPECS["one codebook"]).sample(0).shape == (0, 1, 2, 3)


@pytest.mark.parametrize("at", ["head", "token", "place", "label", "network"])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(at, broken):
    model = made(SPECS["one codebook"])
    with torch.no_grad():
        dict(model.named_parameters())[NEAREST[at]].fill_(broken)
    for options in (GREEDY, AutoregressiveOptions(guidance=2.0)):
        with pytest.raises(UserError, match="not finite"):
            model.sample(2, torch.tensor([0, 1]), options=options)
    with pytest.raises(UserError, match="not finite"):
        model.log_likelihood(codes_of(SPECS["one codebook"], 2))


NEAREST = {
    "head": "head.weight",
    "token": "token.weight",
    "place": "place",
    "label": "label.weight",
    "network": "network.blocks.0.qkv.weight",
}


def test_every_step_is_told():
    told: list[tuple[int, int]] = []
    made(SPECS["two codebooks"]).sample(2, progress=lambda *step: told.append(step))
    assert told == [(step, 12) for step in range(1, 13)]


# --- the likelihood --------------------------------------------------------------------------------------------------


def test_the_likelihoods_of_all_grids_there_are_add_up_to_one():
    spec = CodeSpec(codebooks=2, grid=(2,), size=3)
    model = made(spec)
    every = model.grid(torch.tensor(list(product(range(3), repeat=4))))
    for labels in (None, torch.full((81,), 1)):
        assert model.log_likelihood(every, labels).exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_the_likelihood_is_that_of_the_draws():
    spec = CodeSpec(codebooks=1, grid=(2,), size=3)
    model, n = made(spec), 20_000
    every = model.grid(torch.tensor(list(product(range(3), repeat=2))))
    expected = model.log_likelihood(every, torch.full((9,), 2)).exp() * n
    drawn = model.sample(n, torch.full((n,), 2), options=AutoregressiveOptions())
    counts = torch.bincount(drawn.flatten(1) @ torch.tensor([3, 1]), minlength=9).double()
    assert ((counts - expected).square() / expected).sum() < 30  # 99.9th percentile of 8 degrees of freedom: 26.1
    with pytest.raises(UserError, match="known codes and mask must be"):
        model.log_likelihood(every[:, :, :1])
    with pytest.raises(UserError, match="class ids"):
        model.log_likelihood(every, torch.full((9,), 3))


# --- guidance and labels ---------------------------------------------------------------------------------------------


def test_guidance_is_u_plus_s_times_c_minus_u(monkeypatch):
    """s = 1 is the class alone, s = 0 no class; the other convention, c + w (c - u), would give neither."""
    spec, seen = CodeSpec(codebooks=1, grid=(1,), size=7), []
    model, labels = made(spec), torch.tensor([0, 2])
    monkeypatch.setattr(
        "smalti.paradigms.autoregressive.choose", lambda logits, *_: seen.append(logits) or logits.argmax(-1)
    )
    nothing = torch.zeros(2, 1, dtype=torch.int64)
    with torch.no_grad():
        c = model.logits(labels, nothing)[:, 0].log_softmax(-1)
        u = model.logits(torch.tensor([3, 3]), nothing)[:, 0].log_softmax(-1)
    for s in (0.0, 1.0, 1.5, 4.0):
        model.sample(2, labels, options=AutoregressiveOptions(guidance=s))
        torch.testing.assert_close(seen[-1].log_softmax(-1), (u + s * (c - u)).log_softmax(-1))


def test_without_a_label_the_label_is_open_and_guidance_means_nothing():
    model = made(SPECS["one codebook"])
    assert torch.equal(
        model.sample(4, options=AutoregressiveOptions(guidance=3.0)), model.sample(4, options=AutoregressiveOptions())
    )


def test_the_recipes_own_options_are_used_when_none_are_given():
    model = made(SPECS["one codebook"], sampling=AutoregressiveOptions(temperature=0))
    assert torch.equal(model.sample(4, seed=1), model.sample(4, seed=2))


def hidden_rows(model: Autoregressive, batch: Batch, monkeypatch) -> list[int]:
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(
            model, "logits", lambda labels, sequence, _: seen.append(labels) or F.one_hot(sequence, 7).float()
        )
        model.loss("network", batch, batch.step)
    return (seen[0] == model.classes).nonzero().flatten().tolist()


def test_label_dropout_belongs_to_the_row_not_to_the_split(monkeypatch):
    spec = SPECS["one codebook"]
    model = made(spec, label_dropout=0.3).train()
    batch = batch_of(codes_of(spec, 400), torch.arange(400) % 3, step=5)
    whole = hidden_rows(model, batch, monkeypatch)
    parts = [int(part.rows[row]) for part in batch.split(7) for row in hidden_rows(model, part, monkeypatch)]
    assert parts == whole
    assert 0.2 < len(whole) / 400 < 0.4
    assert hidden_rows(model, batch_of(batch.x, batch.labels, step=6), monkeypatch) != whole
    assert hidden_rows(model.eval(), batch, monkeypatch) == []


def test_without_classes_there_is_one_and_it_is_none():
    spec = SPECS["one codebook"]
    model = made(spec, classes=0)
    assert model.sample(2).shape == (2, 1, 2, 3)
    loss = model.train().loss("network", batch_of(codes_of(spec, 2)), 0)
    assert loss.terms[0].sum.isfinite()


def test_a_tokenizer_without_codes_is_refused():
    examples = Examples(signal=SignalSpec(channels=1, shape=(8, 8)))
    with pytest.raises(UserError, match="codebook"):
        AutoregressiveConfig().build(SMALL, examples, steps=10)


# --- random order ----------------------------------------------------------------------------------------------------


def orders_of(spec: CodeSpec, n: int, seed: int = 0) -> Tensor:
    """Any orders (n, T) that leave the codebooks of a position together."""
    generator, books = torch.Generator().manual_seed(seed), spec.codebooks
    positions = [torch.randperm(spec.length // books, generator=generator) for _ in range(n)]
    return torch.stack([torch.tensor([int(p) * books + q for p in each for q in range(books)]) for each in positions])


def order_of(trajectory: list[Tensor], model: Autoregressive) -> Tensor:
    """The order (n, T) in which the codes of a sample came."""
    chosen = torch.stack([model.sequence(state) >= 0 for state in trajectory])  # (T, n, T)
    assert (chosen.sum(2) == torch.arange(1, len(chosen) + 1)[:, None]).all()
    return chosen.long().argmax(0).argsort(1)


def any_mask(spec: CodeSpec, n: int, seed: int = 0) -> Tensor:
    """Known positions anywhere, of the first row none and of the last all."""
    share = torch.linspace(0, 1, n).view(-1, 1, *[1] * len(spec.grid))
    where = torch.rand((n, 1, *spec.grid), generator=torch.Generator().manual_seed(seed)) < share
    return where.expand(n, spec.codebooks, *spec.grid)


@every_spec
def test_each_step_is_told_the_place_asked_for_and_the_place_of_what_is_read(spec):
    """The inputs put together one by one, each example alone."""
    model, labels = made(spec, order="random"), torch.tensor([0, 1, 2])
    codes, orders = codes_of(spec, 3), orders_of(spec, 3)
    raster = model.sequence(codes)
    for row in range(3):
        inputs = []
        for step, asked in enumerate(orders[row]):
            read = model.label(labels[row])
            if step:
                before = orders[row, step - 1]
                token = raster[row, before] + (before % spec.codebooks) * spec.size
                read = model.token.weight[token] + model.own[before]
            inputs.append(read + model.place[asked])
        positions = grid_positions(spec)[orders[row]]
        expected = model.head(model.network(torch.stack(inputs)[None], positions))
        ours = model.logits(labels[row : row + 1], raster[row, orders[row]][None], orders[row][None])
        torch.testing.assert_close(ours, expected)
    together = model.logits(labels, raster.gather(1, orders), orders)
    torch.testing.assert_close(together[2:], expected)


def test_raster_order_is_one_order_of_many():
    spec = SPECS["two codebooks"]
    model, labels, sequence = made(spec, order="random"), torch.tensor([0, 1]), made(spec).sequence(codes_of(spec, 2))
    said = model.logits(labels, sequence, torch.arange(spec.length).expand(2, -1))
    torch.testing.assert_close(model.logits(labels, sequence), said)


@every_spec
@pytest.mark.parametrize("order", ["raster", "random"])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_cached_logits_are_the_uncached_ones_in_any_order(spec, order, guidance, monkeypatch):
    model, n = made(spec, order="random"), 5
    x, mask, labels, seen, way = codes_of(spec, n), any_mask(spec, n), torch.arange(n) % 3, [], []
    monkeypatch.setattr(
        "smalti.paradigms.autoregressive.choose",
        lambda logits, *rest: seen.append(logits) or choose(logits, *rest),
    )
    options = AutoregressiveOptions(order=order, guidance=guidance)
    drawn = model.sequence(model.sample(n, labels, x, mask, options=options, trajectory=way))
    orders = order_of(way, model)
    assert order == "random" or torch.equal(orders[0], torch.arange(spec.length))
    with torch.no_grad():
        c, u = (
            model.logits(each, drawn.gather(1, orders), orders).log_softmax(-1)
            for each in (labels, torch.full((n,), 3))
        )
    expected, ours = u + guidance * (c - u), torch.stack(seen, 1)
    asked = slice(spec.length - ours.shape[1], None)
    torch.testing.assert_close(ours.log_softmax(-1), expected[:, asked].log_softmax(-1), rtol=1e-4, atol=1e-4)
    assert ours.shape[1] == spec.length  # of the first row nothing is known
    known = model.sequence(mask).gather(1, orders).long()
    assert (known.diff(dim=1) <= 0).all()  # what is known is read first


@every_spec
@pytest.mark.parametrize("order", ["raster", "random"])
def test_any_known_codes_are_kept_and_the_others_are_not_looked_at(spec, order):
    model, x, labels = made(spec, order="random"), codes_of(spec, 7), torch.arange(7) % 3
    options = AutoregressiveOptions(order=order, guidance=2.0)
    generator = torch.Generator().manual_seed(3)
    for mask in (any_mask(spec, 7), any_mask(spec, 7).flip(0), torch.rand(x.shape, generator=generator) < 0.5):
        drawn = model.sample(7, labels, x, mask, options=options)
        assert torch.equal(drawn[mask], x[mask])
        assert 0 <= drawn.min() <= drawn.max() < spec.size
        assert torch.equal(drawn, model.sample(7, labels, torch.where(mask, x, 10**6), mask, options=options))


def test_positions_known_in_part_are_read_before_those_that_are_not_known_at_all():
    spec = SPECS["two codebooks"]
    model, x, way = made(spec, order="random"), codes_of(spec, 1), []
    mask = torch.tensor([[[[0, 0, 0], [1, 0, 1]], [[0, 0, 0], [0, 0, 1]]]]).bool()
    model.sample(1, known=x, mask=mask, trajectory=way)
    assert order_of(way, model)[0].tolist() == [10, 11, 6, 7, 0, 1, 2, 3, 4, 5, 8, 9]


@pytest.mark.parametrize("order", ["raster", "random"])
def test_in_no_order_does_a_sample_depend_on_how_the_batch_was_split(order):
    spec = SPECS["two codebooks"]
    model, labels, x, mask = made(spec, order="random"), torch.arange(9) % 3, codes_of(spec, 9), any_mask(spec, 9)
    options = AutoregressiveOptions(order=order, guidance=2.0)
    for known in ((None, None), (x, mask)):
        whole = model.sample(9, labels, *known, seed=4, options=options)
        parts = [
            model.sample(len(labels[rows]), labels[rows], *[k if k is None else k[rows] for k in known], seed=4,
                         options=options, first=rows.start)
            for rows in (slice(0, 1), slice(1, 5), slice(5, 9))
        ]  # fmt: skip
        assert torch.equal(torch.cat(parts), whole)


def test_random_orders_are_each_samples_own():
    spec, way = SPECS["one codebook"], []
    model, options = made(spec, order="random"), AutoregressiveOptions(order="random")
    model.sample(600, options=options, seed=1, trajectory=way)
    orders = order_of(way, model)
    assert torch.bincount(orders[:, 0], minlength=6).min() > 60  # of 100 expected
    assert len(orders.unique(dim=0)) > 350  # of 720
    way.clear()
    model.sample(600, options=options, seed=2, trajectory=way)
    assert not torch.equal(order_of(way, model), orders)


def training_orders(model: Autoregressive, batch: Batch, step: int, monkeypatch) -> Tensor:
    """The orders (B, T) that a loss reads a batch in."""
    seen = []

    def logits(labels: Tensor, *read: Tensor) -> Tensor:
        seen.append(read)
        return torch.zeros(*read[0].shape, model.codes.size)

    with monkeypatch.context() as patch:
        patch.setattr(model, "logits", logits)
        model.loss("network", batch, step)
    sequence, order = seen[0]
    order = torch.arange(model.codes.length).expand(len(batch.x), -1) if order is None else order
    assert torch.equal(sequence, model.sequence(batch.x).gather(1, order))
    return order


@every_spec
def test_training_orders_belong_to_the_row_not_to_the_split(spec, monkeypatch):
    model = Autoregressive(
        AutoregressiveConfig(order="random", anneal_from=0.2, anneal_until=0.6), SMALL, spec, steps=10
    ).train()
    batch, raster = batch_of(codes_of(spec, 300)), torch.arange(spec.length)
    whole = training_orders(model, batch, 4, monkeypatch)
    assert torch.equal(torch.cat([training_orders(model, part, 4, monkeypatch) for part in batch.split(7)]), whole)
    assert torch.equal(whole.sort(1).values, raster.expand(300, -1))
    # the codebooks of a position stay together, in their order
    assert torch.equal(whole % spec.codebooks, (raster % spec.codebooks).expand(300, -1))
    assert (whole.unflatten(1, (-1, spec.codebooks)) // spec.codebooks).diff(dim=2).eq(0).all()
    shuffled = [
        (training_orders(model, batch, step, monkeypatch) != raster).any(1).float().mean() for step in (0, 4, 6, 9)
    ]
    assert shuffled[0] > 0.95
    assert 0.4 < shuffled[1] < 0.6  # half way down
    assert shuffled[2:] == [0, 0]
    assert not torch.equal(training_orders(model, batch_of(batch.x, step=1), 4, monkeypatch), whole)
    assert torch.equal(training_orders(model.eval(), batch, 0, monkeypatch), raster.expand(300, -1))


def test_the_share_in_random_order_falls_in_a_straight_line():
    config = AutoregressiveConfig(order="random", anneal_from=0.25, anneal_until=0.75)
    along = [0.0, 0.2, 0.25, 0.375, 0.5, 0.7, 0.75, 1.0]
    assert [config.shuffled(each) for each in along] == pytest.approx([1, 1, 1, 0.75, 0.5, 0.1, 0, 0])
    at_once = config.model_copy(update={"anneal_from": 0.5, "anneal_until": 0.5})
    assert [at_once.shuffled(each) for each in (0.0, 0.49, 0.5, 1.0)] == [1, 1, 0, 0]
    never = config.model_copy(update={"anneal_from": 1.0, "anneal_until": 1.0})
    assert [never.shuffled(each) for each in (0.0, 0.999)] == [1, 1]
    assert AutoregressiveConfig().shuffled(0.0) == 0


def test_orders_that_do_not_fit_are_refused():
    with pytest.raises(ValidationError, match="anneal_from"):
        AutoregressiveConfig(anneal_from=0.8, anneal_until=0.5)
    with pytest.raises(ValidationError, match="order random"):
        AutoregressiveConfig(sampling=AutoregressiveOptions(order="random"))
    with pytest.raises(UserError, match=r"paradigm\.order random"):
        made(SPECS["one codebook"]).sample(1, options=AutoregressiveOptions(order="random"))


def test_a_model_in_raster_order_has_no_table_of_what_is_read():
    spec = SPECS["one codebook"]
    more = made(spec, order="random").state_dict().keys() - made(spec).state_dict().keys()
    assert more == {"own"}


def test_grids_of_two_classes_are_learnt_in_every_order():
    """Eight grids, four to a class, which any three of their codes tell apart; a shift by one anywhere blurs them."""
    spec = CodeSpec(codebooks=1, grid=(2, 3), size=7)
    modes = codes_of(spec, 8, seed=114)
    assert (modes[:, None] == modes).flatten(2).sum(2).fill_diagonal_(0).max() <= 2
    torch.manual_seed(0)
    network = TransformerConfig(layers=2, width=32, heads=2, dropout=0.0)
    config = AutoregressiveConfig(order="random", anneal_from=1.0, anneal_until=1.0)
    model = Autoregressive(config, network, spec, classes=2, steps=250)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3, betas=(0.9, 0.95))
    for step in range(250):
        rows = (torch.arange(64) + step) % 8
        for group in optimizer.param_groups:
            group["lr"] = 6e-3 * (1 - step / 250)
        term = model.train().loss("network", batch_of(modes[rows], rows // 4, step), step).terms[0]
        optimizer.zero_grad()
        (term.sum / term.weight).backward()
        optimizer.step()
    labels = torch.arange(400) % 2
    model.eval()
    for order in ("raster", "random"):
        drawn = model.sample(400, labels, options=AutoregressiveOptions(order=order))
        same = (drawn[:, None] == modes).flatten(2).all(2)
        assert same.any(1).float().mean() >= 0.95
        assert same.any(0).all()
        assert (same.long().argmax(1) // 4 == labels)[same.any(1)].all()
    # three known codes anywhere leave one grid only
    x = modes.repeat_interleave(20, 0)
    chance = torch.rand((160, 6), generator=torch.Generator().manual_seed(5))
    mask = model.grid(chance.argsort(1).argsort(1) < 3)
    assert (model.sample(160, None, x, mask, options=GREEDY) == x).flatten(1).all(1).float().mean() >= 0.95
