"""What every tokenizer promises, for each bottleneck of the table in one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from smalti.config import Config, SignalSpec
from smalti.errors import UserError
from smalti.tokenizers.autoencoder import Autoencoder, AutoencoderConfig, to_grid, to_vectors
from smalti.tokenizers.bottlenecks import BOTTLENECKS, Bottleneck, Moment, Quantized
from smalti.tokenizers.bottlenecks.fsq import FSQConfig
from smalti.tokenizers.bottlenecks.gumbel import GumbelConfig
from smalti.tokenizers.bottlenecks.kl import KLConfig
from smalti.tokenizers.bottlenecks.lfq import LFQConfig
from smalti.tokenizers.bottlenecks.rvq import RVQConfig
from smalti.tokenizers.bottlenecks.vq import VQConfig


class Case(NamedTuple):
    """A bottleneck small enough for tests, and what it must reach in `STEPS` steps on plane waves.

    Waves that are always answered 0 give an error of 0.5. Over 64 signals there are 128 tokens in one dimension, 256 in
    two and 512 in three.
    """

    config: Config
    used: float  # share of the codes used over 64 signals, in the codebook that uses the fewest
    mse: float  # of the reconstruction, on the [-1, 1] scale


# every kind in the table, in each of its ways; a new bottleneck adds a line here
CASES = {
    "vq": Case(VQConfig(codes=16, dim=4), used=0.9, mse=0.25),
    "vq-gradient": Case(VQConfig(codes=16, dim=4, learn="gradient"), used=0.9, mse=0.25),
    "vq-cosine": Case(VQConfig(codes=16, dim=4, metric="cosine"), used=0.9, mse=0.25),
    "vq-cosine-gradient": Case(VQConfig(codes=16, dim=4, metric="cosine", learn="gradient"), used=0.9, mse=0.25),
    "vq-simvq": Case(VQConfig(codes=16, dim=4, learn="simvq"), used=0.8, mse=0.25),
    "vq-cosine-simvq": Case(VQConfig(codes=16, dim=4, metric="cosine", learn="simvq"), used=0.8, mse=0.25),
    # on a few hundred steps the rotated gradient draws latents together; a quicker codebook follows them
    "vq-rotation": Case(VQConfig(codes=16, dim=4, estimator="rotation", decay=0.9), used=0.9, mse=0.33),
    "vq-cosine-rotation": Case(VQConfig(codes=16, dim=4, metric="cosine", estimator="rotation"), used=0.9, mse=0.25),
    "rvq": Case(RVQConfig(codes=8, dim=4, stages=3, dropout=0.5), used=0.9, mse=0.25),
    "fsq": Case(FSQConfig(levels=(4, 3, 2)), used=0.9, mse=0.25),
    "lfq": Case(LFQConfig(bits=4), used=0.9, mse=0.26),
    "bsq": Case(LFQConfig(bits=4, spherical=True), used=0.9, mse=0.25),
    # the slow ones: their codes separate as the temperature falls, which 80 steps only begin
    "gumbel": Case(GumbelConfig(codes=16, dim=4), used=0.5, mse=0.33),
    "gumbel-hard": Case(GumbelConfig(codes=16, dim=4, hard=True), used=0.4, mse=0.35),
    "kl": Case(KLConfig(dim=4), used=0, mse=0.18),
}
STEPS = 80
CHANCE = {"rvq", "gumbel", "gumbel-hard", "kl"}  # those that draw
WITHOUT_CODES = {"kl"}

every = pytest.mark.parametrize("name", CASES)
with_codes = pytest.mark.parametrize("name", [name for name in CASES if name not in WITHOUT_CODES])
without_codes = pytest.mark.parametrize("name", sorted(WITHOUT_CODES))
dimensions = pytest.mark.parametrize("dimensions", [1, 2, 3])
training = pytest.mark.parametrize("training", [False, True])


def made(name: str, dimensions: int) -> Autoencoder:
    torch.manual_seed(0)
    config = AutoencoderConfig(width=24, strides=(4,), blocks=1, bottleneck=CASES[name].config)
    return Autoencoder(config, SignalSpec(channels=2, shape=(8,) * dimensions))


def vectors(tokenizer: Autoencoder, x: Tensor) -> Tensor:
    """What the bottleneck is given, (B, N, in_width)."""
    return to_vectors(tokenizer.encoder(x)).detach()


def initialised(name: str, x: Tensor) -> Autoencoder:
    tokenizer = made(name, x.ndim - 2)
    tokenizer.bottleneck.initialise(vectors(tokenizer, x).flatten(0, 1))
    return tokenizer


def moment(step: int = 0, rows: Tensor | None = None, along: float = 0.3) -> Moment:
    return Moment(0, step, torch.arange(8) if rows is None else rows, along)


def drawn(bottleneck: Bottleneck, rows: int = 8, positions: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(rows, positions, bottleneck.in_width, generator=torch.Generator().manual_seed(seed))


def cost(quantized: Quantized) -> Tensor:
    """The bottleneck's part of the loss."""
    return torch.stack([term.coefficient * term.sum / term.weight for term in quantized.terms]).sum()


