from __future__ import annotations

import pytest
import torch
from torch import Tensor

from smalti.config import SignalSpec
from smalti.tokenizers.autoencoder import Autoencoder, AutoencoderConfig
from smalti.tokenizers.bottlenecks import Moment, Quantized
from smalti.tokenizers.bottlenecks.rvq import RVQ, RVQConfig
from smalti.tokenizers.bottlenecks.vq import VQ, VQConfig

learns = pytest.mark.parametrize("learn", ["ema", "gradient", "simvq"])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def made(**settings) -> RVQ:
    """Three stages of drawn codes, each finer than the one before."""
    torch.manual_seed(0)
    rvq = RVQ(RVQConfig(**{"codes": 5, "dim": 3, "stages": 3, "revive_every": 0, **settings})).train()
    with torch.no_grad():
        for q, stage in enumerate(rvq.stages):
            stage._place(torch.arange(5), drawn(5, 3, seed=q) / 2**q, torch.full((5,), 2.0))
    return rvq


def moment(rows: int, step: int = 0) -> Moment:
    return Moment(0, step, torch.arange(rows), 0.5)


def naively(rvq: RVQ, z: Tensor, depths: list[int]) -> tuple[Tensor, Tensor, list[list[Tensor]], list[list[int]]]:
    """Vectors and codes, one position at a time; and what every stage was given, and chose."""
    vectors, codes = torch.zeros_like(z), torch.zeros(*z.shape[:2], len(rvq.stages), dtype=torch.int64)
    given: list[list[Tensor]] = [[] for _ in rvq.stages]
    chosen: list[list[int]] = [[] for _ in rvq.stages]
    for row, depth in enumerate(depths):
        for place in range(z.shape[1]):
            rest = z[row, place].clone()
            for q in range(depth):
                table = rvq.stages[q].table().detach()
                code = int((rest - table).square().sum(1).argmin())
                given[q].append(rest)
                chosen[q].append(code)
                codes[row, place, q] = code
                vectors[row, place] += table[code]
                rest = rest - table[code]
    return vectors, codes, given, chosen


def values(quantized: Quantized, key: str) -> Tensor:
    return quantized.statistics[key].value


@learns
@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_every_stage_codes_what_the_ones_before_it_left(learn, dropout):
    rvq, z = made(learn=learn, dropout=dropout), drawn(6, 4, 3, seed=9)
    depths = rvq._depth(6, moment(6)).tolist()
    assert len(set(depths)) == (1 if dropout == 0 else 3)
    quantized = rvq(z, moment(6))
    vectors, codes, given, chosen = naively(rvq, z, depths)
    torch.testing.assert_close(quantized.vectors, vectors)
    assert torch.equal(quantized.codes, codes)
    error = torch.zeros(())
    for stage, residuals, codes in zip(rvq.stages, given, chosen, strict=True):
        error += (torch.stack(residuals) - stage.table().detach()[codes]).square().sum()
    for term in quantized.terms:
        torch.testing.assert_close(term.sum, error)
        assert term.weight == z.numel()  # however few were given to the later stages


@learns
def test_the_statistics_of_a_stage_are_those_of_the_examples_given_to_it(learn):
    rvq, z = made(learn=learn, dropout=1.0, revive_every=1), drawn(6, 4, 3, seed=9)
    depths = rvq._depth(6, moment(6)).tolist()
    quantized = rvq(z, moment(6))
    _, _, given, chosen = naively(rvq, z, depths)
    for q in range(3):
        counts, sums = torch.zeros(5), torch.zeros(5, 3)
        for vector, code in zip(given[q], chosen[q], strict=True):
            counts[code] += 1
            sums[code] += vector
        assert torch.equal(values(quantized, f"{q}.counts"), counts)
        assert counts.sum() == 4 * sum(depth > q for depth in depths)
        if learn == "ema":
            torch.testing.assert_close(values(quantized, f"{q}.sums"), sums)
        offered = values(quantized, f"{q}.candidates")
        assert len(offered) == len(given[q])  # up to 8 positions of a row, and it has 4
        assert torch.cdist(offered, torch.stack(given[q])).amin(1).max() < 1e-5


