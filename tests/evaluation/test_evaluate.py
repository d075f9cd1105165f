from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from tests.evaluation import exact
from tests.tiny import cut, pictures, tokenizer_recipe

from smalti.config import Examples, SignalSpec
from smalti.data.example import MemorySource
from smalti.data.image import to_signal
from smalti.data.sources import DataConfig, open_source
from smalti.errors import UserError
from smalti.evaluation import evaluate as room
from smalti.evaluation.classifier import PixelFeatures
from smalti.evaluation.evaluate import HeldOut, copying, evaluate, evaluate_tokenizer, gathered, held_out, likeness
from smalti.layers.transformer import TransformerConfig
from smalti.model import Generator, build, load
from smalti.paradigms.diffusion import DiffusionConfig
from smalti.recipe import Recipe

FRACTIONS = ("label_accuracy", "precision", "recall", "coverage")


@pytest.fixture
def noise(generator):
    """noise(n): n pictures of coarse random patches, uint8 (n, 1, 16, 16), no two alike."""

    def draw(n: int) -> torch.Tensor:
        coarse = torch.randint(0, 256, (n, 1, 4, 4), generator=generator)
        return coarse.repeat_interleave(4, 2).repeat_interleave(4, 3).to(torch.uint8)

    return draw


@pytest.mark.usefixtures("quick_judge")
def test_the_figures_of_a_tokenizer(tiny):
    figures = evaluate(load(tiny.tokenizer, "cpu"))
    names = (
        "kind data split pictures mse psnr ssim frechet_classifier codes codebooks codes_a_picture tokens used usage"
    )
    names += " perplexity perplexity_share entropy bits_a_picture bits_a_pixel"
    assert list(figures) == [*names.split(), "bits_a_picture_of_original", "bits_a_pixel_of_original"]
    assert figures["pictures"] == 36
    assert figures["tokens"] == 36 * 16
    assert figures["psnr"] == pytest.approx(-10 * torch.tensor(figures["mse"]).log10().item(), abs=1e-3)
    assert 1 <= figures["perplexity"] <= figures["used"] <= figures["codes"] == 16
    assert figures["perplexity_share"] == figures["perplexity"] / 16
    assert figures["bits_a_picture"] == 16 * 4
    assert figures["bits_a_picture_of_original"] == 16 * 16 * 8
    assert figures["frechet_classifier"] > 0
    json.dumps(figures, allow_nan=False)


@pytest.mark.usefixtures("quick_judge")
def test_reconstructions_that_are_copies_have_no_distance(tiny):
    """Eight bits say all of a pixel, so that what is decoded is the original to the last bit of its file."""
    config = tokenizer_recipe(tiny.data).data
    exactly, roughly = (evaluate_tokenizer(exact.bits(stages, (16, 16)), config) for stages in (8, 3))
    assert exactly["frechet_classifier"] == pytest.approx(0, abs=1e-6)
    assert exactly["psnr"] > 45
    assert roughly["frechet_classifier"] > 1e-3
    assert roughly["first_codebooks"]["3"]["mse"] == roughly["mse"]


def test_the_figures_of_a_continuous_tokenizer_without_labels(tiny, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted(tiny.data.glob("*/*.png"))):
        shutil.copy(path, flat / f"{i}.png")
    config = tokenizer_recipe(flat).data
    figures = evaluate_tokenizer(exact.gaussian(0.0, (16, 16)), config)
    assert list(figures) == ["kind", "data", "split", "pictures", "mse", "psnr", "ssim", "frechet_pixels", "latent"]
    assert figures["frechet_pixels"] == pytest.approx(0, abs=1e-6)  # this decoder gives back the mean as it is
    assert figures["latent"]["numbers"] == figures["latent"]["active_units"] == 256
    pixels = held_out(config).pixels
    x = pixels.double() / 127.5 - 1
    assert figures["latent"]["nats_a_picture"] == pytest.approx(x.square().sum().item() / 2 / len(x), rel=1e-5)
    assert figures["latent"]["deviation"] == pytest.approx(x.std(correction=0).item(), rel=1e-4)
    json.dumps(figures, allow_nan=False)


@pytest.mark.usefixtures("quick_judge")
def test_the_figures_of_a_generator(tiny):
    model = load(tiny.run, "cpu")
    figures = evaluate(model)
    assert figures["features"] == "classifier"
    assert figures["compared"] == 18
    assert figures["options"] == model.options.model_dump(mode="json")
    for column in ("samples", "real", "reconstructed"):
        assert set(figures[column]) == {*FRACTIONS, "frechet", "density"}
        assert all(0 <= figures[column][name] <= 1 for name in FRACTIONS)
    assert figures["nats_a_picture"] == pytest.approx(16 * figures["nats_a_code"])
    assert 0 < figures["nats_a_code"] < 3.5
    json.dumps(figures, allow_nan=False)
    again = evaluate(model)
    assert {**figures, "samples_a_second": 0} == {**again, "samples_a_second": 0}  # all but the clock


@pytest.mark.usefixtures("quick_judge")
def test_other_options_and_fewer_samples(tiny):
    model = load(tiny.run, "cpu")
    greedy = model.options.model_copy(update={"temperature": 0.0})
    figures = evaluate(model, samples=16, options=greedy)
    assert figures["compared"] == 16
    assert figures["options"]["temperature"] == 0.0


@pytest.mark.usefixtures("quick_judge")
def test_labels_of_other_data_are_not_taken_for_the_models_own(tiny, tmp_path):
    other = pictures(tmp_path / "other")
    (other / "Standing").rename(other / "Awake")
    figures = evaluate(load(tiny.run, "cpu"), str(other))
    assert "label_accuracy" not in figures["samples"]