def after_step(bottleneck: Bottleneck, quantized: Quantized) -> None:
    """As the trainer does it: one batch, one process."""
    if quantized.statistics:
        bottleneck.after_step({name: each.value for name, each in quantized.statistics.items()})


def train(
    tokenizer: Autoencoder, x: Tensor, steps: int, part: range | None = None, optimized: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The shortest training that is one, or a part of it; takes and gives back the optimizer's state."""
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=1e-2)
    if optimized is not None:
        optimizer.load_state_dict(optimized)
    tokenizer.train()
    for step in part or range(steps):
        rows = torch.arange(step % 2, len(x), 2)
        reconstruction, quantized = tokenizer(x[rows], moment(step, rows, step / steps))
        loss = (reconstruction - x[rows]).square().mean() + cost(quantized)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after_step(tokenizer.bottleneck, quantized)
    tokenizer.eval()
    return optimizer.state_dict()


def train_bottleneck(bottleneck: Bottleneck, steps: range) -> None:
    """Steps on drawn latents, plain gradient descent, so that the bottleneck's is all the state there is."""
    bottleneck.train()
    for step in steps:
        quantized = bottleneck(drawn(bottleneck, seed=step).requires_grad_(), moment(step, along=step / 12))
        (cost(quantized) + (quantized.vectors - 1).square().mean()).backward()
        with torch.no_grad():
            for parameter in bottleneck.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
        after_step(bottleneck, quantized)


def state(module: torch.nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in module.state_dict().values()]


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def test_every_bottleneck_of_the_table_is_tested():
    assert {case.config.kind for case in CASES.values()} == set(BOTTLENECKS)


@with_codes
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
def test_latents_and_back(name, dimensions, waves):
    x = waves(dimensions, 6)
    tokenizer = initialised(name, x).eval()
    latents = tokenizer.latents(x)
    assert latents.shape == (6, tokenizer.bottleneck.out_width, *(2,) * dimensions)
    y = tokenizer.decode_latents(latents)
    assert y.shape == x.shape
    assert y.dtype == torch.float32
    assert y.abs().max() <= 1
    if tokenizer.continuous:
        torch.testing.assert_close(y, tokenizer(x)[0].clamp(-1, 1))


@without_codes
@dimensions
@pytest.mark.parametrize("ask", ["encode", "decode", "codes"])
def test_one_without_codes_says_so(name, dimensions, ask, waves):
    tokenizer = made(name, dimensions)
    verbs: dict[str, Callable[[], object]] = {
        "encode": lambda: tokenizer.encode(waves(dimensions, 2)),
        "decode": lambda: tokenizer.decode(torch.zeros(1, 1, *(2,) * dimensions, dtype=torch.int64)),
        "codes": lambda: tokenizer.codes,
    }
    assert tokenizer.continuous
    assert (tokenizer.bottleneck.codebooks, tokenizer.bottleneck.size) == (0, 0)
    with pytest.raises(UserError, match=r"continuous.*latents"):
        verbs[ask]()


