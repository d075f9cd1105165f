from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import smalti as smalti
from tests.tiny import tiny as tiny
from tests.tiny import worded as worded
from tests.tiny import words_recipe

from smalti import checkpoint, runs
from smalti.checkpoint import export
from smalti.data.image import read_image, read_text
from smalti.errors import UserError
from smalti.model import Reader, generator, load
from smalti.paradigms.autoregressive import AutoregressiveOptions
from smalti.paradigms.interleaved import Interleaved
from smalti.recipe import read
from smalti.sampling.files import read_fitted
from smalti.tokenizers.vocabulary import Special

KNOWN = {"lying waves", "standing waves", "upright"}


@pytest.fixture(scope="module")
def reader(worded) -> Reader:
    model = load(worded.run, "cpu")
    assert isinstance(model, Reader)
    return model


@pytest.fixture(scope="module")
def x(reader, worded) -> torch.Tensor:
    return torch.stack([read_fitted(worded.data / f"{i:03}.png", reader) for i in range(4)])


def test_what_goes_on_from_a_run_reads_texts_as_it_did(worded, tmp_path):
    """Other captions would make other pieces, and the weights know but the old ones."""
    data = shutil.copytree(worded.data, tmp_path / "data")
    lines = (data / "metadata.jsonl").read_text().replace("waves", "billows, rolling")
    (data / "metadata.jsonl").write_text(lines)
    recipe = words_recipe(data, str(worded.tokenizer), steps=1)
    run = runs.train(recipe, out=tmp_path / "run", init=worded.run, device="cpu").folder
    assert (run / "text" / "tokenizer.json").read_text() == (worded.run / "text" / "tokenizer.json").read_text()


def test_a_run_meets_its_tokenizers_codes_once(worded, tmp_path, monkeypatch):
    met = []
    monkeypatch.setattr(Interleaved, "know_codes", lambda self, vectors: met.append(vectors))
    recipe = words_recipe(worded.data, str(worded.tokenizer), steps=1)
    runs.train(recipe, out=tmp_path / "run", device="cpu")
    (vectors,) = met
    assert torch.equal(vectors, load(worded.tokenizer, "cpu").network.code_vectors())
    runs.resume(tmp_path / "run", device="cpu")
    assert len(met) == 1


def test_pictures_are_read_as_they_come_back_from_their_codes(worded, tmp_path):
    changes = {"paradigm.seen_again": 0.5}
    still = words_recipe(worded.data, str(worded.tokenizer), steps=2).changed(**changes)
    moved = still.changed(**{"data.shift": 2})
    tokenizer = load(worded.tokenizer, "cpu")
    for name, recipe in (("still", still), ("moved", moved)):
        runs.train(recipe, out=tmp_path / name, device="cpu")
        kept = load_file(tmp_path / name / "codes" / "train.safetensors")
        back = tokenizer.encode(tokenizer.decode(kept["values"][0].long()))
        assert kept["again"].shape == kept["values"].shape
        same = (kept["again"][0] == back).flatten(1).all(1)
        assert bool(same.all()) == (name == "still")
        assert "again" not in load_file(tmp_path / name / "codes" / "validation.safetensors")


# --- Python


def test_it_draws_what_a_prompt_says_and_says_what_it_sees(reader, x):
    """A hundred steps on waves that lie or stand: enough to tell which, most of the time."""
    drawn = reader.sample(64, ["lying waves", "standing waves"] * 32, seed=1)
    assert drawn.shape == (64, 1, 16, 16)
    across, down = drawn.diff(dim=3).abs().mean((1, 2, 3)), drawn.diff(dim=2).abs().mean((1, 2, 3))
    assert (down > across)[::2].float().mean() > 0.6
    assert (down > across)[1::2].float().mean() < 0.4
    told = reader.caption(x)
    assert [text == "lying waves" for text in told] == [True, False, True, False]
    assert set(told) <= KNOWN


def test_prompts_one_for_all_or_one_each(reader):
    one = reader.sample(3, "lying waves", seed=2)
    assert torch.equal(one, reader.sample(3, ["lying waves"] * 3, seed=2))
    assert torch.equal(one[1:2], reader.sample(1, "lying waves", seed=2, first=1))
    for wrong, told in (((1, "  "), "blank"), (("3", "waves"), "n is a whole number, not '3'")):
        with pytest.raises(UserError, match=told):
            reader.sample(*wrong)
    with pytest.raises(UserError, match=r"seed is a whole number, not 1\.5"):
        reader.sample(1, "waves", seed=1.5)
    assert len(reader.sample(np.int64(2), "lying waves", seed=np.int64(2))) == 2
    with pytest.raises(UserError, match="2 prompts for 3 samples"):
        reader.sample(3, ["a", "b"])


