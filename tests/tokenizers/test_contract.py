"""What every tokenizer promises, for each bottleneck of the table in one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from smalti.config import Config, SignalSpec
from smalti.errors import UserError
from smalti.tokenizers.autoencoder import Autoencoder, AutoencoderConfig, to_grid, to_vectors
from smalti.tokenizers.bottlenecks import BOTTLENECKS
from smalti.tokenizers.bottlenecks.vq import VQConfig


class Case(NamedTuple):
    """A bottleneck small enough for tests, and what it must reach in `STEPS` steps on plane waves."""

    config: Config
    used: float  # share of the codebook used over 64 signals
    mse: float  # of the reconstruction, on the [-1, 1] scale; waves that are always answered 0 give 0.5


# every kind in the table, in each of its ways; a new bottleneck adds a line here
CASES = {
    "vq": Case(VQConfig(codes=16, dim=4), used=0.9, mse=0.28),
    "vq-gradient": Case(VQConfig(codes=16, dim=4, learn="gradient"), used=0.9, mse=0.28),
}
STEPS = 60
every = pytest.mark.parametrize("name", CASES)
dimensions = pytest.mark.parametrize("dimensions", [1, 2, 3])


def made(name: str, dimensions: int) -> Autoencoder:
    torch.manual_seed(0)
    config = AutoencoderConfig(width=24, strides=(4,), blocks=1, bottleneck=CASES[name].config)
    return Autoencoder(config, SignalSpec(channels=2, shape=(8,) * dimensions))


def initialised(name: str, x: Tensor) -> Autoencoder:
    tokenizer = made(name, x.ndim - 2)
    tokenizer.bottleneck.initialise(to_vectors(tokenizer.latents(x)).flatten(0, 1).detach())
    return tokenizer


def train(tokenizer: Autoencoder, x: Tensor, steps: int) -> None:
    """The shortest training that is one."""
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=1e-2)
    tokenizer.train()
    for step in range(steps):
        part = x[step % 2 :: 2]
        reconstruction, quantized = tokenizer(part)
        terms = sum(term.coefficient * term.sum / term.weight for term in quantized.terms)
        loss = (reconstruction - part).square().mean() + terms
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tokenizer.bottleneck.after_step({name: each.value for name, each in quantized.statistics.items()})
    tokenizer.eval()


def test_every_bottleneck_of_the_table_is_tested():
    assert {case.config.kind for case in CASES.values()} == set(BOTTLENECKS)


@every
@dimensions
def test_encode_and_decode(name, dimensions, waves):
    x = waves(dimensions, 6)
    tokenizer = initialised(name, x).eval()
    spec, codes = tokenizer.codes, tokenizer.encode(x)
    assert codes.dtype == torch.int64
    assert codes.shape == (6, spec.codebooks, *spec.grid)
    assert spec.grid == (2,) * dimensions
    assert 0 <= codes.min() <= codes.max() < spec.size
    y = tokenizer.decode(codes)
    assert y.shape == x.shape
    assert y.dtype == torch.float32
    assert y.abs().max() <= 1
    reconstruction, _ = tokenizer(x)
    torch.testing.assert_close(y, reconstruction.clamp(-1, 1))


@every
@dimensions
def test_each_signal_is_on_its_own(name, dimensions, waves):
    x = waves(dimensions, 6)
    tokenizer = initialised(name, x).eval()
    alone = torch.cat([tokenizer.encode(row[None]) for row in x])
    assert torch.equal(tokenizer.encode(x), alone)
    assert tokenizer.encode(x[:0]).shape == (0, *alone.shape[1:])


@every
@dimensions
def test_other_sizes_than_the_trained_one(name, dimensions, waves):
    tokenizer = initialised(name, waves(dimensions, 6)).eval()
    space = tuple(4 * (1 + axis) for axis in range(dimensions))
    codes = tokenizer.encode(torch.zeros(2, 2, *space))
    assert codes.shape[2:] == tuple(1 + axis for axis in range(dimensions))
    assert tokenizer.decode(codes).shape == (2, 2, *space)


@every
@dimensions
def test_looking_codes_up_gives_the_quantized_vectors(name, dimensions, waves):
    x = waves(dimensions, 6)
    tokenizer = initialised(name, x)
    z = to_vectors(tokenizer.latents(x))
    quantized = tokenizer.bottleneck(z)
    assert quantized.codes.shape == (*z.shape[:2], tokenizer.bottleneck.codebooks)
    torch.testing.assert_close(tokenizer.bottleneck.lookup(quantized.codes), quantized.vectors)
    # and the decoder is given each at its own place
    y = tokenizer.decode_latents(to_grid(quantized.vectors, tokenizer.codes.grid))
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(x)), y)


@every
@dimensions
def test_one_changed_code_changes_its_neighbourhood(name, dimensions, waves):
    """Grid axes are not mixed up: what stands at a place of the grid is laid at that place of the signal."""
    x = waves(dimensions, 2)
    tokenizer = initialised(name, x)
    for parameter in tokenizer.parameters():  # an untrained block is the identity
        torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else None
    codes = torch.zeros(1, tokenizer.codes.codebooks, *(5,) * dimensions, dtype=torch.int64)
    for axis in range(dimensions):
        other = codes.clone()
        other.select(2 + axis, 0).fill_(1)
        moved = (tokenizer.decode(codes) - tokenizer.decode(other)).abs().amax(1)[0]
        assert moved.narrow(axis, 0, 4).max() > 1e-6
        assert moved.narrow(axis, 12, 8).max() < 1e-6


@every
@dimensions
def test_saved_and_loaded(name, dimensions, waves):
    x = waves(dimensions, 6)
    tokenizer = initialised(name, x)
    train(tokenizer, x, 3)
    other = made(name, dimensions).eval()
    assert not torch.equal(other.decode(tokenizer.encode(x)), tokenizer.decode(tokenizer.encode(x)))
    other.load_state_dict(tokenizer.state_dict())
    assert torch.equal(other.encode(x), tokenizer.encode(x))
    assert torch.equal(other.decode(tokenizer.encode(x)), tokenizer.decode(tokenizer.encode(x)))
    for one in (tokenizer, other):  # and goes on alike
        train(one, x, 6)
    assert all(torch.equal(a, b) for a, b in zip(*(t.state_dict().values() for t in (tokenizer, other)), strict=True))


@every
@dimensions
def test_learning(name, dimensions, waves):
    x = waves(dimensions, 64)
    tokenizer = initialised(name, x)
    train(tokenizer, x, STEPS)
    with torch.no_grad():
        codes = tokenizer.encode(x)
        mse = float((tokenizer.decode(codes) - x).square().mean())
    used = len(codes.unique()) / tokenizer.codes.size
    assert used >= CASES[name].used, f"{used:.2f} of the codes used over {codes.numel()} tokens"
    assert mse <= CASES[name].mse


def state(tokenizer: Autoencoder) -> list[Tensor]:
    return [tensor.clone() for tensor in tokenizer.state_dict().values()]


@every
@pytest.mark.parametrize("training", [False, True])
def test_forward_changes_no_state(name, training, waves):
    x = waves(2, 6)
    tokenizer = initialised(name, x).train(training)
    before = state(tokenizer)
    for _ in range(3):
        _, quantized = tokenizer(x)
    assert all(torch.equal(a, b) for a, b in zip(before, state(tokenizer), strict=True))
    if not training:
        assert quantized.statistics == {}


@every
def test_terms_and_statistics_of_two_halves_are_those_of_the_whole(name, waves):
    x = waves(2, 8)
    bottleneck = initialised(name, x).train().bottleneck
    z = torch.randn(8, 4, bottleneck.in_width, generator=torch.Generator().manual_seed(0))
    whole, halves = bottleneck(z), [bottleneck(part) for part in z.split(4)]
    for i, term in enumerate(whole.terms):
        parts = [half.terms[i] for half in halves]
        assert sum(part.weight for part in parts) == term.weight
        torch.testing.assert_close(sum(part.sum for part in parts), term.sum)
    for key, statistic in whole.statistics.items():
        values = [half.statistics[key].value for half in halves]
        merged = torch.cat(values) if statistic.merge == "gather" else torch.stack(values).sum(0)
        torch.testing.assert_close(merged, statistic.value)


@every
def test_half_precision_latents_are_quantized_in_full(name, waves):
    x = waves(2, 6)
    bottleneck = initialised(name, x).bottleneck
    z = torch.randn(2, 4, bottleneck.in_width, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        quantized = bottleneck(z)
    assert quantized.vectors.dtype == torch.float32
    assert all(term.sum.dtype == torch.float32 for term in quantized.terms)
    assert torch.equal(quantized.codes, bottleneck(z.float()).codes)


WRONG: dict[str, Callable[[Autoencoder], object]] = {
    "channels": lambda tokenizer: tokenizer.encode(torch.zeros(1, 3, 8, 8)),
    "axes": lambda tokenizer: tokenizer.encode(torch.zeros(1, 2, 8)),
    "stride": lambda tokenizer: tokenizer.encode(torch.zeros(1, 2, 8, 10)),
    "nothing": lambda tokenizer: tokenizer.encode(torch.zeros(1, 2, 0, 8)),
    "too large a code": lambda tokenizer: tokenizer.decode(torch.full((1, 1, 2, 2), tokenizer.codes.size)),
    "a negative code": lambda tokenizer: tokenizer.decode(torch.full((1, 1, 2, 2), -1)),
    "no codebook axis": lambda tokenizer: tokenizer.decode(torch.zeros(1, 2, 2, dtype=torch.int64)),
    "too many codebooks": lambda tokenizer: tokenizer.decode(torch.zeros(1, 9, 2, 2, dtype=torch.int64)),
}


@every
@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_is_refused_in_words(name, wrong):
    with pytest.raises(UserError):
        WRONG[wrong](made(name, 2))


def test_a_shape_the_stride_does_not_divide_is_refused():
    with pytest.raises(UserError, match=r"10x8.*stride 4.*--data.shape"):
        Autoencoder(AutoencoderConfig(strides=(2, 2)), SignalSpec(channels=1, shape=(10, 8)))
