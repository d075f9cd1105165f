"""What every trained model in use has."""

from __future__ import annotations

from typing import Any

import torch

from smalti.config import Examples, SignalSpec
from smalti.paradigms.base import Paradigm
from smalti.recipe import Recipe

BATCH = 250  # signals at once, unless asked otherwise
CALLED = {"tokenizer": "a tokenizer", "generator": "a generator", "aligner": "an aligner of pictures and texts"}


class Model:
    """What every trained model has: the recipe that made it, what it was trained on, and where it runs."""

    def __init__(self, recipe: Recipe, examples: Examples, paradigm: Paradigm, device: torch.device) -> None:
        self.recipe, self.examples, self.device = recipe, examples, device
        self.paradigm = paradigm.to(device).eval().requires_grad_(False)
        self.figures: dict[str, Any] = {}
        self.sha256 = ""

    @property
    def signal(self) -> SignalSpec:
        return self.examples.signal

    @property
    def labels(self) -> tuple[str, ...]:
        return self.examples.labels

    @property
    def kind(self) -> str:
        """What it is, in words."""
        return CALLED[self.recipe.paradigm.makes]