def test_questions_one_for_all_or_one_each(reader, x):
    assert len(reader.ask(x, "what is it?")) == 4
    assert reader.ask(x[:2], ["what?", "how many?"])[0] == reader.ask(x[:1], "what?")[0]
    with pytest.raises(UserError, match="3 questions about 4 pictures"):
        reader.ask(x, ["a", "b", "c"])
    with pytest.raises(UserError, match="empty"):
        reader.ask(x, " ")
    assert reader.caption(x[:0]) == []


def test_a_conversation_goes_on_with_what_fits(reader, x):
    (drawn,) = reader.converse(["lying waves"])
    assert drawn.shape == (1, 16, 16)
    (text,) = reader.converse([drawn])
    assert isinstance(text, str)
    (answer,) = reader.converse(["lying waves", drawn, "what is it?"])
    assert isinstance(answer, str)
    said, again = reader.converse([x[0], "what is it?", "waves", "how many?"], "answer", "draw")
    assert isinstance(said, str)
    assert again.shape == (1, 16, 16)
    assert reader.converse([])[0].shape == (1, 16, 16)


def test_a_conversation_is_what_the_verbs_say(reader, x):
    assert reader.converse([x[0]]) == reader.caption(x[:1])
    assert reader.converse([x[1], "what is it?"]) == reader.ask(x[1:2], "what is it?")
    assert torch.equal(reader.converse(["lying waves"], seed=3)[0], reader.sample(1, "lying waves", seed=3)[0])


def test_a_conversation_is_laid_as_training_lays_it(reader, x):
    parts, pending, seen = reader._parts(["waves", x[0], "which?", "lying", "how many?"])
    kinds = [part.name if isinstance(part, Special) else type(part).__name__ for part in parts]
    assert kinds == ["Text", "draw", "Codes", "Text", "answer", "Text", "Text"]
    assert (pending, seen) == (True, True)
    reader.network.vocabulary.split(reader.network.vocabulary.interleave(parts))


@pytest.mark.parametrize(
    ("said", "task", "why"),
    [
        (["waves"], "answer", "takes a picture, then a question"),
        (["waves"], "describe", "takes a picture before"),
        (["waves"], "sing", "is no task"),
        ([""], "draw", "empty"),
    ],
)
def test_what_does_not_fit_is_told(reader, said, task, why):
    with pytest.raises(UserError, match=why):
        reader.converse(said, task)


def test_what_is_no_text_and_no_picture_is_told(reader, x):
    for call, why in [
        (lambda: reader.converse("hello"), "is a list of texts and pictures"),
        (lambda: reader.converse(x), "is a list of texts and pictures"),
        (lambda: reader.converse([5]), "not of int"),
        (lambda: reader.converse([x.numpy()[0]]), "not of ndarray"),
        (lambda: reader.converse(["a"], None), "not NoneType"),
        (lambda: reader.ask(x, None), "a question is a text"),
        (lambda: reader.ask(x, [5] * 4), "a question is a text"),
        (lambda: reader.caption(x.numpy()), "not ndarray"),
        (lambda: reader.converse(None), "is a list of texts and pictures"),
        (lambda: reader.converse(["a"], seed=1.5), "seed is a whole number"),
        (lambda: reader.caption(x, seed="1"), "seed is a whole number"),
        (lambda: reader.ask(None, "what?"), "a float tensor .*, not NoneType"),
        (lambda: reader.caption(torch.zeros(1, 1, 32, 32)), r"reads pictures \(B, 1, 16, 16\)"),
        (lambda: reader.converse([torch.zeros(1, 8, 16)]), r"reads pictures \(B, 1, 16, 16\)"),
        (lambda: reader.caption(127.5 * (x + 1)), "these reach 2"),
        (lambda: reader.caption(x.int()), "not torch.int32"),
        (lambda: reader.converse([x[0], "what?"], "describe"), "the task that fits is answer"),
        (
            lambda: reader.sample(1, "x", torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)),
            "whole numbers, not torch.float",
        ),
        (lambda: reader.caption([x[0]]), "not list"),
        (lambda: reader.caption(x, options={"text_temperature": 1}), "not dict"),
        (lambda: reader.sample(1, "x", options=AutoregressiveOptions()), "not AutoregressiveOptions"),
    ]:
        with pytest.raises(UserError, match=why):
            call()


