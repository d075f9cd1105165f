from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.evaluation import reconstruction
from smalti.evaluation.reconstruction import ReconstructionMeter, psnr, ssim


def naive_ssim(x: np.ndarray, y: np.ndarray, window: int, sigma: float) -> float:
    """Every pixel, one at a time, the picture reflected at its edges: (H, W) in [0, 1]."""
    x, y = (np.pad(picture, window // 2, mode="reflect") for picture in (x, y))
    reach = np.arange(window) - (window - 1) / 2
    bell = np.exp(-(reach**2) / (2 * sigma**2))
    weight = np.outer(bell, bell) / bell.sum() ** 2
    found = []
    for i in range(x.shape[0] - window + 1):
        for j in range(x.shape[1] - window + 1):
            a, b = x[i : i + window, j : j + window], y[i : i + window, j : j + window]
            mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
            var_a, var_b = (weight * (a - mean_a) ** 2).sum(), (weight * (b - mean_b) ** 2).sum()
            both = (weight * (a - mean_a) * (b - mean_b)).sum()
            found.append(
                (2 * mean_a * mean_b + 0.01**2)
                * (2 * both + 0.03**2)
                / ((mean_a**2 + mean_b**2 + 0.01**2) * (var_a + var_b + 0.03**2))
            )
    return float(np.mean(found))


@pytest.mark.parametrize(("side", "window", "sigma"), [(16, 11, 1.5), (11, 11, 1.5), (8, 7, 3 / 3.5), (5, 5, 2 / 3.5)])
def test_ssim_is_that_of_a_naive_loop(side: int, window: int, sigma: float) -> None:
    x, y = torch.rand(2, 1, side, side + 2), torch.rand(2, 1, side, side + 2)
    y = 0.7 * x + 0.3 * y
    expected = [naive_ssim(x[i, 0].double().numpy(), y[i, 0].double().numpy(), window, sigma) for i in range(2)]
    assert ssim(x, y).tolist() == pytest.approx(expected, abs=1e-5)


def test_a_known_error_gives_its_figures() -> None:
    x = torch.zeros(4, 3, 16, 16)
    meter = ReconstructionMeter()
    meter.update(x, x + 0.2)  # 0.1 on the [0, 1] scale
    figures = meter.result()
    assert figures["mse"] == pytest.approx(0.01, rel=1e-5)
    assert figures["psnr"] == pytest.approx(20.0, rel=1e-5)
    assert 0 < figures["ssim"] < 1


@pytest.mark.parametrize("shape", [(3, 1, 1, 1), (3, 1, 2, 9), (3, 4, 28, 28), (2, 3, 4, 12, 12)])
def test_a_copy_is_perfect_at_any_size(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    meter = ReconstructionMeter()
    meter.update(x, x)
    # SSIM of flat surroundings divides two small numbers, each rounded in fp32
    assert meter.result() == pytest.approx({"mse": 0.0, "psnr": 100.0, "ssim": 1.0}, abs=1e-4)
    json.dumps(meter.result(), allow_nan=False)


def test_video_is_the_mean_over_its_frames() -> None:
    x, y = torch.rand(2, 1, 3, 12, 12), torch.rand(2, 1, 3, 12, 12)
    frames = torch.stack([ssim(x[:, :, t], y[:, :, t]) for t in range(3)])
    torch.testing.assert_close(ssim(x, y), frames.mean(0))


def test_sound_has_no_ssim() -> None:
    meter = ReconstructionMeter()
    meter.update(torch.zeros(2, 1, 50), torch.ones(2, 1, 50))
    assert meter.result() == {"mse": pytest.approx(0.25), "psnr": pytest.approx(-10 * math.log10(0.25))}


def test_what_lies_outside_the_range_is_clamped() -> None:
    meter = ReconstructionMeter()
    meter.update(torch.ones(1, 1, 12, 12), torch.full((1, 1, 12, 12), 7.0))
    assert meter.result()["mse"] == 0


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_the_split_into_batches_does_not_matter(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.rand(sum(sizes), 1, 12, 12, generator=generator) * 2 - 1 for _ in range(2))
    whole, parts = ReconstructionMeter(), ReconstructionMeter()
    whole.update(x, y)
    for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
        parts.update(a, b)
    assert parts.result() == pytest.approx(whole.result(), rel=1e-5)
    assert whole.result()["psnr"] == psnr(whole.result()["mse"])
    assert whole.result()["mse"] == pytest.approx(((x - y) / 2).square().mean().item(), rel=1e-5)


def test_of_a_large_batch_a_few_are_compared_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """500 colour pictures of 256x256 at once would take 24 GB in SSIM."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(11, 3, 12, 12, generator=generator) * 2 - 1 for _ in range(2))
    whole, parts = ReconstructionMeter(), ReconstructionMeter()
    whole.update(x, y)
    seen: list[int] = []

    def watched(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen.append(len(a))
        return ssim(a, b)

    monkeypatch.setattr(reconstruction, "ssim", watched)
    monkeypatch.setattr(reconstruction, "AT_ONCE", 4 * 3 * 12 * 12 + 1)
    parts.update(x, y)
    assert seen == [4, 4, 3]
    assert parts.result() == pytest.approx(whole.result(), rel=1e-5)
    assert parts.signals == 11
    monkeypatch.setattr(reconstruction, "AT_ONCE", 1)  # one is compared, however large
    parts.update(x[:2], y[:2])
    assert seen[3:] == [1, 1]


def test_unlike_shapes_and_nothing_measured_are_errors() -> None:
    meter = ReconstructionMeter()
    with pytest.raises(ValueError, match="originals are"):
        meter.update(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5))
    with pytest.raises(ValueError, match="nothing was measured"):
        meter.result()
