"""A text encoder of the library `transformers`, tiny and untrained, with a tokenizer of whole words."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

NAMES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "dog", "blue", "cat"]
WIDTH = 12


def bert(folder: Path) -> Path:
    """Written to a folder, as a user would have it there. Asks for the library when called."""
    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(NAMES)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own
        from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

        PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]").save_pretrained(folder)
        sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        torch.manual_seed(0)
        BertModel(BertConfig(vocab_size=len(NAMES), **sizes)).save_pretrained(folder)
    return folder
