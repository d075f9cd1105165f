from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tests.tiny import pictures, tokenizer_recipe
from tests.training import small_run
from tests.training.conftest import differences as differences
from tests.training.test_resume import stopping_at
from torch import Tensor, nn
from torch.nn import functional as F

import smalti
from smalti import runs
from smalti.config import Examples, SignalSpec
from smalti.data.batch import Batch
from smalti.errors import UserError
from smalti.evaluation.report import Report
from smalti.model import Tokenizer
from smalti.paradigms.adversarial import GAMES, Adversarial, AdversarialConfig, lecam, r1
from smalti.paradigms.autoencode import AutoencodeConfig
from smalti.recipe import TrainingConfig
from smalti.tokenizers.autoencoder import AutoencoderConfig
from smalti.tokenizers.bottlenecks.fsq import FSQConfig
from smalti.tokenizers.bottlenecks.kl import KLConfig
from smalti.tokenizers.bottlenecks.vq import VQConfig
from smalti.tokenizers.critic import CriticConfig
from smalti.training import state as states
from smalti.training.log import read_metrics
from smalti.training.loop import Run, fit
from smalti.training.totals import Totals

SMALL = AutoencoderConfig(width=16, strides=(4,), blocks=1, bottleneck=VQConfig(codes=8, dim=4))
PLAIN = {"start": 0, "critic_first": 0, "ramp": 0, "adaptive": False, "critic": CriticConfig(width=8)}
STEPS = 100
CPU = torch.device("cpu")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def made(model: AutoencoderConfig = SMALL, **settings) -> Adversarial:
    torch.manual_seed(0)
    config = AdversarialConfig(**{**PLAIN, **settings})
    return config.build(model, Examples(signal=SignalSpec(channels=1, shape=(16, 16))), STEPS).train()


def batch_of(n: int = 8, step: int = 3) -> Batch:
    x = torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(step)) * 2 - 1
    return Batch(step, torch.arange(n), torch.arange(n), x, seed=5)


def means(paradigm: Adversarial, player: str, batch: Batch, step: int = 3) -> dict[str, float]:
    totals = Totals()
    totals.add(paradigm.loss(player, batch, step).terms)
    return totals.means()


def turn(paradigm: Adversarial, batch: Batch, step: int, parts: int = 8) -> dict[str, float]:
    """Both players' losses on a batch cut into parts, and what moves after the step; no weight moves."""
    merged: dict[str, Tensor] = {}
    for player in paradigm.players():
        seen: dict[str, list[Tensor]] = {}
        for part in batch.split(parts):
            for key, each in paradigm.loss(player, part, step).statistics.items():
                seen.setdefault(key, []).append(each.value)
        merged |= {key: torch.cat(v) if key == "candidates" else torch.stack(v).sum(0) for key, v in seen.items()}
    return paradigm.after_step(merged)


# --- the losses, by hand ---------------------------------------------------------------------------------------------


def test_hinge_by_hand():
    v, game = torch.tensor([-2.0, 0.5, 3.0]), GAMES["hinge"]
    assert game.real(v).tolist() == [3.0, 0.5, 0.0]
    assert game.made(v).tolist() == [0.0, 1.5, 4.0]
    assert game.fool(v).tolist() == [2.0, -0.5, -3.0]


def test_non_saturating_is_cross_entropy():
    v, game = torch.tensor([-2.0, 0.5, 3.0]), GAMES["non-saturating"]
    one, none = torch.ones(3), torch.zeros(3)
    torch.testing.assert_close(game.real(v), F.binary_cross_entropy_with_logits(v, one, reduction="none"))
    torch.testing.assert_close(game.made(v), F.binary_cross_entropy_with_logits(v, none, reduction="none"))
    torch.testing.assert_close(game.fool(v), game.real(v))


def test_r1_of_a_linear_critic_is_its_squared_weight():
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(drawn(1, 1, 4, 4))

        def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
            return (x * self.weight).sum((2, 3), keepdim=True), []

    critic = Linear()
    penalty = r1(critic, drawn(3, 1, 4, 4, seed=1))
    torch.testing.assert_close(penalty, critic.weight.square().sum().expand(3))
    penalty.sum().backward()
    torch.testing.assert_close(critic.weight.grad, 6 * critic.weight)


