from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.sampling.drawn import drawn_run
from tests.tiny import stripes

from smalti.data.image import read_image
from smalti.errors import UserError
from smalti.model import load_tokenizer
from smalti.sampling.files import read_signal
from smalti.sampling.morph import morph, morph_codes, morph_files, morph_latents
from smalti.tokenizers.bottlenecks.kl import KLConfig


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(2, 9), st.integers(0, 99))
def test_from_one_to_the_other_and_never_back(codebooks, height, width, steps, seed):
    first = torch.zeros(codebooks, height, width, dtype=torch.int64)
    second = torch.arange(1, first.numel() + 1).view_as(first)
    blends = morph_codes(first, second, steps, seed)
    assert blends.shape == (steps, codebooks, height, width)
    assert torch.equal(blends[0], first)
    assert torch.equal(blends[-1], second)
    taken = blends == second
    for before, after in itertools.pairwise(taken):
        assert bool((after | ~before).all())  # each blend contains the one before
    assert bool((taken == taken[:, :1]).all())  # all codebooks of a position change at once
    assert torch.equal(blends, torch.where(taken, second, first))


def test_shares_grow_evenly():
    blends = morph_codes(torch.zeros(1, 40, 40, dtype=torch.int64), torch.ones(1, 40, 40, dtype=torch.int64), 5)
    torch.testing.assert_close(blends.float().mean((1, 2, 3)), torch.linspace(0, 1, 5), atol=0.05, rtol=0)


def test_what_cannot_be_morphed():
    with pytest.raises(UserError, match="one size"):
        morph_codes(torch.zeros(1, 2, 2).long(), torch.zeros(1, 2, 3).long(), 4)
    with pytest.raises(UserError, match="at least 2 steps"):
        morph_codes(torch.zeros(1, 2, 2).long(), torch.zeros(1, 2, 2).long(), 1)


def test_the_strip(tiny, tmp_path):
    tokenizer = load_tokenizer(tiny.tokenizer, "cpu")
    for name, lying in (("a", True), ("b", False)):
        Image.fromarray(stripes(5, lying, (14, 18))).save(tmp_path / f"{name}.png")
    morph_files(tokenizer, tmp_path / "a.png", tmp_path / "b.png", 4, 0, tmp_path / "out" / "strip.png")
    strip = read_image(tmp_path / "out" / "strip.png")
    assert strip.shape == (1, 14, 4 * 18)


def test_the_strip_never_replaces_a_picture(tiny, tmp_path):
    tokenizer = load_tokenizer(tiny.tokenizer, "cpu")
    pair = tmp_path / "a.png", tmp_path / "b.png"
    for path in pair:
        Image.fromarray(stripes(5, True, (16, 16))).save(path)
    before = pair[0].read_bytes()
    for ends in (pair, (tiny.picture, tiny.picture)):
        with pytest.raises(UserError, match=r"a\.png would be overwritten"):
            morph_files(tokenizer, *ends, 4, 0, pair[0])
    assert pair[0].read_bytes() == before
    for _ in range(2):  # its own strip it does
        morph_files(tokenizer, *pair, 4, 0, tmp_path / "strip.png")


def test_the_ends_are_the_reconstructions(tiny):
    tokenizer = load_tokenizer(tiny.tokenizer, "cpu")
    pair = [tiny.data / "Standing" / "001.png", tiny.data / "Lying flat" / "001.png"]
    a, b = (read_signal(path, tokenizer.signal) for path in pair)
    blends = morph(tokenizer, a, b, 6)
    torch.testing.assert_close(blends[[0, -1]], tokenizer.reconstruct(torch.stack([a, b])))


@given(st.integers(1, 3), st.integers(1, 4), st.integers(2, 9), st.integers(0, 99))
def test_a_straight_line_through_latents(width, side, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, width, side, side + 1, generator=generator)
    line = morph_latents(first, second, steps)
    assert torch.equal(line[0], first)
    assert torch.equal(line[-1], second)
    for i, between in enumerate(line):
        torch.testing.assert_close(between, first * (1 - i / (steps - 1)) + second * (i / (steps - 1)))


def test_a_continuous_tokenizer_interpolates(tmp_path):
    tokenizer = load_tokenizer(drawn_run(tmp_path / "kl", KLConfig(dim=3)), "cpu")
    a, b = (torch.from_numpy(stripes(5, lying)).float()[None] / 127.5 - 1 for lying in (True, False))
    blends = morph(tokenizer, a, b, 5)
    z = tokenizer.latents(torch.stack([a, b]))
    torch.testing.assert_close(blends[[0, -1]], tokenizer.decode_latents(z))
    torch.testing.assert_close(blends[2:3], tokenizer.decode_latents(z.mean(0, keepdim=True)), rtol=0, atol=0.05)
    assert torch.equal(morph(tokenizer, a, b, 5, seed=1), blends)
    with pytest.raises(UserError, match="at least 2 steps"):
        morph(tokenizer, a, b, 1)


def test_pictures_of_two_sizes(tiny, tmp_path):
    Image.fromarray(stripes(5, True, (16, 20))).save(tmp_path / "wide.png")
    with pytest.raises(UserError, match=r"000\.png is 16×16 and .*wide\.png is 20×16"):
        morph_files(
            load_tokenizer(tiny.tokenizer, "cpu"), tiny.picture, tmp_path / "wide.png", 4, 0, tmp_path / "s.png"
        )
