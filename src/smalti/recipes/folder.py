"""Your own pictures: shape, grid, codebook and network are chosen from how many there are and how large they are."""

from __future__ import annotations

from dataclasses import dataclass

from smalti.data.sources import DataConfig, open_source
from smalti.layers.transformer import TransformerConfig
from smalti.paradigms.autoencode import AutoencodeConfig
from smalti.paradigms.autoregressive import AutoregressiveConfig, AutoregressiveOptions
from smalti.paradigms.interleaved import InterleavedConfig, InterleavedOptions
from smalti.recipe import Recipe, TrainingConfig
from smalti.tokenizers.autoencoder import AutoencoderConfig
from smalti.tokenizers.bottlenecks.vq import VQConfig
from smalti.training.log import say

STRIDES = {16: (2,), 32: (4,), 64: (4, 2), 128: (4, 2)}  # grids of 8×8, and 16×16 for the largest


@dataclass(frozen=True)
class Choice:
    """What suits a folder, and the sentence that says why."""

    side: int
    channels: int
    codes: int
    layers: int
    width: int
    dropout: float
    flip: bool
    pictures: int
    captioned: int
    labels: int
    why: str


def choose(source: str) -> Choice:
    """Look at a source and choose. Raises UserError when there is no such source or it holds no pictures."""
    train = open_source(DataConfig(source=source), "train")
    height, width = train.signal.shape
    count = len(train)
    side = max((s for s in STRIDES if s <= min(height, width)), default=16)
    # a hundred tokens or more for each code, so that none starves
    tokens = count * 64 * (4 if side == 128 else 1)
    codes = next((k for k in (1024, 512, 256, 128) if tokens >= 100 * k), 64)
    # a large network learns a small collection by heart; dropout is what slows that down
    if count >= 20_000:
        layers, model_width, dropout = 8, 320, 0.1
    elif count >= 2_000:
        layers, model_width, dropout = 6, 256, 0.1
    else:
        layers, model_width, dropout = 4, 128, 0.2
    captioned = count if train.made and train.has_text else sum(bool(train.text(i)) for i in range(count))
    flip = not train.has_text  # a caption may say left or right
    grid = side // (STRIDES[side][0] * (STRIDES[side][1] if len(STRIDES[side]) > 1 else 1))
    size = f"{layers} layers × {model_width}, dropout {dropout}"
    mirrored = "mirrored while training" if flip else "not mirrored while training, for captions may say left or right"
    why = (
        f"{source}: {count:,} training pictures, as a rule {width}×{height}, {train.signal.channels} channels,"
        f" {len(train.labels) or 'no'} labels.\n"
        f"  pictures of {side}×{side}, cropped: the largest of {', '.join(map(str, STRIDES))} they fill\n"
        f"  a {grid}×{grid} grid of {codes} codes: at least a hundred training tokens for each code\n"
        f"  a transformer of {size}: as large as {count:,} pictures can teach\n"
        f"  {mirrored}"
    )
    return Choice(
        side,
        train.signal.channels,
        codes,
        layers,
        model_width,
        dropout,
        flip,
        pictures=count,
        captioned=captioned,
        labels=len(train.labels),
        why=why,
    )


def folder_tokenizer(source: str) -> Recipe:
    """A tokenizer for your own pictures, chosen from their number and size.

    smalti train folder-tokenizer --data FOLDER
    data: any folder of pictures
    """
    choice = choose(source)
    say(choice.why)
    return _tokenizer(source, choice)


def photo_tokenizer(source: str) -> Recipe:
    """Photographs of 256×256, scaled and cropped, into a 32×32 grid of 4,096 codes: 1,536 bytes for 196,608.

    smalti train photo-tokenizer --data FOLDER
    data: any folder of pictures
    """
    return Recipe(
        name="photo-tokenizer",
        data=DataConfig(source=source, shape=(256, 256), channels=3, flip=True, shift=4),
        model=AutoencoderConfig(
            width=128, strides=(4, 2), blocks=2, bottleneck=VQConfig(codes=4096, dim=8, decay=0.95, revive_below=0.3)
        ),
        paradigm=AutoencodeConfig(),
        training=TrainingConfig(
            steps=20_000,
            batch=16,
            lr=4e-3,
            muon_lr=0.02,
            warmup=50,
            weight_decay=0.0,
            betas=(0.9, 0.99),
            ema=0.9995,
            validate_every=1000,
            validate_on=500,
        ),
    )


def folder(source: str) -> Recipe:
    """Tokenizer and next-token generator for your own pictures, chosen from their number and size.

    smalti train folder --data FOLDER
    data: any folder of pictures, with class folders or without
    """
    choice = choose(source)
    say(choice.why)
    # forty passes, within what two processor cores do in half an hour
    sampling = AutoregressiveOptions(guidance=1.5 if choice.labels else 1.0, top_p=0.95)
    return _generator("folder", source, choice, AutoregressiveConfig(sampling=sampling), passes=40)


def folder_words(source: str) -> Recipe:
    """Your own pictures with captions: drawn from words and put into words, by one model.

    smalti train folder-words --data FOLDER
    data: a folder of pictures with metadata.jsonl or metadata.csv that has file_name and text
    """
    choice = choose(source)
    say(f"{choice.why}\n  {expectation(choice.captioned)}")
    sampling = InterleavedOptions(guidance=3.0, top_p=0.95)
    # forty passes in each direction
    return _generator("folder-words", source, choice, InterleavedConfig(sampling=sampling), passes=80)


def _generator(
    name: str, source: str, choice: Choice, paradigm: AutoregressiveConfig | InterleavedConfig, passes: int
) -> Recipe:
    tokenizer = _tokenizer(source, choice)
    steps = _passes(choice, passes, 64, least=800, most=8000)
    return Recipe(
        name=name,
        data=tokenizer.data,
        tokenizer=tokenizer,
        model=TransformerConfig(
            layers=choice.layers, width=choice.width, heads=choice.width // 64, dropout=choice.dropout
        ),
        paradigm=paradigm,
        training=TrainingConfig(
            steps=steps, batch=64, lr=1e-3, validate_every=max(50, steps // 20), variants=4 if choice.flip else 1
        ),
    )


def expectation(pictures: int) -> str:
    """What a model of so many captioned pictures can be expected to do, in a sentence."""
    if not pictures:
        return "none of them has a caption, and a model of words learns from those"
    if pictures < 2_000:
        return (
            f"{pictures:,} captioned pictures are few: expect pictures and captions like those it was shown, and little"
            " that is new"
        )
    if pictures < 20_000:
        return f"{pictures:,} captioned pictures: expect it to know its subjects, and to combine them now and then"
    return f"{pictures:,} captioned pictures: expect it to combine what it has seen in new ways"


def _tokenizer(source: str, choice: Choice) -> Recipe:
    steps = _passes(choice, 60, 64, least=1000, most=6000)
    return Recipe(
        name="folder-tokenizer",
        data=DataConfig(
            source=source, shape=(choice.side, choice.side), channels=choice.channels, flip=choice.flip, shift=1
        ),
        model=AutoencoderConfig(
            width=96, strides=STRIDES[choice.side], blocks=2, bottleneck=VQConfig(codes=choice.codes, dim=16)
        ),
        paradigm=AutoencodeConfig(),
        training=TrainingConfig(steps=steps, batch=64, lr=3e-3, weight_decay=0.0, betas=(0.9, 0.99)),
    )


def _passes(choice: Choice, passes: int, batch: int, least: int, most: int) -> int:
    """Steps for so many passes over the pictures, within bounds."""
    return min(most, max(least, passes * choice.pictures // batch))