@every
@dimensions
def test_each_signal_is_on_its_own(name, dimensions, waves):
    x = waves(dimensions, 6)
    tokenizer = initialised(name, x).eval()
    torch.testing.assert_close(tokenizer.latents(x), torch.cat([tokenizer.latents(row[None]) for row in x]))
    assert tokenizer.latents(x[:0]).shape == (0, tokenizer.bottleneck.out_width, *(2,) * dimensions)
    if not tokenizer.continuous:
        alone = torch.cat([tokenizer.encode(row[None]) for row in x])
        assert torch.equal(tokenizer.encode(x), alone)
        assert tokenizer.encode(x[:0]).shape == (0, *alone.shape[1:])


@every
@dimensions
def test_other_sizes_than_the_trained_one(name, dimensions, waves):
    tokenizer = initialised(name, waves(dimensions, 6)).eval()
    grid = tuple(1 + axis for axis in range(dimensions))
    x = torch.zeros(2, 2, *(4 * side for side in grid))
    latents = tokenizer.latents(x)
    assert latents.shape[2:] == grid
    assert tokenizer.decode_latents(latents).shape == x.shape
    if not tokenizer.continuous:
        codes = tokenizer.encode(x)
        assert codes.shape[2:] == grid
        assert tokenizer.decode(codes).shape == x.shape


@with_codes
def test_the_vector_of_a_code_is_what_the_decoder_is_given_for_it(name):
    tokenizer = made(name, 2).eval()
    vectors, books = tokenizer.code_vectors(), tokenizer.bottleneck.codebooks
    assert vectors.shape == (books, tokenizer.bottleneck.size, tokenizer.bottleneck.out_width)
    for book, code in ((0, 0), (books - 1, 3)):
        codes = torch.zeros(1, books, 4, 4).long()
        codes[:, book] = code
        laid = vectors[book, code].view(1, -1, 1, 1).expand(-1, -1, 4, 4)
        torch.testing.assert_close(tokenizer.decode(codes), tokenizer.decode_latents(laid))


@with_codes
@dimensions
@training
def test_looking_codes_up_gives_the_quantized_vectors(name, dimensions, training, waves):
    """Without a moment nothing is drawn: not in training either."""
    x = waves(dimensions, 6)
    tokenizer = initialised(name, x).train(training)
    quantized = tokenizer.bottleneck(z := vectors(tokenizer, x))
    assert quantized.codes.shape == (*z.shape[:2], tokenizer.bottleneck.codebooks)
    torch.testing.assert_close(tokenizer.bottleneck.lookup(quantized.codes), quantized.vectors)
    # and the decoder is given each at its own place
    y = tokenizer.decode_latents(to_grid(quantized.vectors, tokenizer.codes.grid))
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(x)), y)


@every
@dimensions
def test_one_changed_place_changes_its_neighbourhood(name, dimensions, waves):
    """Grid axes are not mixed up: what stands at a place of the grid is laid at that place of the signal."""
    tokenizer = initialised(name, waves(dimensions, 2))
    for parameter in tokenizer.decoder.parameters():  # an untrained block is the identity
        torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else None
    grid = (5,) * dimensions
    if tokenizer.continuous:
        before, decode = torch.zeros(1, tokenizer.bottleneck.out_width, *grid), tokenizer.decode_latents
    else:
        before, decode = torch.zeros(1, tokenizer.codes.codebooks, *grid, dtype=torch.int64), tokenizer.decode
    for axis in range(dimensions):
        after = before.clone()
        after.select(2 + axis, 0).fill_(1)
        moved = (decode(before) - decode(after)).abs().amax(1)[0]
        assert moved.narrow(axis, 0, 4).max() > 1e-6
        assert moved.narrow(axis, 12, 8).max() < 1e-6


@every
@dimensions
def test_saved_and_loaded(name, dimensions, waves):
    x = waves(dimensions, 6)
    tokenizer = initialised(name, x)
    train(tokenizer, x, 3)
    other = made(name, dimensions).eval()
    assert not torch.equal(other(x)[0], tokenizer(x)[0])
    other.load_state_dict(tokenizer.state_dict())
    assert torch.equal(other(x)[0], tokenizer(x)[0])
    for one in (tokenizer, other):  # and goes on alike
        train(one, x, 6)
    assert same(state(tokenizer), state(other))


