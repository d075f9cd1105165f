from __future__ import annotations

import warnings
from functools import cache
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from smalti.config import CodeSpec, Examples, SignalSpec
from smalti.data.batch import Batch
from smalti.errors import UserError
from smalti.layers.transformer import TransformerConfig
from smalti.paradigms import discrete_diffusion
from smalti.paradigms.discrete_diffusion import (
    SCHEDULES,
    SCHEMES,
    DiscreteDiffusion,
    DiscreteDiffusionConfig,
    DiscreteDiffusionOptions,
    Noise,
    halton_order,
    posterior,
)
from smalti.tokenizers.bottlenecks import Moment

SPECS = {
    "one codebook": CodeSpec(codebooks=1, grid=(2, 3), size=7),
    "two codebooks": CodeSpec(codebooks=2, grid=(2, 3), size=7),
    "sound": CodeSpec(codebooks=2, grid=(5,), size=7),
    "video": CodeSpec(codebooks=1, grid=(2, 2, 2), size=7),
}
SMALL = TransformerConfig(layers=2, width=24, heads=2, dropout=0.0)
WAYS = [("masked", "confidence"), ("masked", "halton"), ("masked", "chance")] + [
    (scheme, "chance") for scheme in SCHEMES if scheme != "masked"
]
every_way = pytest.mark.parametrize(("scheme", "order"), WAYS, ids=[f"{s} by {o}" for s, o in WAYS])
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


def made(scheme: str, codes: CodeSpec = SPECS["one codebook"], classes: int = 3, **settings) -> DiscreteDiffusion:
    """A model that prefers something: an untrained one is indifferent."""
    torch.manual_seed(0)
    config = DiscreteDiffusionConfig(scheme=scheme, **settings)
    model = DiscreteDiffusion(config, SMALL, codes, classes).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return model


def options(order: str = "confidence", **settings) -> DiscreteDiffusionOptions:
    return DiscreteDiffusionOptions(**{"steps": 4, "order": order, **settings})


def codes_of(spec: CodeSpec, n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, spec.size, (n, spec.codebooks, *spec.grid), generator=generator)


def batch_of(x: Tensor, labels: Tensor | None = None, step: int = 0) -> Batch:
    return Batch(step, torch.arange(len(x)), torch.arange(len(x)), x, labels)


# --- the posterior ---------------------------------------------------------------------------------------------------


def noise_of(keep: float, mask: float, size: int, rows: int = 1) -> Noise:
    return Noise(*(torch.full((rows, 1), each, dtype=torch.float64) for each in (keep, mask)), size)


def transition(keep: float, mask: float, size: int) -> Tensor:
    """Row i: where a code i goes, the mask last, which stays a mask."""
    table = torch.full((size, size + 1), (1 - keep - mask) / size, dtype=torch.float64)
    table[:, :size] += keep * torch.eye(size, dtype=torch.float64)
    table[:, size] = mask
    return torch.cat([table, F.one_hot(torch.tensor([size]), size + 1).double()])


