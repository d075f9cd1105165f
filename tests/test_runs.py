from __future__ import annotations

import functools
import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tests.tiny import cut, generator_recipe, pictures, stripes, tokenizer_recipe
from tests.tiny import tiny as tiny

import smalti
from smalti import checkpoint, runs
from smalti.checkpoint import read_config
from smalti.data.image import read_image, to_signal
from smalti.data.loader import Loader
from smalti.errors import UserError
from smalti.evaluation.report import Report
from smalti.model import Generator, Tokenizer, load
from smalti.recipe import read
from smalti.runs import MINUTES, MINUTES_BEFORE
from smalti.training.log import read_metrics

train = functools.partial(runs.train, device="cpu")


@pytest.fixture(autouse=True)
def _plain_reports(monkeypatch):
    """Reports are looked at in the tests of their own room, and in the tiny run; elsewhere they only cost time."""
    monkeypatch.setattr(runs, "write_report", lambda folder, *_: Report("").write(folder / "report" / "index.html"))


@pytest.fixture
def data(tmp_path) -> Path:
    return pictures(tmp_path / "data", each=20)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- what a run leaves behind ----------------------------------------------------------------------------------------


def test_the_layout(tiny):
    for run in (tiny.run, tiny.tokenizer):
        for name in ("recipe.json", "metrics.jsonl", "model/config.json", "model/model.safetensors", "model/README.md"):
            assert (run / name).is_file(), f"{run.name}/{name}"
        assert "<html" in (run / "report" / "index.html").read_text()
        step = (run / "state" / "latest").read_text().strip()
        assert step == "40"
        assert [path.name for path in (run / "state").iterdir() if path.is_dir()] == [step]
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert all(set(row) == {"step", "time", "split", "values"} for row in rows)
        assert {row["split"] for row in rows} == {"train", "validation"}
    assert (tiny.run / "model" / "tokenizers" / "tiny-tokenizer" / "model.safetensors").is_file()


def test_the_recipe_spells_out_every_default(tiny):
    told = json.loads((tiny.run / "recipe.json").read_text())
    assert told["training"]["weight_decay"] == 0.05
    assert told["tokenizer"]["model"]["bottleneck"]["commitment"] == 0.25
    assert read(tiny.run / "recipe.json") == generator_recipe(tiny.data, tokenizer_recipe(tiny.data))


def test_a_run_comes_back(tiny):
    model = smalti.load(tiny.run, "cpu")
    assert isinstance(model, Generator)
    assert model.labels == ("Lying flat", "Standing")
    assert model.sample(2, "standing").shape == (2, 1, 16, 16)
    assert isinstance(smalti.load(tiny.tokenizer, "cpu"), Tokenizer)


def test_it_has_learned_something(tiny):
    losses = [row["values"]["mse"] for row in read_metrics(tiny.tokenizer / "metrics.jsonl") if row["split"] == "train"]
    assert losses[-1] < 0.7 * losses[0]


def test_the_report_names_its_sections(tiny):
    page = (tiny.run / "report" / "index.html").read_text()
    for title in ("New pictures", "Completions", "Is it copying?", "Originals and reconstructions", "Morphs",
                  "Why a prior is needed", "The codebook in use", "How long it took"):  # fmt: skip
        assert title in page
    assert "Left out" not in page


# --- begin, interrupt, resume ----------------------------------------------------------------------------------------


def test_a_folder_that_holds_a_run_is_refused(tiny):
    before = contents(tiny.run)
    with pytest.raises(UserError, match="already holds a run"):
        train(tokenizer_recipe(tiny.data), out=tiny.run)
    assert contents(tiny.run) == before


def test_a_file_in_the_way(tiny, tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match="is a file"):
        train(tokenizer_recipe(tiny.data), out=tmp_path / "run")


def test_resuming_a_finished_run_changes_nothing(tiny, capsys):
    before = contents(tiny.run)
    assert runs.resume(tiny.run, "cpu") == runs.Outcome(tiny.run, True)
    assert contents(tiny.run) == before
    assert "complete" in capsys.readouterr().err


def test_no_run_to_resume(tmp_path):
    with pytest.raises(UserError, match="no run at"):
        runs.resume(tmp_path / "nothing")
    with pytest.raises(UserError, match="no recipe at"):
        runs.resume(tmp_path)


@contextmanager
def interrupting(monkeypatch) -> Iterator[None]:
    """A training of a tokenizer is asked to end after its third step."""

    class Interrupting(Loader):
        def __iter__(self):
            for batch in super().__iter__():
                if batch.step == 3 and self.augment:
                    signal.raise_signal(signal.SIGTERM)
                yield batch

    with monkeypatch.context() as patch:
        patch.setattr(runs, "Loader", Interrupting)
        # the first look at the data goes as far as step 3 too, before anything is trained
        patch.setattr("smalti.training.loop.FIRST_BATCHES", 1)
        yield


