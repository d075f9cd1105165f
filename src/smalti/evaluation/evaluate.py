"""The figures of a trained model on held-out examples, each beside what real examples reach."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from smalti.config import Config
from smalti.data.arrays import Held, in_order
from smalti.data.example import Some, Source
from smalti.data.image import to_pixels, to_signal
from smalti.data.loader import sweep_pixels
from smalti.data.sources import DataConfig, open_source
from smalti.data.workers import read_each
from smalti.device import autocast
from smalti.errors import UserError
from smalti.evaluation.alignment import hundreds, recall
from smalti.evaluation.classifier import Classifier, Judge, PixelFeatures, judge
from smalti.evaluation.distance import frechet, nearest, precision_recall_density_coverage
from smalti.evaluation.reconstruction import ReconstructionMeter
from smalti.evaluation.tokenizers import figures_of
from smalti.model import Aligner, Generator, Model, Tokenizer
from smalti.paradigms.likelihood import bits_per_dimension
from smalti.sampling.files import drawing
from smalti.tokenizers.bottlenecks import Moment
from smalti.training.log import ProgressLine
from smalti.training.totals import Totals

COMPARED = 2000  # pictures on each side of a comparison
SOME = 2000  # held-out pictures that a report looks at
MADE = 20_000  # training pictures that are looked at of a set that is made without end
DENSE = 32  # held-out pictures whose density is taken: each costs a hundred passes, there and back
NEIGHBOURS = 5
SEED = 0
LEVEL_STREAM = 131  # of random numbers: where within its level a pixel stands


@dataclass(frozen=True)
class HeldOut:
    """Held-out pictures uint8 (N, C, H, W), with label ids int64 (N,) or None, and their numbers in the source.

    `broken`: (name, reason) of what could not be read and is left out.
    """

    pixels: Tensor
    labels: Tensor | None
    rows: Tensor
    broken: Sequence[tuple[str, str]] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    def at(self, rows: Tensor) -> HeldOut:
        labels = None if self.labels is None else self.labels[rows]
        return HeldOut(self.pixels[rows], labels, self.rows[rows], self.broken)


def data_of(model: Model, source: str | None) -> DataConfig:
    """The data a model is measured on: its own recipe's, or another source in the model's shape."""
    height, width = model.signal.shape
    changes: dict[str, Any] = {"shape": (height, width), "channels": model.signal.channels, "most": None}
    if source:
        changes["source"] = source
    return model.recipe.data.model_copy(update=changes)


def held_out(config: DataConfig, most: int | None = None) -> HeldOut:
    """The test split as a whole, or `most` of it drawn with a fixed seed."""
    return gathered(open_source(config, "test"), config, most)


def to_learn(config: DataConfig) -> tuple[Source, HeldOut]:
    """The training split and its examples, what a judge learns from; a part of them where it is made without end."""
    source = open_source(config, "train")
    return source, gathered(source, config, MADE if source.made else None)


def gathered(source: Source, config: DataConfig, most: int | None = None) -> HeldOut:
    """Up to `most` examples of a source, drawn with a fixed seed, or all of them in order."""
    pixels = source.pixels()
    if pixels is None and most is not None and most < len(source):  # the others need not be read
        chosen = _lot(len(source))[:most]
        some = gathered(Some(source, chosen), config)
        return replace(some, rows=chosen[some.rows])
    labels, rows = source.label_ids, torch.arange(len(source))
    broken = list(source.broken)
    if pixels is None:
        found = list(sweep_pixels(source, config, rows.split(256)))
        rows, pixels = (torch.cat(each) for each in zip(*found, strict=True))
        labels = None if labels is None else labels[rows]
        broken += left_out(source, rows)
    everything = HeldOut(pixels, labels, rows, broken)
    return everything if most is None or most >= len(everything) else shuffled(everything, most)


def left_out(source: Source, rows: Tensor) -> list[tuple[str, str]]:
    """(name, reason) of every example that is not among those read, int64 (n,)."""
    missing = set(range(len(source))) - set(rows.tolist()) if len(rows) < len(source) else ()
    return [(source.name_of(i), reason) for i in sorted(missing) for _, reason in read_each(source, [i])]


def shuffled(examples: HeldOut, most: int = SOME) -> HeldOut:
    """Up to `most` of them in random order, the same every time: a source may be sorted by label."""
    return examples.at(_lot(len(examples))[:most])


def _lot(count: int) -> Tensor:
    """The numbers below a count in random order, the same every time."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(SEED))


def evaluate(
    model: Tokenizer | Generator | Aligner,
    source: str | None = None,
    samples: int = COMPARED,
    options: Config | None = None,
) -> dict[str, Any]:
    """All figures of a model as plain values, ready for JSON; a generator draws with `options`, or its recipe's.

    Errors are on the [0, 1] scale. `samples` says how many pictures a generator draws. Raises UserError where the
    data has no held-out part.
    """
    config = data_of(model, source)
    if isinstance(model, Aligner):
        return evaluate_aligner(model, config)
    if isinstance(model, Tokenizer):
        return evaluate_tokenizer(model, config)
    return evaluate_generator(model, config, samples, options)


