"""A tiny model of text and pictures, and batches for it."""

from __future__ import annotations

import torch

from smalti.config import CodeSpec, Examples, SignalSpec, TextSpec
from smalti.data.batch import Batch
from smalti.layers.transformer import TransformerConfig
from smalti.paradigms.interleaved import Interleaved, InterleavedConfig
from smalti.tokenizers.text import TextTokenizer

WORDS = ["a red dog", "a blue cat", "two green birds, on white", "nothing"]
QUESTIONS = (("what is it?", "a dog"), ("how many?", "one"), ("which colour?", "red"))
TEXT = TextTokenizer.trained(WORDS * 3, 280)
CODE_SPEC = CodeSpec(codebooks=2, grid=(2, 3), size=8)
EXAMPLES = Examples(
    signal=SignalSpec(channels=1, shape=(8, 12)),
    codes=CODE_SPEC,
    text=TextSpec(pieces=TEXT.size, sha256=TEXT.sha256),
)
NETWORK = TransformerConfig(layers=2, width=32, heads=2, dropout=0.0)


def made(spread: float = 0.3, **changes) -> Interleaved:
    torch.manual_seed(0)
    model = InterleavedConfig(**changes).build(NETWORK, EXAMPLES, steps=10)
    model.text = TEXT
    for weight in model.parameters():  # output products start at zero, and a network of zeros tells little
        torch.nn.init.normal_(weight, std=spread) if weight.ndim > 1 else None
    return model.eval()


def batch_of(n: int = 16, step: int = 3, texts: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(step)
    x = torch.randint(0, CODE_SPEC.size, (n, 2, 2, 3), generator=generator)
    told = [WORDS[i % len(WORDS)] for i in range(n)] if texts else None
    asked = [QUESTIONS[: i % 4] for i in range(n)] if texts else None
    return Batch(step, torch.arange(n), torch.arange(n), x, None, told, asked, seed=5)
