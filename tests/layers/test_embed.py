from __future__ import annotations

import math

import pytest
import torch

from smalti.layers.embed import FREQUENCIES, TimeEmbedding, waves

STEPS = torch.arange(1001) / 1000


def test_waves_against_a_naive_loop():
    made = waves(torch.tensor([0.0, 0.25, 1.0]))
    assert made.shape == (3, 2 * FREQUENCIES)
    for row, t in enumerate((0.0, 0.25, 1.0)):
        for i in (0, 1, 50, FREQUENCIES - 1):
            angle = 1000 * t * 10_000 ** (-i / FREQUENCIES)
            assert made[row, i].item() == pytest.approx(math.cos(angle), abs=2e-4)
            assert made[row, FREQUENCIES + i].item() == pytest.approx(math.sin(angle), abs=2e-4)


def test_waves_against_another_library():
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    theirs = embeddings.get_timestep_embedding(
        torch.arange(1001), 2 * FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0
    )
    torch.testing.assert_close(waves(STEPS), theirs, atol=3e-4, rtol=0)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("given", [torch.float32, torch.float64])
def test_a_thousand_times_are_told_apart(autocast, given):
    """bf16 has 8 bits: 999 and 1000 would be the same number, and so would their waves."""
    torch.manual_seed(0)
    embedding = TimeEmbedding(32)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        first, made = waves(STEPS.to(given)), embedding(STEPS.to(given))
    assert first.dtype == made.dtype == torch.float32
    assert (first[1:] - first[:-1]).abs().amax(1).min() > 0.5
    assert torch.equal(made, embedding(STEPS).detach())
    distances = torch.cdist(made, made) + torch.eye(len(made))
    assert distances.min() > 1e-4


def test_every_weight_learns():
    torch.manual_seed(0)
    embedding = TimeEmbedding(16)
    embedding(torch.rand(4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in embedding.parameters())