def evaluate_tokenizer(tokenizer: Tokenizer, config: DataConfig) -> dict[str, Any]:
    """Errors, the use and cost of the codes, and how like the originals the reconstructions are as a set.

    Over the whole test split: mse, psnr, ssim on the [0, 1] scale; `frechet_NAME`, the distance between originals and
    their reconstructions in the features of the judge of that name, as rFID is taken (0 for perfect copies, and not
    to be compared with another number of `pictures`); then the figures of codes or of a continuous latent. Raises
    UserError where the data has no held-out part.
    """
    test = held_out(config)
    eye: Judge = PixelFeatures()
    if open_source(config, "train").label_ids is not None:
        eye = trained_judge(*to_learn(config), test, config)
    errors, inner, features = ReconstructionMeter(), figures_of(tokenizer), []
    with ProgressLine("reconstruct", len(test)) as line:
        for start in range(0, len(test), 500):
            x = to_signal(test.pixels[start : start + 500])
            rebuilt = inner.rebuild(x)
            errors.update(x, rebuilt)
            features.append(eye.features(rebuilt))
            line.update(start + len(x))
    figures: dict[str, Any] = {"kind": "tokenizer", "data": config.source, "split": "test", "pictures": len(test)}
    figures.update(errors.result())
    if len(test) > 1:  # one picture has no spread
        figures[f"frechet_{eye.name}"] = frechet(eye.features(test.pixels), torch.cat(features))
    return {**figures, **inner.result()}


