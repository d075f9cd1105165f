from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.evaluation.latents import LatentMeter


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 100))
@settings(max_examples=20)
def test_figures_are_numpys_however_signals_come(sizes: list[int], seed: int) -> None:
    means = np.random.default_rng(seed).normal(1.0, 0.3, (sum(sizes), 3, 2, 2))
    meter = LatentMeter()
    for part in torch.from_numpy(means).float().split(sizes):
        meter.update(part, nats=2.0 * len(part))
    np.testing.assert_allclose(meter.variances().numpy(), means.var(0), atol=1e-6)
    mean, deviation = meter.channels()
    np.testing.assert_allclose(mean.numpy(), means.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(deviation.numpy(), means.std((0, 2, 3)), atol=1e-6)
    told = json.loads(json.dumps(meter.result(), allow_nan=False))
    assert (told["numbers"], told["channels"], meter.signals) == (12, 3, sum(sizes))
    assert told["nats_a_picture"] == pytest.approx(2)
    assert told["active_units"] == (means.var(0) > 0.01).sum()
    assert told["mean"] == pytest.approx(means.mean(), abs=1e-6)
    assert told["deviation"] == pytest.approx(means.std(), abs=1e-6)
    assert told["most_mean"] == pytest.approx(means.mean((0, 2, 3)).max(), abs=1e-6)
    assert told["least_deviation"] == pytest.approx(means.std((0, 2, 3)).min(), abs=1e-6)


def test_a_unit_is_active_above_a_hundredth() -> None:
    # Burda et al.: the variance of the posterior mean over the data. ± 0.09 has 0.0081, ± 0.11 has 0.0121
    means = torch.tensor([[0.09, 0.11, 3.0], [-0.09, -0.11, 3.0]])[:, :, None]
    meter = LatentMeter()
    meter.update(means, 0.0)
    assert meter.result()["active_units"] == 1
    assert meter.result()["active_share"] == pytest.approx(1 / 3)


def test_unlike_shapes_and_nothing_measured_are_errors() -> None:
    meter = LatentMeter()
    with pytest.raises(ValueError, match="nothing was measured"):
        meter.result()
    meter.update(torch.zeros(1, 2, 3), 0.0)
    with pytest.raises(ValueError, match="latents are"):
        meter.update(torch.zeros(1, 3, 2), 0.0)
