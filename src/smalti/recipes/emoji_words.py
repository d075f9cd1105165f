"""Emoji drawn and read by their words: scenes of several things, and single drawings of everything."""

from __future__ import annotations

from smalti.data.sources import DataConfig
from smalti.layers.transformer import TransformerConfig
from smalti.paradigms.contrastive import ContrastiveConfig
from smalti.paradigms.interleaved import InterleavedConfig
from smalti.paradigms.text_encoder import TextEncoderConfig
from smalti.recipe import Recipe, TrainingConfig
from smalti.recipes.emoji import emoji_dit, emoji_tokenizer, emoji_vae

MIX = DataConfig(source="emoji-mix")


def emoji_mix_tokenizer() -> Recipe:
    """Scenes and single drawings as 64 words: an 8×8 grid of 2,048 codes, 88 bytes for 12,288.

    smalti train emoji-mix-tokenizer
    data: emoji-mix
    time: 15 min on two cores that multiply bf16 in tiles
    result: 23.8 dB on held-out scenes and drawings
    """
    return emoji_tokenizer().changed(
        **{
            "name": "emoji-mix-tokenizer",
            "data": MIX.model_dump(),
            "model.local": True,  # or codes of a plain ground would tell what is beside it, as if by chance
            "model.bottleneck.codes": 2048,
            "training.steps": 5000,
        }
    )


def emoji_mix_vae() -> Recipe:
    """A continuous 8×8×8 latent of scenes and single drawings, for latent diffusion.

    smalti train emoji-mix-vae
    data: emoji-mix
    time: 9 min on two cores that multiply bf16 in tiles
    result: 26.5 dB, SSIM 0.89 on held-out scenes and drawings
    """
    return emoji_vae().changed(
        **{"name": "emoji-mix-vae", "data": MIX.model_dump(), "model.local": True, "training.steps": 3000}
    )


def emoji_things() -> Recipe:
    """What things are called, from scenes of one thing that are only drawn: the start of `emoji`.

    Names in captions begin to tell what is drawn after a hundred steps here, and after a thousand where they are one
    task among many.

    smalti train emoji-things
    data: emoji-things
    time: 13 min on two cores that multiply bf16 in tiles, after the tokenizer's
    result: 3.22 nats a code on held-out scenes of several things and drawings
    """
    return Recipe(
        name="emoji-things",
        data=DataConfig(source="emoji-things", most=40_000),
        tokenizer=emoji_mix_tokenizer(),
        # by a base for grids, 100, names in a caption are found from afar only after many more steps
        model=TransformerConfig(layers=5, width=320, heads=5, dropout=0.0, rope="interleaved", rope_base=10_000.0),
        paradigm=InterleavedConfig(
            row=192,
            drawing=1.0,
            text_alone=0.0,
            given="full",  # so that a name can be told its place, which often comes after it
            given_weight=0.0,
            seen_weight=0.0,
        ),
        training=TrainingConfig(
            steps=600,
            batch=64,
            lr=1.5e-3,
            lr_end=0.5,
            muon_lr=0.01,
            warmup=100,
            ema=0.998,
            validate_every=250,
            keep="last",
        ),
    )


def emoji_scenes() -> Recipe:
    """What stands where, from scenes of up to four things, drawn and read: the second stage of `emoji`.

    It goes on from `emoji-things`, its run in runs/emoji-things, and keeps its tokenizer.

    smalti train emoji-scenes --init runs/emoji-things
    data: emoji-scenes
    time: 43 min on two cores that multiply bf16 in tiles
    result: 0.94 of the things of scenes with unseen pairs at their place, 0.71 of their captions name all things
    """
    return emoji_things().changed(
        **{
            "name": "emoji-scenes",
            "data": DataConfig(source="emoji-scenes", most=110_000).model_dump(),
            "init": "runs/emoji-things",
            # a picture that is read costs as much as one that is drawn, so much is asked about each of fewer
            "paradigm.drawing": 0.62,
            "paradigm.questions": 5,
            "paradigm.text_alone": 0.1,
            "paradigm.code_dropout": 0.5,
            "training.steps": 1700,
            "training.validate_every": 850,
        }
    )


def emoji_drawings() -> Recipe:
    """What single drawings are called, drawn by their captions alone: the third stage of `emoji`.

    Where the codes drawn so far are seen, they give a drawing away, and its name is hardly looked at: after 27 showings
    of each, drawn so, its codes by name alone were as good as unknown, 268 nats; here, after 14, they cost 90.

    It goes on from `emoji-scenes`, its run in runs/emoji-scenes, and keeps its tokenizer.

    smalti train emoji-drawings --init runs/emoji-scenes
    data: emoji-drawings
    time: 15 min on two cores that multiply bf16 in tiles
    result: 0.84 of 200 such drawings called by their names where every code is the likeliest
    """
    return emoji_scenes().changed(
        **{
            "name": "emoji-drawings",
            "data": DataConfig(source="emoji-drawings", most=58_000).model_dump(),
            "init": "runs/emoji-scenes",
            "paradigm.drawing": 1.0,
            "paradigm.text_alone": 0.0,
            "paradigm.text_dropout": 0.0,
            "paradigm.code_dropout": 0.0,
            "paradigm.blind": 1.0,
            "training.steps": 900,
            "training.lr_end": 0.2,
            "training.ema": 0.99,
            "training.validate_every": 450,
        }
    )


