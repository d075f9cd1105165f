"""An aligner of pictures and texts from its recipe to its figures, on a folder of captioned stripes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny import pictures, stripes
from tests.tiny import smalti as smalti

import smalti as library
from smalti import runs
from smalti.data.sources import DataConfig
from smalti.errors import UserError
from smalti.layers.transformer import TransformerConfig
from smalti.model import Aligner, load, load_tokenizer
from smalti.paradigms.contrastive import ContrastiveConfig
from smalti.recipe import Recipe, TrainingConfig
from smalti.training.ranks import Ranks

COLOURS = {"red": (255, 60, 60), "green": (60, 255, 60), "blue": (60, 60, 255), "grey": (255, 255, 255)}


def captioned(folder: Path, each: int = 20) -> Path:
    """Coloured waves, lying or standing, with the two wordings of what they show."""
    folder.mkdir(parents=True)
    lines, number = [], 0
    for colour, values in COLOURS.items():
        for way in ("lying", "standing"):
            for i in range(each):
                plane = stripes(1000 * number + i, way == "lying")
                pixels = (plane[..., None] * (np.array(values) / 255)).astype(np.uint8)
                name = f"{colour}-{way}-{i}.png"
                Image.fromarray(pixels).save(folder / name)
                lines.append(json.dumps({"file_name": name, "text": [f"{colour} waves, {way}", f"{way} {colour}"]}))
            number += 1
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def recipe_on(data: Path, steps: int = 150) -> Recipe:
    return Recipe(
        name="tiny-aligner",
        data=DataConfig(source=str(data), shape=(16, 16), channels=3, validation=0.2, workers=0),
        model=TransformerConfig(layers=1, width=32, heads=2, dropout=0.0),
        paradigm=ContrastiveConfig(width=16, picture_width=32, strides=(4, 2), blocks=1, pieces=280),
        training=TrainingConfig(steps=steps, batch=32, lr=5e-3, warmup=4, validate_every=30, log_every=5, ema=0.9),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("aligner")
    recipe = recipe_on(captioned(home / "data"))
    assert runs.train(recipe, out=home / "run", device="cpu").finished
    return home / "run"


@pytest.fixture
def aligner(run: Path) -> Aligner:
    model = library.load(run, "cpu")
    assert isinstance(model, Aligner)
    return model


def waves(n: int = 3) -> torch.Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_run_holds_an_aligner_that_needs_nothing_else(run, aligner):
    assert not (run / "model" / "tokenizers" / "tokenizer").exists()
    assert (run / "model" / "tokenizers" / "text" / "tokenizer.json").exists()
    assert "An aligner of pictures and texts" in (run / "model" / "README.md").read_text()
    assert (run / "report" / "index.html").exists()
    assert "Captions ranked first" in (run / "report" / "index.html").read_text()
    held = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "accuracy_text", "accuracy_picture"} <= held[-1]["values"].keys()


def test_vectors_are_alike_after_loading_again_and_in_any_batch(run, aligner, monkeypatch):
    x, texts = waves(5), ["red waves, lying", "standing blue", "", "grey", "x"]
    pictures, words = aligner.pictures(x), aligner.texts(texts)
    assert pictures.shape == words.shape == (5, 16)
    again = load(run, "cpu")
    assert torch.equal(again.pictures(x), pictures)
    assert torch.equal(again.texts(texts), words)
    monkeypatch.setattr("smalti.model.BATCH", 2)
    torch.testing.assert_close(aligner.pictures(x), pictures)
    torch.testing.assert_close(aligner.texts(texts), words)
    torch.testing.assert_close(aligner.similarity(x, texts), pictures @ words.T)
    assert aligner.pictures(x[:0]).shape == aligner.texts([]).shape == (0, 16)


def test_it_has_learnt_what_the_pictures_show(run, smalti):
    told = smalti("evaluate", run, "--json", "--device", "cpu")
    assert told.status == 0, told.err
    figures = json.loads(told.out)
    assert (figures["kind"], figures["split"], figures["among"]) == ("aligner", "test", 8)
    for name in ("caption_recall_at_1", "picture_recall_at_1"):
        assert figures[name] > 0.6, figures  # chance is right once in eight
    assert json.loads((run / "report" / "figures.json").read_text()) == figures
    again = smalti("evaluate", run, "--json", "--device", "cpu")
    assert json.loads(again.out) == figures


def test_wrong_inputs_are_told_in_one_line(aligner):
    wrong = {
        "float \\(B, 3, 16, 16\\)": lambda: aligner.pictures(waves()[:, :1]),
        "got torch.uint8": lambda: aligner.pictures(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)),
        "not finite": lambda: aligner.pictures(waves() * torch.nan),
        "a list of them": lambda: aligner.texts("red"),
        "no proper Unicode": lambda: aligner.texts(["\ud800"]),
    }
    for words, call in wrong.items():
        with pytest.raises(UserError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_verbs_that_do_not_fit_end_in_one_line(run, smalti, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture = run.parent / "data" / "red-lying-0.png"
    calls = {
        ("sample", run): "draws nothing",
        ("sample", run, "a red thing"): "draws nothing",
        ("complete", run, picture, "--keep", 0.5): "draws nothing",
        ("vary", run, picture): "draws nothing",
        ("morph", run, picture, picture, "--through", "noise"): "draws nothing",
        ("morph", run, picture, picture): "cuts nothing into codes",
        ("reconstruct", run, picture, "--out", "out"): "cuts nothing into codes",
        ("encode", run, picture, "--out", "codes.safetensors"): "cuts nothing into codes",
        ("decode", run, "codes.safetensors", "--out", "out"): "cuts nothing into codes",
        ("codes", run): "cuts nothing into codes",
        ("evaluate", run, "--temperature", 2): "an aligner of pictures and texts, which does not sample",
    }
    for call, words in calls.items():
        told = smalti(*call, "--device", "cpu")
        assert (told.status, told.out, len(told.err.splitlines())) == (2, "", 1), (call, told.err)
        assert words in told.err
    assert list(tmp_path.iterdir()) == []


def test_no_generator_stands_on_an_aligner(run):
    with pytest.raises(UserError, match="cuts nothing into codes"):
        load_tokenizer(run, "cpu")


def test_data_without_captions_is_told_and_leaves_nothing_behind(tmp_path):
    recipe = recipe_on(pictures(tmp_path / "data", each=20)).changed(**{"data.channels": 3})
    with pytest.raises(UserError, match=r"has no captions, which tiny-aligner learns from"):
        runs.train(recipe, out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run" / "recipe.json").exists()


def test_data_whose_captions_are_all_one_is_told(run, aligner, smalti, tmp_path):
    data = captioned(tmp_path / "data", each=3)
    lines = [json.loads(line) | {"text": "waves"} for line in (data / "metadata.jsonl").read_text().splitlines()]
    (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    told = smalti("evaluate", run, "--data", data, "--device", "cpu")
    assert (told.status, len(told.err.splitlines())) == (2, 1)
    assert "no two different captions" in told.err


def test_several_processes_are_refused(run, tmp_path):
    recipe = recipe_on(run.parent / "data")
    with pytest.raises(UserError, match="without torchrun"):
        runs._Training(recipe, tmp_path / "run", "cpu", Ranks(0, 2))._stages()
    assert not (tmp_path / "run").exists()
