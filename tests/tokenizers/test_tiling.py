from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from smalti.config import SignalSpec
from smalti.layers.convnet import Decoder, Encoder, total_stride
from smalti.tokenizers import tiling
from smalti.tokenizers.autoencoder import Autoencoder, AutoencoderConfig, to_vectors
from smalti.tokenizers.bottlenecks import BOTTLENECKS
from smalti.tokenizers.tiling import LEAST, in_tiles, tiles


def awake(network: nn.Module) -> nn.Module:
    """All weights drawn, for the last product of an untrained block is zero and looks at nothing."""
    generator = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return network.eval().requires_grad_(False)


def encoder(dimensions: int, strides: tuple[int, ...], blocks: int) -> Encoder:
    return awake(Encoder(dimensions, 2, 3, 16, strides, blocks)).double()


def decoder(dimensions: int, strides: tuple[int, ...], blocks: int) -> Decoder:
    return awake(Decoder(dimensions, 3, 2, 16, strides, blocks)).double()


shapes = st.tuples(
    st.integers(1, 3).flatmap(lambda axes: st.tuples(*[st.integers(1, 24 // axes)] * axes)),
    st.sampled_from([(1,), (2,), (3,), (2, 2), (2, 3), (3, 2, 1)]),
    st.integers(0, 2),
    st.integers(1, 400),
)


# --- how far a network looks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [0, 1, 2, 3])
@pytest.mark.parametrize("strides", [(1,), (4,), (2, 2), (2, 3), (4, 2), (2, 2, 2)])
def test_the_margin_is_what_a_position_depends_on(strides, blocks, generator):
    stride, cells = total_stride(strides), 25
    network = encoder(1, strides, blocks)
    x = torch.randn(1, 2, cells * stride, generator=generator, dtype=torch.float64).requires_grad_()
    network(x)[..., cells // 2].sum().backward()
    seen = x.grad.abs().sum((0, 1)).nonzero().flatten() // stride
    assert (cells // 2 - int(seen.min()), int(seen.max()) - cells // 2) == (network.margin, network.margin)

    network = decoder(1, strides, blocks)
    z = torch.randn(1, 3, cells, generator=generator, dtype=torch.float64).requires_grad_()
    network(z)[..., cells // 2 * stride : (cells // 2 + 1) * stride].square().sum().backward()
    seen = z.grad.abs().sum((0, 1)).nonzero().flatten()
    assert (cells // 2 - int(seen.min()), int(seen.max()) - cells // 2) == (network.margin, network.margin)


# --- tiles -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 30), min_size=1, max_size=3), st.integers(0, 3), st.integers(30, 2000))
def test_tiles_keep_every_position_once_and_see_its_margin(grid, margin, most):
    times = torch.zeros(grid, dtype=torch.int64)
    for tile in tiles(grid, margin, most):
        times[tile.place] += 1
        for side, seen, kept, place in zip(grid, tile.seen, tile.kept, tile.place, strict=True):
            assert (seen.start + kept.start, seen.start + kept.stop) == (place.start, place.stop)
            assert seen.start == max(0, place.start - margin) or (seen.start, seen.stop) == (0, side)
            assert seen.stop == min(side, place.stop + margin) or (seen.start, seen.stop) == (0, side)
        lengths = [seen.stop - seen.start for seen in tile.seen]
        # more than asked for only where an axis would otherwise keep less than its margins are worth
        assert math.prod(lengths) <= most or any(length <= (LEAST + 2) * margin for length in lengths)
    assert bool((times == 1).all())


def test_what_fits_is_one_tile():
    assert len(tiles((8, 8), 2, 64)) == 1
    assert len(tiles((1, 64), 2, 64)) == 1
    assert len(tiles((1, 128), 2, 64)) == 3  # 60 of its own each, at most
    assert len(tiles((512, 512), 3, 128 * 128)) == 25  # 122 of its own each


# --- tiles against the whole -----------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(shapes)
def test_an_encoder_and_a_decoder_in_tiles(shape):
    grid, strides, blocks, most = shape
    axes, stride = len(grid), total_stride(strides)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 2, *(side * stride for side in grid), generator=generator, dtype=torch.float64)
    inwards, outwards = encoder(axes, strides, blocks), decoder(axes, strides, blocks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "MOST", most)
        z = in_tiles(inwards, x, given=stride, made=1, margin=inwards.margin, rows=5)
        y = in_tiles(outwards, z, given=1, made=stride, margin=outwards.margin, rows=5)
    torch.testing.assert_close(z, inwards(x), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(y, outwards(z), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_one_position_less_of_margin_would_show(axes, generator, monkeypatch):
    monkeypatch.setattr(tiling, "MOST", 1)
    side = {1: 40, 2: 16, 3: 8}[axes]
    inwards, outwards = encoder(axes, (2,), 1), decoder(axes, (2,), 1)
    x = torch.randn(1, 2, *[2 * side] * axes, generator=generator, dtype=torch.float64)
    short = in_tiles(inwards, x, given=2, made=1, margin=inwards.margin - 1, rows=1)
    assert (short - inwards(x)).abs().max() > 1e-3
    z = inwards(x)
    short = in_tiles(outwards, z, given=1, made=2, margin=outwards.margin - 1, rows=1)
    assert (short - outwards(z)).abs().max() > 1e-3


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_never_more_at_once_than_was_said(axes, monkeypatch):
    monkeypatch.setattr(tiling, "MOST", 4096)
    seen = []

    def halved(part: torch.Tensor) -> torch.Tensor:
        seen.append(len(part) * math.prod(part.shape[2:]))
        return part[(..., *[slice(None, None, 2)] * axes)]

    x = torch.arange(3 * 2 * (20000 // axes) // 2 * 2).float().view(3, 2, -1, *[1] * (axes - 1))
    x = x[:, :, : x.shape[2] // 2 * 2].expand(-1, -1, -1, *[6] * (axes - 1))
    out = in_tiles(halved, x, given=2, made=1, margin=3, rows=250)
    assert torch.equal(out, halved(x))
    assert max(seen[:-1]) <= 4096
    seen.clear()
    small = torch.zeros(40, 1, *[16] * axes)
    assert in_tiles(halved, small, given=2, made=1, margin=3, rows=7).shape == (40, 1, *[8] * axes)
    assert max(seen) <= max(4096, 16**axes)
    assert max(seen) <= 7 * 16**axes


def test_nothing_at_all(monkeypatch):
    network = decoder(2, (2,), 1)
    assert in_tiles(network, torch.zeros(0, 3, 4, 4).double(), given=1, made=2, margin=3, rows=9).shape == (0, 2, 8, 8)
    monkeypatch.setattr(tiling, "MOST", 4)
    big = torch.zeros(0, 3, 40, 40).double()
    assert in_tiles(network, big, given=1, made=2, margin=3, rows=9).shape == (0, 2, 80, 80)


# --- tokenizers in tiles ---------------------------------------------------------------------------------------------

SMALL = {
    "vq": {"codes": 64, "dim": 4},
    "rvq": {"codes": 64, "dim": 4, "stages": 3},
    "gumbel": {"codes": 64, "dim": 4},
}


def tokenizer(kind: str, strides: tuple[int, ...] = (2, 2)) -> Autoencoder:
    """All weights drawn, and codes from its own latents."""
    bottleneck = BOTTLENECKS[kind](**SMALL.get(kind, {}))
    config = AutoencoderConfig(width=32, strides=strides, blocks=2, bottleneck=bottleneck)
    network = Autoencoder(config, SignalSpec(channels=3, shape=(32, 32)))
    awake(network.encoder)
    awake(network.decoder)
    with torch.no_grad():
        network.bottleneck.initialise(to_vectors(network.encoder(picture(64, 64))).flatten(0, 1))
    return network.eval()


def picture(height: int, width: int) -> torch.Tensor:
    """(1, 3, H, W) in [-1, 1]: broad waves and a little noise."""
    generator = torch.Generator().manual_seed(height)
    y, x = torch.meshgrid(torch.arange(height) / 9, torch.arange(width) / 7, indexing="ij")
    waves = torch.stack([(x + y).sin(), (x * 0.3).cos() * y.sin(), (x - 0.7 * y).sin()])
    return (0.7 * waves + 0.3 * torch.rand(3, height, width, generator=generator).mul(2).sub(1))[None].clamp(-1, 1)


def both_ways(network: Autoencoder, x: torch.Tensor, dtype: torch.dtype = torch.float32) -> list[list[torch.Tensor]]:
    """Latents, codes (where there are any) and samples of the whole, and the same in tiles."""
    into = {"given": network.stride, "made": 1, "margin": network.encoder.margin, "rows": 1}
    out = {"given": 1, "made": network.stride, "margin": network.decoder.margin, "rows": 1}
    results = []
    for tiled in (False, True):
        apply = in_tiles if tiled else lambda function, values, **_: function(values)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            z = apply(network.latents, x, **into)
            found = [z.float(), apply(network.decode_latents, results[0][0] if tiled else z.float(), **out)]
            if not network.continuous:
                found.append(apply(network.encode, x, **into))
        results.append(found)
    return results


@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_fp32_tiles_of_every_bottleneck(kind, monkeypatch):
    monkeypatch.setattr(tiling, "MOST", 96 * 96)
    network = tokenizer(kind)
    x = picture(200, 264)
    assert len(tiles((50, 66), network.decoder.margin, 24 * 24)) > 4
    whole, tiled = both_ways(network, x)
    for one, other in zip(whole[:2], tiled[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    if not network.continuous:
        assert (whole[2] != tiled[2]).float().mean() < 1e-3
        laid = [network.bottleneck.lookup(to_vectors(codes)) for codes in (whole[2], tiled[2])]
        z = to_vectors(whole[0]).float()
        if kind in ("vq", "rvq"):  # where codes differ they are equally near
            near = [(z - each).norm(dim=-1) for each in laid]
            torch.testing.assert_close(near[0], near[1], rtol=1e-3, atol=1e-3)


def test_bf16_tiles(monkeypatch):
    monkeypatch.setattr(tiling, "MOST", 96 * 96)
    (_, y, codes), (_, tiled_y, tiled_codes) = both_ways(tokenizer("vq"), picture(200, 264), torch.bfloat16)
    assert (codes != tiled_codes).float().mean() < 0.02
    assert (y - tiled_y).abs().mean() < 0.01
