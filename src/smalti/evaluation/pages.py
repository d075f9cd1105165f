"""The report of a run: what a person would rather look at than read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from smalti.checkpoint import saving
from smalti.data.image import BrokenFile, to_signal
from smalti.data.sources import DataConfig, Source, open_source
from smalti.errors import UserError
from smalti.evaluation import code_pages, latent_pages, word_pages
from smalti.evaluation.alignment import hundreds, recall
from smalti.evaluation.charts import curves
from smalti.evaluation.distance import nearest
from smalti.evaluation.evaluate import HeldOut, captioned, data_of, held_out, shuffled, to_learn
from smalti.evaluation.plots import picture_grid, picture_pairs, picture_rows
from smalti.evaluation.reconstruction import ReconstructionMeter
from smalti.evaluation.report import Report
from smalti.evaluation.tokenizers import CodeFigures, figures_of
from smalti.model import Aligner, Generator, Model, Reader, Tokenizer, load
from smalti.sampling.animate import frames_of
from smalti.sampling.complete import complete, first_part
from smalti.training.log import read_metrics, say

# What was logged, group by group: a value belongs to the first group that has one of the words of its name. What no
# group knows is a term of the bottleneck or of the paradigm, and stands after the errors.
ERRORS, TERMS, CODES, ADVERSARY, STEPS = "errors", "other terms of the loss", "codes in use", "adversary", "steps"
CAPTIONED = 180  # screen pixels a picture is enlarged to whose caption is to be read
WORDS = {
    STEPS: {"grad", "norm", "lr"},
    ADVERSARY: {"critic", "adversarial", "generator", "heard", "features", "verdict", "real", "fake", "lecam", "r1"},
    CODES: {"codes", "perplexity", "usage"},
    ERRORS: {"mse", "psnr", "ssim", "reconstruction", "perceptual", "l1", "nats", "bits", "accuracy", "loss"},
}


def write_report(folder: Path, data: DataConfig, stages: Mapping[str, float], device: str = "auto") -> Path:
    """Write a run's report/index.html from its model, its metrics and its data."""
    model = load(folder, device)
    config = data_of(model, None)
    test, (_, train) = held_out(config), to_learn(config)
    learnt = len(open_source(config.model_copy(update={"most": data.most}), "train"))
    shape = "×".join(map(str, model.signal.shape))
    report = Report(
        model.recipe.name,
        f"{data.source}: {learnt:,} training pictures of {shape}, judged on {len(test):,} held-out ones",
    )
    some = shuffled(test)
    if isinstance(model, Generator):
        if model.words:
            word_pages.from_words(report, model, some, open_source(config, "test"))
        if isinstance(model, Reader):
            word_pages.into_words(report, model, some, open_source(config, "test"))
            word_pages.by_kind(report, model, folder)
        _new_pictures(report, model)
        _on_the_way(report, model)
        _completions(report, model, some)
        if hasattr(model.paradigm, "vary"):
            _variations(report, model, some)
        _neighbours(report, model, train)
    if isinstance(model, Aligner):
        _ranked_first(report, model, config)
    elif isinstance(model, Tokenizer):
        _tokenizer(report, model, some)
    elif model.reads != "signals":
        _tokenizer(report, model.tokenizer, some)
    _curves(report, folder, model)
    _stages(report, stages)
    _left_out(report, train)
    return report.write(folder / "report" / "index.html")


def _new_pictures(report: Report, generator: Generator) -> None:
    options = ", ".join(f"{name} {value}" for name, value in generator.options if value is not None)
    text = f"Drawn by the generator, unpicked: seed 0, {options}."
    report.section("New pictures", text)
    if generator.labels:
        ids = torch.arange(len(generator.labels)).repeat_interleave(10)
        x = generator.sample(len(ids), ids, seed=0)
        report.picture(picture_rows({name: x[10 * i : 10 * i + 10] for i, name in enumerate(generator.labels)}))
    else:
        report.picture(picture_grid(generator.sample(60, seed=0), 12))