# --- the model folder


def test_it_carries_its_text_tokenizer(worded, tmp_path):
    folder = shutil.copytree(worded.run / "model", tmp_path / "model")
    path = folder / "tokenizers" / "text" / "tokenizer.json"
    text = path.read_text()
    path.write_text(text.replace('"byte_fallback": false', '"byte_fallback": true', 1))
    with pytest.raises(UserError, match="not the text tokenizer that this model was trained with"):
        load(folder)
    path.unlink()
    with pytest.raises(UserError, match="missing"):
        load(folder)


def test_another_tokenizer_would_mean_other_things_by_its_codes(worded, tiny, tmp_path):
    folder = shutil.copytree(worded.run / "model", tmp_path / "model")
    (carried,) = (path.parent for path in (folder / "tokenizers").glob("*/config.json"))
    shutil.rmtree(carried)
    other = runs.train(
        read(worded.tokenizer / "recipe.json").changed(**{"training.steps": 2, "training.seed": 1}),
        out=tmp_path / "other",
        device="cpu",
    )
    shutil.copytree(other.folder / "model", carried)
    with pytest.raises(UserError, match=r"is not the tokenizer that .* was trained with"):
        load(folder)


def test_a_generator_may_be_named_for_its_tokenizer(worded, tmp_path):
    run = runs.train(words_recipe(worded.data, str(worded.run), steps=1), out=tmp_path / "run", device="cpu").folder
    assert load(run, "cpu").tokenizer.sha256 == load(worded.run, "cpu").tokenizer.sha256


def test_an_export_has_half_the_weights_and_says_the_same(reader, worded, x, tmp_path):
    size = export(worded.run, tmp_path / "small", torch.bfloat16)
    before, after = (
        (folder / "model.safetensors").stat().st_size for folder in (worded.run / "model", tmp_path / "small")
    )
    assert after < 0.6 * before
    assert size == sum(p.stat().st_size for p in (tmp_path / "small").rglob("*") if p.is_file())
    small = load(tmp_path / "small", "cpu")
    # a tokenizer in another dtype would cut the same pictures into other codes, which the model has not learnt
    assert small.tokenizer.sha256 == reader.tokenizer.sha256
    assert small.caption(x) == reader.caption(x)
    for name, weight in small.paradigm.model_state().items():
        assert torch.allclose(weight, reader.paradigm.model_state()[name], rtol=0.01, atol=1e-3), name
    with pytest.raises(UserError, match="already"):
        export(worded.run, tmp_path / "small", torch.bfloat16)
    for inside in ("", "tokenizers/small"):
        with pytest.raises(UserError, match=r"already|lies inside the model"):
            export(tmp_path / "small", tmp_path / "small" / inside, torch.bfloat16)
    assert load(tmp_path / "small", "cpu").caption(x) == reader.caption(x)


def test_a_whole_export_is_the_same_to_the_bit(reader, worded, tmp_path):
    export(worded.run, tmp_path / "whole", torch.float32)
    assert torch.equal(load(tmp_path / "whole", "cpu").sample(2, "lying waves"), reader.sample(2, "lying waves"))


def test_training_stops_and_goes_on_to_the_bit(worded, tmp_path, monkeypatch):
    recipe = words_recipe(worded.data, str(worded.tokenizer), steps=6)
    monkeypatch.setattr(runs, "write_report", lambda *_: None)
    assert runs.train(recipe, out=tmp_path / "whole", device="cpu").finished
    half = recipe.changed(**{"training.steps": 6, "training.save_seconds": 1e-9})
    stopped = []

    def stop(self, batch):
        if batch.step == 3 and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        return loss(self, batch)

    from smalti.training.loop import _Fit

    loss = _Fit._step
    monkeypatch.setattr(_Fit, "_step", stop)
    assert not runs.train(half, out=tmp_path / "half", device="cpu").finished
    assert runs.resume(tmp_path / "half", "cpu").finished
    one, other = (load(tmp_path / name, "cpu").paradigm.state_dict() for name in ("whole", "half"))
    assert all(torch.equal(one[name], other[name]) for name in one)


# --- the command line


