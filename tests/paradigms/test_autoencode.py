from __future__ import annotations

import pytest
import torch

from smalti.config import Examples, SignalSpec
from smalti.data.batch import Batch
from smalti.paradigms.autoencode import AutoencodeConfig
from smalti.tokenizers.autoencoder import AutoencoderConfig
from smalti.tokenizers.bottlenecks.vq import VQConfig

MODEL = AutoencoderConfig(width=16, strides=(4,), blocks=1, bottleneck=VQConfig(codes=8, dim=4))


@pytest.fixture
def paradigm():
    torch.manual_seed(0)
    return AutoencodeConfig().build(MODEL, Examples(signal=SignalSpec(channels=3, shape=(8, 8))), steps=10)


@pytest.fixture
def batch(generator):
    x = torch.rand(4, 3, 8, 8, generator=generator) * 2 - 1
    return Batch(0, torch.arange(4), torch.arange(4), x)


def test_the_reported_error_is_on_the_zero_to_one_scale(paradigm, batch):
    terms = {term.name: term for term in paradigm.loss("tokenizer", batch, 0).terms}
    y, _ = paradigm.tokenizer(batch.x)
    expected = ((y + 1) / 2 - (batch.x + 1) / 2).square().mean()
    torch.testing.assert_close(terms["mse"].sum / terms["mse"].weight, expected)
    torch.testing.assert_close(terms["reconstruction"].sum / terms["reconstruction"].weight, expected * 4)
    assert terms["mse"].coefficient == 0


def test_the_first_latents_are_what_the_encoder_gives(paradigm, batch):
    latents = paradigm.first_latents(batch)
    z = paradigm.tokenizer.latents(batch.x)
    assert latents.shape == (4 * 2 * 2, 4)
    torch.testing.assert_close(latents[1], z[0, :, 0, 1])
    torch.testing.assert_close(latents[4], z[1, :, 0, 0])


def test_statistics_come_while_training_alone(paradigm, batch):
    assert paradigm.train().loss("tokenizer", batch, 0).statistics
    assert not paradigm.eval().loss("tokenizer", batch, 0).statistics
    assert paradigm.after_step({}) == {}
