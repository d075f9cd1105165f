"""The report of a run: what a person would rather look at than read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smalti.checkpoint import saving
from smalti.data.image import BrokenFile, to_signal
from smalti.data.sources import DataConfig, Source, open_source
from smalti.errors import UserError
from smalti.evaluation.codes import CodeMeter
from smalti.evaluation.distance import nearest
from smalti.evaluation.evaluate import HeldOut, data_of, gathered, held_out
from smalti.evaluation.plots import code_grid, curves, picture_grid, picture_pairs, picture_rows, usage_bars
from smalti.evaluation.reconstruction import ReconstructionMeter
from smalti.evaluation.report import Report
from smalti.model import Generator, Tokenizer, load
from smalti.sampling.complete import complete, first_codes
from smalti.sampling.morph import morph
from smalti.training.log import read_metrics, say

LOOKED_AT = 2000  # held-out pictures that the report's figures are measured on
WHY_A_PRIOR = (
    "Codes drawn without regard to each other make no picture, neither from the whole codebook nor from the codes that"
    " real pictures use: what makes a picture is which codes stand together. That is what the generator, the prior over"
    " codes, has to learn."
)


def write_report(folder: Path, data: DataConfig, stages: Mapping[str, float], device: str = "auto") -> Path:
    """Write a run's report/index.html from its model, its metrics and its data."""
    model = load(folder, device)
    config = data_of(model, None)
    test, train = held_out(config), gathered(open_source(config, "train"), config)
    shape = "×".join(map(str, model.signal.shape))
    report = Report(
        model.recipe.name,
        f"{data.source}: {len(train):,} training pictures of {shape}, judged on {len(test):,} held-out ones",
    )
    tokenizer = model.tokenizer if isinstance(model, Generator) else model
    some = test.at(torch.arange(min(LOOKED_AT, len(test))))
    if isinstance(model, Generator):
        _new_pictures(report, model)
        _completions(report, model, some)
        _neighbours(report, model, train)
    _reconstructions(report, tokenizer, some)
    _codes_of_one(report, tokenizer, some)
    _codebook(report, tokenizer, some)
    _morph(report, tokenizer, some)
    _random_codes(report, tokenizer, some)
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


