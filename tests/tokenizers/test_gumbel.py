from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from smalti.term import Term
from smalti.tokenizers.bottlenecks import Moment, Quantized
from smalti.tokenizers.bottlenecks.gumbel import Gumbel, GumbelConfig


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def made(**settings) -> Gumbel:
    torch.manual_seed(0)
    return Gumbel(GumbelConfig(**{"codes": 6, "dim": 3, "kl": 0.1, **settings})).train()


def moment(along: float = 0.5, step: int = 0, rows: int = 2) -> Moment:
    return Moment(0, step, torch.arange(rows), along)


def term(quantized: Quantized, name: str) -> Term:
    return next(each for each in quantized.terms if each.name == name)


def mixture(gumbel: Gumbel, vectors: Tensor) -> Tensor:
    """The weights (…, codes) that vectors of as many dimensions as codes were mixed with."""
    codes, wanted = gumbel.codebook.detach().double(), vectors.detach().double()
    return torch.linalg.solve(codes.t(), wanted.unsqueeze(-1)).squeeze(-1)


def sharpness(gumbel: Gumbel) -> float:
    """How much less likely a code is for every squared unit it is further away, twice."""
    z = gumbel.codebook.detach()[None, :1]
    logits, distances = gumbel.logits(z)[0, 0].detach(), (gumbel.codebook.detach() - z[0]).square().sum(1)
    return float(2 * (logits[0] - logits[1]) / distances[1])


def test_the_temperature_falls_on_a_cosine():
    gumbel = made(hot=2.0, cold=0.5, anneal=0.8)
    assert gumbel.temperature(0.0) == pytest.approx(2.0)
    assert gumbel.temperature(0.4) == pytest.approx(1.25)
    assert gumbel.temperature(0.2) == pytest.approx(0.5 + 1.5 * math.cos(math.pi / 8) ** 2)
    assert [gumbel.temperature(along) for along in (0.8, 0.9, 1.0)] == pytest.approx([0.5] * 3)


def test_codes_are_those_of_the_largest_logit_whatever_is_drawn():
    gumbel, z = made(), drawn(2, 9, 3)
    for quantized in (gumbel(z), gumbel(z, moment()), gumbel.eval()(z)):
        assert torch.equal(quantized.codes.squeeze(-1), gumbel.logits(z).argmax(-1))


def test_the_likeliest_code_is_the_nearest():
    gumbel, z = made(), drawn(2, 9, 3)
    assert torch.equal(gumbel(z).codes.squeeze(-1), torch.cdist(z, gumbel.codebook[None]).argmin(-1))


def test_logits_are_those_of_gaussians_around_the_codes():
    gumbel, z = made(), drawn(2, 9, 3)
    gumbel.initialise(drawn(50, 3, seed=1))
    distances = torch.cdist(z, gumbel.codebook[None]).square()
    expected = torch.log_softmax(-0.5 * sharpness(gumbel) * distances, -1)
    torch.testing.assert_close(torch.log_softmax(gumbel.logits(z), -1), expected, atol=1e-4, rtol=1e-4)


def test_without_a_moment_the_vector_is_the_code():
    gumbel, z = made(), drawn(2, 9, 3)
    for training in (True, False):
        quantized = gumbel.train(training)(z)
        assert torch.equal(quantized.vectors, gumbel.lookup(quantized.codes))


def test_while_training_the_vector_is_a_mixture_of_codes():
    gumbel, z = made(codes=4, dim=4), drawn(2, 9, 4)
    weights = mixture(gumbel, gumbel(z, moment()).vectors)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 9).double(), atol=1e-4, rtol=0)
    assert weights.min() > -1e-4
    assert weights.max(-1).values.min() < 0.99


