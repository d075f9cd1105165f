from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from tests.evaluation import exact

from smalti.evaluation.tokenizers import CodeFigures, LatentFigures, figures_of
from smalti.tokenizers.bottlenecks import BOTTLENECKS
from smalti.tokenizers.bottlenecks.vq import VQConfig


def test_residual_figures_by_hand() -> None:
    figures = CodeFigures(exact.bits(stages=4))
    x = exact.sixteenths(3)
    assert torch.allclose(figures.rebuild(x), x, atol=1e-6)
    told = json.loads(json.dumps(figures.result(), allow_nan=False))
    assert (told["codes"], told["codebooks"], told["codes_a_picture"], told["tokens"]) == (2, 4, 64, 192)
    assert (told["bits_a_picture"], told["bits_a_pixel"]) == (64, 4)
    assert (told["bits_a_picture_of_original"], told["bits_a_pixel_of_original"]) == (128, 8)
    assert list(told["each_codebook"]) == list(told["first_codebooks"]) == ["1", "2", "3", "4"]
    for q in range(1, 5):
        # every bit is as often 0 as 1
        one = told["each_codebook"][str(q)]
        assert one == {**one, "tokens": 48, "used": 2, "usage": 1, "entropy": 1, "perplexity": 2, "perplexity_share": 1}
        # what is left lies evenly on n places 1/8 apart, of variance (n² - 1) / 12; a quarter of it on [0, 1]
        n = 16 >> q
        first = told["first_codebooks"][str(q)]
        assert (first["bits_a_picture"], first["bits_a_pixel"]) == (16 * q, q)
        assert first["mse"] == pytest.approx((n**2 - 1) / 12 / 64 / 4, abs=1e-9)


def test_more_codebooks_are_never_worse() -> None:
    figures = CodeFigures(exact.bits(stages=6, shape=(8, 8)))
    figures.rebuild(torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    first = list(figures.by_codebooks().values())
    for fewer, more in itertools.pairwise(first):
        assert fewer["bits_a_picture"] < more["bits_a_picture"]
        assert fewer["mse"] > more["mse"]
        assert fewer["psnr"] + 5 < more["psnr"]  # a bit is 6 dB
        assert fewer["ssim"] < more["ssim"]


def test_one_codebook_has_no_table_of_codebooks() -> None:
    figures = figures_of(exact.tokenizer(VQConfig(codes=4, dim=2), (4, 4)))
    assert isinstance(figures, CodeFigures)
    figures.rebuild(torch.zeros(2, 1, 4, 4))
    told = figures.result()
    assert not {"each_codebook", "first_codebooks"} & set(told)
    assert told["bits_a_picture"] == 16 * 2


def test_latent_figures_by_hand() -> None:
    log_variance = math.log(0.25)
    tokenizer = exact.gaussian(log_variance)
    figures = figures_of(tokenizer)
    assert isinstance(figures, LatentFigures)
    # one number varies by ± 0.2, the others are 0.5 in every picture
    x = torch.full((100, 1, 2, 2), 0.5)
    x[::2, 0, 0, 0], x[1::2, 0, 0, 0] = 0.2, -0.2
    assert torch.allclose(figures.rebuild(x), x, atol=1e-6)
    told = json.loads(json.dumps(figures.result(), allow_nan=False))["latent"]
    assert (told["numbers"], told["channels"], told["active_units"], told["active_share"]) == (4, 1, 1, 0.25)
    nats = sum(0.5 * (mean**2 + 0.25 - 1 - log_variance) for mean in (0.2, 0.5, 0.5, 0.5))
    assert told["nats_a_picture"] == pytest.approx(nats, rel=1e-5)
    assert told["mean"] == pytest.approx(1.5 / 4)
    assert told["deviation"] == pytest.approx(math.sqrt((0.04 + 0.75) / 4 - (1.5 / 4) ** 2))


@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_every_bottleneck_has_its_figures(kind: str) -> None:
    tokenizer = exact.tokenizer(BOTTLENECKS[kind](), (8, 8), (4,))
    figures = figures_of(tokenizer)
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(figures.rebuild(x), tokenizer.reconstruct(x), atol=1e-2, rtol=0)
    told = figures.result()
    json.dumps(told, allow_nan=False)
    assert ("latent" in told) == tokenizer.network.continuous
    assert ("perplexity" in told) != tokenizer.network.continuous
