from __future__ import annotations

import json

import pytest
import torch
from tests.tiny import cut, pictures

from smalti.data.example import MemorySource
from smalti.data.sources import DataConfig, open_source
from smalti.errors import UserError
from smalti.evaluation import evaluate as room
from smalti.evaluation.classifier import PixelFeatures
from smalti.evaluation.evaluate import copying, evaluate, gathered, held_out, likeness
from smalti.model import load

FRACTIONS = ("label_accuracy", "precision", "recall", "coverage")


@pytest.fixture
def noise(generator):
    """noise(n): n pictures of coarse random patches, uint8 (n, 1, 16, 16), no two alike."""

    def draw(n: int) -> torch.Tensor:
        coarse = torch.randint(0, 256, (n, 1, 4, 4), generator=generator)
        return coarse.repeat_interleave(4, 2).repeat_interleave(4, 3).to(torch.uint8)

    return draw


def test_the_figures_of_a_tokenizer(tiny):
    figures = evaluate(load(tiny.tokenizer, "cpu"))
    names = "kind data split pictures mse psnr ssim codes used usage perplexity entropy tokens"
    assert list(figures) == names.split()
    assert figures["pictures"] == 36
    assert figures["tokens"] == 36 * 16
    assert figures["psnr"] == pytest.approx(-10 * torch.tensor(figures["mse"]).log10().item(), abs=1e-3)
    assert 1 <= figures["perplexity"] <= figures["used"] <= figures["codes"] == 16
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