@pytest.fixture
def interrupted(data, tmp_path, monkeypatch, capsys) -> Path:
    """A tokenizer's run that was asked to end after three of its eight steps."""
    with interrupting(monkeypatch):
        outcome = train(tokenizer_recipe(data, 8), out=tmp_path / "run")
    assert outcome == runs.Outcome(tmp_path / "run", False)
    assert f"smalti train --resume {tmp_path / 'run'}" in capsys.readouterr().err
    return outcome.folder


def test_an_interrupted_run_goes_on_to_the_same_end(interrupted, data, tmp_path, monkeypatch, capsys):
    assert (interrupted / "state" / "latest").read_text().strip() == "4"
    assert runs.summary(interrupted)["step"] < 8
    with pytest.raises(UserError, match="no model yet"):
        load(interrupted)
    assert runs.resume(interrupted, "cpu").finished
    assert "continues from step 4 of 8" in capsys.readouterr().err
    monkeypatch.setattr("smalti.training.loop.FIRST_BATCHES", 1)
    train(tokenizer_recipe(data, 8), out=tmp_path / "whole")
    name = "model/model.safetensors"
    assert (interrupted / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_folder_that_changed_before_resume_is_refused(interrupted, data):
    before = contents(interrupted)
    Image.fromarray(stripes(99, True)).save(data / "Standing" / "000.png")
    with pytest.raises(UserError, match="the data has changed"):
        runs.resume(interrupted, "cpu")
    assert contents(interrupted / "state") == {k[6:]: v for k, v in before.items() if k.startswith("state/")}
    assert (interrupted / "recipe.json").exists()


def test_a_mistake_before_anything_was_saved_leaves_the_name_free(data, tmp_path):
    recipe = tokenizer_recipe(data, 2)
    with pytest.raises(UserError, match="do not divide"):
        train(recipe.changed(**{"data.shape": (18, 18)}), out=tmp_path / "run")
    with pytest.raises(UserError, match="no run at"):
        train(generator_recipe(data, str(tmp_path / "none")), out=tmp_path / "run")
    assert train(recipe, out=tmp_path / "run").finished


# --- from an earlier model -------------------------------------------------------------------------------------------


def test_a_start_from_an_earlier_model(tiny, tmp_path):
    still = {"training.steps": 1, "training.lr": 1e-12, "training.warmup": 0, "training.ema": 0.0}
    recipe = tokenizer_recipe(tiny.data)
    # a codebook moves by its own means: left still as well, so that all that differs is the start
    still |= {"model.bottleneck.learn": "gradient"}
    first = train(recipe, out=tmp_path / "first", changes=still | {"training.steps": 5, "training.lr": 1e-3})
    train(recipe, out=tmp_path / "second", changes=still, init=first.folder)
    train(recipe, out=tmp_path / "anew", changes=still)
    one, other, anew = (
        dict(load(tmp_path / name, "cpu").paradigm.named_parameters()) for name in ("first", "second", "anew")
    )
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, atol=1e-6, rtol=1e-6)
    assert any(not torch.allclose(anew[name], tensor, atol=1e-3) for name, tensor in one.items())