def test_r1_of_patches_apart_is_the_mean_over_them():
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 4, stride=4)

        def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
            return self.conv(x), []

    critic = Apart()
    each = critic.conv.weight.square().sum()
    torch.testing.assert_close(r1(critic, drawn(2, 1, 16, 8)), each.expand(2))


def test_lecam_by_hand():
    real, fake = torch.tensor([[2.0, -3.0], [0.5, 0.5]]), torch.tensor([[-1.0, 4.0], [0.0, 0.0]])
    # means of real 1 and of made -1: real verdicts count above -1, made ones below 1
    by_hand = [(9 + 0 + 4 + 0) / 2, (2.25 + 2.25 + 1 + 1) / 2]
    assert lecam(real, fake, torch.tensor([1.0, -1.0])).tolist() == by_hand


@pytest.mark.parametrize("loss", GAMES)
def test_the_terms_of_both_players_by_hand(loss):
    paradigm, batch = made(loss=loss, penalty="none", perceptual_weight=3.0, weight=0.25), batch_of()
    terms = {term.name: term for term in paradigm.loss("tokenizer", batch, 3).terms}
    critics = {term.name: term for term in paradigm.loss("critic", batch, 3).terms}
    with torch.no_grad():
        shown = paradigm.tokenizer(batch.x, paradigm.moment(batch, 3))[0].clamp(-1, 1)
        (real, theirs), (fake, ours) = paradigm.critic(batch.x), paradigm.critic(shown)
        shares = [(a - b).abs().sum((1, 2, 3)) / b.abs().sum((1, 2, 3)) for a, b in zip(ours, theirs, strict=True)]
        features, adversarial = torch.stack(shares).mean(), paradigm.game.fool(fake).mean()
    expected = {"adversarial": adversarial, "features": features, "heard": adversarial + 3 * features}
    for name, value in expected.items():
        torch.testing.assert_close(terms[name].sum.detach() / terms[name].weight, value)
    assert {name: terms[name].coefficient for name in expected} == {"adversarial": 0, "features": 0, "heard": 0.25}
    for name, value in {"critic_real": paradigm.game.real(real), "critic_made": paradigm.game.made(fake)}.items():
        torch.testing.assert_close(critics[name].sum.detach() / critics[name].weight, value.mean().detach())
        assert critics[name].coefficient == 0.5


def test_the_gradient_is_that_of_the_loss_written_out():
    """What is heard goes through the critic once, cut off at the reconstruction; the whole graph gives the same."""
    paradigm, batch = made(perceptual_weight=3.0, weight=0.25), batch_of()
    parameters = list(paradigm.tokenizer.parameters())
    totals = Totals()
    ours = torch.autograd.grad(totals.add(paradigm.loss("tokenizer", batch, 3).terms) / totals.counted, parameters)
    y, quantized = paradigm.tokenizer(batch.x, paradigm.moment(batch, 3))
    (verdicts, features), (_, theirs) = paradigm.critic(y.clamp(-1, 1)), paradigm.critic(batch.x)
    shares = [(a - b).abs().sum((1, 2, 3)) / b.abs().sum((1, 2, 3)) for a, b in zip(features, theirs, strict=True)]
    heard = -verdicts.mean() + 3 * torch.stack(shares).mean()
    own = sum(term.coefficient * term.sum / term.weight for term in quantized.terms)
    expected = torch.autograd.grad((y - batch.x).square().mean() + own + 0.25 * heard, parameters)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-4)


# --- who learns from what --------------------------------------------------------------------------------------------


def test_neither_player_gives_the_other_a_gradient():
    paradigm, batch = made(penalty="r1", penalty_every=1), batch_of()
    Totals().add(paradigm.loss("tokenizer", batch, 3).terms).backward()
    assert all(parameter.grad is None for parameter in paradigm.critic.parameters())
    assert all(parameter.grad is not None for parameter in paradigm.tokenizer.parameters())
    paradigm.zero_grad(set_to_none=True)
    Totals().add(paradigm.loss("critic", batch, 3).terms).backward()
    assert all(parameter.grad is None for parameter in paradigm.tokenizer.parameters())
    assert all(parameter.grad is not None for parameter in paradigm.critic.parameters())


