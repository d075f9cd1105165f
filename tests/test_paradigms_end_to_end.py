"""Every way of generating, from the recipe to the files: trained for a moment, then asked for all that it can do."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny import generator_recipe, tokenizer_recipe
from tests.tiny import quick_judge as quick_judge
from tests.tiny import smalti as smalti
from tests.tiny import tiny as tiny

import smalti as library
from smalti import model as models
from smalti import runs
from smalti.config import Examples
from smalti.data.image import read_image, read_text
from smalti.model import generator as generators
from smalti.paradigms.diffusion import Diffusion, DiffusionConfig, DiffusionOptions
from smalti.paradigms.text_encoder import TextEncoderConfig
from smalti.recipe import parse
from smalti.sampling import files
from smalti.tokenizers.bottlenecks.kl import KLConfig

PIXELS = {"paradigm.kind": "diffusion", "paradigm.patch": 4, "paradigm.sampling.steps": 5}
WAYS = {
    "next-token": {},
    "next-token, random order": {"paradigm.order": "random", "paradigm.sampling.order": "random"},
    "masked": {"paradigm.kind": "discrete-diffusion", "paradigm.sampling.steps": 4},
    "simple": {"paradigm.kind": "discrete-diffusion", "paradigm.scheme": "simple", "paradigm.sampling.steps": 5},
    "pixels": PIXELS,
    "latents of codes": {**PIXELS, "paradigm.on": "latents", "paradigm.patch": 1},
    "latents": {**PIXELS, "paradigm.on": "latents", "paradigm.patch": 1},
}
ways = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A run of each way, made once."""

    @functools.cache
    def made(way: str):
        recipe = generator_recipe(tiny.data, str(tiny.tokenizer), steps=6)
        if way == "latents":
            cutter = tokenizer_recipe(tiny.data, steps=6)
            model = cutter.model.model_copy(update={"bottleneck": KLConfig(dim=4)})
            recipe = recipe.model_copy(update={"tokenizer": cutter.model_copy(update={"model": model})})
        if way == "pixels":
            recipe = recipe.model_copy(update={"tokenizer": None})
        folder = tmp_path_factory.mktemp("run") / "run"
        assert runs.train(recipe.changed(**WAYS[way]), out=folder, device="cpu").finished
        return folder

    return made


@ways
def test_from_recipe_to_pictures(way, trained, tiny, smalti, tmp_path, monkeypatch, quick_judge):
    monkeypatch.chdir(tmp_path)
    run = trained(way)
    assert (run / "report" / "index.html").stat().st_size > 10_000
    told = smalti("sample", run, "--label", "Standing", "--n", 3, "--out", "new", "--animate", "way.gif")
    assert (told.status, told.err.splitlines()[-1]) == (0, "wrote way.gif")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [f"standing_{i:05}.png" for i in range(3)]
    with Image.open("way.gif") as gif:
        assert gif.n_frames > 1
    assert smalti("sample", run, "--n", 2, "--animate", "way.png", "--out", "new2").status == 0

    assert smalti("sample", run, "--label", "Standing", "--n", 2, "--best-of", 3, "--out", "best").status == 0
    assert read_text(tmp_path / "best" / "standing_00001.png")["smalti:best-of"] == "3"

    # one and the same sample from Python, however the batch is split
    model = library.load(run, "cpu")
    whole = model.draw(5, [0, 1, 0, 1, 1], seed=2)
    assert whole.shape == (5, *model.shape)
    # of pixels and latents up to rounding, which depends on how many rows run together
    torch.testing.assert_close(model.draw(5, [0, 1, 0, 1, 1], seed=2, batch=2), whole, atol=1e-3, rtol=0)

    done = smalti("complete", run, tiny.picture, "--keep", 0.5, "--out", "done")
    assert (done.status, done.out) == (0, "done/000.png\n")
    if way == "pixels":  # what is kept of pixels is kept bit for bit
        kept, finished = read_image(tiny.picture, 1), read_image(tmp_path / "done" / "000.png", 1)
        assert torch.equal(kept[:, :8], finished[:, :8])
        assert not torch.equal(kept, finished)

    varied = smalti("vary", run, tiny.picture, "--level", 0.5, "--out", "varied")
    if "next-token" in way:
        assert varied.status == 2
        assert "smalti complete" in varied.err
    else:
        assert (varied.status, varied.out) == (0, "varied/000.png\n")
        assert smalti("vary", run, tiny.picture, "--level", 0, "--out", "varied").status == 2

    other = tiny.data / "Lying flat" / "000.png"
    morphed = smalti("morph", run, tiny.picture, other, "--through", "noise", "--steps", 3, "--out", "morph.png")
    if "pixels" in way or "latents" in way:
        assert morphed.status == 0
        assert read_image(tmp_path / "morph.png", 1).shape == (1, 16, 48)
    else:
        assert morphed.status == 2
        assert "no noise to walk through" in morphed.err

    figures = smalti("evaluate", run, "--samples", 16, "--json")
    assert figures.status == 0
    assert '"label_accuracy"' in figures.out
    likelihood = {"pixels": "bits_a_dimension", "masked": "nats_a_code"} | {
        each: "nats_a_code" for each in WAYS if "next-token" in each
    }
    assert [name for name in ("bits_a_dimension", "nats_a_code") if name in json.loads(figures.out)] == [
        *filter(None, [likelihood.get(way)])
    ]


