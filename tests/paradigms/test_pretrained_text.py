"""Against the library's own tokenizer and model, tiny and untrained, written to a folder by the test."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from tests.paradigms.bert import bert

from smalti.errors import UserError
from smalti.layers.transformer import TransformerConfig
from smalti.paradigms.pretrained_text import PretrainedText
from smalti.paradigms.text_encoder import TextEncoder, TextEncoderConfig

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # the library's own
NETWORK = TransformerConfig(layers=1, width=24, heads=2, dropout=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return bert(tmp_path_factory.mktemp("bert"))


def test_it_says_what_the_library_says(folder):
    ours = PretrainedText(str(folder))
    theirs = transformers.BertModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = ours.cut("a red dog", 64)
    assert ids == [2, 4, 5, 6, 3]
    assert ours.width == 12
    given = torch.tensor([[*ids, 0, 0], [0] * 7])
    states = ours.states(given, torch.arange(7) < torch.tensor([[5], [0]]))
    expected = theirs(**tokenizer(["a red dog"], return_tensors="pt")).last_hidden_state
    torch.testing.assert_close(states[:1, :5], expected)
    assert (states[0, 5:] == 0).all()
    assert (states[1] == 0).all()
    assert len(ours.cut("a red dog", 3)) == 3


def test_it_is_no_part_of_the_weights(folder):
    encoder = TextEncoder(TextEncoderConfig(folder=str(folder)), NETWORK, 0)
    assert {name.split(".")[0] for name, _ in encoder.named_parameters()} == {"reader", "pool", "open"}
    assert set(encoder.state_dict()) == {name for name, _ in encoder.named_parameters()}
    assert sum(p.numel() for p in encoder.reader.parameters()) == 12 + 12 * 24 + 24  # norm and projection
    assert copy.deepcopy(encoder).reader.pretrained is encoder.reader.pretrained
    ((path, sha),) = encoder.relies_on().items()
    assert path == str(folder)
    assert len(sha) == 64


def test_its_words_reach_the_network(folder):
    encoder = TextEncoder(TextEncoderConfig(folder=str(folder)), NETWORK, 0)
    told = encoder(["a red dog", "", "cat"], None)
    assert told.mask.sum(1).tolist() == [5, 0, 3]
    torch.testing.assert_close(encoder(["cat"], None).pieces[0], told.pieces[2, :3], atol=1e-6, rtol=1e-5)
    (told.pieces.sum() + told.pooled.sum()).backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_what_is_no_text_encoder_is_refused_in_one_line(folder, tmp_path, monkeypatch):
    pictures = tmp_path / "pictures"
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.ViTModel(transformers.ViTConfig(image_size=8, patch_size=4, **sizes)).save_pretrained(pictures)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text("{}")
    for wrong in (tmp_path / "nowhere", pictures, damaged):
        with pytest.raises(UserError, match="text encoder") as error:
            PretrainedText(str(wrong))
        assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="pip install"):
        PretrainedText(str(folder))