@pytest.mark.parametrize("penalty", ["r1", "lecam", "none"])
def test_the_critics_loss_adds_up_over_parts(penalty):
    paradigm, batch = made(penalty=penalty, penalty_every=1), batch_of()
    parameters = list(paradigm.critic.parameters())
    slopes = []
    for size in (8, 3):
        totals = Totals()
        objective = sum(totals.add(paradigm.loss("critic", part, 3).terms) for part in batch.split(size))
        slopes.append([each / totals.counted for each in torch.autograd.grad(objective, parameters)])
    for whole, parts in zip(*slopes, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-4)


def test_the_critic_takes_the_tokenizers_reconstructions_and_keeps_none():
    paradigm, batch = made(), batch_of()
    runs: list[int] = []
    paradigm.tokenizer.register_forward_hook(lambda *_: runs.append(1))
    for step in (3, 4):
        parts = [replace(part, step=step) for part in batch.split(3)]
        for part in parts:
            paradigm.loss("tokenizer", part, step)
        assert len(paradigm._made) == 3
        assert not any(value.requires_grad for value in paradigm._made.values())
        for part in parts:
            paradigm.loss("critic", part, step)
        assert len(paradigm._made) == 0
    assert len(runs) == 6
    for step in range(5, 9):  # a critic that never takes its turn
        paradigm.loss("tokenizer", replace(batch, step=step), step)
        assert len(paradigm._made) == 1
    assert not [name for name in paradigm.state_dict() if "_made" in name]


def test_without_the_tokenizers_turn_the_critic_sees_the_same():
    one, other, batch = made(), made(), batch_of()
    one.loss("tokenizer", batch, 3)
    assert means(one, "critic", batch) == pytest.approx(means(other, "critic", batch))


# --- when ------------------------------------------------------------------------------------------------------------


def test_the_critic_starts_then_is_heard_more_and_more():
    paradigm, batch = made(start=2, critic_first=3, ramp=4, weight=0.5), batch_of()
    seen = {}
    for step in range(12):
        terms = {term.name: term for term in paradigm.loss("tokenizer", batch, step).terms}
        seen[step] = (
            terms["heard"].coefficient if "heard" in terms else 0.0,
            bool(paradigm.loss("critic", batch, step).terms),
        )
    assert [step for step, (_, trains) in seen.items() if trains] == list(range(2, 12))
    assert [heard for heard, _ in seen.values()] == [0.0] * 5 + [0.125, 0.25, 0.375] + [0.5] * 4


def errors(paradigm: Adversarial, each: list[float]) -> list[int]:
    """Steps of so large mean errors; the critic's first step after each."""
    began = []
    for error in each:
        paradigm.after_step({"errors": torch.tensor([error * 20, 20.0])})
        began.append(int(paradigm.began))
    return began


def test_flat_is_when_the_error_hardly_falls():
    paradigm = made(start="flat", flat_over=3, flat_below=0.1, latest=1.0)
    falling = [1.0, 1.0, 1.0, 0.9, 0.8, 0.8, 0.75, 0.75, 0.6]  # 0.83 and 0.7 of the stretch before
    assert errors(paradigm, falling) == [-1] * 9
    assert errors(paradigm, [0.65, 0.65, 0.6]) == [-1, -1, 12]  # 0.9 and a little
    assert "errors" not in paradigm.loss("tokenizer", batch_of(), 12).statistics


def test_flat_starts_late_in_any_case():
    paradigm = made(start="flat", flat_over=3, latest=0.05)
    assert errors(paradigm, [1.0, 0.5, 0.25, 0.1, 0.05]) == [-1] * 4 + [5]


def test_flat_watches_the_squared_error():
    paradigm, batch = made(start="flat"), batch_of()
    statistics = [paradigm.loss("tokenizer", part, 0).statistics["errors"].value for part in batch.split(3)]
    found = torch.stack(statistics).sum(0)
    assert float(found[0] / found[1]) == pytest.approx(means(paradigm, "tokenizer", batch)["reconstruction"])
    assert paradigm.loss("critic", batch, 0).terms == []


def test_the_newest_model_is_kept_once_the_critic_is_heard():
    paradigm, told = made(start=1, critic_first=2), {"reconstruction": 0.25}
    kept = []
    for step in range(5):
        turn(paradigm, batch_of(), step)
        kept.append(paradigm.score(told, 9.0))
    assert kept == [0.25, 0.25, 0.25, None, None]


