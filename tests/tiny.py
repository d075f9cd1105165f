"""A tokenizer and a generator trained for seconds on a folder of two classes of 16 × 16 pictures, shared by all tests.

Import the fixtures `tiny` and, where verbs are called, `smalti`.
"""

from __future__ import annotations

import functools
import json
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from smalti import cli, runs
from smalti.data.sources import DataConfig
from smalti.evaluation import classifier
from smalti.layers.transformer import TransformerConfig
from smalti.paradigms.autoencode import AutoencodeConfig
from smalti.paradigms.autoregressive import AutoregressiveConfig, AutoregressiveOptions
from smalti.paradigms.interleaved import InterleavedConfig, InterleavedOptions
from smalti.recipe import Recipe, TrainingConfig
from smalti.tokenizers.autoencoder import AutoencoderConfig
from smalti.tokenizers.bottlenecks.vq import VQConfig

EACH = 60


def stripes(seed: int, lying: bool, size: tuple[int, int] = (16, 16)) -> np.ndarray:
    """Grey uint8 (H, W): waves lying or standing, of random width, phase and contrast."""
    random = np.random.default_rng(seed)
    height, width = size
    wave = np.sin(np.arange(height if lying else width) * random.uniform(0.3, 1.2) + random.uniform(0, 6))
    plane = np.broadcast_to(wave[:, None] if lying else wave[None], size)
    return (128 + plane * random.uniform(60, 127)).astype(np.uint8)


def pictures(folder: Path, each: int = EACH, size: tuple[int, int] = (16, 16)) -> Path:
    """Two class folders of striped pictures."""
    for label in ("Lying flat", "Standing"):
        (folder / label).mkdir(parents=True)
        for i in range(each):
            lying = label != "Standing"
            Image.fromarray(stripes(2 * i + lying, lying, size)).save(folder / label / f"{i:03}.png")
    return folder


def tokenizer_recipe(data: Path, steps: int = 40) -> Recipe:
    return Recipe(
        name="tiny-tokenizer",
        data=DataConfig(source=str(data), shape=(16, 16), channels=1, validation=0.3, workers=0),
        model=AutoencoderConfig(width=32, strides=(4,), blocks=1, bottleneck=VQConfig(codes=16, dim=4)),
        paradigm=AutoencodeConfig(),
        training=TrainingConfig(steps=steps, batch=16, lr=3e-3, warmup=4, validate_every=20, log_every=5, ema=0.9),
    )


def generator_recipe(data: Path, tokenizer: Recipe | str, steps: int = 40) -> Recipe:
    cutter = tokenizer_recipe(data)
    return Recipe(
        name="tiny",
        data=cutter.data,
        tokenizer=tokenizer,
        model=TransformerConfig(layers=1, width=32, heads=2, dropout=0.0),
        paradigm=AutoregressiveConfig(sampling=AutoregressiveOptions(guidance=1.5)),
        training=cutter.training.model_copy(update={"steps": steps}),
    )


def captioned(folder: Path, each: int = EACH) -> Path:
    """Such pictures in one folder, with captions in metadata.jsonl: one of those lying, a list of those standing."""
    folder.mkdir(parents=True)
    lines = []
    for i in range(2 * each):
        lying = i % 2 == 0
        Image.fromarray(stripes(i, lying)).save(folder / f"{i:03}.png")
        lines.append({"file_name": f"{i:03}.png", "text": "lying waves" if lying else ["standing waves", "upright"]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def words_recipe(data: Path, tokenizer: Recipe | str, steps: int = 100) -> Recipe:
    return generator_recipe(data, tokenizer, steps).model_copy(
        update={
            "name": "tiny-words",
            "model": TransformerConfig(layers=2, width=64, heads=2, dropout=0.0),
            "paradigm": InterleavedConfig(pieces=280, row=64, sampling=InterleavedOptions(guidance=2, most_text=16)),
        }
    )


@dataclass(frozen=True)
class Tiny:
    """`data` is the folder of pictures, `run` the generator's run, `tokenizer` the tokenizer's run inside it."""

    data: Path
    run: Path

    @property
    def tokenizer(self) -> Path:
        return self.run / "tokenizer"

    @property
    def picture(self) -> Path:
        return self.data / "Standing" / "000.png"


@functools.cache
def _trained(home: Path, words: bool) -> Tiny:
    made = Tiny(home / "data", home / "runs" / "tiny")
    with FileLock(home / "lock"):  # tests that run side by side train it once
        if not (home / "done").exists():
            data = captioned(made.data) if words else pictures(made.data)
            recipe = (words_recipe if words else generator_recipe)(data, tokenizer_recipe(data))
            assert runs.train(recipe, out=made.run, device="cpu").finished
            (home / "done").touch()
    return made


def _home(name: str, factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    base = factory.getbasetemp()
    home = (base.parent if hasattr(request.config, "workerinput") else base) / name
    home.mkdir(exist_ok=True)
    return home


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Tiny:
    """The tiny run; tests leave it as it is."""
    return _trained(_home("tiny", tmp_path_factory, request), words=False)


@pytest.fixture(scope="session")
def worded(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Tiny:
    """A tiny run that draws from words and puts pictures into words; tests leave it as it is."""
    return _trained(_home("tiny-words", tmp_path_factory, request), words=True)


@pytest.fixture
def quick_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge trained for a moment: what is tested here is not its eye."""
    quick = functools.partial(classifier.ClassifierConfig, width=16, least_steps=40, passes=0.1, batch=32)
    monkeypatch.setattr(classifier, "ClassifierConfig", quick)


@dataclass(frozen=True)
class Told:
    """How a verb ended, and what it said."""

    status: int
    out: str
    err: str


@pytest.fixture
def smalti(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Told]:
    """smalti("sample", run, "--n", 3): the command line in this process; a bug's traceback passes through."""

    def call(*arguments: object) -> Told:
        monkeypatch.setattr(sys, "argv", ["smalti", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        told = capsys.readouterr()
        return Told(int(end.value.code or 0), told.out, told.err)

    return call


def huge(path: Path, side: int = 60_000) -> Path:
    """A PNG of a few bytes whose header promises side × side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def cut(path: Path, share: float = 0.5) -> Path:
    """The same file, its end cut off."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path