KINDS = {
    "masked": ((0.7, 0.3), (0.4, 0.6)),
    "uniform": ((0.8, 0.0), (0.3, 0.0)),
    "both": ((0.75, 0.15), (0.2, 0.6)),
    "to the end": ((0.2, 0.5), (0.0, 0.9)),
    "from the start": ((1.0, 0.0), (0.6, 0.2)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_posterior_is_bayes_rule_over_whole_matrices(kind):
    size, (then, now) = 5, KINDS[kind]
    start, whole = transition(*then, size), transition(*now, size)
    step = torch.linalg.solve(start, whole)  # from s to t: whole = start @ step
    generator = torch.Generator().manual_seed(2)
    clean = torch.rand(1, 1, size, generator=generator, dtype=torch.float64).softmax(-1)
    for code in range(size + 1):
        if whole[:size, code].sum() == 0:
            continue  # cannot be reached
        ours = posterior(clean, torch.tensor([[code]]), noise_of(*now, size), noise_of(*then, size))[0, 0]
        expected = torch.zeros(size + 1, dtype=torch.float64)
        for x0 in (whole[:size, code] > 0).nonzero().flatten():  # one that cannot lead here is none, whatever is said
            expected += clean[0, 0, x0] * start[x0] * step[:, code] / whole[x0, code]
        torch.testing.assert_close(ours, expected / expected.sum(), atol=1e-12, rtol=1e-9)


def test_the_posterior_against_another_library():
    """VQ-Diffusion's own, in log space and fp32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduling = pytest.importorskip("diffusers.schedulers.scheduling_vq_diffusion")
    size, places, steps = 6, 11, 100
    # further from 0 and 1 than its defaults, whose fp32 tables lose half of the digits there
    ends = {"alpha_cum_start": 0.99, "alpha_cum_end": 0.01, "gamma_cum_start": 0.001, "gamma_cum_end": 0.8}
    scheduler = scheduling.VQDiffusionScheduler(num_vec_classes=size + 1, num_train_timesteps=steps, **ends)
    generator = torch.Generator().manual_seed(0)
    log_clean = torch.randn(2, size, places, generator=generator, dtype=torch.float64).log_softmax(1)
    noised = torch.randint(0, size + 1, (2, places), generator=generator)
    keep, mask = (getattr(scheduler, f"log_cum{name}").double().exp() for name in ("prod_at", "prod_ct"))
    for t in (1, 7, 50, 98):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = scheduler.q_posterior(log_clean.float(), noised, torch.tensor(t)).exp()
        now, then = (noise_of(float(keep[i]), float(mask[i]), size, 2) for i in (t, t - 1))
        ours = posterior(log_clean.exp().transpose(1, 2), noised, now, then)
        assert (ours - theirs.transpose(1, 2)).abs().max() <= 1e-6


def test_a_step_of_unmasking_against_another_library(monkeypatch):
    """MaskGIT's, as diffusers has it for aMUSEd: which codes are shown after a step, chance left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduling = pytest.importorskip("diffusers.schedulers.scheduling_amused")
    spec = CodeSpec(codebooks=1, grid=(4, 4), size=9)
    model = made("masked", spec, schedule="cosine")
    seen: list[Tensor] = []
    choose = options(steps=7, order_noise=0.0, temperature=0)
    drawn = model.sample(3, torch.tensor([0, 1, 2]), options=choose, trajectory=seen)
    scheduler = scheduling.AmusedScheduler(mask_token_id=9, masking_schedule="cosine")
    scheduler.set_timesteps(7, (0.0, 0.0))
    monkeypatch.setattr(torch, "multinomial", lambda p, *_, **__: p.argmax(-1, keepdim=True))
    sample = torch.full((3, 4, 4), 9)
    for step, ours in zip(scheduler.timesteps, seen, strict=True):
        with torch.no_grad():
            logits = model.logits(torch.tensor([0, 1, 2]), sample.flatten(1), torch.zeros(3))
        grid = logits.transpose(1, 2).unflatten(2, (4, 4))
        sample = scheduler.step(grid, step, sample).prev_sample
        assert torch.equal(torch.where(sample == 9, -1, sample), ours[:, 0])
    assert torch.equal(drawn[:, 0], sample)


# --- noising ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_rise_from_nothing_to_everything(schedule):
    shares = SCHEDULES[schedule](torch.linspace(0, 1, 101, dtype=torch.float64))
    assert shares[0] == pytest.approx(0, abs=1e-12)
    assert shares[-1] == pytest.approx(1)
    assert bool((shares.diff() > 0).all())


@every_scheme
def test_as_many_codes_are_noised_as_the_time_says(scheme):
    spec = CodeSpec(codebooks=1, grid=(20, 20), size=50)
    model, clean = made(scheme, spec), torch.zeros(64, 400, dtype=torch.int64)
    noised = model.noised(clean, torch.full((64,), 0.6), Moment(0, 0, torch.arange(64), 0.0))
    share = float(SCHEDULES[SCHEMES[scheme].schedule](torch.tensor(0.6)))
    masks = SCHEMES[scheme].masks
    assert (noised == model.mask).float().mean() == pytest.approx(share * masks, abs=0.02)
    assert (noised == 0).float().mean() == pytest.approx(1 - share + share * (1 - masks) / 50, abs=0.02)


@every_scheme
def test_something_is_always_noised_or_there_would_be_nothing_to_learn(scheme):
    model, clean = made(scheme), torch.zeros(500, 6, dtype=torch.int64)
    noised = model.noised(clean, torch.zeros(500), Moment(0, 0, torch.arange(500), 0.0))
    if scheme in ("masked",):
        assert ((noised == model.mask).sum(1) == 1).all()
    assert ((noised != clean).sum(1) <= 1).all()


def test_only_what_is_hidden_counts_in_the_loss_of_masks(monkeypatch):
    model, x = made("masked"), codes_of(SPECS["one codebook"], 16)
    batch = batch_of(x, torch.arange(16) % 3)
    before = model.loss("network", batch, 0).terms[0].sum
    hidden: list[Tensor] = []
    plain = model.logits

    def worse_where_shown(labels, noised, t):
        hidden.append(noised == model.mask)
        logits = plain(labels, noised, t)
        return torch.where(hidden[-1][..., None], logits, logits * 50)

    monkeypatch.setattr(model, "logits", worse_where_shown)
    torch.testing.assert_close(model.loss("network", batch, 0).terms[0].sum, before)
    assert 0.2 < hidden[0].float().mean() < 0.8


def test_more_steps_than_codes_are_refused_before_training():
    config = DiscreteDiffusionConfig(sampling=DiscreteDiffusionOptions(steps=7))
    spec = CodeSpec(codebooks=1, grid=(2, 3), size=7)
    with pytest.raises(UserError, match="7 steps are more than the 6 codes"):
        config.build(SMALL, Examples(signal=SignalSpec(channels=1, shape=(8, 8)), codes=spec), 10)


def test_the_step_back_is_known_as_simulation_finds_it():
    """Clean code, a share made random, a further share made random: what was in between, given both ends."""
    spec = CodeSpec(codebooks=1, grid=(2000,), size=4)
    model, rows = made("simple", spec, further=0.25), 500
    clean, t = torch.zeros(rows, 2000, dtype=torch.int64), torch.full((rows,), 0.6)
    moment = Moment(0, 0, torch.arange(rows), 0.0)
    before = model.noised(clean, t, moment)
    after = model._replaced(before, torch.full((rows,), 0.25), moment, stream=10)
    for seen in (0, 1):
        found = F.one_hot(before[after == seen], 4).float().mean(0)
        said = model._step_back(clean[:1, :1], torch.tensor([[seen]]), t[:1])[0, :, 0]
        torch.testing.assert_close(said, found, atol=0.006, rtol=0)
        assert said.sum() == pytest.approx(1, abs=1e-6)


def test_the_simple_scheme_is_warm_before_it_settles(monkeypatch):
    model, taken = made("simple"), []
    choose = discrete_diffusion.choose
    monkeypatch.setattr(
        discrete_diffusion, "choose", lambda *given: taken.append(given[2].temperature) or choose(*given)
    )
    model.sample(2, options=DiscreteDiffusionOptions(steps=6, warm=2, rest=9))
    assert taken == [1, 1, 0.7, 0.7, 0.7, 0.7]
    taken.clear()
    model.sample(2, options=DiscreteDiffusionOptions(steps=4, temperature=0.3, rest=9))
    assert taken == [1, 1, 0.3, 0.3]  # half of them at most
    taken.clear()
    model.sample(2, options=DiscreteDiffusionOptions(steps=3, warm=2, temperature=0, rest=9))
    assert taken == [0, 0, 0]  # nothing is left to chance
    taken.clear()
    codes = codes_of(SPECS["one codebook"], 2)
    model.vary(codes, 0.5, options=DiscreteDiffusionOptions(steps=5, warm=4, temperature=0.5, rest=9))
    assert taken == [1, 1, 0.5, 0.5, 0.5]


def test_the_simple_scheme_learns_one_step_back(monkeypatch):
    spec = CodeSpec(codebooks=1, grid=(8, 8), size=40)
    model, x = made("simple", spec, further=0.25), torch.zeros(32, 1, 8, 8, dtype=torch.int64)
    seen: list[Tensor] = []

    def shown(labels, noised, t):
        seen.append(noised)
        return F.one_hot(noised, 40).float() * 1000  # says what it sees, and is wrong where the last step was

    monkeypatch.setattr(model, "logits", shown)
    terms = {term.name: term for term in model.loss("network", batch_of(x), 0).terms}
    # what was random before the last step counts as right; only the last step's share is wrong
    assert float(terms["accuracy"].sum) / 32 == pytest.approx(1 - 0.25 * 39 / 40, abs=0.02)
    assert (seen[0] != 0).float().mean() > 0.45  # a random share of a half, and the quarter


# --- sampling --------------------------------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))
def test_no_mask_survives_and_every_code_exists(scheme, order, spec):
    for steps in (1, 3, 5):
        drawn = made(scheme, spec).sample(5, torch.arange(5) % 3, options=options(order, steps=steps))
        assert drawn.shape == (5, spec.codebooks, *spec.grid)
        assert drawn.dtype == torch.int64
        assert 0 <= drawn.min() <= drawn.max() < spec.size


@every_way
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_sample_does_not_depend_on_how_the_batch_was_split(scheme, order, guidance):
    model, labels = made(scheme, SPECS["two codebooks"]), torch.arange(9) % 3
    chosen = options(order, guidance=guidance, top_p=0.95)
    whole = model.sample(9, labels, seed=4, options=chosen)
    parts = [
        model.sample(end - start, labels[start:end], seed=4, options=chosen, first=start)
        for start, end in ((0, 1), (1, 5), (5, 9))
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert len({tuple(row.flatten().tolist()) for row in whole}) > 1
    assert not torch.equal(model.sample(9, labels, seed=5, options=chosen), whole)


@every_way
def test_known_codes_are_kept_wherever_they_stand(scheme, order):
    spec = SPECS["two codebooks"]
    model, x = made(scheme, spec), codes_of(spec, 8)
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(x.shape, generator=generator) < torch.linspace(0, 1, 8).view(-1, 1, 1, 1)  # unequal counts
    drawn = model.sample(8, torch.arange(8) % 3, x, mask, options=options(order, guidance=2.0))
    assert torch.equal(drawn[mask], x[mask])
    assert 0 <= drawn.min() <= drawn.max() < spec.size
    everything = torch.ones_like(mask)
    assert torch.equal(model.sample(8, None, x, everything, options=options(order)), x)


@every_way
def test_what_is_known_of_one_row_changes_no_other(scheme, order):
    spec = SPECS["one codebook"]
    model, x = made(scheme), codes_of(spec, 4)
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    some = model.sample(4, None, x, mask, options=options(order))
    for row in range(4):
        alone = model.sample(1, None, x[row : row + 1], mask[row : row + 1], options=options(order), first=row)
        assert torch.equal(alone[0], some[row])


@every_way
def test_the_trajectory_ends_in_the_sample(scheme, order):
    seen: list[Tensor] = []
    drawn = made(scheme).sample(3, options=options(order), trajectory=seen)
    assert 1 <= len(seen) <= 4
    assert torch.equal(seen[-1], drawn)
    masks = [int((frame == -1).sum()) for frame in seen]
    assert masks == sorted(masks, reverse=True)
    assert (masks[0] > 0) == (SCHEMES[scheme].masks > 0)


@every_way
def test_every_step_is_told(scheme, order):
    model, told = made(scheme), []
    x = model.sample(2, options=options(order), progress=lambda *step: told.append(step))
    assert told == [(step, 4) for step in range(1, 5)]
    told.clear()
    model.vary(x, 0.5, options=options(order), progress=lambda *step: told.append(step))
    assert told == [(step, 4) for step in range(1, 5)]


@pytest.mark.parametrize("order", ["confidence", "halton"])
@pytest.mark.parametrize("schedule", [None, "linear", "cosine"])
def test_every_step_shows_at_least_one_code_and_follows_the_schedule(order, schedule):
    spec = CodeSpec(codebooks=1, grid=(4, 4), size=7)
    for steps in (5, 16):
        model, seen = made("masked", spec), []
        model.sample(3, options=options(order, steps=steps, schedule=schedule), trajectory=seen)
        left = torch.stack([(frame == -1).flatten(1).sum(1) for frame in seen], 1)
        assert (left.diff(dim=1) <= -1).all()
        share = SCHEDULES[schedule or "arccos"](1 - torch.arange(1, steps + 1, dtype=torch.float64) / steps)
        expected = (16 * share + 1e-6).floor().long()
        assert (left <= expected).all()
        assert steps == 16 or (left == expected).all()  # in many steps the one code at least goes before


def test_shown_codes_stay_as_they_are():
    seen: list[Tensor] = []
    made("masked").sample(6, options=options(steps=6), trajectory=seen)
    for before, after in pairwise(seen):
        shown = before >= 0
        assert torch.equal(before[shown], after[shown])


def test_halton_order_is_a_permutation_that_spreads():
    for grid in ((6,), (7, 7), (8, 8), (2, 3, 4), (1, 1)):
        order = halton_order(grid)
        assert sorted(order.tolist()) == list(range(len(order)))
    first = (halton_order((8, 8)) < 16).view(8, 8)
    quarters = [first[i : i + 4, j : j + 4].sum().item() for i in (0, 4) for j in (0, 4)]
    assert max(quarters) - min(quarters) <= 2


@pytest.mark.parametrize("scheme", ["masked", "uniform", "mask-and-replace"])
def test_the_exact_reverse_draws_from_the_models_own_distribution(scheme):
    """With one code a grid and one step, what is drawn is what the network says of the codes it may start from."""
    spec, n = CodeSpec(codebooks=1, grid=(1,), size=5), 20_000
    model, masks = made(scheme, spec, classes=0), SCHEMES[scheme].masks
    starts = torch.arange(6 if masks else 5)[:, None]
    chances = torch.tensor([(1 - masks) / 5] * 5 + [masks] * bool(masks), dtype=torch.float64)
    with torch.no_grad():
        said = model.logits(torch.zeros(len(starts), dtype=torch.int64), starts, torch.ones(len(starts)))
    p = chances @ said.double().softmax(-1)[:, 0]
    counts = torch.bincount(model.sample(n, options=options("chance", steps=1)).flatten(), minlength=5).double()
    assert ((counts - n * p).square() / (n * p)).sum() < 20  # 99.9th percentile of 4 degrees of freedom: 18.5


def test_the_simple_scheme_stops_where_nothing_changes_and_sooner_when_it_is_colder():
    model = learnt("simple")[0]

    def took(temperature: float) -> int:
        seen: list[Tensor] = []
        drawn = model.sample(
            24, torch.arange(24) % 8, options=options(steps=300, temperature=temperature), trajectory=seen
        )
        assert torch.equal(seen[-4], drawn)
        return len(seen)

    assert 4 <= took(0.0) <= took(0.3) < took(0.6) < 300


@every_scheme
def test_variations_change_as_much_as_they_are_told(scheme):
    spec = CodeSpec(codebooks=1, grid=(6, 6), size=9)
    model, x = made(scheme, spec), codes_of(CodeSpec(codebooks=1, grid=(6, 6), size=9), 6)
    if scheme == "masked":
        kept = [(model.vary(x, level, options=options()) == x).float().mean() for level in (0.1, 0.9)]
        assert kept[0] > 0.85
        assert kept[1] < 0.6
    whole = model.vary(x, 0.5, torch.arange(6) % 3, seed=2, options=options())
    part = model.vary(x[2:4], 0.5, torch.arange(6)[2:4] % 3, seed=2, options=options(), first=2)
    assert torch.equal(whole[2:4], part)
    for wrong in (0, -1, 1.5):
        with pytest.raises(UserError):
            model.vary(x, wrong)


def test_guidance_of_one_and_of_none_are_the_class_and_no_class():
    model, labels = made("masked"), torch.tensor([0, 2])
    greedy = options(temperature=0, order_noise=0.0)
    plain = model.sample(2, labels, options=greedy)
    nothing = model.sample(2, None, options=greedy)
    assert torch.equal(model.sample(2, labels, options=greedy.model_copy(update={"guidance": 0.0})), nothing)
    assert not torch.equal(plain, nothing)


@pytest.mark.parametrize("scheme", ["masked", "simple"])
@pytest.mark.parametrize("scale", [0.0, 1.5, 4.0])
def test_guidance_is_u_plus_s_times_c_minus_u_for_every_code(scheme, scale):
    """In one step from one start all of a grid is the likeliest of the guided logits, and all codes are among them."""
    spec = CodeSpec(codebooks=1, grid=(6, 6), size=7)
    model, labels, seen = made(scheme, spec), torch.tensor([0, 2]), []
    plain = model.logits
    model.logits = lambda labels, noised, *rest: seen.append(noised) or plain(labels, noised, *rest)  # type: ignore[method-assign]
    drawn = model.sample(2, labels, options=options(steps=1, temperature=0, guidance=scale))
    start = seen[0][:2]
    with torch.no_grad():
        c, u = (plain(each, start, torch.ones(2)).log_softmax(-1) for each in (labels, torch.tensor([3, 3])))
    assert torch.equal(drawn.flatten(1), (u + scale * (c - u)).argmax(-1))
    assert not torch.equal(c.argmax(-1), u.argmax(-1))


WRONG = {
    "known without a mask": lambda m, x: m.sample(2, None, x),
    "a mask without known": lambda m, x: m.sample(2, None, None, torch.ones_like(x).bool()),
    "another shape": lambda m, x: m.sample(2, None, x[:, :, :1], torch.ones_like(x[:, :, :1]).bool()),
    "another number": lambda m, x: m.sample(3, None, x, torch.ones_like(x).bool()),
    "codes out of range": lambda m, x: m.sample(2, None, x + 7, torch.ones_like(x).bool()),
    "an unknown label": lambda m, x: m.sample(2, torch.tensor([0, 3])),
    "more steps than codes": lambda m, x: m.sample(2, options=options(steps=7)),
    "more steps than codes, of a variation": lambda m, x: m.vary(x, 0.5, options=options(steps=7)),
    "a mask of another size": lambda m, x: m.sample(2, None, x, torch.ones(2, 1, 2, 2).bool()),
    "a negative label": lambda m, x: m.sample(2, torch.tensor([0, -1])),
    "too many labels": lambda m, x: m.sample(2, torch.tensor([0, 1, 1])),
    "a level of nothing": lambda m, x: m.vary(x, 0.0),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_honoured_is_refused_in_words(wrong):
    with pytest.raises(UserError):
        WRONG[wrong](made("masked"), codes_of(SPECS["one codebook"], 2))


@pytest.mark.parametrize("steps", [0, -3, 10_001])
def test_no_steps_and_steps_without_end_are_refused(steps):
    with pytest.raises(ValidationError, match="steps"):
        DiscreteDiffusionOptions(steps=steps)


@every_way
def test_weights_that_are_not_finite_are_said_to_be_so(scheme, order):
    model = made(scheme)
    with torch.no_grad():
        model.head.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="finite"):
        model.sample(1, options=options(order))


def test_no_samples():
    assert made("masked").sample(0, options=options()).shape == (0, 1, 2, 3)


def test_a_tokenizer_without_codes_is_refused():
    with pytest.raises(UserError, match="codebook"):
        DiscreteDiffusionConfig().build(SMALL, Examples(signal=SignalSpec(channels=1, shape=(8, 8))), steps=10)


# --- the bound on the likelihood -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["masked", "uniform", "mask-and-replace"])
def test_the_bound_of_a_model_that_knows_the_data_is_the_datas_entropy(scheme, monkeypatch):
    """Codes equally likely and apart from each other: -log p is ln K a code, and no model can be told less."""
    spec = CodeSpec(codebooks=1, grid=(4, 4), size=6)
    model, x = made(scheme, spec), codes_of(spec, 2000)

    def ideal(labels, noised, t):
        # p(x0 | x_t) by Bayes' rule, for x0 uniform
        noise = model.noise(t)
        here = F.one_hot(noised.clamp_max(5), 6).double()
        leads = noise.keep[..., None] * here + noise.random[..., None]
        return torch.where((noised == 6)[..., None], 0.0, leads.clamp_min(1e-30).log())

    monkeypatch.setattr(model, "logits", ideal)
    terms = {term.name: term for term in model.loss("network", batch_of(x), 0).terms}
    bound = float(terms["nats_a_code"].sum) / terms["nats_a_code"].weight
    assert bound == pytest.approx(torch.tensor(6.0).log().item(), rel=0.05)


# --- learning --------------------------------------------------------------------------------------------------------


@cache
def learnt(scheme: str, further: float = 0.6) -> tuple[DiscreteDiffusion, Tensor]:
    """A model of grids of which only 8 exist: 4 of each class, or one for the simple scheme.

    Where all codes are drawn at once, each by itself, and nothing tells how far the way is, two grids of one class mix.
    """
    spec = CodeSpec(codebooks=1, grid=(4, 4), size=8)
    modes, classes = codes_of(spec, 8), 8 if scheme == "simple" else 2
    torch.manual_seed(0)
    network = TransformerConfig(layers=2, width=64, heads=2, dropout=0.0)
    model = DiscreteDiffusion(
        DiscreteDiffusionConfig(scheme=scheme, smoothing=0.0, further=further), network, spec, classes
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95))
    model.train()
    steps = 1200 if scheme == "simple" else 500
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * (1 - step / steps)
        rows = torch.arange(64) % 8
        terms = model.loss("network", batch_of(modes[rows], rows * classes // 8, step), step).terms
        optimizer.zero_grad()
        (terms[0].sum / terms[0].weight).backward()
        optimizer.step()
    return model.eval(), modes


@every_scheme
def test_samples_are_among_the_grids_that_exist_and_none_is_missing(scheme):
    model, modes = learnt(scheme)
    labels = torch.arange(400) * model.classes // 400
    for order in ["confidence", "halton", "chance"] if scheme == "masked" else ["chance"]:
        chosen = options(order, steps=100 if order == "chance" else 16, temperature=0.6, order_noise=1.0, rest=8)
        drawn = model.sample(400, labels, options=chosen)
        same = (drawn[:, None] == modes[None]).flatten(2).all(2)
        right = same & (torch.arange(8) * model.classes // 8 == labels[:, None])
        assert right.any(1).float().mean() >= 0.95, order
        assert right.any(0).all(), order