def test_prompts_from_the_command_line(smalti, worded, tmp_path):
    told = smalti("sample", worded.run, "Lying waves, 16 px!", "--n", 2, "--out", tmp_path)
    assert told.status == 0
    path = tmp_path / "lying-waves-16-px_00001.png"
    assert read_text(path)["smalti:prompt"] == "Lying waves, 16 px!"


@pytest.mark.parametrize("prompt", ["🍎", "תפוח אדום", "e\u0301\u202e", "a" * 400])
def test_any_text_is_a_prompt(smalti, worded, tmp_path, prompt):
    told = smalti("sample", worded.run, prompt, "--n", 1, "--out", tmp_path)
    assert told.status == 0, told.err
    (path,) = tmp_path.iterdir()
    assert read_text(path)["smalti:prompt"] == prompt


def test_a_prompt_of_ten_thousand_words_is_cut_and_it_is_said(smalti, worded, tmp_path):
    told = smalti("sample", worded.run, "wave " * 10_000, "--n", 1, "--out", tmp_path)
    assert told.status == 0
    assert "longer than the model reads" in told.err


def test_a_question_of_ten_thousand_words_is_cut_and_it_is_said(smalti, worded):
    told = smalti("ask", worded.run, worded.data / "000.png", "wave " * 10_000)
    assert told.status == 0
    assert "the question is longer than the model reads" in told.err


def test_a_model_that_comes_with_smalti_is_found_by_its_name(smalti, worded, tmp_path, monkeypatch):
    shutil.copytree(worded.run / "model", tmp_path / "shipped" / "waves")
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path / "shipped")
    monkeypatch.chdir(tmp_path)
    assert smalti("sample", "waves", "lying waves", "--n", 1, "--out", "out").status == 0
    assert "come with smalti: waves" in smalti("sample", "emojy", "x").err
    (tmp_path / "waves").mkdir()  # a folder of that name that is no run hides nothing
    assert smalti("caption", "waves", worded.data / "000.png").status == 0


def test_its_folder_has_the_recipe_of_its_tokenizer_wherever_that_was_trained(worded, tmp_path):
    recipe = words_recipe(worded.data, str(worded.tokenizer), steps=1)
    run = runs.train(recipe, out=tmp_path / "run", device="cpu").folder
    told = (run / "model" / "config.json").read_text()
    assert json.loads(told)["recipe"]["tokenizer"] == load(worded.tokenizer, "cpu").recipe.model_dump(mode="json")
    assert str(worded.tokenizer) not in told + (run / "model" / "README.md").read_text()
    assert read(run / "recipe.json") == recipe  # a run goes on from where its tokenizer is


def test_its_figures_are_taken_of_what_held_out_captions_ask_for(smalti, worded, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Reader, "sample", lambda self, n, texts, **_: asked.extend(texts) or torch.zeros(n, 1, 16, 16))
    run = shutil.copytree(worded.run, tmp_path / "run")
    told = smalti("evaluate", run, "--samples", 16, "--json")
    assert told.status == 0, told.err
    assert set(asked) == {"lying waves", "standing waves"}
    assert 0 < json.loads(told.out)["nats_a_code"] < math.log(16)


