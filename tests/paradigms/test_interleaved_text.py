"""Against what the model of text and pictures itself reads before it draws."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.tiny import smalti as smalti
from tests.tiny import tiny as tiny
from tests.tiny import tokenizer_recipe, words_recipe
from tests.tiny import worded as worded

from smalti import runs
from smalti.errors import UserError
from smalti.layers.transformer import TransformerConfig
from smalti.model import Generator, Reader, load
from smalti.paradigms.diffusion import DiffusionConfig
from smalti.paradigms.interleaved_text import InterleavedText
from smalti.paradigms.text_encoder import TextEncoder, TextEncoderConfig
from smalti.recipe import read
from smalti.tokenizers.vocabulary import Special

TEXTS = ["standing waves", "upright", "lying waves, lying waves"]
NETWORK = TransformerConfig(layers=1, width=24, heads=2, dropout=0.0)


@pytest.fixture(scope="module", params=["causal", "full"])
def folder(worded, tmp_path_factory, request) -> str:
    """A run whose texts are read so."""
    recipe = words_recipe(worded.data, str(worded.tokenizer), steps=2)
    changes = {"model.layers": 3, "paradigm.given": request.param}
    if request.param == "full":
        changes |= {"paradigm.given_weight": 0.0, "paradigm.seen_weight": 0.0}
    out = tmp_path_factory.mktemp(request.param) / "run"
    return str(runs.train(recipe, out=out, changes=changes, device="cpu").folder)


def padded(ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, ids))
    rows = torch.tensor([each + [0] * (longest - len(each)) for each in ids])
    return rows, torch.arange(longest) < torch.tensor([len(each) for each in ids])[:, None]


def test_it_says_what_the_last_layer_reads_before_a_picture(folder):
    reader = load(folder, "cpu")
    assert isinstance(reader, Reader)
    ours, model = InterleavedText(folder), reader.paradigm
    ids, mask = padded([ours.cut(text, 64) for text in TEXTS])
    states = ours.states(ids, mask)
    assert states.shape == (3, ids.shape[1], ours.width)
    last_reads = []
    model.network.blocks[-1].register_forward_hook(lambda block, given, _: last_reads.append(given[0]))
    for i, text in enumerate(TEXTS):
        told = model.sequences.told([(model.cut(text), False), (Special("draw"), False)])
        model._read([told], torch.device("cpu"))
        length = int(mask[i].sum())
        expected = model.network.norm(last_reads.pop()[0, :length])
        torch.testing.assert_close(states[i, :length], expected.float(), atol=1e-5, rtol=1e-4)
        assert (states[i, length:] == 0).all()


def test_order_is_told_apart(folder):
    ours = InterleavedText(folder)
    turned = ("standing waves lying", "lying waves standing")
    one, other = (ours.states(*padded([ours.cut(text, 64)])) for text in turned)
    assert one.shape == other.shape
    assert sorted(ours.cut(turned[0], 64)) == sorted(ours.cut(turned[1], 64))
    assert not torch.allclose(one.sum(1), other.sum(1), atol=1e-3)


def test_a_text_that_is_too_long_is_cut_and_a_row_may_be_empty(folder):
    ours = InterleavedText(folder)
    whole, short = ours.cut(TEXTS[2], 64), ours.cut(TEXTS[2], 4)
    assert len(short) == 4
    assert (short[:3], short[3]) == (whole[:3], whole[-1])
    states = ours.states(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.bool))
    assert (states == 0).all()


def test_it_is_no_part_of_the_weights(folder):
    encoder = TextEncoder(TextEncoderConfig(folder=folder), NETWORK, 0)
    width = encoder.reader.pretrained.width
    assert sum(p.numel() for p in encoder.reader.parameters()) == width + width * 24 + 24  # norm and projection
    assert copy.deepcopy(encoder).reader.pretrained is encoder.reader.pretrained
    assert encoder.relies_on() == {"the text encoder": load(folder, "cpu").sha256}
    told = encoder(["upright", "", "lying"], None)
    assert told.mask.sum(1)[1] == 0
    (told.pieces.sum() + told.pooled.sum()).backward()
    assert all(p.grad is not None for p in encoder.parameters())


@pytest.fixture
def listener(folder, worded, tmp_path) -> Path:
    """A run of diffusion that listens to a model of its own copy, which has gone since."""
    own = shutil.copytree(folder, tmp_path / "own")
    settings = DiffusionConfig(on="pixels", patch=4, text=TextEncoderConfig(folder=str(own)))
    recipe = words_recipe(worded.data, str(worded.tokenizer), steps=2)
    recipe = recipe.model_copy(update={"paradigm": settings, "name": "listens", "tokenizer": None})
    run = runs.train(recipe, out=tmp_path / "run", device="cpu").folder
    shutil.rmtree(own)
    return run


def test_a_model_that_draws_by_diffusion_carries_it(listener, folder, tmp_path):
    assert not (listener / "text").exists()
    model = load(listener, "cpu")
    assert isinstance(model, Generator)
    network = model.paradigm
    for weight in network.parameters():  # output products start at zero
        torch.nn.init.normal_(weight, std=0.2) if weight.ndim > 1 else None
    with torch.no_grad():
        said = [network.encoder([text], None) for text in ("standing waves lying", "lying waves standing")]
        said[1].pooled = said[0].pooled  # so that all there is to tell them apart are the pieces
        x = torch.zeros(1, *network.shape)
        assert not torch.allclose(*(network(x, torch.ones(1), each)[0] for each in said), atol=1e-3)
    written = (listener / "model" / "config.json").read_text() + (listener / "model" / "README.md").read_text()
    assert str(tmp_path) not in written
    assert json.loads((listener / "model" / "config.json").read_text())["recipe"]["paradigm"]["text"]["folder"] == "own"
    carried = listener / "model" / "text_encoder"
    assert load(carried, "cpu").sha256 == load(folder, "cpu").sha256


def test_another_encoder_is_refused(listener, worded):
    carried = listener / "model" / "text_encoder"
    shutil.rmtree(carried)
    shutil.copytree(worded.run / "model", carried)
    with pytest.raises(UserError, match="the text encoder is not the model that"):
        load(listener, "cpu")


def test_a_run_named_from_another_folder_is_found_again(folder, worded, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "here" / "own")
    monkeypatch.chdir(tmp_path / "here")
    settings = DiffusionConfig(on="pixels", patch=4, text=TextEncoderConfig(folder="own"))
    recipe = words_recipe(worded.data, str(worded.tokenizer), steps=2)
    recipe = recipe.model_copy(update={"paradigm": settings, "tokenizer": None})
    run = runs.train(recipe, out=tmp_path / "run", device="cpu").folder
    assert read(run / "recipe.json").paradigm.text.folder == str(tmp_path / "here" / "own")


def test_a_wrong_folder_is_told_before_a_tokenizer_is_trained(worded, tmp_path):
    recipe = words_recipe(worded.data, tokenizer_recipe(worded.data), steps=1)
    for folder, told in ((tmp_path / "nowhere", "no run at"), (worded.tokenizer, "is no text encoder")):
        settings = DiffusionConfig(on="latents", patch=1, text=TextEncoderConfig(folder=str(folder)))
        changed = recipe.model_copy(update={"paradigm": settings})
        with pytest.raises(UserError, match=told):
            runs.train(changed, out=tmp_path / "run", device="cpu")
        assert not (tmp_path / "run" / "recipe.json").exists()


def test_what_is_no_such_model_is_refused_in_one_line(folder, worded, tmp_path):
    with pytest.raises(UserError, match=r"is no text encoder: .*interleaved"):
        InterleavedText(str(worded.tokenizer))
    wrong = {
        tmp_path / "nothing": "no run at",
        shutil.copytree(f"{folder}/model", tmp_path / "text"): "holds no text tokenizer",
        shutil.copytree(f"{folder}/model", tmp_path / "weights"): "model.safetensors",
        shutil.copytree(f"{folder}/model", tmp_path / "json"): "is damaged",
        shutil.copytree(f"{folder}/model", tmp_path / "recipe"): "is no text encoder",
    }
    (tmp_path / "text" / "tokenizers" / "text" / "tokenizer.json").unlink()
    (tmp_path / "weights" / "model.safetensors").unlink()
    (tmp_path / "json" / "config.json").write_text("{")
    config = json.loads((tmp_path / "recipe" / "config.json").read_text())
    del config["recipe"]["paradigm"]
    (tmp_path / "recipe" / "config.json").write_text(json.dumps(config))
    for path, told in wrong.items():
        with pytest.raises(UserError, match=told) as error:
            TextEncoder(TextEncoderConfig(folder=str(path)), NETWORK, 0)
        assert "\n" not in str(error.value)