def test_a_step_that_gives_the_later_stages_nothing():
    rvq, z = made(dropout=1.0, revive_every=1, revive_below=0.9), drawn(2, 4, 3)
    step = next(step for step in range(1000) if (rvq._depth(2, moment(2, step)) == 1).all())
    before = rvq.stages[2].codebook.clone()
    quantized = rvq(z, moment(2, step))
    rvq.after_step({key: each.value for key, each in quantized.statistics.items()})
    torch.testing.assert_close(rvq.stages[2].codebook, before)


# --- gradients -------------------------------------------------------------------------------------------------------


@learns
@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_the_upstream_gradient_arrives_once(learn, dropout):
    """A straight-through at every stage would multiply it by the stages."""
    rvq, z = made(learn=learn, dropout=dropout), drawn(6, 4, 3).requires_grad_()
    upstream = drawn(6, 4, 3, seed=5)
    found, *_ = torch.autograd.grad(rvq(z, moment(6)).vectors, z, upstream)
    assert torch.equal(found, upstream)


@learns
def test_every_stage_pulls_the_encoder_to_its_codes(learn, monkeypatch):
    """By 2 (r - q) / n each: none is lost, where a straight-through output is subtracted from the residual."""
    rvq, z = made(learn=learn), drawn(2, 4, 3).requires_grad_()
    terms, quantize = [], VQ.quantize

    def watched(self, residual):
        result = quantize(self, residual)
        terms.append((residual.detach() - result[0].detach(), result[2][0]))
        return result

    monkeypatch.setattr(VQ, "quantize", watched)
    whole = next(term for term in rvq(z).terms if term.name == "commitment")
    together = torch.zeros_like(z)
    for error, term in terms:
        assert term.name == "commitment"
        pull, *_ = torch.autograd.grad(term.sum / term.weight, z, retain_graph=True)
        torch.testing.assert_close(pull, 2 * error / z.numel())
        together += pull
    assert len(terms) == 3
    torch.testing.assert_close(torch.autograd.grad(whole.sum / whole.weight, z)[0], together)


@pytest.mark.parametrize("learn", ["gradient", "simvq"])
@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_the_commitment_of_a_later_stage_moves_no_codebook(learn, dropout):
    """What earlier stages took away stands in its residual, and is a constant there."""
    rvq = made(learn=learn, dropout=dropout)
    term = next(term for term in rvq(drawn(6, 4, 3).requires_grad_(), moment(6)).terms if term.name == "commitment")
    found = torch.autograd.grad(term.sum, list(rvq.parameters()), allow_unused=True)
    assert found == (None,) * len(found)


def test_the_codebook_term_moves_each_stage_towards_its_residuals_alone():
    rvq, z = made(learn="gradient"), drawn(2, 4, 3).requires_grad_()
    quantized = rvq(z)
    term = next(term for term in quantized.terms if term.name == "codebook")
    found = torch.autograd.grad(term.sum / term.weight, [stage.codebook for stage in rvq.stages], retain_graph=True)
    _, _, given, chosen = naively(rvq, z.detach(), [3, 3])
    for stage, slope, residuals, codes in zip(rvq.stages, found, given, chosen, strict=True):
        expected = torch.zeros(5, 3)
        for vector, code in zip(residuals, codes, strict=True):
            expected[code] += 2 * (stage.codebook[code].detach() - vector) / z.numel()
        torch.testing.assert_close(slope, expected)
    assert torch.autograd.grad(term.sum, z, allow_unused=True)[0] is None


# --- fewer stages ----------------------------------------------------------------------------------------------------


def test_the_first_few_codes_look_up_what_an_example_of_that_depth_is_given():
    rvq, z = made(), drawn(1, 4, 3)
    codes = rvq(z).codes
    for depth in (1, 2, 3):
        torch.testing.assert_close(rvq.lookup(codes[..., :depth]), naively(rvq, z, [depth])[0])