def test_the_score_of_a_continuous_tokenizer_is_its_whole_loss():
    model = SMALL.model_copy(update={"bottleneck": KLConfig(dim=4)})
    assert made(model, start=50).score({"reconstruction": 0.25}, 9.0) == 9.0


# --- state that moves by statistics ----------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [8, 3, 1])
def test_the_balance_is_the_ratio_of_gradients_at_the_last_layer(parts):
    paradigm, batch = made(adaptive=True, perceptual_weight=3.0), batch_of()
    assert paradigm.loss("tokenizer", batch, 3).terms[-3].coefficient == 0  # nothing is known in the first step
    last = paradigm.tokenizer.decoder.layers[-1].weight
    y, _ = paradigm.tokenizer(batch.x, paradigm.moment(batch, 3))
    (verdicts, features), (_, theirs) = paradigm.critic(y.clamp(-1, 1)), paradigm.critic(batch.x)
    shares = [(a - b).abs().sum((1, 2, 3)) / b.abs().sum((1, 2, 3)) for a, b in zip(features, theirs, strict=True)]
    heard = -verdicts.mean() + 3 * torch.stack(shares).mean()
    pull, push = (
        torch.autograd.grad(each, last, retain_graph=True)[0].norm() for each in ((y - batch.x).square().mean(), heard)
    )
    told = turn(paradigm, batch, 3, parts)
    assert told["critic_balance"] == pytest.approx(float(pull / push), rel=1e-4)
    terms = {term.name: term for term in paradigm.loss("tokenizer", batch, 4).terms}
    assert terms["heard"].coefficient == pytest.approx(paradigm.settings.weight * float(pull / push), rel=1e-4)


def test_the_balance_is_steady_where_single_steps_are_not():
    paradigm = made(start=0)
    for step in range(60):
        paradigm.after_step({"slopes": torch.tensor([[1.0], [10.0 if step % 10 else 1.0]])})
    before = float(paradigm.balance)
    paradigm.after_step({"slopes": torch.tensor([[1.0], [0.1]])})
    assert float(paradigm.balance) == pytest.approx(before, rel=0.1)
    assert before == pytest.approx(1 / 9.1, rel=0.15)


def test_the_balance_is_bounded():
    paradigm = made(adaptive=True)
    paradigm.after_step({"slopes": torch.stack([torch.ones(4), torch.zeros(4)])})
    assert math.isfinite(float(paradigm.balance))


@pytest.mark.parametrize("parts", [8, 3])
def test_running_means_of_verdicts(parts):
    paradigm, batch = made(), batch_of()
    with torch.no_grad():
        shown = paradigm.tokenizer(batch.x, paradigm.moment(batch, 0))[0].clamp(-1, 1)
        real, fake = (float(paradigm.critic(each)[0].mean()) for each in (batch.x, shown))
    told = turn(paradigm, batch, 0, parts)
    assert (told["verdict_real"], told["verdict_made"]) == pytest.approx((real, fake), rel=1e-4)
    assert paradigm.verdicts.tolist() == pytest.approx([real, fake], rel=1e-4)  # the first step's as they are
    for expected in ((1 + real) / 2, (2 + real) / 3):
        paradigm.after_step({"verdicts": torch.tensor([8.0, 0.0, 8.0])})
        assert float(paradigm.verdicts[0]) == pytest.approx(expected, rel=1e-4)


def test_r1_comes_seldom_and_weighs_as_much_more():
    paradigm = made(penalty="r1", penalty_weight=0.5, penalty_every=4)
    batch, found = batch_of(), {}
    for step in range(9):
        terms = {term.name: term for term in paradigm.loss("critic", batch, step).terms}
        if "r1" in terms:
            found[step] = terms["r1"].coefficient
    assert found == {0: 1.0, 4: 1.0, 8: 1.0}


