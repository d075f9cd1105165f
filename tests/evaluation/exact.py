"""Tokenizers whose every figure can be worked out by hand: encoder and decoder hand on what they are given."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from smalti import model as models
from smalti.config import Config, Examples, SignalSpec
from smalti.data.sources import DataConfig
from smalti.model import Tokenizer
from smalti.paradigms.autoencode import AutoencodeConfig
from smalti.recipe import Recipe
from smalti.tokenizers.autoencoder import AutoencoderConfig
from smalti.tokenizers.bottlenecks.kl import KLConfig
from smalti.tokenizers.bottlenecks.rvq import RVQConfig


class Through(nn.Module):
    """A network that is one function of each position."""

    margin = 0

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def tokenizer(bottleneck: Config, shape: tuple[int, int], strides: tuple[int, ...] = (1,)) -> Tokenizer:
    """An untrained tokenizer of grey pictures."""
    recipe = Recipe(
        name="exact",
        data=DataConfig(source="nowhere", shape=shape, channels=1, workers=0),
        model=AutoencoderConfig(width=4, strides=strides, blocks=0, bottleneck=bottleneck),
        paradigm=AutoencodeConfig(),
    )
    examples = Examples(signal=SignalSpec(channels=1, shape=shape), labels=("a", "b"))
    torch.manual_seed(0)
    return Tokenizer(recipe, examples, models.build(recipe, examples), torch.device("cpu"))


def bits(stages: int, shape: tuple[int, int] = (4, 4)) -> Tokenizer:
    """Residual codes that are the bits of a value in [-1, 1], the highest first: stage q adds ± 2^-(q + 1)."""
    made = tokenizer(RVQConfig(stages=stages, codes=2, dim=1), shape)
    made.network.encoder = made.network.decoder = Through(lambda x: x)
    for q, stage in enumerate(made.network.bottleneck.stages):
        stage.codebook.copy_(torch.tensor([[-1.0], [1.0]]) * 2.0 ** -(q + 1))
    return made


def gaussian(log_variance: float, shape: tuple[int, int] = (2, 2)) -> Tokenizer:
    """A latent whose mean is the value itself, of the same variance everywhere."""
    made = tokenizer(KLConfig(dim=1), shape)
    made.network.encoder = Through(lambda x: torch.cat([x, torch.full_like(x, log_variance)], 1))
    made.network.decoder = Through(lambda z: z)
    return made


def sixteenths(pictures: int = 1) -> Tensor:
    """Pictures (n, 1, 4, 4) whose values are the middles of sixteen equal parts of [-1, 1], in some order."""
    generator = torch.Generator().manual_seed(0)
    orders = torch.stack([torch.randperm(16, generator=generator) for _ in range(pictures)])
    return ((2 * orders + 1) / 16 - 1).view(pictures, 1, 4, 4)