@ways
def test_a_mask_with_a_hole_is_honoured_or_refused_in_words(way, trained, tiny, smalti, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    white = np.full((16, 16), 255, np.uint8)
    white[4:8, 4:12] = 0
    Image.fromarray(white).save("hole.png")
    told = smalti("complete", trained(way), tiny.picture, "--mask", "hole.png", "--out", "done")
    assert told.status == (2 if way == "next-token" else 0)
    assert way != "next-token" or told.err.splitlines()[-1].endswith("the kept part must come first")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (PIXELS, "takes no tokenizer"),
        ({**PIXELS, "paradigm.on": "latents", "paradigm.patch": 3}, "patch"),
        ({**PIXELS, "paradigm.variance": "learned"}, "learned variance"),
        ({"paradigm.kind": "discrete-diffusion", "paradigm.scheme": "masqued"}, "scheme"),
    ],
)
def test_recipes_that_do_not_fit_are_refused_in_words(changes, said, tiny, tmp_path):
    recipe = generator_recipe(tiny.data, str(tiny.tokenizer), steps=2)
    with pytest.raises(library.UserError, match=said):
        runs.train(recipe.changed(**changes), out=tmp_path / "run", device="cpu")


@ways
def test_what_cannot_be_asked_for_is_refused_in_one_line(way, trained, tiny, smalti, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = trained(way)
    for name, shade, size in (("small", 0, 8), ("white", 255, 16), ("black", 0, 16)):
        Image.fromarray(np.full((size, size), shade, np.uint8)).save(f"{name}.png")
    complete = ("complete", run, tiny.picture)
    no_steps = "unknown field --steps" if "next-token" in way else "steps: "
    wrong = {
        ("sample", run, "--steps", 0): no_steps,
        ("sample", run, "--steps", 100_000): no_steps,
        ("sample", run, "--guidance", -1): "guidance",
        ("sample", run, "--label", "Hat"): "unknown label 'Hat'",
        ("sample", run, "--label", "7"): "unknown label '7'",
        (*complete, "--keep", 0.5, "--label", "Hat"): "unknown label 'Hat'",
        (*complete, "--mask", "small.png"): "small.png is 8×8, the model's pictures are 16×16",
        (*complete, "--mask", "white.png"): "keeps everything",
        (*complete, "--mask", "black.png"): "keeps nothing",
        (*complete, "--keep", 0): "--keep 0",
        (*complete, "--keep", 16 * 16 if way == "pixels" else 16): "keeps all",
    }
    if way == "masked":
        wrong["sample", run, "--steps", 17] = "17 steps are more than the 16 codes"
    for call, words in wrong.items():
        told = smalti(*call, "--device", "cpu")
        assert (told.status, told.out, len(told.err.splitlines())) == (2, "", 1), told.err
        assert words in told.err
    assert not list(tmp_path.glob("*/*.png"))


def test_guidance_without_labels_is_refused_on_the_command_line(trained, smalti, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained("pixels"), "run")
    path = Path("run/model/config.json")
    config = json.loads(path.read_text())
    config["examples"]["labels"] = []
    recipe = parse(config["recipe"], "here")
    paradigm = models.build(recipe, library.load("run", "cpu").examples.model_copy(update={"labels": ()}))
    models.write(Path("run/model"), recipe, Examples(**config["examples"]), paradigm, {})
    told = smalti("sample", "run", "--guidance", 3, "--device", "cpu")
    assert (told.status, len(told.err.splitlines())) == (2, 1)
    assert "guidance 3 on a model that was trained without labels" in told.err
    assert smalti("sample", "run", "--n", 1, "--device", "cpu").status == 0


@ways
def test_progress_goes_to_the_error_stream_alone(way, trained, tiny, smalti, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, on = trained(way), ("--device", "cpu")
    calls = [("sample", run, "--n", 3), ("complete", run, tiny.picture, "--keep", 0.5), ("vary", run, tiny.picture)]
    for call in calls[: 2 if "next-token" in way else 3]:
        monkeypatch.setattr(files, "PATIENCE", 60.0)
        quiet = smalti(*call, *on)
        assert (quiet.status, "steps of" in quiet.err) == (0, False)
        monkeypatch.setattr(files, "PATIENCE", 1e-9)
        told = smalti(*call, *on)
        assert told.out == quiet.out
        n = 3 if call[0] == "sample" else 1
        assert way == "simple" or f"steps of {n} pictures" in told.err


def test_an_interrupt_leaves_the_samples_before_it(trained, smalti, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = trained("pixels")
    monkeypatch.setattr(generators, "IN_CACHE", 2)
    sample = Diffusion.sample

    def interrupted(self: Diffusion, n: int, *rest: object, first: int, **by: object) -> torch.Tensor:
        if first >= 4:
            raise KeyboardInterrupt
        return sample(self, n, *rest, first=first, **by)

    monkeypatch.setattr(Diffusion, "sample", interrupted)
    told = smalti("sample", run, "--n", 1000, "--out", "new", "--device", "cpu")
    assert (told.status, told.out) == (130, "")
    assert told.err.splitlines()[-1] == "smalti: interrupted; what was written stays"
    assert sorted(path.name for path in Path("new").iterdir()) == [f"sample_0000{i}.png" for i in range(4)]


@pytest.mark.parametrize("on", ["pixels", "latents"])
def test_from_captions_to_pictures(on, tiny, smalti, tmp_path, quick_judge):
    """A folder with captions, and labels, which are then not used: trained, asked by prompts, measured."""
    shutil.copytree(tiny.data, tmp_path / "data")
    lines = [
        {"file_name": f"{path.parent.name}/{path.name}", "text": f"{path.parent.name} waves", "label": path.parent.name}
        for path in sorted((tmp_path / "data").glob("*/*.png"))
    ]
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    text = TextEncoderConfig(layers=1, heads=2, pieces=300)
    options = DiffusionOptions(steps=5)
    told = DiffusionConfig(on=on, patch=4 if on == "pixels" else 1, text=text, sampling=options)
    changes = {"paradigm": told, "tokenizer": str(tiny.tokenizer) if on == "latents" else None}
    recipe = generator_recipe(tmp_path / "data", str(tiny.tokenizer), steps=6).model_copy(update=changes)
    run = tmp_path / "run"
    assert runs.train(recipe, out=run, device="cpu").finished
    assert (run / "report" / "index.html").stat().st_size > 10_000

    model = library.load(run, "cpu")
    assert model.words
    whole = model.draw(3, ["standing waves", None, "lying flat waves"], seed=2)
    torch.testing.assert_close(model.draw(1, "standing waves", seed=2), whole[:1], atol=1e-3, rtol=0)
    figures = smalti("evaluate", run, "--samples", 16, "--json")
    assert figures.status == 0
    assert '"frechet"' in figures.out
    asked = smalti("sample", run, "--label", "Standing", "--out", tmp_path / "new")
    assert (asked.status, len(asked.err.splitlines())) == (2, 1)

    (tmp_path / "data" / "metadata.jsonl").unlink()
    with pytest.raises(library.UserError, match="captions"):
        runs.train(recipe, out=tmp_path / "bare", device="cpu")
    assert not (tmp_path / "bare" / "recipe.json").exists()