def emoji_both() -> Recipe:
    """Scenes and single drawings, drawn and read: the fourth stage of `emoji`, for scenes were forgotten.

    It goes on from `emoji-drawings`, its run in runs/emoji-drawings, and keeps its tokenizer.

    smalti train emoji-both --init runs/emoji-drawings
    data: emoji-mix
    time: 38 min on two cores that multiply bf16 in tiles
    result: 0.85 of the things of scenes with unseen pairs at their place; drawings seen: the right name first for 0.84
    """
    return emoji_scenes().changed(
        **{
            "name": "emoji-both",
            "data": MIX.model_copy(update={"most": 110_000}).model_dump(),
            "init": "runs/emoji-drawings",
            "paradigm.drawing": 0.65,
            "paradigm.text_alone": 0.03,
            "paradigm.questions": 4,
            "paradigm.blind": 0.85,  # 18 drawings a step; at 8, at a higher rate, their names are forgotten
            "paradigm.text_dropout": 0.05,
            "paradigm.code_dropout": 0.3,
            "paradigm.seen_dropout": 0.3,
            "paradigm.seen_again": 0.3,
            "paradigm.sampling.guidance": 2.0,
            "paradigm.sampling.temperature": 0.25,
            "paradigm.sampling.blind": 1.0,
            "paradigm.sampling.text_best_of": 8,
            "training.steps": 2000,
            "training.lr": 1.2e-3,
            "training.muon_lr": 0.007,
            "training.lr_end": 0.01,
            "training.ema": 0.995,
            "training.validate_every": 500,
        }
    )


def emoji() -> Recipe:
    """Emoji drawn from words and put into words: captions, scenes and questions in one sequence of one vocabulary.

    It goes on from `emoji-both`, its run in runs/emoji-both, with more reading, and keeps its tokenizer.

    smalti train emoji --init runs/emoji-both
    data: emoji-mix
    time: 16 min on two cores that multiply bf16 in tiles, after 109 of the stages before it
    result: 0.87 of such things, 0.95 of captions name all; the right name first among 100 for 0.81 (real 0.99)
    """
    return emoji_both().changed(
        **{
            "name": "emoji",
            "init": "runs/emoji-both",
            "paradigm.drawing": 0.4,
            "paradigm.text_alone": 0.02,
            "paradigm.questions": 5,
            "paradigm.seen_dropout": 0.2,
            "training.steps": 700,
            "training.lr": 8e-4,
            "training.muon_lr": 0.005,
            "training.warmup": 50,
            "training.init_share": 0.6,  # more names than at the end of this stage, and read better than before it
            "training.validate_every": 350,
        }
    )


def emoji_text_dit() -> Recipe:
    """Scenes drawn by a diffusion transformer that reads their captions by cross-attention, in the latent of a VAE.

    What it reads is what `emoji` knows of a caption. An encoder that began with nothing told apart what was asked for,
    after 3,800 steps, but not which thing stands where. Training sees much noise, for with little of it the picture
    itself tells that.

    smalti train emoji-text-dit
    data: emoji-scenes
    time: 51 min on two cores that multiply bf16 in tiles, after the VAE's 9
    result: 0.96 of the things of scenes with unseen pairs at their place, the ground always as asked
    """
    dit = emoji_dit()
    return dit.model_copy(
        update={
            "name": "emoji-text-dit",
            "data": DataConfig(source="emoji-scenes", most=120_000),
            "tokenizer": emoji_mix_vae(),
            "paradigm": dit.paradigm.model_copy(update={"text": TextEncoderConfig(folder="emoji")}),
        }
    ).changed(
        **{
            "model.dropout": 0.0,
            "paradigm.times": "uniform",
            "paradigm.shift": 3.0,
            "paradigm.sampling.guidance": 3.0,
            "paradigm.sampling.steps": 12,
            "training.variants": 1,
            "training.steps": 1800,
            "training.lr_end": 0.01,
            "training.validate_every": 300,
            "training.keep": "last",
        }
    )


def emoji_judge() -> Recipe:
    """A judge of captions, trained apart on real drawings alone: of many captions, which one fits a picture.

    smalti train emoji-judge
    data: emoji-pairs
    time: 11 min on two cores that multiply bf16 in tiles
    result: the right one of 100 captions first for 0.73 of held-out drawings
    """
    return Recipe(
        name="emoji-judge",
        data=DataConfig(source="emoji-pairs", shift=4),
        model=TransformerConfig(layers=1, width=128, heads=4, dropout=0.1),
        paradigm=ContrastiveConfig(),
        training=TrainingConfig(
            steps=1600,
            batch=256,
            lr=2e-3,
            muon_lr=0.02,
            warmup=50,
            betas=(0.9, 0.98),
            ema=0.995,
            seed=1234,
            validate_every=200,
        ),
    )
