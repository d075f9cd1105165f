"""A generator that reads as well: text and pictures in one sequence, in any order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import cast

from torch import Tensor

from smalti.config import Config
from smalti.errors import UserError, nearest
from smalti.model.generator import Generator, whole
from smalti.paradigms.base import Progress, untold
from smalti.paradigms.interleaved import Interleaved, InterleavedOptions
from smalti.paradigms.sequences import TASKS, Task
from smalti.tokenizers.vocabulary import Codes, Part, Special

SLACK = 0.01  # beyond [-1, 1], as a resized picture may reach


class Reader(Generator):
    """Draws pictures from words, puts pictures into words, and answers questions about them."""

    @property
    def network(self) -> Interleaved:
        return cast(Interleaved, self.paradigm)

    def caption(
        self, x: Tensor, seed: int = 0, options: Config | None = None, first: int = 0, progress: Progress = untold
    ) -> list[str]:
        """What is in each of the pictures x (B, C, *space) in [-1, 1]; of picture i, drawn from (seed, first + i).

        Raises UserError on what are no such pictures.
        """
        begun: list[list[Part]] = [[picture, Special("describe")] for picture in self._codes(x)]
        return self._written(begun, seed, options, first, progress)

    def ask(
        self,
        x: Tensor,
        question: str | Sequence[str],
        seed: int = 0,
        options: Config | None = None,
        first: int = 0,
        progress: Progress = untold,
    ) -> list[str]:
        """The answers to a question about pictures x (B, C, *space) in [-1, 1]: one for all, or one each.

        Raises UserError on an empty question and on another number of them.
        """
        self._check_pictures(x)
        if not isinstance(question, str) and not _are_texts(question):
            raise UserError("a question is a text; give one for all pictures, or a list of one each")
        questions = list(repeat(question, len(x))) if isinstance(question, str) else list(question)
        if len(questions) != len(x):
            raise UserError(f"{len(questions)} questions about {len(x)} pictures; give one for all, or one each")
        if not all(each.strip() for each in questions):
            raise UserError("the question is empty; ask something, such as: which group?")
        begun: list[list[Part]] = [
            [picture, self.network.cut(asked), Special("answer")]
            for picture, asked in zip(self._codes(x), questions, strict=True)
        ]
        return self._written(begun, seed, options, first, progress)

    def converse(
        self, said: Sequence[str | Tensor], *tasks: Task, seed: int = 0, options: Config | None = None
    ) -> list[str | Tensor]:
        """What follows texts and pictures (C, *space) in [-1, 1], in any order: a text or a picture for each task.

        A text before a picture is what it was drawn by; after a picture, a text is a question, and one more its answer.
        Each task, `draw`, `describe` or `answer`, is done with all that stands before it. Without any, what fits: a
        text is drawn if there is no picture yet and answered if there is, a picture is described. Raises UserError on
        a task that does not fit.
        """
        (seed,) = whole(seed=seed)
        if isinstance(said, str | Tensor) or not isinstance(said, Sequence):
            raise UserError("a conversation is a list of texts and pictures (C, *space); put what was said into one")
        for task in tasks:
            if not isinstance(task, str):
                raise UserError(f"a task is one of {', '.join(TASKS)}, not {type(task).__name__}")
            if task not in TASKS:
                raise UserError(f"{task!r} is no task; {nearest(task, TASKS)}")
        parts, pending, seen = self._parts(said)
        given: list[str | Tensor] = []
        for turn, task in enumerate(tasks or (_fitting(pending, seen),)):
            if task == "answer" and not (pending and seen):
                raise UserError("to answer takes a picture, then a question about it")
            if task == "describe" and not seen:
                raise UserError("to describe takes a picture before")
            if task == "describe" and pending:
                raise UserError("the last text is a question about the picture; the task that fits is answer")
            if task == "draw":
                parts += [*([] if pending else [Special("no_condition")]), Special("draw")]
                self._check_options(options)
                codes = self.network.draw_after(parts, seed + turn, cast("InterleavedOptions | None", options))
                parts.append(Codes("image", codes))
                given.append(self.outwards(codes[None])[0])
                seen = True
            else:
                parts.append(Special(task))
                (text,) = self._written([parts], seed + turn, options)
                parts.append(self.network.cut(text))
                given.append(text)
            pending = False
        return given

    def _parts(self, said: Sequence[str | Tensor]) -> tuple[list[Part], bool, bool]:
        """Parts; whether the last text waits for an answer or a picture, and whether it has one."""
        parts: list[Part] = []
        pending = seen = False
        for each in said:
            if isinstance(each, str):
                if not each.strip():
                    raise UserError("one of the texts is empty")
                if pending and seen:
                    parts.append(Special("answer"))
                parts.append(self.network.cut(each))
                pending = not (pending and seen)
            else:
                if not isinstance(each, Tensor):
                    raise UserError(
                        f"a conversation is of texts and pictures (C, *space), not of {type(each).__name__}"
                    )
                if pending:
                    parts.append(Special("draw"))
                parts += self._codes(each[None])
                pending, seen = False, True
        return parts, pending, seen

    def _check_pictures(self, x: Tensor) -> None:
        """Raises UserError on what are no pictures as this model reads them."""
        shape = (self.signal.channels, *self.signal.shape)
        if not isinstance(x, Tensor) or not x.is_floating_point():
            found = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise UserError(f"pictures are a float tensor (B, C, *space) in [-1, 1], not {found}")
        if x.ndim != 1 + len(shape) or tuple(x.shape[1:]) != shape:
            raise UserError(f"this model reads pictures (B, {', '.join(map(str, shape))}); got {tuple(x.shape)}")
        if x.numel() and float(x.abs().max()) > 1 + SLACK:
            raise UserError(
                f"pictures lie in [-1, 1], and these reach {float(x.abs().max()):g}: x / 127.5 - 1 of bytes"
            )

    def _codes(self, x: Tensor) -> list[Codes]:
        self._check_pictures(x)
        return [Codes("image", codes) for codes in self.tokenizer.encode(x).cpu()]

    def _written(
        self,
        begun: Sequence[Sequence[Part]],
        seed: int,
        options: Config | None,
        first: int = 0,
        progress: Progress = untold,
    ) -> list[str]:
        self._check_options(options)
        seed, first = whole(seed=seed, first=first)
        return self.network.write(begun, seed, cast("InterleavedOptions | None", options), first, progress)


def _are_texts(told: object) -> bool:
    return isinstance(told, Sequence) and all(isinstance(each, str) for each in told)


def _fitting(pending: bool, seen: bool) -> Task:
    if pending:
        return "answer" if seen else "draw"
    return "describe" if seen else "draw"