@every
@dimensions
def test_a_tokenizer_stopped_and_resumed_is_undisturbed(name, dimensions, waves):
    """12 steps are 7 and, in another that takes over its state and its optimizer's, 5 more: bit for bit."""
    x = waves(dimensions, 6)
    whole, cut = (initialised(name, x) for _ in range(2))
    train(whole, x, 12)
    optimized = train(cut, x, 12, range(7))
    torch.manual_seed(1)
    resumed = made(name, dimensions)
    resumed.load_state_dict(cut.state_dict())
    train(resumed, x, 12, range(7, 12), optimized)
    assert same(state(whole), state(resumed))
    assert not same(state(whole), state(cut))


@every
def test_stopped_and_resumed_is_undisturbed(name):
    """All that a bottleneck knows of its past is in its state, between looks for dead codes too."""
    whole, cut = (made(name, 1).bottleneck for _ in range(2))
    for bottleneck in (whole, cut):
        bottleneck.initialise(drawn(bottleneck, seed=99).flatten(0, 1))
    train_bottleneck(whole, range(12))
    train_bottleneck(cut, range(7))
    torch.manual_seed(1)
    resumed = CASES[name].config.build()
    resumed.load_state_dict(cut.state_dict())
    train_bottleneck(resumed, range(7, 12))
    assert same(state(whole), state(resumed))
    assert not state(whole) or not same(state(whole), state(cut))


@every
@dimensions
def test_learning(name, dimensions, waves):
    x = waves(dimensions, 64)
    tokenizer = initialised(name, x)
    train(tokenizer, x, STEPS)
    with torch.no_grad():
        mse = float((tokenizer(x)[0].clamp(-1, 1) - x).square().mean())
        books = [] if tokenizer.continuous else tokenizer.encode(x).unbind(1)
    for book in books:
        used = len(book.unique()) / tokenizer.codes.size
        assert used >= CASES[name].used, f"{used:.2f} of the codes used over {book.numel()} tokens"
    assert mse <= CASES[name].mse


@every
@training
def test_forward_changes_no_state(name, training, waves):
    x = waves(2, 8)
    tokenizer = initialised(name, x).train(training)
    before = state(tokenizer)
    for step in range(3):
        _, quantized = tokenizer(x, moment(step) if training else None)
    assert same(before, state(tokenizer))
    if not training:
        assert quantized.statistics == {}


@every
@pytest.mark.parametrize("verb", ["encode", "latents", "forward"])
def test_a_tokenizer_in_use_never_starts_from_what_it_is_shown(name, verb, waves):
    """Not even the first time: a state from real data is set by the trainer, once, and never in passing."""
    tokenizer = made(name, 2).eval()
    if tokenizer.continuous and verb == "encode":
        return
    before = state(tokenizer)
    getattr(tokenizer, verb)(waves(2, 8))
    assert same(before, state(tokenizer))


@every
@training
def test_a_start_from_real_latents_leaves_the_mode(name, training):
    bottleneck = CASES[name].config.build().train(training)
    bottleneck.initialise(drawn(bottleneck).flatten(0, 1))
    assert all(module.training == training for module in bottleneck.modules())


@every
@pytest.mark.parametrize("count", [1, 3])
def test_a_start_from_fewer_latents_than_codes(name, count):
    bottleneck = made(name, 2).bottleneck.train()
    bottleneck.initialise(drawn(bottleneck, 1, count).flatten(0, 1))
    train_bottleneck(bottleneck, range(6))
    assert all(tensor.isfinite().all() for tensor in state(bottleneck))
    quantized = bottleneck.eval()(drawn(bottleneck, 64))
    assert quantized.vectors.isfinite().all()
    if quantized.codes is not None:
        assert len(quantized.codes.unique()) > count, "the others were not taken up"


