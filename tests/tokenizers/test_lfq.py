from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from smalti.term import Term
from smalti.tokenizers.bottlenecks import Moment, Quantized
from smalti.tokenizers.bottlenecks.lfq import LFQ, LFQConfig

spheres = pytest.mark.parametrize("spherical", [False, True])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def made(**settings) -> LFQ:
    return LFQ(LFQConfig(**{"bits": 4, **settings})).train()


def term(quantized: Quantized, name: str) -> Term:
    return next(each for each in quantized.terms if each.name == name)


def assignment(lfq: LFQ, z: Tensor) -> Tensor:
    """(n, 2^bits): a softmax over the squared distances to all codes."""
    table = lfq.lookup(torch.arange(lfq.size)[None, :, None])[0].double()
    distances = torch.cdist(lfq.latent(z).double().flatten(0, 1), table).square()
    return torch.softmax(-distances / lfq.config.temperature, -1)


@spheres
@pytest.mark.parametrize("bits", [1, 2, 5])
def test_the_first_dimension_is_the_lowest_bit(bits, spherical):
    lfq = made(bits=bits, spherical=spherical)
    size = bits**-0.5 if spherical else 1.0
    for code in range(2**bits):
        vector = lfq.lookup(torch.tensor([[[code]]]))[0, 0]
        assert vector.tolist() == pytest.approx([size if code >> d & 1 else -size for d in range(bits)])


@spheres
@pytest.mark.parametrize("bits", [1, 2, 5, 10])
def test_every_code_can_be_chosen_and_comes_back(bits, spherical):
    lfq = made(bits=bits, spherical=spherical)
    codes = torch.arange(2**bits)[None, :, None]
    vectors = lfq.lookup(codes)
    assert torch.equal(lfq(3 * vectors).codes, codes)
    torch.testing.assert_close(lfq(3 * vectors).vectors, vectors)


@spheres
def test_the_code_is_the_nearest_of_all(spherical):
    lfq, z = made(spherical=spherical), drawn(3, 20, 4)
    quantized = lfq(z)
    assert torch.equal(quantized.codes.flatten(), assignment(lfq, z).argmax(-1))
    if spherical:
        torch.testing.assert_close(quantized.vectors.norm(dim=-1), torch.ones(3, 20))
        assert torch.equal(lfq(100 * z).codes, quantized.codes)


@spheres
@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
def test_doubt_is_the_entropy_over_all_codes(spherical, temperature):
    """The bits are independent, so that the entropy of 2^bits codes is the sum of the bits'."""
    lfq, z = made(spherical=spherical, temperature=temperature, certain=0.3), drawn(3, 5, 4)
    p = assignment(lfq, z)
    doubt = term(lfq(z), "doubt")
    torch.testing.assert_close(doubt.sum.double(), torch.special.entr(p).sum(), rtol=1e-4, atol=1e-5)
    assert (doubt.weight, doubt.coefficient) == (15, 0.3)


@spheres
@pytest.mark.parametrize("bits", [1, 3, 4])
def test_spread_is_taken_on_the_assignment_to_all_codes(bits, spherical):
    """And on the codes' own order, which the running mean is kept in."""
    lfq, z = made(bits=bits, spherical=spherical), drawn(3, 5, bits)
    for step in range(3):
        statistics = lfq(drawn(2, 3, bits, seed=step)).statistics
        lfq.after_step({key: each.value for key, each in statistics.items()})
    mean = lfq.spread.mean.flatten().double()
    assert mean.unique().numel() > 1
    expected = (assignment(lfq, z) * (mean * lfq.size).log()).sum()
    spread = term(lfq(z), "spread")
    torch.testing.assert_close(spread.sum.double(), expected, rtol=1e-4, atol=1e-5)
    assert spread.weight == 15


def test_a_mean_that_knows_one_code_alone_pulls_away_from_that_code():
    lfq = made(bits=3)
    for code in range(8):
        lfq.spread.mean.fill_(1e-9).view(-1)[code] = 1.0
        costs = [float(term(lfq(lfq.lookup(torch.tensor([[[i]]]))), "spread").sum) for i in range(8)]
        assert costs.index(max(costs)) == code


@spheres
def test_the_commitment_is_the_squared_distance_to_the_code(spherical):
    lfq, z = made(spherical=spherical, commitment=0.7), drawn(2, 5, 4).requires_grad_()
    quantized = lfq(z)
    held = term(quantized, "commitment")
    bounded = F.normalize(z, dim=-1) if spherical else z
    error = (bounded - lfq.lookup(quantized.codes)).square().sum()
    torch.testing.assert_close(held.sum, error)
    assert (held.weight, held.coefficient) == (z.numel(), 0.7)
    ours, theirs = (torch.autograd.grad(loss, z, retain_graph=True)[0] for loss in (held.sum, error))
    torch.testing.assert_close(ours, theirs)


@spheres
def test_the_gradient_passes_straight_through(spherical):
    lfq, z, upstream = made(spherical=spherical), drawn(2, 5, 4).requires_grad_(), drawn(2, 5, 4, seed=1)
    found, *_ = torch.autograd.grad(lfq(z).vectors, z, upstream)
    bounded = F.normalize(z, dim=-1) if spherical else z * 1
    torch.testing.assert_close(found, torch.autograd.grad(bounded, z, upstream)[0])


def test_spread_weighs_more_early_on():
    lfq, z = made(spread=0.02, early=3.0), drawn(2, 5, 4)
    weight = lambda along: term(lfq(z, Moment(0, 0, torch.arange(2), along)), "spread").coefficient  # noqa: E731
    assert weight(0.0) == pytest.approx(0.06)
    assert weight(0.05) == pytest.approx(0.04)
    assert weight(0.1) == weight(0.5) == weight(1.0) == pytest.approx(0.02)
    assert term(lfq(z), "spread").coefficient == pytest.approx(0.02)  # held-out figures are of one weight


def test_the_largest_code_fits():
    lfq = made(bits=24)
    quantized = lfq.eval()(torch.ones(1, 1, 24))
    assert quantized.codes.tolist() == [[[2**24 - 1]]]
    assert torch.equal(lfq.lookup(quantized.codes), torch.ones(1, 1, 24))