def test_a_part_is_kept_and_the_prompt_drawn_around_it(smalti, worded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture = worded.data / "000.png"
    for prompt in ("lying waves", "standing waves"):
        told = smalti("complete", worded.run, picture, "--keep", 1, "--out", prompt, "--prompt", prompt)
        assert told.status == 0, told.err
    assert Path("lying waves/000.png").read_bytes() != Path("standing waves/000.png").read_bytes()
    assert "the prompt is empty" in smalti("complete", worded.run, picture, "--keep", 0.5, "--prompt", " ").err


def test_the_best_of_several_is_one_of_them(smalti, worded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for count, more in ((2, ("--best-of", 3)), (6, ())):
        told = smalti("sample", worded.run, "lying waves", "--n", count, *more, "--out", str(count))
        assert told.status == 0, told.err
    pictures = [read_image(path, 1) for path in sorted(Path("6").iterdir())]
    assert len(pictures) == 6
    for i, path in enumerate(sorted(Path("2").iterdir())):
        assert any((read_image(path, 1) == each).all() for each in pictures[3 * i : 3 * i + 3])
        assert json.loads(read_text(path)["smalti:options"])["best_of"] == 3
        assert "smalti:best-of" not in read_text(path)  # which is of labels
    assert "--best-of is of drawing" in smalti("caption", worded.run, worded.data / "000.png", "--best-of", 2).err


def test_however_many_candidates_not_all_are_drawn_at_once(reader, monkeypatch):
    together, drawn = [], Interleaved._drawn

    def counted(self, prefix, codes, *more):
        together.append(len(codes))
        return drawn(self, prefix, codes, *more)

    monkeypatch.setattr(Interleaved, "_drawn", counted)
    monkeypatch.setattr(generator, "CANDIDATES", 6)
    for best_of, expected in ((1, [5]), (3, [6, 6, 3]), (9, [9] * 5)):
        together.clear()
        options = reader.options.model_copy(update={"best_of": best_of})
        assert len(reader.sample(5, "lying waves", options=options)) == 5
        assert together == expected


def test_captions_and_answers_from_the_command_line(smalti, worded):
    files = [worded.data / "000.png", worded.data / "001.png"]
    told = smalti("caption", worded.run, *files)
    assert [line.split("  ", 1)[0] for line in told.out.splitlines()] == [str(file) for file in files]
    assert told.out.splitlines()[0].endswith("  lying waves")
    as_json = json.loads(smalti("caption", worded.run, *files, "--json").out)
    assert list(as_json) == [str(file) for file in files]
    told = smalti("ask", worded.run, files[0], "what is it?", "--most-text", 3)
    assert told.status == 0
    assert len(told.out.splitlines()) == 1


def test_after_two_dashes_there_are_no_options(smalti, worded, tmp_path):
    told = smalti("sample", worded.run, "--n", 1, "--out", tmp_path, "--", "--lying waves")
    assert told.status == 0, told.err
    (path,) = tmp_path.iterdir()
    assert read_text(path)["smalti:prompt"] == "--lying waves"


def test_a_caption_is_a_line_whatever_it_says(smalti, worded, monkeypatch):
    monkeypatch.setattr(Reader, "caption", lambda self, x, *_, **__: ["a\nb\x1b[2J c"] * len(x))
    told = smalti("caption", worded.run, worded.data / "000.png")
    assert told.out == f"{worded.data / '000.png'}  a b [2J c\n"


def test_what_a_user_gets_wrong_is_one_line(smalti, worded, tiny, tmp_path):
    picture = worded.data / "000.png"
    for words, told in [
        (("sample", worded.run, ""), "the prompt is empty"),
        (("sample", worded.run, "x", "--label", "Standing"), "leave --label out"),
        (("sample", tiny.run, "x"), "trained without text"),
        (("ask", worded.run, picture), "then the question"),
        (("ask", worded.run, picture, "what?", "--guidance", 2), "--guidance is of drawing"),
        (("caption", worded.run, picture, "--temperature", 2), "--temperature is of drawing"),
        (("caption", worded.run, picture, "--text-temperatur", 2), "nearest: text_temperature"),
        (("ask", worded.run, picture, picture), "the question is missing"),
        (("ask", worded.run, picture, " "), "empty"),
        (("ask", worded.run, tmp_path / "none.png", "what?"), "no file"),
        (("ask", tiny.run, tiny.picture, "what?"), "trained without text"),
        (("caption", tiny.run, tiny.picture), "trained without text"),
        (("caption", tiny.tokenizer, tiny.picture), "trained without text"),
        (("sample", worded.run, "x", "--text-top-k", 3), "is of writing"),
        (("sample", worded.run, "--best-of", 3), "say what to draw"),
        (("complete", worded.run, picture, "--keep", 0.5, "--most-text", 9, "--out", tmp_path / "c"), "is of writing"),
        (("caption", worded.run, picture, "--most-text", 0), "most_text"),
        (("caption", worded.run, picture, "--most-text", 10**9), "most_text"),
        (("sample", "emojy", "x"), "no run at emojy"),
        (("sample", worded.run, "x", "--guidance", "1e308"), "guidance"),
        (("export", worded.run, "--out", tmp_path), "already"),
        (("export", worded.run, "--out", tmp_path / "e", "--dtype", "int4"), "bf16 or fp32"),
        (("train", "emoji-text-dit", "--data", tiny.data, "--out", tmp_path / "r"), "no captions"),
        (("train", "emoji", "--data", tiny.data, "--out", tmp_path / "r"), "goes on from runs/emoji-both"),
    ]:
        answer = smalti(*words)
        assert answer.status == 2, words
        assert told in answer.err, (words, answer.err)
        assert len(answer.err.strip().splitlines()) == 1, answer.err