@every
def test_terms_and_statistics_of_two_halves_are_those_of_the_whole(name, waves):
    bottleneck = initialised(name, waves(2, 8)).train().bottleneck
    for step in range(5):  # to one that looks for dead codes
        z = drawn(bottleneck, seed=step)
        whole = bottleneck(z, moment(step))
        halves = [bottleneck(z[rows], moment(step, rows)) for rows in torch.arange(8).split(4)]
        for i, term in enumerate(whole.terms):
            parts = [half.terms[i] for half in halves]
            assert sum(part.weight for part in parts) == term.weight
            torch.testing.assert_close(sum(part.sum for part in parts), term.sum)
        for key, statistic in whole.statistics.items():
            values = [half.statistics[key].value for half in halves]
            merged = torch.cat(values) if statistic.merge == "gather" else torch.stack(values).sum(0)
            torch.testing.assert_close(merged, statistic.value)
        after_step(bottleneck, whole)


@every
def test_what_is_drawn_does_not_depend_on_how_the_batch_was_split(name, waves):
    bottleneck = initialised(name, waves(2, 8)).train().bottleneck
    z = drawn(bottleneck)
    whole = bottleneck(z, moment(3))
    for rows in (*torch.arange(8).split(3), torch.tensor([6, 1, 4])):
        part = bottleneck(z[rows], moment(3, rows))
        torch.testing.assert_close(part.vectors, whole.vectors[rows])
        assert whole.codes is None or torch.equal(part.codes, whole.codes[rows])
    again, other = bottleneck(z, moment(3)), bottleneck(z, moment(4))
    assert torch.equal(again.vectors, whole.vectors)
    assert torch.equal(other.vectors, whole.vectors) == (name not in CHANCE)


@every
@pytest.mark.parametrize("size", [0.0, 1e-4, 1e4])
def test_whatever_the_encoder_says_figures_and_gradients_are_finite(name, size, waves):
    bottleneck = initialised(name, waves(2, 8)).train().bottleneck
    for step in range(5):
        z = (size * drawn(bottleneck, seed=step)).requires_grad_()
        quantized = bottleneck(z, moment(step))
        assert quantized.vectors.isfinite().all()
        assert all(term.sum.isfinite() for term in quantized.terms)
        (cost(quantized) + quantized.vectors.square().mean()).backward()
        assert z.grad.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in bottleneck.parameters())
        after_step(bottleneck, quantized)
        assert all(tensor.isfinite().all() for tensor in state(bottleneck))
        assert bottleneck.eval()(z).vectors.isfinite().all()
        bottleneck.train()


@every
def test_one_example_of_one_position(name):
    bottleneck = made(name, 2).bottleneck.train()
    for step in range(5):
        z = drawn(bottleneck, 1, 1, seed=step).requires_grad_()
        quantized = bottleneck(z, moment(step, torch.tensor([5])))
        assert quantized.vectors.shape == (1, 1, bottleneck.out_width)
        assert quantized.codes is None or quantized.codes.shape == (1, 1, bottleneck.codebooks)
        (cost(quantized) + quantized.vectors.square().mean()).backward()
        assert z.grad.isfinite().all()
        after_step(bottleneck, quantized)
    assert all(tensor.isfinite().all() for tensor in state(bottleneck))


@every
def test_half_precision_latents_are_quantized_in_full(name, waves):
    bottleneck = initialised(name, waves(2, 8)).train().bottleneck
    z = drawn(bottleneck).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        quantized = bottleneck(z, moment())
    full = bottleneck(z.float(), moment())
    assert torch.equal(quantized.vectors, full.vectors)
    assert quantized.codes is None or torch.equal(quantized.codes, full.codes)
    assert [term.sum for term in quantized.terms] == [term.sum for term in full.terms]
    assert all(value.dtype == torch.float32 for value in (full.vectors, *(term.sum for term in quantized.terms)))
    for key, statistic in quantized.statistics.items():
        assert torch.equal(statistic.value, full.statistics[key].value)
        assert statistic.value.dtype == torch.float32


