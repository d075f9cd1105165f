from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from smalti.tokenizers.bottlenecks import Moment
from smalti.tokenizers.bottlenecks.kl import KL, KLConfig


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def made(**settings) -> KL:
    return KL(KLConfig(**{"dim": 3, **settings})).train()


def moment(step: int = 0, rows: Tensor | None = None, seed: int = 0) -> Moment:
    return Moment(seed, step, torch.arange(4) if rows is None else rows, 0.5)


def noise(kl: KL, z: Tensor, at: Moment) -> Tensor:
    """What was drawn: how many standard deviations the vectors lie from the mean."""
    mean, log_variance = z.chunk(2, -1)
    return (kl(z, at).vectors - mean) / (0.5 * log_variance).exp()


def test_the_divergence_is_that_of_two_normal_distributions():
    z = drawn(4, 5, 6)
    mean, log_variance = z.double().chunk(2, -1)
    expected = kl_divergence(Normal(mean, log_variance.exp().sqrt()), Normal(torch.zeros(3).double(), 1.0)).sum()
    for quantized in (made(weight=0.3)(z), made(weight=0.3)(z, moment()), made(weight=0.3).eval()(z)):
        (term,) = quantized.terms
        torch.testing.assert_close(term.sum.double(), expected)
        assert (term.name, term.weight, term.coefficient) == ("kl", 4 * 5 * 3, 0.3)


def test_a_standard_normal_costs_nothing():
    assert made()(torch.zeros(2, 3, 6)).terms[0].sum == 0


def test_a_draw_is_the_mean_and_the_deviation_times_noise_to_the_gradient_too():
    kl, z, upstream = made(), drawn(4, 5, 6).requires_grad_(), drawn(4, 5, 3, seed=1)
    found, *_ = torch.autograd.grad(kl(z, moment()).vectors, z, upstream)
    eps = noise(kl, z.detach(), moment())
    deviation = (0.5 * z.detach().chunk(2, -1)[1]).exp()
    torch.testing.assert_close(found, torch.cat([upstream, upstream * 0.5 * deviation * eps], -1))


def test_the_gradient_of_the_divergence_is_that_by_hand():
    kl, z = made(), drawn(4, 5, 6).requires_grad_()
    found, *_ = torch.autograd.grad(kl(z, moment()).terms[0].sum, z)
    mean, log_variance = z.detach().chunk(2, -1)
    torch.testing.assert_close(found, torch.cat([mean, 0.5 * (log_variance.exp() - 1)], -1))


@pytest.mark.parametrize("training", [False, True])
def test_without_a_moment_the_latent_is_the_mean(training):
    kl, z = made().train(training), drawn(4, 5, 6)
    quantized = kl(z)
    assert torch.equal(quantized.vectors, z[..., :3])
    assert torch.equal(kl.latent(z), z[..., :3])
    assert quantized.codes is None
    assert quantized.statistics == {}


def test_noise_belongs_to_seed_step_and_row():
    kl, z = made(), drawn(1, 5, 6).expand(4, 5, 6)
    whole = noise(kl, z, moment())
    assert torch.equal(noise(kl, z, moment()), whole)
    assert torch.equal(noise(kl, z[:2], moment(rows=torch.tensor([3, 1]))), whole[[3, 1]])
    others = [noise(kl, z, moment(step=1)), noise(kl, z, moment(seed=1)), whole.roll(1, 0), whole.roll(1, 1)]
    assert all((other - whole).abs().min() > 0 for other in others)


def test_noise_is_standard_normal():
    eps = noise(made(dim=50), torch.zeros(200, 20, 100), moment(rows=torch.arange(200))).double()
    n = eps.numel()
    assert abs(eps.mean()) < 4 / n**0.5
    assert abs(eps.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((eps[1:] * eps[:-1]).mean()) < 4 / n**0.5  # rows know nothing of each other
    for bound, share in ((1.0, 0.6827), (2.0, 0.9545), (3.0, 0.9973)):
        assert abs((eps.abs() < bound).double().mean() - share) < 0.005


@pytest.mark.parametrize("size", [-1e6, 1e6])
def test_an_untrained_encoder_cannot_overflow_it(size):
    z = torch.full((4, 5, 6), size).requires_grad_()
    quantized = made()(z, moment())
    assert quantized.vectors.isfinite().all()
    quantized.terms[0].sum.backward()
    assert z.grad.isfinite().all()