def _completions(report: Report, generator: Generator, test: HeldOut) -> None:
    x, labels = to_signal(test.pixels[:10]), _labels(generator, test, 10)
    spec = generator.tokenizer.network.codes
    kept = {"first half": 0.5, "first quarter": 0.25, "one code": 1}
    rows = {"held-out": x, "through codes": generator.tokenizer.reconstruct(x)}
    for name, keep in kept.items():
        rows[name] = complete(generator, x, first_codes(spec, len(x), keep), labels, seed=1)
    report.section(
        "Completions",
        "Held-out pictures; the generator keeps the first codes in reading order and draws the rest anew.",
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


def _reconstructions(report: Report, tokenizer: Tokenizer, test: HeldOut) -> None:
    errors = ReconstructionMeter()
    x = to_signal(test.pixels)
    rebuilt = tokenizer.reconstruct(x)
    errors.update(x, rebuilt)
    found = errors.result()
    spec = tokenizer.network.codes
    grid = "×".join(map(str, spec.grid))
    report.section(
        "Originals and reconstructions",
        f"Held-out pictures, and below each what is left of it after its {grid} grid of codes.",
    )
    report.facts({"MSE on [0, 1]": found["mse"], "PSNR, dB": found["psnr"], "SSIM": found["ssim"]})
    report.picture(picture_pairs(x[:20], rebuilt[:20], 10), f"figures over {len(x):,} held-out pictures")


def _codes_of_one(report: Report, tokenizer: Tokenizer, test: HeldOut) -> None:
    x = to_signal(test.pixels[:1])
    codes = tokenizer.encode(x)[0]
    report.section(
        "A picture as words", "Each number is a code, and each code has one colour. This grid is all that is kept."
    )
    report.picture(code_grid(codes[0], tokenizer.network.bottleneck.size, x[0]))


def _codebook(report: Report, tokenizer: Tokenizer, test: HeldOut) -> None:
    meter = _counted(tokenizer, test)
    found = meter.result()
    report.section("The codebook in use", f"Counted over the {found['tokens']:,} codes of {len(test):,} pictures.")
    report.facts(
        {
            "codes used": f"{found['used']} of {found['size']}",
            "share": found["usage"],
            "perplexity": found["perplexity"],
        }
    )
    for counts in meter.counts:
        report.picture(usage_bars(counts))
    report.picture(
        picture_grid(code_pictures(tokenizer), 32, scale=6), "what each code looks like, in the middle of its own kind"
    )


def _morph(report: Report, tokenizer: Tokenizer, test: HeldOut, steps: int = 10) -> None:
    x = to_signal(test.pixels[:4])
    strips = [morph(tokenizer, x[i], x[i + 1], steps, seed=0) for i in (0, 2)] if len(x) >= 4 else []
    report.section(
        "Morphs",
        "From one held-out picture to another: more and more positions take the other's code, each blend containing"
        " the one before.",
    )
    if strips:
        report.picture(picture_grid(torch.cat(strips), steps))


def _random_codes(report: Report, tokenizer: Tokenizer, test: HeldOut, n: int = 10) -> None:
    spec, generator = tokenizer.network.codes, torch.Generator().manual_seed(0)
    shape = (n, spec.codebooks, *spec.grid)
    anything = torch.randint(spec.size, shape, generator=generator)
    meter = _counted(tokenizer, test)
    used = torch.empty(shape, dtype=torch.int64)
    for q in range(spec.codebooks):
        codes = meter.used(q)
        used[:, q] = codes[torch.randint(len(codes), used[:, q].shape, generator=generator)]
    report.section("Why a prior is needed", WHY_A_PRIOR)
    report.picture(picture_rows({"all codes": tokenizer.decode(anything), "used codes": tokenizer.decode(used)}))


def _curves(report: Report, folder: Path, model: Tokenizer | Generator) -> None:
    report.section("Training", "Held-out values are those of the averaged weights, the ones that are kept.")
    wanted = ["nats_a_code", "accuracy", "mse", "commitment", "codes_used", "grad_norm", "lr"]
    places = {"tokenizer": folder / "tokenizer", model.recipe.name: folder}
    for name, place in places.items():
        rows = read_metrics(place / "metrics.jsonl")
        if rows:
            report.picture(curves(rows, wanted), name)


def _stages(report: Report, stages: Mapping[str, float]) -> None:
    report.section("How long it took")
    report.table([{"stage": name, "seconds": round(seconds, 1)} for name, seconds in stages.items()])


def _left_out(report: Report, train: HeldOut) -> None:
    if train.broken:
        report.section("Left out", f"{len(train.broken)} files could not be read.")
        report.table([{"file": name, "why": reason} for name, reason in train.broken])


def code_pictures(tokenizer: Tokenizer) -> Tensor:
    """What each code of the first codebook looks like: the middle of a small grid that holds nothing else.

    -> (codes, C, stride, stride)
    """
    spec, stride = tokenizer.network.codes, tokenizer.network.stride
    ids = torch.arange(spec.size).view(-1, 1, 1, 1).expand(-1, spec.codebooks, 3, 3)
    return tokenizer.decode(ids)[:, :, stride : 2 * stride, stride : 2 * stride]


def analyse_codes(tokenizer: Tokenizer, source: str | None, run: Path) -> tuple[dict[str, Any], Path]:
    """The use of a tokenizer's codes over the whole test split, and a page that shows it: figures, path of the page."""
    config = data_of(tokenizer, source)
    test = held_out(config)
    found = _counted(tokenizer, test).result()
    report = Report(f"Codes of {tokenizer.recipe.name}", f"{config.source}: {len(test):,} held-out pictures")
    _codebook(report, tokenizer, test)
    _codes_of_one(report, tokenizer, test)
    _random_codes(report, tokenizer, test)
    path = report.write(run / "report" / "codes.html")
    return {"data": config.source, "split": "test", "pictures": len(test), **found}, path


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


def _counted(tokenizer: Tokenizer, test: HeldOut) -> CodeMeter:
    spec = tokenizer.network.codes
    meter = CodeMeter(spec.size, spec.codebooks)
    for start in range(0, len(test), 500):
        meter.update(tokenizer.encode(to_signal(test.pixels[start : start + 500])))
    return meter


def _labels(generator: Generator, test: HeldOut, n: int) -> Tensor | None:
    return test.labels[:n] if generator.labels and test.labels is not None else None
