from __future__ import annotations

import pytest
import torch
from torch import nn

from smalti.layers.convnet import ChannelNorm, Decoder, Encoder, ResidualBlock, total_stride

SIDE = {1: 96, 2: 48, 3: 32}  # of a signal, by its dimensions: far larger than what one position sees
STRIDES = {1: (2, 2), 2: (2, 2), 3: (2,)}


def awake(network: nn.Module) -> nn.Module:
    """All weights drawn, for the last product of an untrained block is zero."""
    generator = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return network.double().eval()


def encoder(dimensions: int, strides: tuple[int, ...] | None = None) -> nn.Module:
    return awake(Encoder(dimensions, 2, 3, 16, strides or STRIDES[dimensions], 1))


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_a_local_encoder_sees_what_lies_under_a_position_and_no_more(dimensions, generator):
    space, stride = (12,) * dimensions, 6
    network = awake(Encoder(dimensions, 2, 3, 16, (2, 3), 2, local=True))
    assert network.margin == 0
    x = torch.randn(1, 2, *space, generator=generator, dtype=torch.float64)
    whole, under = network(x), (..., *(slice(stride, 2 * stride),) * dimensions)
    torch.testing.assert_close(network(x[under]).flatten(), whole[(..., *(1,) * dimensions)].flatten())


def decoder(dimensions: int, strides: tuple[int, ...] | None = None) -> nn.Module:
    return awake(Decoder(dimensions, 3, 2, 16, strides or STRIDES[dimensions], 1))


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("strides", [(2,), (4,), (2, 3)])
def test_shapes(dimensions, strides, generator):
    stride = total_stride(strides)
    space = tuple(stride * (2 + axis) for axis in range(dimensions))  # sides of different lengths
    z = encoder(dimensions, strides)(torch.randn(2, 2, *space, generator=generator, dtype=torch.float64))
    assert z.shape == (2, 3, *(side // stride for side in space))
    assert decoder(dimensions, strides)(z).shape == (2, 2, *space)


def reach(changed: torch.Tensor) -> int:
    """How far from place 0 along the last axis anything changed."""
    return int(changed.flatten(0, -2).any(0).nonzero().max())


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_what_is_far_changes_nothing(dimensions, generator):
    side, stride = SIDE[dimensions], total_stride(STRIDES[dimensions])
    x = torch.randn(1, 2, *(side,) * dimensions, generator=generator, dtype=torch.float64)
    other = x.clone()
    other[..., 0] += 3.0
    network = encoder(dimensions)
    moved = (network(x) - network(other)).abs() > 1e-12
    # blocks of 3 see one position to each side of their level
    assert 1 <= reach(moved) <= len(STRIDES[dimensions])
    z, network = network(x), decoder(dimensions)
    other = z.clone()
    other[..., 0] += 3.0
    moved = (network(z) - network(other)).abs() > 1e-12
    assert stride <= reach(moved) < 6 * stride


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_a_tile_comes_out_as_in_the_whole(dimensions, generator):
    side, stride = SIDE[dimensions], total_stride(STRIDES[dimensions])
    x = torch.randn(1, 2, *(side,) * dimensions, generator=generator, dtype=torch.float64)
    network, margin = encoder(dimensions), 4
    whole, half = network(x), network(x[..., : side // 2])
    kept = side // 2 // stride - margin
    torch.testing.assert_close(half[..., :kept], whole[..., :kept])
    network = decoder(dimensions)
    z = whole
    kept = (z.shape[-1] // 2 - margin) * stride
    torch.testing.assert_close(network(z[..., : z.shape[-1] // 2])[..., :kept], network(z)[..., :kept])


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_norm_is_per_position(dimensions, generator):
    x = torch.randn(2, 5, *(4,) * dimensions, generator=generator, dtype=torch.float64) * 7 + 2
    y = ChannelNorm(5).double()(x)
    torch.testing.assert_close(y.mean(1), torch.zeros_like(y[:, 0]))
    torch.testing.assert_close(y.var(1, correction=0), torch.ones_like(y[:, 0]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_an_untrained_block_is_the_identity(dimensions, generator):
    x = torch.randn(2, 4, *(5,) * dimensions, generator=generator)
    assert torch.equal(ResidualBlock(dimensions, 4)(x), x)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_every_weight_learns(dimensions, generator):
    networks = nn.Sequential(encoder(dimensions), decoder(dimensions))
    x = torch.randn(2, 2, *(STRIDES[dimensions][0] * 4,) * dimensions, generator=generator, dtype=torch.float64)
    networks(x).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in networks.parameters())