def test_every_further_codebook_brings_the_signal_nearer():
    torch.manual_seed(0)
    config = AutoencoderConfig(width=24, strides=(4,), blocks=1, bottleneck=RVQConfig(codes=8, dim=4, stages=3))
    tokenizer = Autoencoder(config, SignalSpec(channels=1, shape=(8,))).eval()
    x = drawn(64, 1, 8).clamp(-1, 1)
    latents = tokenizer.latents(x).detach()
    tokenizer.bottleneck.initialise(latents.movedim(1, -1).flatten(0, 1))
    codes = tokenizer.encode(x)
    whole = tokenizer.decode_latents(latents)
    errors = [float((tokenizer.decode(codes[:, :depth]) - whole).detach().square().mean()) for depth in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]


def test_the_depth_of_an_example_is_its_own_and_spread_evenly():
    rvq = made(dropout=0.5, stages=4)
    depths = rvq._depth(4000, moment(4000))
    counts = torch.bincount(depths, minlength=5)
    assert counts[0] == 0
    expected = torch.tensor([500.0, 500, 500, 2500])
    assert ((counts[1:] - expected).abs() < 4 * expected.sqrt()).all()
    some = torch.tensor([3999, 17, 256])
    assert torch.equal(rvq._depth(3, Moment(0, 0, some, 0.5)), depths[some])
    assert not torch.equal(rvq._depth(4000, moment(4000, step=1)), depths)
    assert (rvq._depth(4000, None) == 4).all()  # nothing is left out in use


# --- state -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_every_stage_starts_from_what_the_ones_before_it_leave(training):
    rvq = RVQ(RVQConfig(codes=5, dim=3, stages=3)).train(training)
    rest = drawn(200, 3)
    rvq.initialise(rest)
    lengths = [rest.norm(dim=1).mean()]
    for stage in rvq.stages:
        alone = VQ(VQConfig(codes=5, dim=3))
        alone.initialise(rest)
        assert torch.equal(stage.codebook, alone.codebook)
        rest = rest - stage.codebook[torch.cdist(rest, stage.codebook).argmin(1)]
        lengths.append(rest.norm(dim=1).mean())
    assert lengths == sorted(lengths, reverse=True)


def test_a_step_moves_every_stage_by_its_own_statistics():
    rvq, z = made(revive_every=1, revive_below=0.9, decay=0.5), drawn(6, 4, 3)
    alone = [VQ(stage.config) for stage in rvq.stages]
    for one, stage in zip(alone, rvq.stages, strict=True):
        one.load_state_dict(stage.state_dict())
    statistics = {key: each.value for key, each in rvq(z).statistics.items()}
    figures = rvq.after_step(statistics)
    each = [one.after_step({k[2:]: v for k, v in statistics.items() if k[0] == str(q)}) for q, one in enumerate(alone)]
    for one, stage in zip(alone, rvq.stages, strict=True):
        after = stage.state_dict()
        assert all(torch.equal(value, after[key]) for key, value in one.state_dict().items())
    assert figures["codes_dead"] == sum(one["codes_dead"] for one in each) > 0
    assert figures["codes_used"] == pytest.approx(sum(one["codes_used"] for one in each) / 3)
    assert figures["codes_used_least"] == min(one["codes_used"] for one in each)


def test_rotated_the_whole_is_turned_once():
    rvq, z = made(estimator="rotation"), drawn(2, 4, 3).requires_grad_()
    quantized, upstream = rvq(z), drawn(2, 4, 3, seed=5)
    torch.testing.assert_close(quantized.vectors, rvq.lookup(quantized.codes))
    found, *_ = torch.autograd.grad(quantized.vectors, z, upstream)
    scale = rvq.lookup(quantized.codes).norm(dim=-1) / z.detach().norm(dim=-1)
    torch.testing.assert_close(found.norm(dim=-1), scale * upstream.norm(dim=-1))
