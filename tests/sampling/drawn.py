"""Runs of tokenizers whose weights are drawn and not trained, where it matters what goes through and not how well."""

from __future__ import annotations

from pathlib import Path

import torch

from smalti import model as models
from smalti.config import Config, Examples, SignalSpec
from smalti.data.sources import DataConfig
from smalti.paradigms.autoencode import AutoencodeConfig
from smalti.recipe import Recipe
from smalti.tokenizers.autoencoder import AutoencoderConfig, to_vectors


def drawn_run(
    run: Path,
    bottleneck: Config,
    *,
    channels: int = 1,
    shape: tuple[int, int] = (16, 16),
    width: int = 16,
    strides: tuple[int, ...] = (4,),
) -> Path:
    """Write the run of a tokenizer, its codes set from its own latents."""
    recipe = Recipe(
        name="drawn",
        data=DataConfig(source="nothing", shape=shape, channels=channels),
        model=AutoencoderConfig(width=width, strides=strides, blocks=1, bottleneck=bottleneck),
        paradigm=AutoencodeConfig(),
    )
    examples = Examples(signal=SignalSpec(channels=channels, shape=shape))
    paradigm, generator = models.build(recipe, examples).eval(), torch.Generator().manual_seed(1)
    network = paradigm.tokenizer
    for part in (network.encoder, network.decoder):
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    x = torch.rand(16, channels, *shape, generator=generator) * 2 - 1
    with torch.no_grad():
        network.bottleneck.initialise(to_vectors(network.encoder(x)).flatten(0, 1))
    models.write(run / "model", recipe, examples, paradigm, {})
    return run
