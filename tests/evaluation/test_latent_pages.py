from __future__ import annotations

import math

import pytest
import torch
from tests.evaluation import exact
from tests.evaluation.test_report import Reader

from smalti.evaluation.evaluate import HeldOut
from smalti.evaluation.latent_pages import interpolations, is_plane, plane, plane_latents
from smalti.evaluation.report import Report
from smalti.tokenizers.bottlenecks.kl import KLConfig


def test_the_plane_has_equal_shares_of_the_prior() -> None:
    side = 5
    z = plane_latents(side)
    assert z.shape == (5, 5, 2)
    shares = 0.5 * (1 + torch.special.erf(z / math.sqrt(2)))  # the normal distribution function
    expected = (torch.arange(side) + 0.5) / side
    torch.testing.assert_close(shares[..., 0], expected.expand(5, 5))  # to the right
    torch.testing.assert_close(shares[..., 1], expected.flip(0)[:, None].expand(5, 5))  # upwards
    assert z[2, 2].tolist() == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.parametrize(("dim", "strides", "is_one"), [(2, (4, 4), True), (3, (4, 4), False), (2, (4,), False)])
def test_a_plane_is_a_latent_of_two_numbers(dim: int, strides: tuple[int, ...], is_one: bool) -> None:
    assert is_plane(exact.tokenizer(KLConfig(dim=dim), (16, 16), strides)) is is_one


@pytest.mark.parametrize("labels", [torch.arange(6) % 2, None])
def test_a_plane_is_shown_with_labels_and_without(labels: torch.Tensor | None) -> None:
    report = Report("t")
    test = HeldOut(torch.randint(0, 256, (6, 1, 16, 16), dtype=torch.uint8), labels, torch.arange(6))
    plane(report, exact.tokenizer(KLConfig(dim=2), (16, 16), (4, 4)), test)
    pictures = Reader(report.html()).pictures
    assert pictures[0].size == (20 * 32, 20 * 32)
    assert len(pictures) == 2


@pytest.mark.parametrize(("pictures", "rows"), [(6, 3), (3, 1), (1, 0)])
def test_ways_between_as_many_pictures_as_there_are(pictures: int, rows: int) -> None:
    report = Report("t")
    test = HeldOut(torch.zeros(pictures, 1, 2, 2, dtype=torch.uint8), None, torch.arange(pictures))
    interpolations(report, exact.gaussian(0.0), test)
    assert [round(each.height / 60) for each in Reader(report.html()).pictures] == ([rows] if rows else [])