def test_r1_is_taken_in_fp32():
    paradigm, batch = made(penalty_every=1), batch_of()
    plain = means(paradigm, "critic", batch)["r1"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert means(paradigm, "critic", batch)["r1"] == pytest.approx(plain, rel=1e-6)


# --- what is kept, and what a run needs ------------------------------------------------------------------------------


def test_held_out_the_critic_is_reported_and_counts_nothing():
    paradigm, batch = made(), batch_of()
    plain = AutoencodeConfig().build(SMALL, Examples(signal=SignalSpec(channels=1, shape=(16, 16))), STEPS)
    plain.load_model_state(paradigm.model_state())
    with torch.no_grad():
        terms = paradigm.eval().loss("tokenizer", batch, 3).terms
        assert paradigm.loss("critic", batch, 3).terms == []
        expected = plain.eval().loss("tokenizer", batch, 3).terms
    ours, theirs = Totals(), Totals()
    ours.add(terms)
    theirs.add(expected)
    assert ours.loss() == pytest.approx(theirs.loss())
    assert {"adversarial", "features", "verdict_real", "verdict_made"} <= ours.means().keys()
    assert not paradigm._made


@pytest.mark.parametrize("bottleneck", [VQConfig(codes=8, dim=4), FSQConfig(levels=(4, 3)), KLConfig(dim=4)])
def test_the_models_weights_are_the_tokenizers_alone(bottleneck):
    model = SMALL.model_copy(update={"bottleneck": bottleneck})
    paradigm, fresh = made(model), made(model, critic=CriticConfig(width=16))
    plain = AutoencodeConfig().build(model, Examples(signal=SignalSpec(channels=1, shape=(16, 16))), STEPS)
    with torch.no_grad():
        for parameter in paradigm.parameters():
            parameter.add_(0.5)
    state = paradigm.model_state()
    assert state.keys() == plain.model_state().keys()
    plain.load_model_state(state)
    before = [each.clone() for each in fresh.critic.parameters()]
    fresh.load_model_state(plain.model_state())
    for key, value in fresh.model_state().items():
        assert torch.equal(value, state[key])
    assert all(torch.equal(a, b) for a, b in zip(fresh.critic.parameters(), before, strict=True))


@pytest.mark.parametrize("change", ["left out", "added"])
def test_weights_that_do_not_fit_are_refused(change):
    paradigm = made()
    state = paradigm.model_state()
    if change == "added":
        state["critic.layers.0.weight"] = torch.zeros(1)
    else:
        state.pop(next(iter(state)))
    with pytest.raises(RuntimeError, match=r"Unexpected|Missing"):
        paradigm.load_model_state(state)


def test_signals_with_nothing_to_halve_are_refused():
    examples = Examples(signal=SignalSpec(kind="video", channels=1, shape=(1, 8, 8), rate=8))
    with pytest.raises(UserError, match="at least 2"):
        AdversarialConfig().build(SMALL.model_copy(update={"strides": (1,)}), examples, 10)


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path, monkeypatch):
    """small(name, **settings of the paradigm) -> a folder; its runs are the small adversarial one, so changed."""

    def changed(name: str, **settings) -> Path:
        recipe = small_run.RECIPES["adversarial"]
        paradigm = recipe.paradigm.model_copy(update=settings)
        monkeypatch.setitem(small_run.RECIPES, "adversarial", recipe.model_copy(update={"paradigm": paradigm}))
        return tmp_path / name

    return changed


def trained(folder: Path) -> dict[str, Tensor]:
    assert small_run.train(folder, "adversarial").finished
    state = states.load(folder / "state")
    assert state is not None
    return state


@pytest.mark.parametrize("last", [4, 7, 8, 10])
@pytest.mark.parametrize(
    "settings",
    [{"penalty": "lecam"}, {"start": "flat", "flat_over": 3, "flat_below": 0.9, "latest": 1.0}, {"adaptive": False}],
)
def test_cut_anywhere_around_the_start_and_resumed_is_undisturbed(last, settings, small, differences):
    whole, cut = small("whole", **settings), small("cut")
    state = trained(whole)
    assert 0 < int(state["paradigm"]["began"]) < 12
    paradigm, run = small_run.small_run(cut, "adversarial")
    assert fit(paradigm, small_run.with_batches(run, stopping_at(last)), CPU).step == last + 1
    trained(cut)
    assert differences(whole, cut) == []


def test_the_critic_trains_by_adamw_at_its_own_rate(small):
    folder = small("run", critic=CriticConfig(width=64, layers=2, lr=1e-4))
    small_run.train(folder, "adversarial", muon_lr=0.01)
    state = states.load(folder / "state")
    assert state["optimizers"]["tokenizer"].keys() == {"adamw", "muon"}
    assert state["optimizers"]["critic"].keys() == {"adamw"}
    rates = [group["lr"] for group in state["optimizers"]["critic"]["adamw"]["param_groups"]]
    assert all(0 < rate < 1e-4 for rate in rates)