def test_too_little_held_out(tiny, tmp_path):
    with pytest.raises(UserError, match="too few to compare"):
        evaluate(load(tiny.run, "cpu"), str(pictures(tmp_path / "few", each=8)))


def test_the_density_of_pixels(noise, monkeypatch):
    """Of a model to which every number in [-1, 1] is equally likely, a level costs log2(255) bits."""
    examples = Examples(signal=SignalSpec(channels=1, shape=(16, 16)))
    recipe = Recipe(
        name="pixels",
        data=DataConfig(),
        model=TransformerConfig(layers=1, width=16, heads=2),
        paradigm=DiffusionConfig(),
    )
    model = Generator(recipe, examples, build(recipe, examples), torch.device("cpu"), None)
    test, seen = HeldOut(noise(40), None, torch.arange(40)), []
    figures = room.likelihood(model, test)
    assert set(figures) == {"bits_a_dimension", "bits_a_dimension_error"}
    assert figures == room.likelihood(model, test)
    assert all(math.isfinite(value) and value > 0 for value in figures.values())

    def even(x: torch.Tensor, labels: torch.Tensor | None, seed: int) -> torch.Tensor:
        seen.append(x)
        return -x[0].numel() * math.log(2) * (1 + torch.arange(len(x)) % 2)

    monkeypatch.setattr(model, "log_likelihood", even)
    figures = room.likelihood(model, test)
    assert figures["bits_a_dimension"] == pytest.approx(math.log2(255) + 0.5, abs=1e-5)
    assert figures["bits_a_dimension_error"] == pytest.approx(0.5 / 31**0.5, abs=1e-5)
    off = (seen[0] - to_signal(room.shuffled(test, room.DENSE).pixels)) * 127.5
    assert -0.5 <= off.min() < -0.49 < 0.49 < off.max() <= 0.5
    assert off.flatten(1).unique(dim=0).shape[0] == room.DENSE  # every picture has noise of its own


def test_real_pictures_are_like_real_pictures(noise):
    eye = PixelFeatures()
    features = eye.features(noise(400))
    real = likeness(eye, features, noise(400), None)
    assert set(real) == {"frechet", "precision", "recall", "density", "coverage"}
    for name in ("precision", "recall", "density", "coverage"):
        assert real[name] == pytest.approx(1, abs=0.15), name
    grey = likeness(eye, features, torch.full((400, 1, 16, 16), 128, dtype=torch.uint8), None)
    assert grey["coverage"] < 0.2
    assert grey["frechet"] > 5 * real["frechet"]


def test_planted_copies_are_found(noise):
    train, real, fresh = noise(500), noise(200), noise(200)
    clean = copying(fresh, real, train)
    assert clean["nearer_than_1_percent"] < 0.05
    assert clean["median_distance"] == pytest.approx(clean["median_distance_of_real"], rel=0.05)
    planted = torch.cat([fresh[:150], train[:50]])
    found = copying(planted, real, train)
    assert found["nearer_than_1_percent"] == pytest.approx(0.25, abs=0.05)
    assert found["nearest_1_percent"] == 0 < found["nearest_1_percent_of_real"]


def test_distances_are_root_mean_squares(noise):
    train = noise(20)
    brighter = (train.int() - 20).clamp(min=0).to(torch.uint8)
    flat = torch.full((20, 1, 16, 16), 255, dtype=torch.uint8)
    assert copying(flat[:5], brighter, flat)["median_distance"] == 0
    zero = torch.zeros_like(flat)
    assert copying(zero, brighter, flat)["median_distance"] == pytest.approx(1)


def test_figures_are_taken_on_all_of_the_data(tiny):
    model = load(tiny.run, "cpu")
    few = model.recipe.data.model_copy(update={"most": 3})
    model.recipe = model.recipe.model_copy(update={"data": few})
    source, held = room.to_learn(room.data_of(model, None))
    assert len(source) == len(held) > 3


def test_gathered_in_order_or_drawn(noise):
    pixels, labels = noise(30), torch.arange(30) % 3
    source = MemorySource("noise", pixels, labels, ("a", "b", "c"))
    whole = gathered(source, DataConfig())
    assert torch.equal(whole.pixels, pixels)
    some = gathered(source, DataConfig(), 7)
    assert torch.equal(gathered(source, DataConfig(), 7).pixels, some.pixels)
    for picture, label in zip(some.pixels, some.labels, strict=True):
        row = (pixels == picture).flatten(1).all(1).nonzero().item()
        assert label == row % 3


def test_broken_pictures_are_left_out_with_their_labels(tmp_path):
    data = pictures(tmp_path / "data", each=20)
    config = DataConfig(source=str(data), validation=0.2, workers=0)
    source = open_source(config, "train")
    broken = next(name for name in map(source.name_of, range(len(source))) if name.startswith("Lying"))
    before = gathered(source, config)
    place = [source.name_of(i) for i in range(len(source))].index(broken)
    cut(data / broken)
    # equal contents decide who is held out, so the file that changed may have moved; all others stay where they are
    source = open_source(config, "train")
    found = gathered(source, config)
    if broken in map(source.name_of, range(len(source))):
        assert [name for name, _ in found.broken] == [broken]
        keep = torch.arange(len(before)) != place
        assert torch.equal(found.pixels, before.pixels[keep])
        assert torch.equal(found.labels, before.labels[keep])
    assert len(found.pixels) == len(found.labels)


def test_another_source_in_the_models_shape(tiny, tmp_path):
    other = pictures(tmp_path / "other", each=20, size=(40, 24))
    config = room.data_of(load(tiny.run, "cpu"), str(other))
    assert held_out(config).pixels.shape[1:] == (1, 16, 16)
