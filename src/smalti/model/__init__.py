"""Trained models in use: rebuilt from their folder, on any device, in batches, without gradients."""

from __future__ import annotations

from smalti.model.aligner import Aligner
from smalti.model.base import BATCH, Model
from smalti.model.card import card
from smalti.model.folder import (
    build,
    check_size,
    listening_to,
    load,
    load_tokenizer,
    tokenizer_folder,
    write,
    write_card,
)
from smalti.model.generator import Generator, Labels
from smalti.model.reader import Reader
from smalti.model.tokenizer import Tokenizer

__all__ = [
    "BATCH",
    "Aligner",
    "Generator",
    "Labels",
    "Model",
    "Reader",
    "Tokenizer",
    "build",
    "card",
    "check_size",
    "listening_to",
    "load",
    "load_tokenizer",
    "tokenizer_folder",
    "write",
    "write_card",
]
