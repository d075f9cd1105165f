"""A trained generator in use: it draws new signals, in batches, without gradients."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from smalti.config import Config, Examples, Reads
from smalti.errors import UserError
from smalti.model.base import BATCH, Model
from smalti.model.tokenizer import Tokenizer
from smalti.paradigms.base import Paradigm, Progress, untold
from smalti.recipe import Recipe

IN_CACHE = 64  # of them where a whole network runs on each: with more, a processor's caches overflow and it is slower
CANDIDATES = 1024  # at most, drawn together to keep the best of several for each example
WITH_GRADIENTS = 32  # signals at once where a network's gradients are kept


# labels by name or id, or for a model of text prompts: one for all, or one each; None leaves it open
Labels = Tensor | Sequence[int | str | None] | int | str | None


class Generator(Model):
    """Draws new signals: codes or latents that the tokenizer it carries lays, or the signals themselves."""

    def __init__(
        self, recipe: Recipe, examples: Examples, paradigm: Paradigm, device: torch.device, tokenizer: Tokenizer | None
    ) -> None:
        super().__init__(recipe, examples, paradigm, device)
        self._tokenizer = tokenizer

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer it carries. Raises UserError where it works on signals as they are."""
        if self._tokenizer is None:
            raise UserError("this generator works on pixels and carries no tokenizer; train one to have codes")
        return self._tokenizer

    @property
    def reads(self) -> Reads:
        """What the paradigm works on."""
        return self.recipe.paradigm.reads

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example there: (Q, *grid) of codes, (D, *grid) of latents, (C, *space) of signals."""
        return self.examples.shape(self.reads)

    def inwards(self, x: Tensor) -> Tensor:
        """Signals (B, C, *space) as the paradigm works on them: codes, latents, or themselves."""
        if self.reads == "signals":
            return x
        return self.tokenizer.encode(x) if self.reads == "codes" else self.tokenizer.latents(x)

    def outwards(self, values: Tensor) -> Tensor:
        """What the paradigm works on as signals (B, C, *space) in [-1, 1]."""
        if self.reads == "signals":
            return values.clamp(-1, 1)
        return self.tokenizer.decode(values) if self.reads == "codes" else self.tokenizer.decode_latents(values)

    @property
    def words(self) -> bool:
        """Whether what is drawn is asked for by prompts; labels then mean nothing."""
        return self.recipe.paradigm.words

    @property
    def labels(self) -> tuple[str, ...]:
        return () if self.words else super().labels

    @property
    def at_once(self) -> int:
        """How many examples are drawn together, unless asked otherwise."""
        return IN_CACHE if self.device.type == "cpu" and not self.paradigm.sequential else BATCH

    @property
    def options(self) -> Config:
        """The paradigm's options as the recipe has them."""
        return self.paradigm.config.sampling  # type: ignore[union-attr, return-value]

    def sample(
        self,
        n: int,
        condition: Labels = None,
        known: Tensor | None = None,
        mask: Tensor | None = None,
        seed: int = 0,
        options: Config | None = None,
        progress: Progress = untold,
        first: int = 0,
    ) -> Tensor:
        """New signals (n, C, *space) in [-1, 1]; see `draw`."""
        return self.outwards(self.draw(n, condition, known, mask, seed, options, first=first, progress=progress))

    def samples(
        self,
        n: int,
        condition: Labels = None,
        seed: int = 0,
        options: Config | None = None,
        progress: Progress = untold,
    ) -> Iterator[Tensor]:
        """`sample`, some signals (B, C, *space) after the other, so that memory does not grow with n."""
        yield from map(self.outwards, self._drawn(n, condition, None, None, seed, options, None, progress))

    def draw(
        self,
        n: int,
        condition: Labels = None,
        known: Tensor | None = None,
        mask: Tensor | None = None,
        seed: int = 0,
        options: Config | None = None,
        batch: int | None = None,
        trajectory: list[Tensor] | None = None,
        progress: Progress = untold,
        first: int = 0,
    ) -> Tensor:
        """New examples (n, *shape) as the paradigm works on them: codes int64, latents or signals fp32.

        condition: labels by name or id, or prompts for a model of text, one for all or n of them; None leaves it open.
        known: examples (n, *shape), kept where `mask` (bool, same shape) is True. Sample i draws its noise from (seed,
        first + i), however the work is split. `trajectory` is given what there is after every step, (n, *shape), codes
        not chosen yet as -1. `progress` is told after every step how many steps of how many examples are done, and how
        many there will be. Raises UserError on unknown labels and on what the paradigm cannot honour.
        """
        ways: list[list[Tensor]] | None = None if trajectory is None else []
        parts = list(self._drawn(n, condition, known, mask, seed, options, batch, progress, ways, first))
        if trajectory is not None and ways is not None:
            trajectory += together(ways)
        if not parts:
            return torch.zeros(0, *self.shape, dtype=torch.int64 if self.reads == "codes" else torch.float32)
        return torch.cat(parts)

    def _drawn(
        self,
        n: int,
        condition: Labels,
        known: Tensor | None,
        mask: Tensor | None,
        seed: int,
        options: Config | None,
        batch: int | None,
        progress: Progress,
        ways: list[list[Tensor]] | None = None,
        first: int = 0,
    ) -> Iterator[Tensor]:
        """Batch by batch what `draw` gives; `ways` takes the trajectory of each."""
        if batch is None:
            batch = min(self.at_once, max(1, CANDIDATES // getattr(options or self.options, "best_of", 1)))
        n, seed, batch, first = whole(n=n, seed=seed, batch=batch, first=first)
        if n < 0 or batch < 1:
            raise UserError(f"cannot draw {n} samples; ask for 1 or more")
        for given in (known, mask):
            if given is not None and len(given) != n:
                raise UserError(f"known examples and their mask are for {n} samples; got {len(given)}")
        self._check_options(options)
        asked = self.conditions(condition, n)
        for start in range(0, n, batch):
            rows = slice(start, min(n, start + batch))
            pick = [None if value is None else value[rows] for value in (asked, known, mask)]
            way: list[Tensor] | None = None
            if ways is not None:
                ways.append(way := [])
            told = in_all(progress, rows, n)
            yield self.paradigm.sample(  # type: ignore[operator]
                rows.stop - start, *pick, seed, options, first=first + start, trajectory=way, progress=told
            ).cpu()

    def vary(
        self,
        x: Tensor,
        level: float,
        condition: Labels = None,
        seed: int = 0,
        options: Config | None = None,
        progress: Progress = untold,
    ) -> Tensor:
        """Other signals like x (B, C, *space): noised to a level in (0, 1], and the noise undone; 1 leaves nothing.

        Raises UserError where the paradigm knows no noise.
        """
        if not hasattr(self.paradigm, "vary"):
            raise UserError(
                f"paradigm {self.recipe.paradigm.kind} has no noise to start from: `smalti complete` keeps a part"
                " instead"
            )
        self._check_options(options)
        asked, parts = self.conditions(condition, len(x)), []
        if not len(x):
            return x
        for start in range(0, len(x), self.at_once):
            rows = slice(start, min(len(x), start + self.at_once))
            some, told = None if asked is None else asked[rows], in_all(progress, rows, len(x))
            parts.append(
                self.paradigm.vary(self.inwards(x[rows]), level, some, seed, options, first=start, progress=told)  # type: ignore[operator]
            )
        return self.outwards(torch.cat(parts).cpu())

    def log_likelihood(self, x: Tensor, condition: Labels = None, seed: int = 0, steps: int | None = None) -> Tensor:
        """How likely signals x (n, C, *space) are to this model, given their labels or texts: nats, float64 (n,).

        A next-token model gives the log probability of their codes, exactly. A diffusion model gives the log density of
        the pixels on their scale of [-1, 1], or of the latents in units of their own, by the probability flow in
        `steps` steps; signal i draws its probe from (seed, i). Raises UserError where the paradigm has neither.
        """
        if not hasattr(self.paradigm, "log_likelihood"):
            raise UserError(
                f"paradigm {self.recipe.paradigm.kind} has no likelihood of single signals; `smalti evaluate` gives the"
                " bound on that of many, where there is one"
            )
        asked, parts = self.conditions(condition, len(x)), [torch.zeros(0, dtype=torch.float64)]
        for start in range(0, len(x), WITH_GRADIENTS):
            rows = slice(start, start + WITH_GRADIENTS)
            some = None if asked is None else asked[rows]
            parts.append(self.paradigm.log_likelihood(self.inwards(x[rows]), some, seed, steps, first=start).cpu())  # type: ignore[operator]
        return torch.cat(parts)

    def _check_options(self, options: Config | None) -> None:
        """Those of another paradigm would be read as if they were of this one.

        And guidance pulls towards a label or a text: without any it would do nothing, and nobody would know. That of
        the recipe was asked for by nobody who samples.
        """
        if options is not None and not isinstance(options, type(self.options)):
            raise UserError(
                f"options are {type(self.options).__name__} here, not {type(options).__name__}; change those of"
                " model.options with smalti.config.changed"
            )
        asked = getattr(options, "guidance", 1.0)
        if asked not in (None, 1, getattr(self.options, "guidance", 1.0)) and not (self.labels or self.words):
            raise UserError(f"guidance {asked:g} on a model that was trained without labels; leave it out")

    def conditions(self, condition: Labels, n: int) -> Tensor | list[str] | None:
        """What is asked for as the paradigm takes it: label ids (n,), or for a model of text n prompts, "" for none.

        None leaves all open. Raises UserError on an unknown label, on what is no prompt, and on another number of them.
        """
        if condition is None or not self.words:
            return self.label_ids(condition, n)
        if isinstance(condition, str):
            condition = [condition] * n
        prompts: list[str] = []
        for each in condition if isinstance(condition, Sequence) else [condition]:
            if not isinstance(each, str | None):
                raise UserError("this model draws what a text says: give a prompt, or one for each sample")
            if each and not each.strip():
                raise UserError("the prompt is blank; say what to draw, or give none to leave it open")
            prompts.append(each or "")
        if len(prompts) != n:
            raise UserError(f"{len(prompts)} prompts for {n} samples; give one for all, or one each")
        return prompts

    def read_of(self, prompt: str) -> str:
        """What of a prompt is read: all of it, unless it is too long."""
        text, longest = self.paradigm.text, self.recipe.paradigm.longest
        if text is None or longest is None:
            return prompt
        pieces = text.encode(prompt, longest)
        return text.decode(pieces.ids) if pieces.cut else prompt

    def label_ids(self, condition: Labels, n: int) -> Tensor | None:
        """Labels by name or id -> ids (n,). Raises UserError on an unknown one, with the list."""
        if condition is None:
            return None
        if not self.labels:
            raise UserError("this model was trained without labels; leave the label out")
        if isinstance(condition, Tensor):
            condition = condition.tolist()
        if isinstance(condition, int | str):
            return torch.full((n,), self._label_id(condition))
        each = list(condition)
        if len(each) != n:
            raise UserError(f"{len(each)} labels for {n} samples; give one for all, or one each")
        return torch.tensor([self._label_id(label) for label in each], dtype=torch.int64)

    def _label_id(self, label: int | str | None) -> int:
        if isinstance(label, str):
            lowered = [name.lower() for name in self.labels]
            if label.lower() not in lowered:
                raise UserError(f"unknown label {label!r}; this model knows: {', '.join(self.labels)}")
            return lowered.index(label.lower())
        if label is None or not 0 <= label < len(self.labels):
            raise UserError(f"label {label} is out of range; this model has labels 0 to {len(self.labels) - 1}")
        return int(label)


def in_all(progress: Progress, rows: slice, n: int) -> Progress:
    """What is told of the steps of some rows, as steps of rows of n examples in all."""
    return lambda done, total: progress(rows.start * total + (rows.stop - rows.start) * done, n * total)


def together(ways: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Trajectories of several batches as one: those that came to rest sooner wait in their last state."""
    longest = max((len(way) for way in ways), default=0)
    return [torch.cat([way[min(step, len(way) - 1)].cpu() for way in ways if way]) for step in range(longest)]


def whole(**numbers: object) -> list[int]:
    """Whole numbers of any library as plain ones. Raises UserError on what is none."""
    found = []
    for name, number in numbers.items():
        try:
            found.append(operator.index(number))  # type: ignore[arg-type]
        except TypeError:
            raise UserError(f"{name} is a whole number, not {number!r}") from None
    return found
