"""Random parts of a small vocabulary, for the tests of what is made of them."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from smalti.config import CodeSpec
from smalti.tokenizers.vocabulary import ALONE, Codes, Part, Special, Text, Vocabulary, VocabularyConfig

CONFIG = VocabularyConfig(
    text=7,
    image=CodeSpec(codebooks=2, grid=(2, 3), size=5),
    video=CodeSpec(codebooks=1, grid=(2, 1, 2), size=4),
    spare=3,
)
VOCABULARY = Vocabulary(CONFIG)


def codes_of(kind: str) -> st.SearchStrategy[Codes]:
    spec = VOCABULARY.codes[kind]
    values = st.lists(st.integers(0, spec.size - 1), min_size=spec.length, max_size=spec.length)
    return values.map(lambda each: Codes(kind, torch.tensor(each).view(spec.codebooks, *spec.grid)))


part = st.one_of(
    st.lists(st.integers(0, 6), max_size=5).map(lambda pieces: Text(tuple(pieces))),
    codes_of("image"),
    codes_of("video"),
    st.sampled_from(ALONE).map(Special),
)
several_parts = st.lists(part, max_size=8)


def plain(parts: list[Part]) -> list[tuple]:
    """Parts as what can be compared."""
    return [
        (part.kind, part.codes.dtype, part.codes.tolist()) if isinstance(part, Codes) else ("", part) for part in parts
    ]