def test_the_newest_model_is_kept_although_the_error_is_larger(small):
    folder = small("run", latest=0.25)
    paradigm, run = small_run.small_run(folder, "adversarial")
    upside_down = small_run.with_batches(run, lambda b: replace(b, x=-b.x) if b.step >= 10 else b)
    assert fit(paradigm, upside_down, CPU).best_step == 20
    held = [row["values"] for row in read_metrics(folder / "metrics.jsonl") if row["split"] == "validation"]
    assert held[-1]["reconstruction"] > min(values["reconstruction"] for values in held)
    assert smalti.load(folder).figures["step"] == 20


def test_a_critics_loss_that_is_not_finite_stops_the_run(small):
    folder = small("run")
    paradigm, run = small_run.small_run(folder, "adversarial")

    def spoil(batch: Batch) -> Batch:
        if batch.step == 8:
            with torch.no_grad():
                paradigm.critic.verdict.weight.fill_(torch.nan)
        return batch

    with pytest.raises(UserError, match=r"critic_real.* of critic is not finite at step 9"):
        fit(paradigm, small_run.with_batches(run, spoil), CPU)
    state = states.load(folder / "state")
    assert state["progress"]["step"] == 8
    assert all(value.isfinite().all() for value in state["paradigm"].values())


@pytest.fixture
def train(monkeypatch):
    """Whole runs on pictures of files, without their reports."""
    monkeypatch.setattr(runs, "write_report", lambda folder, *_: Report("").write(folder / "report" / "index.html"))
    return functools.partial(runs.train, device="cpu")


SHORT = {"paradigm.start": 2, "paradigm.critic_first": 1, "paradigm.ramp": 1, "paradigm.critic.width": 8}


def test_from_a_plain_run_into_an_adversarial_one_and_back(train, tmp_path):
    recipe = tokenizer_recipe(pictures(tmp_path / "data", each=20), steps=6)
    folders = [tmp_path / name for name in ("plain", "adversarial", "back")]
    assert train(recipe, out=folders[0]).finished
    changes = {"paradigm.kind": "adversarial", **SHORT}
    assert train(recipe, out=folders[1], init=folders[0], changes=changes).finished
    assert train(recipe, out=folders[2], init=folders[1]).finished
    keys = []
    for folder in folders:
        assert isinstance(smalti.load(folder, "cpu"), Tokenizer)
        with safe_open(folder / "model" / "model.safetensors", "pt") as file:
            keys.append(set(file.keys()))
    assert keys[0] == keys[1] == keys[2]
    assert any(name.startswith("critic") for name in states.load(folders[1] / "state")["paradigm"])
    terms = [set(read_metrics(folder / "metrics.jsonl")[-1]["values"]) for folder in folders]
    assert "verdict_real" in terms[1]
    assert "verdict_real" not in terms[0] | terms[2]