def test_drawn_codes_are_as_frequent_as_their_probabilities():
    """The largest of logit + noise falls on a code with its softmax probability (Gumbel 1954)."""
    gumbel = made(codes=4, dim=4, hard=True)
    z = drawn(1, 1, 4).expand(200, 100, 4)
    picked = mixture(gumbel, gumbel(z, moment(rows=200)).vectors).argmax(-1)
    p, n = torch.softmax(gumbel.logits(z[:1, :1])[0, 0], -1).double(), picked.numel()
    counts = torch.bincount(picked.flatten(), minlength=4).double()
    assert p.min() > 0.01
    assert ((counts - n * p).square() / (n * p)).sum() < 16.3  # chi-squared, 3 degrees of freedom: 0.1 %


def test_colder_mixtures_are_surer():
    gumbel, z = made(codes=4, dim=4, hot=4.0, cold=0.05), drawn(2, 50, 4)
    largest = [float(mixture(gumbel, gumbel(z, moment(along)).vectors).amax(-1).mean()) for along in (0, 0.35, 1.0)]
    assert largest == sorted(largest)
    assert largest[0] < 0.6
    assert largest[2] > 0.95


def test_a_hard_one_hands_on_one_code_with_the_gradient_of_the_mixture():
    soft, hard = made(), made(hard=True)
    assert torch.equal(soft.codebook, hard.codebook)
    z, upstream = drawn(2, 9, 3).requires_grad_(), drawn(2, 9, 3, seed=1)
    one = hard(z, moment()).vectors
    assert torch.cdist(one, hard.codebook[None]).amin(-1).max() < 1e-5
    found, expected = (torch.autograd.grad(each(z, moment()).vectors, z, upstream)[0] for each in (hard, soft))
    torch.testing.assert_close(found, expected)


def test_the_divergence_from_the_uniform_is_that_by_hand():
    gumbel, z = made(), drawn(2, 9, 3)
    p = torch.softmax(gumbel.logits(z).double(), -1)
    kl = term(gumbel(z), "kl")
    torch.testing.assert_close(kl.sum.double(), (p * (p * 6).log()).sum())
    assert (kl.weight, kl.coefficient) == (18, 0.1)


def test_the_pull_towards_equal_use_is_taken_on_the_probabilities():
    gumbel, z = made(), drawn(2, 9, 3)
    gumbel.spread.mean.copy_(torch.tensor([0.5, 0.1, 0.1, 0.1, 0.1, 0.1])[:, None])
    p = torch.softmax(gumbel.logits(z).double(), -1)
    expected = (p * (gumbel.spread.mean.flatten().double() * 6).log()).sum()
    torch.testing.assert_close(term(gumbel(z), "spread").sum, expected.float())


def test_the_start_is_a_soft_k_means():
    gumbel, latents = made(codes=4), drawn(4, 3, seed=3).repeat_interleave(50, 0) * 5
    latents = latents + 0.1 * drawn(200, 3)
    gumbel.initialise(latents)
    error = torch.cdist(latents, gumbel.codebook.detach()).amin(1).square().mean() / 3
    assert sharpness(gumbel) == pytest.approx(float(1 / error), rel=1e-3)
    torch.testing.assert_close(gumbel.latent(latents), gumbel.lookup(gumbel(latents[None]).codes)[0], atol=0.2, rtol=0)


def test_a_start_that_leaves_no_error_is_still_finite():
    gumbel = made()
    gumbel.initialise(drawn(1, 3).expand(20, 3))
    z = drawn(2, 9, 3).requires_grad_()
    quantized = gumbel(z, moment())
    assert quantized.vectors.isfinite().all()
    quantized.vectors.sum().backward()
    assert z.grad.isfinite().all()


def test_noise_belongs_to_step_and_row():
    gumbel, z = made(), drawn(1, 9, 3).expand(4, 9, 3)
    vectors = gumbel(z, moment(rows=4)).vectors
    assert not torch.equal(vectors, gumbel(z, moment(rows=4, step=1)).vectors)
    assert all(not torch.equal(vectors[0], other) for other in vectors[1:])
