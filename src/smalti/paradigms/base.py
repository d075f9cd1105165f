"""What every paradigm promises to the trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor, nn

from smalti.config import Config
from smalti.data.batch import Batch
from smalti.term import Term
from smalti.tokenizers.bottlenecks import Statistic
from smalti.tokenizers.text import TextTokenizer

Makes = Literal["tokenizer", "generator", "aligner"]  # what a trained model is

# who waits for samples is told after every step: how many are done, of how many
Progress = Callable[[int, int], object]


def untold(done: int, total: int) -> None:
    """Nobody waits."""


@dataclass(frozen=True)
class Loss:
    """The terms of one player's loss on one micro-batch, and what its bottleneck saw. No terms: not its turn yet."""

    terms: list[Term]
    statistics: dict[str, Statistic] = field(default_factory=dict)


class ParadigmConfig(Config):
    """The settings of a paradigm: what model it trains, what comes of it, whether it is told the examples' texts.

    With `whole_batch` the loss compares the examples of a batch with each other, so it cannot be added up from parts.
    """

    trains: ClassVar[str]
    makes: ClassVar[Makes] = "generator"
    whole_batch: ClassVar[bool] = False

    @property
    def words(self) -> bool:
        """Whether it is told texts, so that what it draws is asked for by prompts instead of labels."""
        return False

    @property
    def again(self) -> bool:
        """Whether it also learns from the codes of pictures that were laid from codes."""
        return False

    def check(self) -> None:
        """Raises UserError where a model that it needs is not there, or is no such one."""


class Paradigm(nn.Module, ABC):
    """A way of training: it owns the networks, and says what their losses are.

    `players` are the networks that step in turn; a plain paradigm has one. Every random number that a loss needs is
    drawn from (batch.seed, batch.step, row), so that splitting a batch changes nothing.
    """

    sequential: ClassVar[bool] = False
    """Whether it draws one small piece after the other, so that many examples at once cost little more than few."""

    text: TextTokenizer | None = None
    """What cuts texts, for paradigms that read or write any."""

    @abstractmethod
    def players(self) -> dict[str, nn.Module]:
        """The networks that step in turn, by name."""

    @abstractmethod
    def loss(self, player: str, batch: Batch, step: int) -> Loss:
        """The loss of one player. All terms must count in proportion to the rows of the batch.

        A batch may come in parts, unless the paradigm needs the `whole_batch`.
        """

    def score(self, means: Mapping[str, float], loss: float) -> float | None:
        """What of the held-out means says how good the model is, lower is better; None keeps the newest always."""
        return loss

    def model_state(self) -> dict[str, Tensor]:
        """The weights that a model in use needs: all, unless something is there for training only."""
        return self.state_dict()

    def load_model_state(self, state: Mapping[str, Tensor]) -> None:
        """Take them back. Raises RuntimeError when they do not fit."""
        self.load_state_dict(state)

    def relies_on(self) -> dict[str, str]:
        """Models that it was trained with, beside its own weights: what it is, or its folder -> a SHA-256 of it."""
        return {}

    def carries(self) -> dict[str, Path]:
        """Model folders that it needs beside its own weights, and that travel in its own: name -> where each is."""
        return {}

    def rates(self) -> dict[str, float]:
        """The learning rates of players that train by AdamW at a rate of their own; the others follow the recipe."""
        return {}

    def first_latents(self, batch: Batch) -> Tensor | None:
        """Latents (n, D) of a first batch, for state that starts from real data; None when there is none."""
        return None

    def initialise(self, latents: Tensor) -> None:
        """Set that state, once, before the first step."""

    def know_codes(self, vectors: Tensor) -> None:
        """Begin from what a tokenizer's codes stand for, (codebooks, size, width), before the first step."""

    def after_step(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """Move state by the merged statistics of one whole step; gives back figures to log."""
        return {}
