from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.sampling.drawn import drawn_run
from tests.tiny import cut, generator_recipe, huge, pictures, stripes, tokenizer_recipe
from tests.tiny import quick_judge as quick_judge
from tests.tiny import smalti as smalti
from tests.tiny import tiny as tiny

from smalti import recipes, runs
from smalti.data.image import read_image, read_text
from smalti.tokenizers.bottlenecks.kl import KLConfig
from smalti.tokenizers.bottlenecks.rvq import RVQConfig
from smalti.tokenizers.bottlenecks.vq import VQConfig

VERBS = (
    "quickstart recipes data train runs compare evaluate reconstruct encode decode codes sample"
    " complete vary morph doctor"
)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """Every test works in a folder of its own."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def process(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "smalti", *map(str, arguments)],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


# --- every verb ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS.split())
def test_help(verb, smalti):
    told = smalti(verb, "--help")
    assert (told.status, told.err) == (0, "")
    assert f"smalti {verb}" in told.out


def test_help_for_who_says_nothing(smalti):
    told = smalti()
    assert told.status == 0
    assert all(verb in told.out for verb in VERBS.split())
    assert smalti("-h").out == told.out


def test_quickstart(smalti, tiny, monkeypatch):
    made = generator_recipe(tiny.data, tokenizer_recipe(tiny.data, 2), 2)
    monkeypatch.setitem(recipes.RECIPES, "quickstart", lambda: made)
    told = smalti("quickstart", "--out", "quick", "--device", "cpu")
    assert told.status == 0, told.err
    for path in ("quick/model", "quick/tokenizer/model", "quick/report/index.html"):
        assert Path(path).exists()
    before = Path("quick/report/index.html").read_bytes()
    assert smalti("quickstart", "--out", "quick").status == 0
    assert Path("quick/report/index.html").read_bytes() == before


def test_recipes(smalti):
    told = smalti("recipes")
    assert told.status == 0
    assert all(name in told.out for name in recipes.RECIPES)
    assert [each["name"] for each in json.loads(smalti("recipes", "--json").out)] == list(recipes.RECIPES)


def test_data(smalti, tiny):
    told = smalti("data", tiny.data, "--out", "new/sheet.png")
    assert told.status == 0
    assert "Lying flat: " in told.out
    with Image.open("new/sheet.png") as sheet:
        assert sheet.width > 100
    about = json.loads(smalti("data", tiny.data, "--json").out)
    assert about["splits"]["test"]["pictures"] == about["splits"]["validation"]["pictures"]


def test_train_with_fields_changed(smalti, tiny):
    small = {"model.layers": 1, "model.width": 32, "model.heads": 2, "tokenizer.training.steps": 1}
    fields = ["--training.steps", 9, *(f"--{name}={value}" for name, value in small.items())]
    # fields may stand anywhere, before the recipe's name too
    told = smalti("train", *fields, "folder", "--data", tiny.data, "--steps", 1, "--device", "cpu", "--out", "mine")
    assert told.status == 0, told.err
    recipe = json.loads(Path("mine/recipe.json").read_text())
    assert (recipe["training"]["steps"], recipe["tokenizer"]["training"]["steps"]) == (1, 1)
    assert (recipe["model"]["width"], recipe["data"]["source"]) == (32, str(tiny.data))
    assert "report mine/report/index.html" in told.err
    assert told.out == ""
    assert smalti("train", "--resume", "mine", "--device", "cpu").status == 0


def test_runs_and_compare(smalti, tiny):
    told = smalti("runs", tiny.run.parent)
    assert [line.split()[1] for line in told.out.splitlines()] == ["recipe", "tiny", "tiny-tokenizer"]
    assert len(json.loads(smalti("runs", tiny.run.parent, "--json").out)) == 2
    told = smalti("compare", tiny.run, tiny.tokenizer)
    assert told.status == 0
    assert "held-out nats_a_code" in told.out
    assert "differs" in told.out
    found = json.loads(smalti("compare", tiny.run, tiny.tokenizer, "--json").out)
    assert found["differences"]["paradigm.kind"] == ["autoregressive", "autoencode"]


@pytest.mark.usefixtures("quick_judge")
def test_evaluate(smalti, tiny):
    shutil.copytree(tiny.run, "run")
    told = smalti("evaluate", "run", "--samples", 16, "--json", "--device", "cpu")
    assert told.status == 0, told.err
    figures = json.loads(told.out)
    assert json.loads(Path("run/report/figures.json").read_text()) == figures
    assert "| samples.coverage |" in Path("run/model/README.md").read_text()
    told = smalti("evaluate", "run", "--samples", 16, "--temperature", 0, "--device", "cpu")
    assert "temperature: 0" in told.out
    header = next(line for line in told.out.splitlines() if "samples" in line and "real" in line)
    assert header.split() == ["samples", "real", "reconstructed"]
    # other options than the recipe's measure something else than the run
    assert json.loads(Path("run/report/figures.json").read_text()) == figures


def test_evaluate_a_tokenizer_in_a_process_of_its_own(tiny):
    # one class, so no labels: the judge looks at pixels, and has nothing to learn
    done = process("evaluate", tiny.tokenizer, "--data", tiny.data / "Standing", "--json", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["kind"] == "tokenizer"
    assert figures["frechet_pixels"] > 0


def test_reconstruct_encode_decode(smalti, tiny):
    told = smalti("reconstruct", tiny.run, tiny.picture, "--out", "again", "--device", "cpu")
    assert told.out.startswith("again/000.png")
    assert "dB" in told.out
    told = smalti("encode", tiny.run, tiny.data / "Standing", "--out", "codes.safetensors", "--device", "cpu")
    size = sum(path.stat().st_size for path in (tiny.data / "Standing").iterdir())
    assert told.out == (  # 16 codes of 4 bits each
        "codes.safetensors: 60 pictures, 3,840 bits of codes (0.25 a pixel)"
        f" for 122,880 bits of pixels and {size:,} bytes of files\n"
    )
    told = smalti("decode", tiny.run, "codes.safetensors", "--out", "laid", "--device", "cpu")
    assert len(told.out.splitlines()) == len(list(Path("laid").iterdir())) == 60
    one, other = (read_image(path).int() for path in ("again/000.png", "laid/000.png"))
    assert (one - other).abs().max() <= 1


def test_a_folder_goes_to_several_files_and_back(smalti, tiny):
    small = 400 / 2**20
    told = smalti("encode", tiny.run, tiny.data, "--out", "new/c.safetensors", "--shard-size", small, "--device", "cpu")
    assert told.out.startswith("new/c.safetensors.index.json: 120 pictures, ")
    parts = sorted(path.name for path in Path("new").glob("*.safetensors"))
    assert parts == [f"c-{i:05d}-of-00005.safetensors" for i in range(1, 6)]
    for name in ("new/c.safetensors", "new/c.safetensors.index.json"):
        assert len(smalti("decode", tiny.run, name, "--out", "laid", "--device", "cpu").out.splitlines()) == 120
    laid = {path.relative_to("laid") for path in Path("laid").rglob("*.png")}
    assert laid == {path.relative_to(tiny.data) for path in tiny.data.rglob("*.png")}
    wrong(smalti("decode", tiny.run, f"new/{parts[0]}", "--out", "o", "--device", "cpu"), "one of several parts")
    Path("new", parts[2]).unlink()
    wrong(smalti("decode", tiny.run, "new/c.safetensors", "--out", "o", "--device", "cpu"), parts[2], "is missing")


def test_pictures_of_any_size(smalti, tiny):
    Path("odd").mkdir()
    sizes = {f"{height}x{width}": (height, width) for height, width in ((1, 1), (3, 50), (17, 16), (2, 3))}
    for name, size in sizes.items():
        Image.fromarray(stripes(1, True, size)).save(f"odd/{name}.png")
    assert smalti("encode", tiny.run, "odd", "--out", "c.safetensors", "--device", "cpu").status == 0
    assert smalti("decode", tiny.run, "c.safetensors", "--out", "laid", "--device", "cpu").status == 0
    assert smalti("reconstruct", tiny.run, "odd", "--out", "again", "--device", "cpu").status == 0
    for folder in ("laid", "again"):
        assert {path.stem: read_image(path).shape[1:] for path in Path(folder).iterdir()} == sizes


def test_a_residual_tokenizer(smalti, tiny):
    run = drawn_run(Path("rvq"), RVQConfig(codes=16, dim=4, stages=3))
    for count, bits in ((1, 64), (2, 128), (3, 192)):
        on = ("--codebooks", count, "--device", "cpu")
        told = smalti("encode", run, tiny.picture, "--out", "c.safetensors", *on)
        assert f"{bits} bits of codes ({bits / 256:.2g} a pixel)" in told.out
        assert smalti("decode", run, "c.safetensors", "--out", f"laid{count}", "--device", "cpu").status == 0
        assert smalti("reconstruct", run, tiny.picture, "--out", f"again{count}", *on).status == 0
        one, other = (read_image(f"{folder}{count}/000.png").int() for folder in ("laid", "again"))
        assert (one - other).abs().max() <= 1
    for verb in ("encode", "reconstruct"):
        call = (verb, run, tiny.picture, "--out", "o", "--device", "cpu", "--codebooks")
        wrong(smalti(*call, 4), "4 codebooks", "1 to 3")
        wrong(smalti(*call, 0), "--codebooks")
        wrong(smalti(verb, tiny.run, tiny.picture, "--out", "o", "--device", "cpu", "--codebooks", 1), "not residual")


def test_a_continuous_tokenizer(smalti, tiny):
    run, on = drawn_run(Path("kl"), KLConfig(dim=3)), ("--device", "cpu")
    told = smalti("sample", run, "--n", 3, "--seed", 4, "--out", "new", *on)
    assert told.status == 0, told.err
    assert told.out == "3 pictures in new: sample_00000.png … sample_00002.png\n"
    fields = read_text("new/sample_00002.png")
    assert (fields["smalti:seed"], fields["smalti:index"]) == ("4", "2")
    assert json.loads(fields["smalti:recipe"])["model"]["bottleneck"]["kind"] == "kl"
    smalti("sample", run, "--n", 5, "--seed", 4, "--out", "more", *on)
    assert (read_image("more/sample_00002.png").int() - read_image("new/sample_00002.png").int()).abs().max() <= 1
    wrong(smalti("sample", run, "--label", "Standing", *on), "did not expect --label", "continuous tokenizer")
    wrong(smalti("sample", run, "a red stripe", *on), "did not expect a prompt", "continuous tokenizer")
    wrong(smalti("sample", run, "--top-k", 3, *on), "did not expect --top-k", "continuous tokenizer")
    wrong(smalti("sample", run, "--animate", "a.gif", *on), "did not expect --animate", "continuous tokenizer")

    assert smalti("reconstruct", run, tiny.picture, "--out", "again", *on).out.startswith("again/000.png")
    other = tiny.data / "Lying flat" / "000.png"
    assert smalti("morph", run, tiny.picture, other, "--steps", 3, *on).out == "morph.png\n"
    no_codes = "this tokenizer is continuous: it has latents and no codes"
    wrong(smalti("encode", run, tiny.picture, "--out", "c.safetensors", *on), no_codes)
    wrong(smalti("decode", run, "c.safetensors", "--out", "o", *on), no_codes)
    wrong(smalti("reconstruct", run, tiny.picture, "--out", "o", "--codebooks", 1, *on), no_codes)
    wrong(smalti("complete", run, tiny.picture, "--keep", 1, *on), no_codes)


def test_codes(smalti, tiny):
    shutil.copytree(tiny.run, "run")
    told = smalti("codes", "run", "--json", "--device", "cpu")
    figures = json.loads(told.out)
    assert (figures["size"], figures["tokens"], figures["split"]) == (16, 36 * 16, "test")
    assert figures["codebooks"][0]["used_codes"] == [i for i, n in enumerate(figures["codebooks"][0]["counts"]) if n]
    assert "report run/report/codes.html" in told.err
    assert "Why a prior is needed" in Path("run/report/codes.html").read_text()
    assert "perplexity" in smalti("codes", "run", "--device", "cpu").out


@pytest.fixture
def trained(tiny):
    """trained("rvq", stages=2): a tokenizer with another bottleneck, trained for two steps into a run of that name."""

    def train(kind: str, **settings: object) -> str:
        fields = {f"model.bottleneck.{name}": value for name, value in {"kind": kind, **settings}.items()}
        assert runs.train(tokenizer_recipe(tiny.data, 2), out=kind, changes=fields, device="cpu").finished
        return kind

    return train


@pytest.mark.usefixtures("quick_judge")
def test_figures_of_residual_codes(smalti, trained):
    run = trained("rvq", codes=8, stages=3, dim=4)
    told = smalti("codes", run, "--device", "cpu")
    assert told.status == 0
    heads = [line.split() for line in told.out.splitlines() if line.startswith(("each_codebook", "first_codebooks"))]
    assert sorted(heads) == [["each_codebook", "1", "2", "3"], ["first_codebooks", "1", "2", "3"]]
    assert "counts" not in told.out
    figures = json.loads(smalti("codes", run, "--json", "--device", "cpu").out)
    assert [sum(one["counts"]) for one in figures["codebooks"]] == [36 * 16] * 3
    told = smalti("evaluate", run, "--device", "cpu")
    rows = {line.split()[0]: line.split()[1:] for line in told.out.splitlines() if line}
    assert rows["bits_a_picture"] == ["48", "96", "144"]
    assert len(rows["psnr"]) == 3
    # beside another run: an outline, the figures of a group under its name
    shown = smalti("compare", run, run).out.splitlines()
    at = shown.index("first_codebooks 2")
    assert shown[at + 1].split() == ["bits_a_picture", "96", "96"]
    assert shown[at + 1].startswith("  bits_a_picture  ")


def test_a_continuous_tokenizer_has_figures_and_no_codes(smalti, trained):
    run = trained("kl", dim=2)
    wrong(smalti("codes", run, "--device", "cpu"), "continuous", "latents and no codes")
    assert not Path(run, "report/codes.html").exists()


def test_sample(smalti, tiny):
    told = smalti("sample", tiny.run, "--label", "lying FLAT", "--n", 5, "--seed", 3, "--temperature", 0.7,
                  "--top-k", 5, "--out", "new", "--animate", "new/laid.gif", "--device", "cpu")  # fmt: skip
    assert told.status == 0, told.err
    names = sorted(path.name for path in Path("new").iterdir())
    assert names == ["laid.gif", *(f"lying-flat_0000{i}.png" for i in range(5))]
    fields = read_text("new/lying-flat_00004.png")
    assert json.loads(fields["smalti:options"])["top_k"] == 5
    assert json.loads(fields["smalti:options"])["temperature"] == 0.7
    assert (fields["smalti:seed"], fields["smalti:index"]) == ("3", "4")
    first = Path("new/lying-flat_00000.png").read_bytes()
    # options stand where they like, and more samples do not change the first ones
    smalti("sample", "--temperature=0.7", "--top_k", 5, tiny.run, "--label", "Lying flat", "--seed", 3, "--n", 9,
           "--out", "more", "--device", "cpu")  # fmt: skip
    assert Path("more/lying-flat_00000.png").read_bytes() == first
    assert smalti("sample", tiny.run, "--n", 1, "--device", "cpu").status == 0
    assert Path("samples/sample_00000.png").exists()


@pytest.mark.usefixtures("quick_judge")
def test_the_best_of_several(smalti, tiny):
    told = smalti("sample", tiny.run, "--label", "standing", "--n", 3, "--seed", 3, "--best-of", 4, "--out", "best",
                  "--device", "cpu")  # fmt: skip
    assert told.status == 0, told.err
    fields = read_text("best/standing_00002.png")
    assert (fields["smalti:best-of"], fields["smalti:index"]) == ("4", "2")
    smalti("sample", tiny.run, "--label", "standing", "--n", 12, "--seed", 3, "--out", "all", "--device", "cpu")
    drawn = [read_image(f"all/standing_{i:05}.png", 1) for i in range(12)]
    for i in range(3):  # sample i is one of its own four
        kept = read_image(f"best/standing_{i:05}.png", 1)
        assert any((kept == each).all() for each in drawn[4 * i : 4 * i + 4])
    assert "smalti:best-of" not in read_text("all/standing_00000.png")

    for wrong, said in (
        (("--n", 2), "--label"),
        (("--label", "Standing", "--animate", "way.gif"), "--animate"),
        (("--label", "Sitting"), "unknown label"),
    ):
        told = smalti("sample", tiny.run, "--best-of", 4, *wrong, "--device", "cpu")
        assert (told.status, len(told.err.splitlines())) == (2, 1)
        assert said in told.err


def test_complete(smalti, tiny):
    told = smalti("complete", tiny.run, tiny.picture, tiny.data / "Lying flat", "--keep", 0.5, "--temperature", 0.5,
                  "--label", "Standing", "--out", "done", "--device", "cpu")  # fmt: skip
    assert told.status == 0, told.err
    assert len(told.out.splitlines()) == len(list(Path("done").iterdir())) == 61
    white = np.zeros((16, 16), np.uint8)
    white[:8] = 255
    Image.fromarray(white).save("mask.png")
    told = smalti("complete", tiny.run, tiny.picture, "--mask", "mask.png", "--device", "cpu")
    assert told.out.strip() == "completions/000.png"


def test_morph(smalti, tiny):
    told = smalti(
        "morph", tiny.run, tiny.picture, tiny.data / "Lying flat" / "000.png", "--steps", 5, "--device", "cpu"
    )
    assert told.out.strip() == "morph.png"
    with Image.open("morph.png") as strip:
        assert strip.size == (5 * 16, 16)


def test_doctor(smalti):
    told = smalti("doctor")
    assert "torch: 2." in told.out
    found = json.loads(smalti("doctor", "--json").out)
    assert found["missing"] == "nothing"
    assert found["product TFLOP/s"]["float32"] > 0


# --- files of every kind ---------------------------------------------------------------------------------------------


def test_pictures_of_every_kind_are_read(smalti, tiny):
    Path("kinds").mkdir()
    grey = stripes(1, True)
    Image.fromarray(grey.astype(np.uint16) * 257).save("kinds/sixteen.png")
    Image.merge("CMYK", [Image.fromarray(grey)] * 4).save("kinds/cmyk.jpg")
    Image.merge("LA", [Image.fromarray(grey)] * 2).save("kinds/alpha.png")
    frames = [Image.fromarray(stripes(i, True)) for i in range(3)]
    frames[0].save("kinds/moving.gif", save_all=True, append_images=frames[1:])
    told = smalti("encode", tiny.run, "kinds", "--out", "c.safetensors", "--device", "cpu")
    assert told.status == 0
    assert "4 pictures" in told.out
    assert "left out" not in told.err
    about = json.loads(smalti("data", "kinds", "--json").out)
    assert about["broken"] == {}
    assert sum(about["splits"][split]["pictures"] for split in ("train", "validation")) == 4


def test_a_picture_cut_short_among_good_ones(smalti, tiny):
    shutil.copytree(tiny.data, "data")
    cut(Path("data/Standing/003.png"))
    told = smalti("encode", tiny.run, "data", "--out", "c.safetensors", "--device", "cpu")
    assert told.status == 0
    assert "119 pictures" in told.out
    assert "left out: cannot read data/Standing/003.png" in told.err
    assert smalti("data", "data", "--out", "sheet.png").status == 0
    assert list(json.loads(smalti("data", "data", "--json").out)["broken"]) == ["Standing/003.png"]


# --- what a user can get wrong ---------------------------------------------------------------------------------------


def wrong(told, *expected: str) -> None:
    """Status 2, nothing on the output stream, one line on the error stream that says all of `expected`."""
    assert told.status == 2
    assert told.out == ""
    lines = told.err.splitlines()
    assert len(lines) == 1, told.err
    assert lines[0].startswith("smalti: ")
    for word in expected:
        assert word in lines[0]


def test_data_that_is_none(smalti):
    for verb in (("train", "folder", "--data"), ("data",)):
        wrong(smalti(*verb, "nowhere"), "no folder nowhere", "data set")
        Path("empty").mkdir(exist_ok=True)
        wrong(smalti(*verb, "empty"), "no pictures", "empty")
        Path("words").mkdir(exist_ok=True)
        Path("words/a.txt").write_text("words")
        wrong(smalti(*verb, "words"), "no pictures", ".txt", "pictures end in .png")
        wrong(smalti(*verb, "words/a.txt"), "is a file")
    wrong(smalti("data", "fashion-mnits"), "nearest: fashion-mnist")
    wrong(smalti("train", "folder"), "--data FOLDER")


def test_a_header_that_promises_too_much(smalti, tiny):
    path = huge(Path("huge.png"))
    for verb in ("encode", "reconstruct"):
        wrong(smalti(verb, tiny.run, path, "--out", "o", "--device", "cpu"), "huge.png", "100,000,000 pixels")
    wrong(smalti("complete", tiny.run, path, "--keep", 1, "--device", "cpu"), "100,000,000 pixels")
    wrong(smalti("morph", tiny.run, path, tiny.picture, "--device", "cpu"), "100,000,000 pixels")


def test_a_morph_of_two_sizes(smalti, tiny):
    Image.fromarray(stripes(5, True, (16, 20))).save("wide.png")
    wrong(smalti("morph", tiny.run, tiny.picture, "wide.png", "--device", "cpu"), "16×16", "20×16", "one size")


def test_unknown_names(smalti, tiny):
    wrong(smalti("train", "fasion"), "unknown recipe 'fasion'", "nearest: fashion")
    wrong(smalti("train", "fashion", "--model.layer", 3), "unknown field --model.layer", "model.layers")
    wrong(smalti("train", "fashion", "--trainig.lr", 3), "unknown field --trainig.lr", "training")
    wrong(smalti("train", "fashion", "--model.layers", "many"), "model.layers", "'many'")
    wrong(smalti("train", "fashion", "--model.layers"), "--model.layers needs a value")
    wrong(smalti("train"), "name a recipe")
    wrong(
        smalti("sample", tiny.run, "--label", "Hat", "--device", "cpu"), "unknown label 'Hat'", "Lying flat, Standing"
    )
    wrong(smalti("sample", tiny.run, "--tempratur", 1, "--device", "cpu"), "--tempratur", "nearest: temperature")
    wrong(smalti("sample", tiny.run, "a red stripe", "--device", "cpu"), "trained without text", "--label")
    wrong(smalti("smaple"), "smaple", "sample")
    wrong(smalti("sample", tiny.run, "--device", "abacus"), "abacus")
    wrong(smalti("evaluate", tiny.tokenizer, "--guidance", 2, "--device", "cpu"), "--guidance", "tokenizer")


def test_runs_that_are_none(smalti, tiny):
    wrong(smalti("sample", "nowhere"), "no run at nowhere")
    Path("empty").mkdir()
    for verb in ("sample", "evaluate", "codes"):
        wrong(smalti(verb, "empty"), "empty is not a run")
    shutil.copytree(tiny.run, "begun")
    shutil.rmtree("begun/model")
    wrong(smalti("sample", "begun"), "no model yet", "smalti train --resume begun")
    wrong(smalti("sample", tiny.tokenizer, "--device", "cpu"), "holds a tokenizer")
    wrong(smalti("compare", tiny.run, "empty"), "no recipe")
    wrong(smalti("runs", "nowhere"), "no folder nowhere")
    wrong(smalti("train", "--resume", "nowhere"), "no run at nowhere")


def test_a_damaged_model(smalti, tiny):
    shutil.copytree(tiny.run, "run")
    path = Path("run/model/model.safetensors")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    wrong(smalti("sample", "run"), "model.safetensors is damaged", "checksum")
    path = Path("run/model/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    wrong(smalti("sample", "run"), "format 99", "newer smalti")
    path.write_text("{")
    wrong(smalti("sample", "run"), "config.json is damaged")


def test_numbers_out_of_range(smalti, tiny):
    for keep in (0, -1, 1.5, 17, "nan"):
        wrong(smalti("complete", tiny.run, tiny.picture, "--keep", keep, "--device", "cpu"), "--keep", "1 to 16")
    wrong(
        smalti("complete", tiny.run, tiny.picture, "--keep", "half"), "--keep", "number", "see smalti complete --help"
    )
    wrong(smalti("complete", tiny.run, tiny.picture), "--keep 0.5 or --mask PNG")
    wrong(smalti("complete", tiny.run, tiny.picture, "--keep", 1, "--mask", tiny.picture), "either")
    wrong(smalti("sample", tiny.run, "--n", -3), "--n", "greater than or equal to 1")
    wrong(smalti("sample", tiny.run, "--n", 0), "--n")
    wrong(smalti("sample", tiny.run, "--seed", -1), "--seed")
    wrong(smalti("sample", tiny.run, "--temperature", -1, "--device", "cpu"), "temperature", "-1")
    wrong(smalti("morph", tiny.run, tiny.picture, tiny.picture, "--steps", 1), "--steps")
    wrong(smalti("train", "fashion", "--steps", 0), "training.steps")


def test_a_network_that_no_machine_holds(smalti, tiny):
    for field in ("model.width", "tokenizer.model.width"):
        told = smalti(
            "train", "folder", "--data", tiny.data, "--out", "big", f"--{field}", 1_000_000, "--device", "cpu"
        )
        assert told.status == 2
        assert "GiB, and this machine has" in told.err.splitlines()[-1]
        assert "Traceback" not in told.err
        assert not Path("big/recipe.json").exists()
        assert not Path("big/tokenizer/recipe.json").exists()
    wrong(smalti("train", "fashion", "--model.layers", 1_000_000), "model.layers", "1000000")


def test_masks(smalti, tiny):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("small.png")
    Image.fromarray(np.full((16, 16), 255, np.uint8)).save("white.png")
    call = ("complete", tiny.run, tiny.picture, "--device", "cpu", "--mask")
    wrong(smalti(*call, "small.png"), "small.png is 8×8", "16×16")
    wrong(smalti(*call, "white.png"), "keeps everything")
    wrong(smalti(*call, "none.png"), "none.png", "no such file")


def test_arguments_that_do_not_belong(smalti, tiny):
    wrong(smalti("train", "--resume", tiny.run, "--training.lr", 1), "exactly as it was")
    wrong(smalti("train", "fashion", "--resume", tiny.run), "exactly as it was")
    wrong(smalti("train", "--resume", tiny.run, "--steps", 5), "exactly as it was")
    wrong(smalti("train", "folder", "extra"), "extra")
    wrong(smalti("encode", tiny.run, tiny.picture), "--out")
    wrong(smalti("encode", tiny.run), "FILE")
    for size in ("nan", "inf"):
        wrong(smalti("encode", tiny.run, tiny.picture, "--out", "c.safetensors", "--shard-size", size), "--shard-size")
    wrong(smalti("morph", tiny.run, tiny.picture, tiny.picture, "--seed", 1 << 64), "--seed")
    wrong(smalti("recipes", "--jason"), "--jason")


def test_outputs_that_cannot_be(smalti, tiny):
    Path("file").touch()
    Path("folder.png").mkdir()
    on = ("--device", "cpu")
    wrong(smalti("sample", tiny.run, "--n", 1, "--out", "file", *on), "file is in the way")
    wrong(smalti("morph", tiny.run, tiny.picture, tiny.picture, "--out", "folder.png", *on), "folder.png")
    wrong(smalti("morph", tiny.run, tiny.picture, tiny.picture, "--out", "strip.jpg", *on), "end in .png")
    told = smalti("data", tiny.data, "--out", "sheet.jpg")
    assert (told.status, told.err) == (2, "smalti: sheet.jpg: a contact sheet is a PNG, so the name must end in .png\n")
    shutil.copy(tiny.picture, "mine.png")
    wrong(smalti("reconstruct", tiny.run, "mine.png", "--out", ".", *on), "would be overwritten")
    wrong(smalti("encode", tiny.run, tiny.picture, "--out", "file/c.safetensors", *on), "file")


def test_a_name_that_is_no_text(tiny, tmp_path):
    try:
        picture = Path(shutil.copy(tiny.picture, tmp_path / os.fsdecode(b"a\xff.png")))
    except OSError:
        pytest.skip("this disk takes names of letters only")
    call = ("reconstruct", tiny.run, picture, "--out", tmp_path / "out", "--device", "cpu")
    told = subprocess.run(
        [sys.executable, "-c", "from smalti.cli import main; main()", *call],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
    )
    assert told.returncode == 0, told.stderr
    assert b"a\\udcff.png" in told.stdout


def test_a_listener_who_leaves():
    told = subprocess.Popen(
        [sys.executable, "-c", "from smalti.cli import main; main()", "recipes"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert told.stdout is not None
    told.stdout.close()
    assert told.communicate()[1] == ""
    assert told.returncode == 1


def test_codes_of_another_model(smalti, tiny):
    smalti("encode", tiny.run, tiny.picture, "--out", "c.safetensors", "--device", "cpu")
    other = drawn_run(Path("other"), VQConfig(codes=16, dim=4))
    wrong(smalti("decode", other, "c.safetensors", "--out", "o", "--device", "cpu"), "made by another model")
    wrong(smalti("decode", tiny.run, ".", "--out", "o", "--device", "cpu"), ". is a folder")
    wrong(smalti("encode", tiny.run, tiny.picture, "--out", ".", "--device", "cpu"), "could not write .")
    cut(Path("c.safetensors"), 0.9)
    wrong(smalti("decode", tiny.run, "c.safetensors", "--out", "o", "--device", "cpu"), "damaged or cut short")
    wrong(smalti("decode", tiny.run, tiny.picture, "--out", "o", "--device", "cpu"), "damaged or cut short")
    wrong(smalti("decode", tiny.run, "none", "--out", "o", "--device", "cpu"), "no file none")


def test_a_run_that_is_there_already(smalti, tiny):
    told = smalti("train", "folder", "--data", tiny.data, "--out", tiny.run)
    assert told.status == 2
    assert "already holds a run" in told.err.splitlines()[-1]


def test_a_mistake_has_no_traceback_and_a_bug_has_one():
    done = process("sample", "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    there = "; these models come with smalti: emoji"
    assert done.stderr == f"smalti: no run at nowhere; `smalti runs` lists what has been trained{there}\n"
    code = "import smalti.recipes, smalti.cli, sys; smalti.recipes.listing = lambda: 1 / 0; sys.argv[1:] = ['recipes']"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; smalti.cli.main()"], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError" in done.stderr


def test_more_than_a_few_broken(smalti, tiny):
    data = pictures(Path("data"), each=10)
    for i in range(4):
        cut(data / "Standing" / f"00{i}.png")
    told = smalti("encode", tiny.run, data, "--out", "c.safetensors", "--device", "cpu")
    assert told.status == 2
    assert "of 20 pictures are broken" in told.err.splitlines()[-1]
    assert not Path("c.safetensors").exists()


def test_a_wrong_ending_of_an_animation_is_told_before_anything_is_drawn(smalti, tiny):
    told = smalti("sample", tiny.run, "--n", 2, "--animate", "way.mp4", "--out", "never", "--device", "cpu")
    assert told.status == 2
    assert "must end in .gif or .png" in told.err
    assert not Path("never").exists()


@pytest.mark.parametrize("words", [("folder",), ("--resume", "somewhere")])
def test_a_training_that_was_stopped_says_so_by_its_status(smalti, monkeypatch, words):
    """Or what comes after it in a script would go on with half a model."""
    for verb in ("train", "resume"):
        monkeypatch.setattr(runs, verb, lambda *_: runs.Outcome(Path("somewhere"), False))
    assert smalti("train", *words).status == 130
