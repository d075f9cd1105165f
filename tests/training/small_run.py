"""Real trainings small enough for tests, of tokenizers and of a generator; as a script, one rank of one of them.

python tests/training/small_run.py FOLDER KIND '{"steps": 20}'
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from smalti import model as models
from smalti.config import CodeSpec, Config, Examples, SignalSpec
from smalti.data.arrays import Held, in_order, shuffled
from smalti.data.batch import Batch
from smalti.data.example import MemorySource
from smalti.data.loader import Loader
from smalti.data.sources import DataConfig
from smalti.layers.transformer import TransformerConfig
from smalti.paradigms.adversarial import AdversarialConfig
from smalti.paradigms.autoencode import AutoencodeConfig
from smalti.paradigms.autoregressive import AutoregressiveConfig
from smalti.paradigms.base import Paradigm
from smalti.paradigms.diffusion import DiffusionConfig
from smalti.paradigms.discrete_diffusion import DiscreteDiffusionConfig
from smalti.recipe import Recipe, TrainingConfig
from smalti.tokenizers.autoencoder import AutoencoderConfig
from smalti.tokenizers.bottlenecks.fsq import FSQConfig
from smalti.tokenizers.bottlenecks.gumbel import GumbelConfig
from smalti.tokenizers.bottlenecks.kl import KLConfig
from smalti.tokenizers.bottlenecks.lfq import LFQConfig
from smalti.tokenizers.bottlenecks.rvq import RVQConfig
from smalti.tokenizers.bottlenecks.vq import VQConfig
from smalti.tokenizers.critic import CriticConfig
from smalti.training.loop import Progress, Run, fit
from smalti.training.ranks import Ranks

CPU = torch.device("cpu")
KINDS = ("tokenizer", "adversarial", "generator")
# steps that do all there is to do: warm-up, logging, validation, and saving at every one
TRAINING = TrainingConfig(
    steps=20, batch=16, lr=3e-3, warmup=4, log_every=1, validate_every=5, save_seconds=1e-9, precision="fp32"
)
EXAMPLES = Examples(
    signal=SignalSpec(channels=1, shape=(8, 8)), codes=CodeSpec(codebooks=2, grid=(2, 2), size=8), labels=("a", "b")
)
TOKENIZER = Recipe(
    name="small-tokenizer",
    data=DataConfig(source="small", flip=True, shift=1, workers=0),
    model=AutoencoderConfig(
        width=32, strides=(4,), blocks=1, bottleneck=VQConfig(codes=8, dim=4, revive_every=2, revive_below=0.9)
    ),
    paradigm=AutoencodeConfig(),
)
# a critic that starts after 3 of 6 steps, or 8 of 20, is heard one step later, and fully after three more
CRITIC = AdversarialConfig(
    critic=CriticConfig(width=8, layers=2),
    loss="non-saturating",  # by hinge some slopes are rounding alone, and AdamW follows those
    latest=0.4,
    critic_first=1,
    ramp=3,
    penalty_every=2,
    flat_below=0.0,
)
BOTTLENECKS = (
    RVQConfig(codes=8, dim=4, stages=2, dropout=0.5, revive_every=2, revive_below=0.9),
    FSQConfig(levels=(4, 3, 2)),
    LFQConfig(bits=4),
    GumbelConfig(codes=8, dim=4),
    KLConfig(dim=4),
)


def with_bottleneck(config: Config) -> Recipe:
    model = TOKENIZER.model.model_copy(update={"bottleneck": config})
    return TOKENIZER.model_copy(update={"name": f"small-{config.kind}", "model": model})


GENERATOR = Recipe(
    name="small-generator",
    data=DataConfig(source="small"),
    model=TransformerConfig(layers=1, width=32, heads=2, dropout=0.2),
    paradigm=AutoregressiveConfig(label_dropout=0.3),
    tokenizer="elsewhere",
)
OF_CODES = ("generator", "random-order", "discrete-diffusion")
RECIPES = {
    "tokenizer": TOKENIZER,
    "adversarial": TOKENIZER.model_copy(update={"name": "small-adversarial", "paradigm": CRITIC}),
    **{each.kind: with_bottleneck(each) for each in BOTTLENECKS},
    "generator": GENERATOR,
    "random-order": GENERATOR.model_copy(
        update={"name": "small-random-order", "paradigm": AutoregressiveConfig(label_dropout=0.3, order="random")}
    ),
    "discrete-diffusion": GENERATOR.model_copy(
        update={"name": "small-discrete", "paradigm": DiscreteDiffusionConfig(scheme="mask-and-replace")}
    ),
    "diffusion": GENERATOR.model_copy(
        update={"name": "small-diffusion", "paradigm": DiffusionConfig(patch=4), "tokenizer": None}
    ),
}


def small_run(
    folder: Path, kind: str, ranks: Ranks | None = None, dropout: float | None = None, **changes: Any
) -> tuple[Paradigm, Run]:
    """A paradigm as it is before training, and a run that trains it; `changes` are fields of TrainingConfig."""
    ranks = ranks or Ranks()
    training = TrainingConfig.model_validate(TRAINING.model_dump() | changes)
    recipe = RECIPES[kind].model_copy(update={"training": training})
    if dropout is not None and recipe.generates:
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"dropout": dropout})})
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(100) % 2
    rows = torch.arange(8) // (1 + labels[:, None])
    pixels = (rows[:, None, None] * 25 + torch.randint(0, 60, (100, 1, 8, 8), generator=generator)).to(torch.uint8)
    codes = (torch.randint(0, 4, (2, 100, 2, 2, 2), generator=generator) + labels[None, :, None, None, None]) % 8

    def batches(start: int) -> Iterator[Batch]:
        share = (training.batch, training.seed, ranks.rank, ranks.count)
        if kind in OF_CODES:
            return shuffled(Held(codes, labels), *share, start)
        return iter(Loader(MemorySource("small", pixels, labels), recipe.data, *share, augment=True, start=start))

    def held_out() -> Iterator[Batch]:
        values = codes[0, :20] if kind in OF_CODES else pixels[:20]
        for batch in in_order(Held(values[None], labels[:20]), 8, ranks.rank, ranks.count):
            x = batch.x if kind in OF_CODES else batch.x.float() / 127.5 - 1
            yield Batch(batch.step, batch.rows, batch.indices, x, batch.labels)

    def keep(average: Paradigm, progress: Progress) -> None:
        models.write(folder / "model", recipe, EXAMPLES, average, {"step": progress.step, "loss": progress.best})

    torch.manual_seed(training.seed)
    paradigm = models.build(recipe, EXAMPLES)
    return paradigm, Run(kind, folder, training, batches, held_out, keep, {"the data": "as it was"})


def train(folder: Path, kind: str, ranks: Ranks | None = None, **changes: Any) -> Progress:
    """Train to the end, or on to the end when the folder holds a state."""
    return fit(*small_run(folder, kind, ranks, **changes), CPU, ranks)


def with_batches(run: Run, change: Callable[[Batch], Batch]) -> Run:
    """The same run on changed batches."""
    return replace(run, batches=lambda start: map(change, run.batches(start)))


def start(folder: Path, kind: str, environment: dict[str, str] | None = None, **changes: Any) -> subprocess.Popen[str]:
    """The same training in a process of its own."""
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, __file__, str(folder), kind, json.dumps(changes)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **(environment or {})},
        stderr=subprocess.PIPE,
        text=True,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    here = Ranks.join()
    train(Path(sys.argv[1]), sys.argv[2], here, **json.loads(sys.argv[3]))
    here.leave()
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]  # none but on Linux
    assert not any("gloo" in name for name in names), f"threads that outlive their group: {names}"
