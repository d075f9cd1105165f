"""How examples become sequences of one vocabulary, in training anew at every step.

What is asked of an example, which captions and codes are hidden, and what each token counts as in the loss; the
networks are in `smalti.paradigms.interleaved`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from smalti.data.batch import Batch
from smalti.data.example import Questions
from smalti.data.order import uniform
from smalti.tokenizers.vocabulary import Codes, Part, Special, Text, Vocabulary

if TYPE_CHECKING:
    from smalti.paradigms.interleaved import InterleavedConfig

# of random numbers: what is asked in training; which codes are hidden there; what is read as it comes back; which
# pictures are drawn blind
TASK_STREAM, CODE_STREAM, AGAIN_STREAM, BLIND_STREAM = 140, 1000, 1010, 1020
DESCRIBED = 0.8  # of the pictures that are read
NOBODY = Special("no_condition")
Task = Literal["draw", "describe", "answer"]
TASKS: tuple[Task, ...] = get_args(Task)
GIVEN, CODE, PIECE, SEEN = range(4)  # what a token is in the loss

Asked = tuple[Part, bool]  # a part, and whether the model is asked for it
Begun = tuple[Tensor, Tensor]  # tokens that are given, and which part that is read as a whole each is of, or 0


@dataclass(frozen=True)
class Told:
    """A sequence: its tokens (T,), the role of each in the loss (T,), and which part that is read as a whole it is of
    (T,), from 1, or 0."""

    tokens: Tensor
    roles: Tensor
    wholes: Tensor


class Sequences:
    """Makes them for a vocabulary; `cut` makes pieces of texts, `steps` is how long training takes."""

    def __init__(
        self, config: InterleavedConfig, vocabulary: Vocabulary, cut: Callable[[str], Text], steps: int
    ) -> None:
        self.config, self.vocabulary, self.cut, self.steps = config, vocabulary, cut, steps

    def of(self, batch: Batch, training: bool) -> list[list[Asked]]:
        """For each example its parts, and which of them the model is asked for; drawn from (seed, step, row).

        Outside of training every caption is shown.
        """
        kinds = 5 + self._most_questions(batch)
        chance = torch.stack([uniform(batch.seed, batch.step, batch.rows, TASK_STREAM + i) for i in range(kinds)], 1)
        texts = batch.texts or [""] * len(batch.rows)
        questions: Sequence[Questions] = batch.questions or [()] * len(batch.rows)
        drawn, read = batch.x.cpu(), self._read(batch)
        return [
            list(self._parts(Codes("image", x), Codes("image", seen), text, asked, numbers, training))
            for x, seen, text, asked, numbers in zip(drawn, read, texts, questions, chance.tolist(), strict=True)
        ]

    def _read(self, batch: Batch) -> Tensor:
        """The codes of pictures that are read: of a share, as they come back when they are drawn and encoded again."""
        x = batch.x.cpu()
        if batch.again is None:
            return x
        again = uniform(batch.seed, batch.step, batch.rows, AGAIN_STREAM) < self.config.seen_again
        return torch.where(again.cpu().view(-1, *[1] * (x.ndim - 1)), batch.again, x)

    def _most_questions(self, batch: Batch) -> int:
        return max((len(each) for each in batch.questions or ()), default=0)

    def _parts(
        self, picture: Part, seen: Part, text: str, questions: Questions, chance: list[float], training: bool
    ) -> Iterator[Asked]:
        """The parts of one example, whose codes are `picture` where it is drawn and `seen` where it is read."""
        config, (task, dropped, described, after, how_many, *lots) = self.config, chance
        order = sorted(range(len(questions)), key=lambda i: lots[i])
        turns = [questions[i] for i in order[: min(config.questions, 1 + int(how_many * config.questions))]]
        if text and task < config.text_alone:
            yield self.cut(text), True
        elif (not text and not questions) or task < config.text_alone + config.drawing:
            shown = text and (dropped >= config.text_dropout or not training)
            yield (self.cut(text) if shown else NOBODY), False
            yield from ((Special("draw"), False), (picture, True))
            if after < 0.2:
                yield from self._answers(turns)
        else:
            yield seen, False
            if text and (described < DESCRIBED or not turns):
                # before the questions, or after
                first, second = (turns, []) if described < DESCRIBED / 2 else ([], turns)
                yield from self._answers(first)
                yield from ((Special("describe"), False), (self.cut(text), True))
                yield from self._answers(second)
            else:
                yield from self._answers(turns)

    def _answers(self, turns: Sequence[tuple[str, str]]) -> Iterator[Asked]:
        for question, answer in turns:
            yield from ((self.cut(question), False), (Special("answer"), False), (self.cut(answer), True))

    def told(self, parts: Sequence[Asked]) -> Told:
        """A sequence that ends with padding."""
        tokens, roles, wholes = [], [], []
        for number, (part, asked) in enumerate(parts, start=1):
            tokens.append(self.vocabulary.interleave([part]))
            each = torch.full((len(tokens[-1]),), GIVEN)  # as is what begins a part, and what ends a picture
            if isinstance(part, Codes):
                each[1:-1] = CODE if asked else SEEN
            elif asked:
                each[1:] = PIECE
            roles.append(each)
            wholes.append(torch.full_like(each, 0 if asked or self.config.given == "causal" else number))
        end, nothing = torch.tensor([self.vocabulary.id_of("padding")]), torch.tensor([GIVEN])
        return Told(torch.cat([*tokens, end]), torch.cat([*roles, nothing]), torch.cat([*wholes, 0 * nothing]))

    def begun(self, parts: Sequence[Part]) -> tuple[Tensor, Tensor]:
        """What comes before that which is asked for: its tokens (T,), and their wholes as in `Told`."""
        tasks = [isinstance(part, Special) and part.name in TASKS for part in parts]
        told = self.told(list(zip(parts, [False, *tasks], strict=False)))
        return told.tokens[:-1], told.wholes[:-1]

    def hidden(self, batch: Batch, told: Sequence[Told], training: bool) -> list[Tensor]:
        """Which tokens of each sequence are out of sight, bool (T,): of some pictures, some codes."""
        length = self.vocabulary.codes["image"].length
        pictures = [(each.roles == CODE) | (each.roles == SEEN) for each in told]
        if not training:
            return [torch.zeros_like(each) for each in pictures]
        counters = batch.rows[:, None].cpu() * length + torch.arange(length)
        read = torch.tensor([bool((each.roles == SEEN).any()) for each in told])
        rate = self._rate_hidden(batch, read)
        out = uniform(batch.seed, batch.step, counters, CODE_STREAM + 2) < rate[:, None]
        for here, codes in zip(pictures, out, strict=True):
            here[here.clone()] = codes[: int(here.sum())]
        return pictures

    def _rate_hidden(self, batch: Batch, read: Tensor) -> Tensor:
        """Of each picture, the share of its codes that is hidden; `read` tells which are not drawn, bool (B,)."""
        config, rows = self.config, batch.rows.cpu()
        chance, level = (uniform(batch.seed, batch.step, rows, CODE_STREAM + i) for i in range(2))
        # half of those that are hit hide all codes, the others any share of them
        hit = chance < config.code_dropout * min(1, 2 * batch.step / self.steps)
        drawn = torch.where(hit, (2 * level).clamp_max(1), 0)
        blind = uniform(batch.seed, batch.step, rows, BLIND_STREAM) < config.blind
        drawn[blind if batch.tell_all is None else blind & batch.tell_all] = 1
        return torch.where(read, config.seen_dropout * level, drawn)