def _on_the_way(report: Report, generator: Generator, n: int = 6, frames: int = 12) -> None:
    ids = torch.arange(n) % len(generator.labels) if generator.labels else None
    way: list[Tensor] = []
    generator.draw(n, ids, seed=0, trajectory=way)
    shown = [way[round(i * (len(way) - 1) / (frames - 1))] for i in range(frames)] if len(way) > frames else way
    report.section("On the way", f"From nothing to the whole in {len(way)} steps; grey is not chosen yet.")
    pictures = frames_of(generator, shown).transpose(0, 1)
    report.picture(picture_grid(pictures.flatten(0, 1), len(shown)))


def _variations(report: Report, generator: Generator, test: HeldOut) -> None:
    x, labels = to_signal(test.pixels[:10]), _labels(generator, test, 10)
    rows = {"held-out": x}
    for level in (0.25, 0.5, 0.75):
        rows[f"noised to {level:g}"] = generator.vary(x, level, labels, seed=1)
    report.section("Variations", "Held-out pictures noised in part, and the noise undone: the more, the freer.")
    report.picture(picture_rows(rows))


def _completions(report: Report, generator: Generator, test: HeldOut) -> None:
    x, labels = to_signal(test.pixels[:10]), _labels(generator, test, 10)
    positions = math.prod(generator.shape[1:])
    kept = {"first half": positions // 2, "first quarter": positions // 4, "one position": 1}
    kept = {name: count for name, count in kept.items() if 0 < count < positions}
    if not kept:  # a grid of one has no part
        return
    rows = {"held-out": x}
    if generator.reads != "signals":
        rows[f"through {generator.reads}"] = generator.tokenizer.reconstruct(x)
    for name, keep in kept.items():
        rows[name] = complete(generator, x, first_part(generator.shape, len(x), keep), labels, seed=1)
    report.section(
        "Completions",
        "Held-out pictures; the generator keeps the first of them in reading order and draws the rest anew.",
    )
    report.picture(picture_rows(rows))


def _neighbours(report: Report, generator: Generator, train: HeldOut, n: int = 10) -> None:
    ids = torch.arange(n) % len(generator.labels) if generator.labels else None
    x = generator.sample(n, ids, seed=2)
    base = train.pixels.flatten(1).float() / 255
    distances, found = nearest((x.flatten(1) + 1) / 2, base)
    real = to_signal(train.pixels[found.flatten()])
    report.section(
        "Is it copying?",
        "New pictures above, and below each the training picture nearest to it, by root mean square difference of"
        " pixels on the [0, 1] scale. Evaluating the run compares such distances with those of held-out pictures.",
    )
    scale = base.shape[1] ** 0.5
    captions = [""] * n + [f"{d / scale:.2f}" for d in distances.flatten().tolist()]
    report.picture(picture_grid(torch.cat([x, real]), n, captions=captions))


def _tokenizer(report: Report, tokenizer: Tokenizer, test: HeldOut) -> None:
    """What the tokenizer gives back, and what stands in between: codes, or a continuous latent."""
    errors, inner = ReconstructionMeter(), figures_of(tokenizer)
    for start in range(0, len(test), 500):
        x = to_signal(test.pixels[start : start + 500])
        errors.update(x, inner.rebuild(x))
    _reconstructions(report, tokenizer, test, errors)
    if isinstance(inner, CodeFigures):
        code_pages.picture_as_words(report, tokenizer, test)
        code_pages.codebooks(report, tokenizer, inner, test)
        code_pages.morphs(report, tokenizer, test)
        code_pages.random_codes(report, tokenizer, inner.meter)
    else:
        if latent_pages.is_plane(tokenizer):
            latent_pages.plane(report, tokenizer, test)
        latent_pages.latent(report, inner)
        latent_pages.prior(report, tokenizer)
        latent_pages.interpolations(report, tokenizer, test)


def _ranked_first(report: Report, aligner: Aligner, config: DataConfig, n: int = 24) -> None:
    pairs = captioned(config)
    drawn = hundreds(pairs.captions)
    pictures, texts = aligner.pictures(to_signal(pairs.pixels)), aligner.texts(pairs.captions)
    some, among = drawn[0][:n], len(drawn[0])
    report.section(
        "Captions ranked first",
        f"Held-out pictures, and below each the caption that of {among} is ranked first: ✓ where it is its own.",
    )
    report.facts(
        {f"{name.replace('_', ' ')} of {among}": value for name, value in recall(pictures, texts, drawn).items()}
    )
    found = drawn[0][(pictures[some] @ texts[drawn[0]].T).argmax(1)]
    said = [f"{'✓' if i == j else '✗'} {pairs.captions[j]}" for i, j in zip(some.tolist(), found.tolist(), strict=True)]
    x = pairs.pixels[some]
    report.picture(picture_grid(x, 4, math.ceil(CAPTIONED / x.shape[-1]), said))


def _reconstructions(report: Report, tokenizer: Tokenizer, test: HeldOut, errors: ReconstructionMeter) -> None:
    found, network = errors.result(), tokenizer.network
    grid = "×".join(str(side // network.stride) for side in tokenizer.signal.shape)
    if network.continuous:
        kept = f"latent: {network.bottleneck.out_width} numbers at each position of a {grid} grid"
    else:
        kept = f"{grid} grid of codes" + (f", {network.codes.codebooks} deep" if network.codes.codebooks > 1 else "")
    report.section(
        "Originals and reconstructions", f"Held-out pictures, and below each what is left of it after its {kept}."
    )
    report.facts({"MSE on [0, 1]": found["mse"], "PSNR, dB": found["psnr"], "SSIM": found["ssim"]})
    x = to_signal(test.pixels[:20])
    report.picture(picture_pairs(x, tokenizer.reconstruct(x), 10), f"figures over {errors.signals:,} held-out pictures")


def _curves(report: Report, folder: Path, model: Model) -> None:
    report.section("Training", "Held-out values are those of the averaged weights, the ones that are kept.")
    for name, place in {"tokenizer": folder / "tokenizer", model.recipe.name: folder}.items():
        rows = read_metrics(place / "metrics.jsonl")
        for group, values in grouped(key for row in rows for key in row["values"]).items():
            report.picture(curves(rows, values), f"{name}: {group}")


def grouped(names: Iterable[str]) -> dict[str, list[str]]:
    """The names of what was logged by what they are about, errors first; a name is split into words at _ . and /."""
    groups: dict[str, list[str]] = {group: [] for group in (ERRORS, TERMS, CODES, ADVERSARY, STEPS)}
    for name in dict.fromkeys(names):
        words = set(re.split(r"[_./]", name.lower()))
        groups[next((group for group, known in WORDS.items() if words & known), TERMS)].append(name)
    return {group: found for group, found in groups.items() if found}


def _stages(report: Report, stages: Mapping[str, float]) -> None:
    report.section("How long it took")
    report.table([{"stage": name, "seconds": round(seconds, 1)} for name, seconds in stages.items()])


def _left_out(report: Report, train: HeldOut) -> None:
    if train.broken:
        report.section("Left out", f"{len(train.broken)} files could not be read.")
        report.table([{"file": name, "why": reason} for name, reason in train.broken])


def contact_sheet(source: Source, path: Path, n: int = 64, columns: int = 8) -> None:
    """Write a sheet of pictures drawn from a source with a fixed seed, their labels below."""
    rows = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[:n]
    if path.suffix.lower() != ".png":
        raise UserError(f"{path}: a contact sheet is a PNG, so the name must end in .png")
    items = []
    for row in rows.tolist():
        try:
            items.append(source.item(row))
        except BrokenFile as error:
            say(f"left out: {error}")
    captions = [source.labels[item.label] for item in items if item.label is not None] if source.labels else None
    sheet = picture_grid(torch.stack([item.pixels for item in items]), columns, captions=captions)
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)


def _labels(generator: Generator, test: HeldOut, n: int) -> Tensor | None:
    return test.labels[:n] if generator.labels and test.labels is not None else None