@every
@dimensions
def test_training_in_half_precision(name, dimensions, waves):
    # a grid of 4: with a depth of 2, torch 2.13 takes bf16 gradients of 3D kernels from memory that nobody has set
    x = waves(dimensions, 8).repeat(1, 1, *(2,) * dimensions)
    tokenizer = initialised(name, x).train()
    with torch.autocast("cpu", torch.bfloat16):
        reconstruction, quantized = tokenizer(x, moment())
        loss = (reconstruction.float() - x).square().mean() + cost(quantized)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in tokenizer.parameters())
    assert tokenizer.encoder.layers[0].weight.grad.abs().max() > 0
    after_step(tokenizer.bottleneck, quantized)
    assert all(tensor.isfinite().all() for tensor in state(tokenizer.bottleneck))


WRONG_SIGNALS = {
    "channels": (torch.zeros(1, 3, 8, 8), "does not fit"),
    "axes": (torch.zeros(1, 2, 8), "does not fit"),
    "stride": (torch.zeros(1, 2, 8, 10), "stride 4"),
    "nothing": (torch.zeros(1, 2, 0, 8), "stride 4"),
    "pixels": (torch.zeros(1, 2, 8, 8, dtype=torch.uint8), "float.*got torch.uint8"),
}
WRONG_CODES: dict[str, tuple[Callable[[Autoencoder], Tensor], str]] = {
    "too large a code": (lambda tokenizer: codes_of(tokenizer, tokenizer.codes.size), r"lie in \[0, \d+\)"),
    "a negative code": (lambda tokenizer: codes_of(tokenizer, -1), r"lie in \[0, \d+\)"),
    "no codebook axis": (lambda tokenizer: codes_of(tokenizer, 0)[:, 0], "do not fit"),
    "no codebook": (lambda tokenizer: codes_of(tokenizer, 0)[:, :0], "do not fit"),
    "no grid": (lambda tokenizer: codes_of(tokenizer, 0)[..., :0], "do not fit"),
    "fractions": (lambda tokenizer: codes_of(tokenizer, 0).float(), "whole numbers.*got torch.float32"),
    "too many codebooks": (lambda tokenizer: codes_of(tokenizer, 0).repeat(1, 2, 1, 1), "do not fit"),
}


def codes_of(tokenizer: Autoencoder, value: int) -> Tensor:
    return torch.full((1, tokenizer.codes.codebooks, 2, 2), value)


@every
@pytest.mark.parametrize("wrong", WRONG_SIGNALS)
def test_a_signal_that_does_not_fit_is_refused_in_words(name, wrong):
    x, words = WRONG_SIGNALS[wrong]
    tokenizer = made(name, 2)
    verbs = [tokenizer.latents, tokenizer] if tokenizer.continuous else [tokenizer.latents, tokenizer, tokenizer.encode]
    for verb in verbs:
        with pytest.raises(UserError, match=words):
            verb(x)


@with_codes
@pytest.mark.parametrize("wrong", WRONG_CODES)
def test_codes_that_do_not_fit_are_refused_in_words(name, wrong):
    codes, words = WRONG_CODES[wrong]
    tokenizer = made(name, 2)
    with pytest.raises(UserError, match=words):
        tokenizer.decode(codes(tokenizer))


@with_codes
def test_codes_of_the_type_that_files_hold(name):
    tokenizer = made(name, 2)
    codes = codes_of(tokenizer, 1)
    assert torch.equal(tokenizer.decode(codes.to(torch.uint8)), tokenizer.decode(codes))


@every
def test_latents_that_do_not_fit_are_refused_in_words(name):
    tokenizer = made(name, 2)
    width = tokenizer.bottleneck.out_width
    for shape in [(1, width + 1, 2, 2), (1, width, 2), (1, width, 0, 2)]:
        with pytest.raises(UserError, match="do not fit"):
            tokenizer.decode_latents(torch.zeros(shape))


def test_a_shape_the_stride_does_not_divide_is_refused():
    with pytest.raises(UserError, match=r"10x8.*stride 4.*--data.shape"):
        Autoencoder(AutoencoderConfig(strides=(2, 2)), SignalSpec(channels=1, shape=(10, 8)))
