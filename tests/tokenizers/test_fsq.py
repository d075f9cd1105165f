from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smalti.tokenizers.bottlenecks.fsq import FSQ, FSQConfig

levels_of_every_kind = pytest.mark.parametrize("levels", [(2,), (3,), (2, 3, 4), (8, 5, 5, 5), (7, 6)])


def made(levels: tuple[int, ...]) -> FSQ:
    return FSQ(FSQConfig(levels=levels)).train()


def all_codes(fsq: FSQ) -> Tensor:
    return torch.arange(fsq.size)[None, :, None]


def within(fsq: FSQ, vectors: Tensor) -> Tensor:
    """Latents z whose bounded value is `vectors`."""
    slope = math.atanh(float(fsq.latent(torch.ones(1, 1, fsq.in_width))[0, 0, 0]))
    return torch.atanh(vectors.double()) / slope


def test_the_first_level_is_the_fastest():
    fsq = made((2, 3, 4))
    for code, (last, middle, first) in enumerate(product(range(4), range(3), range(2))):
        vector = fsq.lookup(torch.tensor([[[code]]]))[0, 0]
        torch.testing.assert_close(vector, torch.tensor([first - 0.5, (middle - 1) / 1.5, (last - 1.5) / 2]))


@levels_of_every_kind
def test_every_code_can_be_chosen_and_comes_back(levels):
    fsq = made(levels)
    vectors = fsq.lookup(all_codes(fsq))
    assert len(vectors[0].unique(dim=0)) == fsq.size == math.prod(levels)
    quantized = fsq(within(fsq, vectors))
    assert torch.equal(quantized.codes, all_codes(fsq))
    torch.testing.assert_close(quantized.vectors, vectors)


@levels_of_every_kind
def test_values_are_those_of_the_paper_but_for_place_and_scale(levels):
    """Its rounding (listing 1): with L even, tanh is moved by half a level, so that there are L values."""
    fsq = made(levels)
    z = torch.linspace(-20, 20, 100_001)
    for d, count in enumerate(levels):
        half = (count - 1) * (1 + 1e-3) / 2
        offset = 0.0 if count % 2 else 0.5
        theirs = torch.round(torch.tanh(z + math.atanh(offset / half)) * half - offset).unique()
        ours = fsq.lookup(all_codes(fsq))[0, :, d].unique()
        assert len(ours) == len(theirs) == count
        placed = lambda values: (values - values[0]) / (values[-1] - values[0])  # noqa: E731
        torch.testing.assert_close(placed(ours), placed(theirs))


@given(st.lists(st.integers(2, 9), min_size=1, max_size=4), st.integers(0, 10_000))
@settings(max_examples=50)
def test_every_dimension_goes_to_its_nearest_level(levels, seed):
    fsq = made(tuple(levels))
    z = 2 * torch.randn(1, 20, len(levels), generator=torch.Generator().manual_seed(seed))
    quantized, bounded = fsq(z), fsq.latent(z)
    for d, count in enumerate(levels):
        places = torch.tensor([(2 * k + 1) / count - 1 for k in range(count)])
        nearest = places[(bounded[..., d, None] - places).abs().argmin(-1)]
        torch.testing.assert_close(quantized.vectors[..., d], nearest)


@levels_of_every_kind
def test_cells_meet_where_they_should(levels):
    """L levels are L equally wide cells of (-1, 1), the lower bound belonging to the cell; far out is the last one."""
    fsq = made(levels)
    for d, count in enumerate(levels):
        for edge in range(1, count):
            z = torch.zeros(1, 2, len(levels), dtype=torch.float64)
            z[0, :, d] = within(fsq, torch.tensor([-1e-5, 1e-5]) + 2 * edge / count - 1)
            below, above = (fsq(z).codes.flatten() // math.prod(levels[:d]) % count).tolist()
            assert (below, above) == (edge - 1, edge)
    for far in (20.0, 1e4, 1e30, torch.inf):
        ends = fsq(torch.tensor([-far, far])[None, :, None].expand(1, 2, len(levels)))
        assert ends.codes.flatten().tolist() == [0, fsq.size - 1]


@levels_of_every_kind
def test_the_gradient_is_that_of_the_bounded_latent(levels):
    fsq = made(levels)
    z = torch.randn(2, 5, len(levels), generator=torch.Generator().manual_seed(0)).requires_grad_()
    upstream = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    found, *_ = torch.autograd.grad(fsq(z).vectors, z, upstream)
    slope = math.atanh(float(fsq.latent(torch.ones(1, 1, len(levels)))[0, 0, 0]))
    torch.testing.assert_close(found, upstream * slope * (1 - fsq.latent(z.detach()).square()))


def test_a_standard_normal_fills_all_levels_almost_evenly():
    for count in range(2, 10):
        codes = made((count,))(torch.randn(1, 20_000, 1, generator=torch.Generator().manual_seed(0))).codes
        shares = torch.bincount(codes.flatten(), minlength=count) / codes.numel() * count
        assert shares.min() > 0.6
        assert shares.max() < 1.4


def test_the_pull_towards_equal_use_hangs_on_the_codes_own_order():
    """The running mean is one of codes; every dimension's soft level has to meet it at the code's place."""
    fsq = made((2, 3, 4))
    for code in (1, 2, 6, 23):
        fsq.spread.mean.fill_(1e-9).view(-1)[code] = 1.0
        costs = [float(fsq(within(fsq, fsq.lookup(all_codes(fsq)[:, i : i + 1]))).terms[0].sum) for i in range(24)]
        assert max(range(24), key=costs.__getitem__) == code
