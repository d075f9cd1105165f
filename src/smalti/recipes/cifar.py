"""Small colour photographs: CIFAR-10, 50,000 pictures of 32x32 in ten classes."""

from __future__ import annotations

from smalti.data.sources import DataConfig
from smalti.paradigms.autoencode import AutoencodeConfig
from smalti.recipe import Recipe, TrainingConfig
from smalti.tokenizers.autoencoder import AutoencoderConfig
from smalti.tokenizers.bottlenecks.vq import VQConfig


def cifar_tokenizer() -> Recipe:
    """The chapter's shape: 32×32 colour into an 8×8 grid of 512 codes.

    smalti train cifar-tokenizer
    data: cifar10, 170 MB from its publisher
    """
    return Recipe(
        name="cifar-tokenizer",
        data=DataConfig(source="cifar10", flip=True),
        model=AutoencoderConfig(width=128, strides=(2, 2), blocks=2, bottleneck=VQConfig(codes=512, dim=64)),
        paradigm=AutoencodeConfig(),
        training=TrainingConfig(steps=4000, batch=128, lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0),
    )
