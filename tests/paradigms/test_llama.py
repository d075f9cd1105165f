from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import generator_recipe, words_recipe
from tests.tiny import tiny as tiny
from tests.tiny import worded as worded

from smalti import model as models
from smalti.config import CodeSpec, Examples, SignalSpec, TextSpec
from smalti.errors import UserError
from smalti.paradigms.interleaved import Interleaved, InterleavedConfig, InterleavedOptions
from smalti.paradigms.llama import holds_text_model, read_llama
from smalti.runs import train
from smalti.tokenizers.text import TextTokenizer
from smalti.tokenizers.vocabulary import Codes, Special, Text

TEXT = TextTokenizer.trained(["a red dog above a blue cat", "two cats"] * 3, 270)
BEGIN, END = 5, 6  # some pieces
CODES = CodeSpec(codebooks=1, grid=(2, 3), size=8)


def llama(folder: Path, tied: bool = False) -> Path:
    """A tiny, untrained one with keys and values that two heads share, as a user would have it on disk."""
    pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        settings = LlamaConfig(
            vocab_size=TEXT.size + 2,  # two rows that only fill up
            hidden_size=32,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
            rms_norm_eps=1e-5,
            initializer_range=0.3,
            tie_word_embeddings=tied,
            bos_token_id=BEGIN,
            eos_token_id=END,
        )
        made = LlamaForCausalLM(settings)
        for name, weight in made.named_parameters():
            if "norm" in name:
                torch.nn.init.uniform_(weight, 0.5, 1.5)
        made.save_pretrained(folder)
    TEXT.save(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return llama(tmp_path_factory.mktemp("llama"))


def grown(folder: Path) -> Interleaved:
    found = read_llama(folder)
    examples = Examples(
        signal=SignalSpec(channels=1, shape=(8, 12)),
        codes=CODES,
        text=TextSpec(pieces=found.text.size, sha256=found.text.sha256),
    )
    model = InterleavedConfig().build(found.config, examples, steps=10)
    model.text = found.text
    model.grow(found)
    return model.eval()


@pytest.mark.parametrize("tied", [False, True])
def test_of_text_it_says_what_the_library_says(tied, tmp_path):
    folder = llama(tmp_path / "llama", tied)
    from transformers import LlamaForCausalLM

    theirs = LlamaForCausalLM.from_pretrained(folder).eval()
    pieces = TEXT.encode("a red cat above two dogs").ids
    model = grown(folder)
    tokens = model.vocabulary.interleave([Text(pieces)])[None]
    (turn,) = [turn for turn in model.turns(tokens.device) if len(turn.ids) == TEXT.size + 1]  # within a text
    with torch.no_grad():
        expected = theirs(torch.tensor([[BEGIN, *pieces]])).logits[0, :, : TEXT.size]
        states = model.grammar.states(tokens)
        where = model.grammar.positions_at(states)
        after = torch.cat([states[:, 1:], torch.zeros(1, 1, dtype=torch.int64)], 1)
        hidden = model.network(model.token(tokens) + model.next(after), where)
        said = model.says(hidden[0], turn)[: len(pieces) + 1]
    torch.testing.assert_close(said[:, : TEXT.size], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(said[:, -1], expected[:, END])  # a text ends where it ended there


def test_a_token_at_a_time_it_writes_what_the_library_writes(folder):
    from transformers import LlamaForCausalLM

    theirs, said = LlamaForCausalLM.from_pretrained(folder).eval(), [BEGIN]
    with torch.no_grad():
        while len(said) <= 16 and said[1:][-1:] != [END]:
            said.append(int(theirs(torch.tensor([said])).logits[0, -1, : TEXT.size].argmax()))
    options = InterleavedOptions(most_text=16)
    assert grown(folder).write([[]], options=options) == [TEXT.decode([piece for piece in said[1:] if piece != END])]


def test_codes_begin_near_the_pieces(folder):
    model, found = grown(folder), read_llama(folder)
    theirs = found.weights()["token"]
    codes = model.token.weight[model.vocabulary.ranges["image_0"].start :][: CODES.size]
    assert (codes - theirs.mean(0)).norm() < 0.2 * (theirs - theirs.mean(0)).norm()
    assert len(codes.unique(dim=0)) == CODES.size
    assert torch.equal(model.token.weight[: TEXT.size], theirs)


def test_it_goes_on_from_the_folder_and_needs_it_no_more(worded, folder, tmp_path):
    mine = tmp_path / "llama"
    shutil.copytree(folder, mine)
    recipe = words_recipe(worded.data, str(worded.tokenizer), steps=3)
    done = train(recipe, out=tmp_path / "run", init=mine, device="cpu")
    shutil.rmtree(mine)
    model = models.load(done.folder, "cpu")
    assert isinstance(model, models.Reader)
    assert model.recipe.model.width == 32
    assert model.network.text.sha256 == TEXT.sha256
    (said,) = model.caption(model.sample(1, "a red dog"))
    assert isinstance(said, str)
    parts = model.network.vocabulary.split(
        model.network.vocabulary.interleave([Text((1,)), Special("draw"), Codes("image", model.draw(1)[0])])
    )
    assert len(parts) == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "qwen3"}, "model_type qwen3"),
        ({"attention_bias": True}, "biases"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"head_dim": 16}, "heads of width 16"),
        ({"head_dim": None, "num_attention_heads": 5}, "over 5 heads"),
        ({"hidden_size": "wide"}, "width"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "of type llama3"),
        ({"num_hidden_layers": "many"}, "layers"),
        ({"num_hidden_layers": 3}, "model.layers.2"),
        ({"intermediate_size": 48}, "do not fit"),
    ],
)
def test_what_is_no_llama_is_told(change, says, folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=says):
        grown(other)


def test_files_that_are_missing_or_broken_are_told(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="tokenizer"):
        grown(other)
    TEXT.save(other)
    few = load_file(other / "model.safetensors")
    save_file({name: few[name] for name in list(few)[1:]}, other / "model.safetensors")
    with pytest.raises(UserError, match="has no weight"):
        grown(other)
    few["model.embed_tokens.weight"] = few["model.embed_tokens.weight"][:9].contiguous()
    save_file(few, other / "model.safetensors")
    with pytest.raises(UserError, match="knows 9 pieces"):
        grown(other)
    (other / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        grown(other)
    (other / "config.json").write_text("[]")
    assert not holds_text_model(other)


def test_other_paradigms_do_not_go_on_from_text(tiny, folder, tmp_path):
    with pytest.raises(UserError, match="only paradigm interleaved"):
        train(generator_recipe(tiny.data, str(tiny.tokenizer), 1), out=tmp_path / "run", init=folder)


def test_weights_in_several_files_are_one_model(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    every = load_file(other / "model.safetensors")
    (other / "model.safetensors").unlink()
    places = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(every)}
    for part in set(places.values()):
        save_file({name: every[name] for name in every if places[name] == part}, other / part)
    (other / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    for name, weight in read_llama(other).weights().items():
        torch.testing.assert_close(weight, read_llama(folder).weights()[name])