def own_eye(path: Path, channels: int = 1, side: int = 16) -> str:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Dropout(0.5)).eval()
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(network, (torch.zeros(2, channels, side, side),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return str(path)


def test_ones_own_network_counts_beside_the_error_and_is_not_kept(train, tmp_path):
    recipe = tokenizer_recipe(pictures(tmp_path / "data", each=20), steps=4)
    eye = own_eye(tmp_path / "eye.pt2")
    changes = {"paradigm.kind": "adversarial", **SHORT, "paradigm.perceptual": eye, "paradigm.perceptual_weight": 2}
    assert train(recipe, out=tmp_path / "run", changes=changes).finished
    values = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["values"]
    assert values["perceptual"] > 0
    assert "features" not in values
    (tmp_path / "eye.pt2").unlink()
    assert smalti.load(tmp_path / "run", "cpu").reconstruct(torch.zeros(1, 1, 16, 16)).shape == (1, 1, 16, 16)


def test_what_ones_own_network_adds(tmp_path):
    paradigm = made(perceptual=own_eye(tmp_path / "eye.pt2"), perceptual_weight=2.0, adaptive=True, weight=1.0)
    batch, plain = batch_of(), made(start=50)
    terms = {term.name: term for term in paradigm.loss("tokenizer", batch, 3).terms}
    assert terms["perceptual"].coefficient == 2
    y, quantized = paradigm.tokenizer(batch.x, paradigm.moment(batch, 3))
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    torch.manual_seed(0)
    network[0].reset_parameters()
    ours, theirs = network(y.clamp(-1, 1)), network(batch.x)
    distance = ((ours - theirs).abs().sum((1, 2, 3)) / theirs.abs().sum((1, 2, 3))).mean()
    torch.testing.assert_close(terms["perceptual"].sum / terms["perceptual"].weight, distance)
    pull = (y - batch.x).square().mean() + 2 * distance
    own = sum(term.coefficient * term.sum / term.weight for term in quantized.terms)
    parameters = list(paradigm.tokenizer.parameters())
    expected = torch.autograd.grad(pull + own, parameters, retain_graph=True)
    totals = Totals()
    found = torch.autograd.grad(totals.add(paradigm.loss("tokenizer", batch, 3).terms) / totals.counted, parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-4)
    last = paradigm.tokenizer.decoder.layers[-1].weight
    push = -paradigm.critic(y.clamp(-1, 1))[0].mean()
    pull, push = (torch.autograd.grad(each, last, retain_graph=True)[0].norm() for each in (pull, push))
    assert turn(paradigm, batch, 3, 3)["critic_balance"] == pytest.approx(float(pull / push), rel=1e-3)
    assert plain.score({"reconstruction": 0.5, "perceptual": 0.25}, 9.0) == 0.75
    assert not [name for name in paradigm.state_dict() if "network" in name]


def test_a_network_that_is_not_there_is_one_line_and_leaves_no_run(train, tmp_path):
    recipe = tokenizer_recipe(pictures(tmp_path / "data", each=20), steps=4)
    changes = {"paradigm.kind": "adversarial", "paradigm.perceptual": str(tmp_path / "eye.pt2")}
    with pytest.raises(UserError, match=r"perceptual .*eye\.pt2: there is no such file"):
        train(recipe, out=tmp_path / "run", changes=changes)
    assert not (tmp_path / "run" / "recipe.json").exists()


def textures(n: int, seed: int) -> Tensor:
    """(n, 1, 16, 16): noise of one pixel, black or white; no small code can say where each pixel lies."""
    return torch.randint(0, 2, (n, 1, 16, 16), generator=torch.Generator().manual_seed(seed)).float() * 2 - 1


def fine_energy(x: Tensor) -> float:
    """The energy in the finer half of frequencies, a pixel."""
    frequency = torch.fft.fftfreq(16).abs()
    fine = torch.maximum(frequency[:, None], frequency[None, : 16 // 2 + 1]) > 0.25
    return float(torch.fft.rfft2(x)[..., fine].abs().square().mean() / 256)


def test_a_critic_brings_fine_texture_back(tmp_path):
    """Squared error alone answers noise with its mean; a critic asks for something that looks like noise."""
    model = AutoencoderConfig(width=32, strides=(4,), blocks=1, bottleneck=FSQConfig(levels=(3, 3)))
    examples = Examples(signal=SignalSpec(channels=1, shape=(16, 16)))
    settings = {"start": 0, "critic_first": 20, "ramp": 20, "critic": CriticConfig(width=16, layers=2, lr=2e-3)}
    energy = {}
    for name, config in {"plain": AutoencodeConfig(), "adversarial": AdversarialConfig(**settings)}.items():
        torch.manual_seed(0)
        paradigm = config.build(model, examples, 120)
        training = TrainingConfig(steps=120, batch=32, lr=3e-3, warmup=5, validate_every=120, precision="fp32", ema=0.0)
        run = Run(name, tmp_path / name, training, noise, lambda: noise_once(), lambda *_: None)
        fit(paradigm, run, CPU)
        with torch.no_grad():
            made = paradigm.eval().tokenizer(textures(64, 10_000))[0].clamp(-1, 1)
        energy[name] = fine_energy(made)
    assert energy["plain"] < 0.2 * fine_energy(textures(64, 10_000))
    assert energy["adversarial"] > 1.5 * energy["plain"]


def noise(start: int) -> Iterator[Batch]:
    while True:
        yield Batch(start, torch.arange(32), torch.arange(32), textures(32, start), seed=0)
        start += 1


def noise_once() -> Iterator[Batch]:
    yield Batch(0, torch.arange(8), torch.arange(8), textures(8, 9999))