def test_of_the_weights_gone_on_from_a_share_is_kept(tiny, tmp_path, monkeypatch):
    recipe = tokenizer_recipe(tiny.data, 8)
    train(recipe, out=tmp_path / "first")
    for name, share in (("all", 0.0), ("some", 0.25)):
        train(recipe, out=tmp_path / name, changes={"training.init_share": share}, init=tmp_path / "first")
    first, other, mixed = (
        dict(load(tmp_path / name, "cpu").paradigm.named_parameters()) for name in ("first", "all", "some")
    )
    assert any(not torch.allclose(first[name], tensor, atol=1e-3) for name, tensor in other.items())
    for name, tensor in mixed.items():
        torch.testing.assert_close(tensor, 0.25 * first[name] + 0.75 * other[name])
    with interrupting(monkeypatch):
        train(recipe, out=tmp_path / "again", changes={"training.init_share": 0.25}, init=tmp_path / "first")
    shutil.rmtree(tmp_path / "first")  # what is gone on from may be gone
    assert runs.resume(tmp_path / "again", "cpu").finished
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("some", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_share_of_what_nothing_was_gone_on_from(data, tmp_path):
    share = {"training.init_share": 0.5}
    with pytest.raises(UserError, match=r"init_share 0\.5 of tiny-tokenizer .*--init"):
        train(tokenizer_recipe(data), out=tmp_path / "run", changes=share)
    with pytest.raises(UserError, match=r"init_share 0\.5 of tiny-tokenizer .*--init"):
        train(generator_recipe(data, tokenizer_recipe(data).changed(**share)), out=tmp_path / "run")


def test_a_generator_that_starts_from_another_keeps_its_tokenizer(tiny, tmp_path):
    recipe = generator_recipe(tiny.data, tokenizer_recipe(tiny.data), steps=1)
    train(recipe, out=tmp_path / "second", init=tiny.run)
    assert not (tmp_path / "second" / "tokenizer").exists()
    assert load(tmp_path / "second", "cpu").tokenizer.sha256 == load(tiny.run, "cpu").tokenizer.sha256


def test_a_model_that_comes_along_is_gone_on_from_by_its_name(tiny, tmp_path, monkeypatch):
    shipped = tmp_path / "shipped" / "waves"
    shutil.copytree(tiny.run / "model", shipped)
    monkeypatch.setattr(checkpoint, "SHIPPED", shipped.parent)
    monkeypatch.chdir(tmp_path)
    recipe = generator_recipe(tiny.data, tokenizer_recipe(tiny.data), steps=1)
    train(recipe, out=tmp_path / "second", init="waves")
    assert load(tmp_path / "second", "cpu").tokenizer.sha256 == load(tiny.run, "cpu").tokenizer.sha256
    assert read_config(tmp_path / "second" / "model")["recipe"]["init"] == "waves"


def test_a_card_names_the_run_it_goes_on_from_and_counts_its_minutes(tiny, tmp_path):
    recipe = tokenizer_recipe(tiny.data)
    train(recipe, out=tmp_path / "one", changes={"training.steps": 2})
    for name, init in (("two", "one"), ("three", "two")):
        train(recipe, out=tmp_path / name, changes={"training.steps": 2}, init=tmp_path / init)
    told = {name: read_config(tmp_path / name / "model") for name in ("one", "two", "three")}
    assert [each["recipe"]["init"] for each in told.values()] == [None, "one", "two"]
    minutes, before = ([each["figures"].get(key, 0.0) for each in told.values()] for key in (MINUTES, MINUTES_BEFORE))
    assert min(minutes) > 0
    assert before == pytest.approx([0.0, minutes[0], minutes[0] + minutes[1]])
    assert str(tmp_path) not in (tmp_path / "three" / "model" / "README.md").read_text(encoding="utf-8")


def test_a_run_goes_on_without_what_it_began_with(interrupted):
    told = json.loads((interrupted / "recipe.json").read_text())
    (interrupted / "recipe.json").write_text(json.dumps(told | {"init": str(interrupted.parent / "gone")}))
    assert runs.resume(interrupted, "cpu").finished
    figures = read_config(interrupted / "model")["figures"]
    assert figures["step"] == 8
    assert MINUTES_BEFORE not in figures  # nobody knows


def test_an_earlier_model_of_another_shape(tiny, tmp_path):
    with pytest.raises(UserError, match=r"--init .* another shape"):
        train(tokenizer_recipe(tiny.data, 1), out=tmp_path / "run", changes={"model.width": 16}, init=tiny.tokenizer)
    with pytest.raises(UserError, match="no run at"):
        train(tokenizer_recipe(tiny.data, 1), out=tmp_path / "run", init=tmp_path / "none")
    assert not (tmp_path / "run" / "recipe.json").exists()


def test_a_tokenizer_for_other_pictures(tiny, tmp_path):
    recipe = generator_recipe(tiny.data, str(tiny.tokenizer), steps=1)
    with pytest.raises(UserError, match=r"reads 1 channels of 16×16, the data has 1 of 24×24"):
        train(recipe, out=tmp_path / "run", changes={"data.shape": (24, 24)})


# --- data ------------------------------------------------------------------------------------------------------------


def test_other_data_for_a_recipe_at_hand(tiny, data, tmp_path):
    train(tokenizer_recipe(tiny.data, 1), data=str(data), out=tmp_path / "run")
    assert read(tmp_path / "run" / "recipe.json").data.source == str(data)


def test_a_picture_cut_short_takes_nobody_elses_label(tiny, data, tmp_path, capsys):
    cut(data / "Lying flat" / "005.png")  # its header is sound: it is found to be broken when it is read
    train(generator_recipe(data, str(tiny.tokenizer), steps=1), out=tmp_path / "run")
    told = capsys.readouterr().err
    assert "Lying flat/005.png" in told
    assert "left out: 1 of the files" in told
    tokenizer = load(tiny.tokenizer, "cpu")
    seen: dict[bytes, set[int]] = {}
    for path in data.rglob("*.png"):
        if path.name != "005.png" or path.parent.name == "Standing":
            codes = tokenizer.encode(to_signal(read_image(path, 1))[None])[0].to(torch.int32)
            seen.setdefault(codes.numpy().tobytes(), set()).add(int(path.parent.name == "Standing"))
    with safe_open(tmp_path / "run" / "codes" / "train.safetensors", "pt") as file:
        codes, labels = file.get_tensor("values")[0], file.get_tensor("labels")
    assert len(codes) == len(labels)
    for code, label in zip(codes, labels.tolist(), strict=True):
        assert label in seen[code.numpy().tobytes()]


def test_a_report_names_what_was_left_out(data, tmp_path, monkeypatch):
    monkeypatch.undo()
    cut(data / "Standing" / "007.png")
    train(tokenizer_recipe(data, 2), out=tmp_path / "run")
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "Left out" in page
    assert "Standing/007.png" in page


def test_many_broken_pictures_stop_the_run(data, tmp_path):
    for i in range(4):
        cut(data / "Standing" / f"00{i}.png")
    with pytest.raises(UserError, match=r"of \d+ pictures are broken.*repair or remove"):
        train(tokenizer_recipe(data, 2), out=tmp_path / "run")


# --- looking at runs -------------------------------------------------------------------------------------------------


def test_a_run_in_a_line(tiny):
    told = runs.summary(tiny.tokenizer)
    assert (told["recipe"], told["paradigm"], told["step"], told["steps"]) == ("tiny-tokenizer", "autoencode", 40, 40)
    assert told["data"] == str(tiny.data)
    held = [row for row in read_metrics(tiny.tokenizer / "metrics.jsonl") if row["split"] == "validation"]
    assert told["held-out mse"] == held[-1]["values"]["mse"]


def test_the_list_of_runs(tiny, tmp_path):
    assert [row["run"] for row in runs.listed(tiny.run.parent)] == [str(tiny.run), str(tiny.tokenizer)]
    assert runs.listed(tmp_path) == []
    for name, text in (("damaged", "{"), ("whole", (tiny.tokenizer / "recipe.json").read_text())):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.json").write_text(text)
    assert [row["run"] for row in runs.listed(tmp_path)] == [str(tmp_path / "whole")]
    with pytest.raises(UserError, match="no folder"):
        runs.listed(tmp_path / "none")


def test_settings_in_which_runs_differ(tiny, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    changed = read(tiny.run / "recipe.json").changed(**{"training.lr": 0.5, "model.layers": 2})
    (other / "recipe.json").write_text(changed.json_text())
    assert runs.differences([tiny.run, other]) == {"training.lr": [0.003, 0.5], "model.layers": [1, 2]}
    assert runs.differences([tiny.run, tiny.run]) == {}


def test_figures_go_into_the_card_and_nothing_else(tiny, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny.run, run)
    before = contents(run)
    runs.keep_figures(run, {"samples": {"coverage": 0.123456}, "compared": 30})
    after = contents(run)
    touched = {name for name in after if after[name] != before.get(name)}
    assert touched == {"model/config.json", "model/README.md", "report/figures.json"}
    assert "| samples.coverage | 0.12346 |" in after["model/README.md"].decode()
    assert "held-out loss" in after["model/README.md"].decode()
    assert runs.measured(run) == {"samples.coverage": 0.123456, "compared": 30}
    assert runs.summary(run)["samples.coverage"] == 0.123456
    model = load(run, "cpu")
    assert model.figures["samples.coverage"] == 0.123456
    np.testing.assert_array_equal(model.sample(1), load(tiny.run, "cpu").sample(1))


# --- quickstart ------------------------------------------------------------------------------------------------------


def test_quickstart_goes_on_with_the_small_set_when_fashion_cannot_be_had(tmp_path, monkeypatch, capsys):
    begun = []

    def no_data(*_):
        raise UserError("fashion-mnist cannot be had")

    monkeypatch.setattr(runs, "open_source", no_data)
    monkeypatch.setattr(runs, "train", lambda recipe, **more: begun.append((recipe, more)))
    runs.quickstart(tmp_path / "quick", "cpu")
    ((recipe, more),) = begun
    assert (recipe.name, recipe.data.source, recipe.tokenizer.data.source) == ("quickstart", "mnist-5k", "mnist-5k")
    assert more == {"out": tmp_path / "quick", "device": "cpu"}
    assert "goes on with mnist-5k" in capsys.readouterr().err


def test_quickstart_picks_up_its_own_run(tiny, capsys):
    assert runs.quickstart(tiny.run, "cpu") == runs.Outcome(tiny.run, True)