def evaluate_generator(
    generator: Generator, config: DataConfig, samples: int = COMPARED, options: Config | None = None
) -> dict[str, Any]:
    """Likeness to real pictures, agreement with the labels, copying, and likelihood.

    Three columns are measured against the same held-out pictures: new samples, other held-out pictures (`real`, what
    a perfect generator would reach), and those pictures through the tokenizer (`reconstructed`, this generator's
    ceiling; a generator of pixels has none). Label accuracy, Fréchet distance, precision, recall, density and coverage
    are taken in the features of a classifier trained on the real training split; without labels, in averaged pixels.
    A model of text draws what the first caption of each of the other held-out pictures says.
    """
    test = held_out(config)
    size = min(samples, COMPARED, len(test) // 2)
    if size <= NEIGHBOURS:
        raise UserError(f"{config.source} holds out {len(test)} pictures, too few to compare distributions with")
    order = torch.arange(size)
    pair = shuffled(test, 2 * size)
    reference, other = pair.at(order), pair.at(order + size)
    train_source, train = to_learn(config)
    eye = trained_judge(train_source, train, test, config)

    # another source's labels mean nothing to this generator, unless they are called the same
    known = bool(generator.labels) and generator.labels == train_source.labels
    labels = other.labels if known else None
    words = open_source(config, "test") if generator.words else None
    asked = labels if words is None else first_texts(words, other.rows)
    began = time.perf_counter()
    with drawing(size) as line:
        drawn = generator.sample(size, asked, seed=SEED, options=options, progress=line.told)
    seconds = time.perf_counter() - began
    columns = {"samples": to_pixels(drawn), "real": other.pixels}
    if generator.reads != "signals":
        columns["reconstructed"] = to_pixels(generator.tokenizer.reconstruct(to_signal(other.pixels)))
    features = eye.features(reference.pixels)
    figures: dict[str, Any] = {
        "kind": "generator",
        "data": config.source,
        "compared": size,
        "neighbours": NEIGHBOURS,
        "seed": SEED,
        "options": (options or generator.options).model_dump(mode="json"),
        "features": eye.name,
        "samples_a_second": size / seconds,
    }
    for name, pixels in columns.items():
        figures[name] = likeness(eye, features, pixels, labels)
    figures["copying"] = copying(columns["samples"], other.pixels, train.pixels)
    figures.update(likelihood(generator, test if known else replace(test, labels=None), words))
    return figures


def first_texts(source: Source, rows: Tensor) -> list[str]:
    """The first text of each of these examples, int64 (N,); "" where there is none."""
    return [(source.text(int(row)) or ("",))[0] for row in rows]


def evaluate_aligner(aligner: Aligner, config: DataConfig) -> dict[str, Any]:
    """How often the right one is ranked first: of a hundred captions for a held-out picture, and the other way round.

    Means over several random hundreds of pairs with different captions, the same for every model; fewer than a
    hundred where the data holds out no more. Raises UserError where it holds out no two captions.
    """
    pairs = captioned(config)
    drawn = hundreds(pairs.captions)
    pictures, texts = aligner.pictures(to_signal(pairs.pixels)), aligner.texts(pairs.captions)
    figures = {"kind": "aligner", "data": config.source, "split": "test", "pictures": len(pairs.captions)}
    return {**figures, "hundreds": len(drawn), "among": len(drawn[0]), **recall(pictures, texts, drawn)}


@dataclass(frozen=True)
class Captioned:
    """Held-out pictures uint8 (N, C, H, W), and the first caption of each."""

    pixels: Tensor
    captions: list[str]


def captioned(config: DataConfig) -> Captioned:
    """The test split's pictures that have a caption. Raises UserError where there are no two different ones."""
    test, source = held_out(config), open_source(config, "test")
    texts = first_texts(source, test.rows)
    told = [i for i, text in enumerate(texts) if text.strip()]
    pairs = Captioned(test.pixels[told], [texts[i] for i in told])
    if len({caption.casefold() for caption in pairs.captions}) < 2:
        raise UserError(f"{config.source} holds out no two different captions, and there is nothing to rank")
    return pairs


def trained_judge(source: Source, train: HeldOut, test: HeldOut | None, config: DataConfig) -> Judge:
    """The source's judge, with progress shown when it has to be trained first.

    The judge's own accuracy is measured on `test`, if there is any.
    """
    with ProgressLine("train the judge", 1) as line:
        held = None if test is None or test.labels is None else (test.pixels, test.labels)
        return judge(train.pixels, train.labels, f"{source.fingerprint}/{config.fit}", held, progress=line.told)


def likeness(eye: Judge, features: Tensor, pixels: Tensor, labels: Tensor | None) -> dict[str, float]:
    """How like real pictures these are, by the judge: against the features (N, F) of the reference pictures."""
    ours = eye.features(pixels)
    result = {"frechet": frechet(features, ours), **precision_recall_density_coverage(features, ours, NEIGHBOURS)}
    if isinstance(eye, Classifier) and labels is not None:
        result = {"label_accuracy": eye.agreement(pixels, labels), **result}
    return result


def copying(samples: Tensor, real: Tensor, train: Tensor) -> dict[str, float]:
    """Distances to the nearest training picture, root mean square on the [0, 1] scale: samples' beside held-out's.

    `nearer_than_1_percent` is the share of samples nearer to a training picture than the nearest hundredth of held-out
    pictures is: 0.01 for a model that copies no more than chance does.
    """
    base = train.flatten(1).float() / 255
    scale = base.shape[1] ** 0.5
    ours, theirs = (nearest(pixels.flatten(1).float() / 255, base)[0].flatten() / scale for pixels in (samples, real))
    edge = theirs.quantile(0.01)
    return {
        "median_distance": ours.median().item(),
        "median_distance_of_real": theirs.median().item(),
        "nearest_1_percent": ours.quantile(0.01).item(),
        "nearest_1_percent_of_real": edge.item(),
        "nearer_than_1_percent": (ours < edge).float().mean().item(),
    }


@torch.no_grad()
def likelihood(generator: Generator, test: HeldOut, words: Source | None = None) -> dict[str, float]:
    """The likelihood of held-out pictures, given their labels where there are any, or the texts of `words`.

    Over codes it is that of the codes, in nats a code and a picture: exact for a next-token model, an upper bound for
    discrete diffusion. For diffusion on pixels see `density`. Diffusion on latents has none here: nats of a latent mean
    something beside those of the same tokenizer alone (`Generator.log_likelihood` gives them).
    """
    if generator.reads == "signals":
        return density(generator, test)
    if generator.reads != "codes":
        return {}
    length = generator.tokenizer.network.codes.length
    if words is not None and hasattr(generator.paradigm, "log_likelihood"):  # its loss is of other tasks, too
        asked = first_texts(words, test.rows)
        nats = -generator.log_likelihood(to_signal(test.pixels), asked).mean().item()
        return {"nats_a_code": nats / length, "nats_a_picture": nats}
    codes = generator.inwards(to_signal(test.pixels))
    totals = Totals()
    for batch in in_order(Held(codes[None], test.labels, test.rows, words), 250):
        with autocast(generator.device):
            totals.add(generator.paradigm.loss("network", batch.to(generator.device), 0).terms)
    means = totals.means()
    if "nats_a_code" not in means:
        return {}
    return {"nats_a_code": means["nats_a_code"], "nats_a_picture": means["nats_a_code"] * length}


def density(generator: Generator, test: HeldOut) -> dict[str, float]:
    """Bits for each number of held-out pictures, their mean over DENSE of them and its standard error.

    Pixels are spread evenly within their level first, by noise drawn from (SEED, picture): then the density bounds the
    bits of the levels themselves (Theis et al. 2015, arXiv 1511.01844, section 3.1).
    """
    some = shuffled(test, DENSE)
    rows, shape = torch.arange(len(some)), tuple(some.pixels.shape[1:])
    within = Moment(SEED, 0, rows, 0.0).uniform(LEVEL_STREAM, shape, torch.device("cpu")) - 0.5
    nats = generator.log_likelihood(to_signal(some.pixels) + within * 2 / 255, some.labels, SEED)
    bits = bits_per_dimension(nats, math.prod(shape))
    return {"bits_a_dimension": bits.mean().item(), "bits_a_dimension_error": (bits.std() / len(bits) ** 0.5).item()}
