"""Emoji by three artists: 10,953 colour pictures of 64x64, held out by concept."""

from __future__ import annotations

from smalti.data.sources import DataConfig
from smalti.paradigms.autoencode import AutoencodeConfig
from smalti.recipe import Recipe, TrainingConfig
from smalti.tokenizers.autoencoder import AutoencoderConfig
from smalti.tokenizers.bottlenecks.gumbel import GumbelConfig
from smalti.tokenizers.bottlenecks.kl import KLConfig
from smalti.tokenizers.bottlenecks.vq import VQConfig

EMOJI = DataConfig(source="emoji", flip=True, shift=2)


def emoji_tokenizer() -> Recipe:
    """Emoji as 64 words: an 8×8 grid of 1,024 codes, 80 bytes for 12,288.

    smalti train emoji-tokenizer
    data: emoji
    """
    return Recipe(
        name="emoji-tokenizer",
        data=EMOJI,
        # codes follow their vectors in tens of steps, and idle ones are put to use soon
        model=AutoencoderConfig(
            width=128, strides=(4, 2), blocks=2, bottleneck=VQConfig(codes=1024, dim=8, decay=0.95, revive_below=0.3)
        ),
        paradigm=AutoencodeConfig(),
        training=TrainingConfig(
            steps=6800,
            batch=64,
            lr=4e-3,
            muon_lr=0.02,
            warmup=20,
            weight_decay=0.0,
            betas=(0.9, 0.99),
            ema=0.999,
            validate_every=500,
        ),
    )


def emoji_tokenizer_16() -> Recipe:
    """The same with a 16×16 grid: four times the words, much sharper.

    smalti train emoji-tokenizer-16
    data: emoji
    """
    return emoji_tokenizer().changed(
        **{"name": "emoji-tokenizer-16", "model.strides": (4,), "training.steps": 3000, "model.width": 96}
    )


def emoji_vqgan() -> Recipe:
    """The 8×8 grid of 1,024 codes, trained on against a critic: crisper, if a little less exact.

    smalti train emoji-vqgan
    data: emoji
    """
    return emoji_tokenizer().changed(
        **{
            "name": "emoji-vqgan",
            "paradigm.kind": "adversarial",
            "paradigm.weight": 2.0,
            "paradigm.start": 4600,
            "paradigm.critic.lr": 2e-3,  # a quarter of it is left when the critic starts
        }
    )


def emoji_vae() -> Recipe:
    """A continuous 8×8×8 latent, near the standard normal, for latent diffusion.

    smalti train emoji-vae
    data: emoji
    """
    return _with(KLConfig(dim=8, weight=5e-5), "emoji-vae", 7200)


def emoji_dvae() -> Recipe:
    """The 8×8 grid of 1,024 codes by Gumbel-softmax, without a nearest code.

    smalti train emoji-dvae
    data: emoji
    """
    return _with(GumbelConfig(codes=1024, dim=8), "emoji-dvae", 4700)


def _with(bottleneck: GumbelConfig | KLConfig, name: str, steps: int) -> Recipe:
    recipe = emoji_tokenizer()
    model = recipe.model.model_copy(update={"bottleneck": bottleneck})
    return recipe.model_copy(update={"model": model}).changed(**{"name": name, "training.steps": steps})
