"""How well single drawings are put into words, and how many that were drawn are copies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from smalti.data.emoji import ARTISTS
from smalti.data.example import Detail
from smalti.evaluation.distance import nearest

_BY = re.compile(rf"(?:, | )(?:drawn by |by )?(?:{'|'.join(ARTISTS)})(?: style)?$")


@dataclass(frozen=True)
class Named:
    """Shares in [0, 1] of captions: that give just the name, and that have it or a keyword in them, as whole words."""

    name: float
    keyword: float


def right_names(drawn: Sequence[Detail], given: Sequence[str]) -> Named:
    """Captions of drawings beside what each is called and known by; who drew it is left aside."""
    names, keywords = [], []
    for detail, said in zip(drawn, given, strict=True):
        told = name_in(said)
        names.append(told == detail.text[0].casefold())
        keywords.append(any(_within(word.casefold(), told) for word in detail.text))
    return Named(float(np.mean(names)), float(np.mean(keywords)))


def name_in(caption: str) -> str:
    """The caption of a drawing without who drew it, in lower case."""
    return _BY.sub("", caption.casefold())


def _within(words: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None


def near_copies(samples: Tensor, train: Tensor, error: float) -> float:
    """The share of pictures uint8 (N, C, H, W) that are a training picture as far as a tokenizer can tell.

    That is where the root mean square distance to the nearest one, on the [0, 1] scale, is at most twice the `error`
    that the tokenizer's own reconstructions have.
    """
    ours, base = (pixels.flatten(1).float() / 255 for pixels in (samples, train))
    return (nearest(ours, base)[0].flatten() / base.shape[1] ** 0.5 <= 2 * error).double().mean().item()
