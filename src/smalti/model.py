"""A trained model in use: rebuilt from its folder, on any device, in batches, without gradients."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smalti import checkpoint
from smalti.config import Config, Examples, Reads, SignalSpec, checked
from smalti.data.named import NAMED_SETS
from smalti.device import autocast, memory, pick_device
from smalti.errors import UserError
from smalti.layers.transformer import Transformer, TransformerConfig
from smalti.paradigms.base import Paradigm, Progress, untold
from smalti.recipe import Recipe, parse
from smalti.tokenizers.autoencoder import Autoencoder
from smalti.tokenizers.bottlenecks import Moment
from smalti.tokenizers.text import TextTokenizer
from smalti.tokenizers.tiling import in_tiles

BATCH = 250  # signals at once, unless asked otherwise
IN_CACHE = 64  # of them where a whole network runs on each: with more, a processor's caches overflow and it is slower
WITH_GRADIENTS = 32  # signals at once where a network's gradients are kept
TEXT_FILE = "tokenizers/text/tokenizer.json"  # in a model folder
PRIOR_STREAM = 130  # of random numbers: what is drawn from a continuous tokenizer's prior

# labels by name or id, or for a model of text prompts: one for all, or one each; None leaves it open
Labels = Tensor | Sequence[int | str | None] | int | str | None
CALLED = {"tokenizer": "a tokenizer", "generator": "a generator", "aligner": "an aligner of pictures and texts"}
CALLS = {
    "tokenizer": "again = model.reconstruct(x)  # x: (B, C, *space) in [-1, 1]",
    "generator": "x = model.sample(4)",
    "aligner": "fit = model.similarity(x, ['a text', 'another'])  # x: (B, C, *space) in [-1, 1]; cosines (B, 2)",
}


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


class Tokenizer(Model):
    """Cuts signals (B, C, *space) in [-1, 1] into codes int64 (B, Q, *grid), and lays them again.

    A continuous one has latents (B, D, *grid) instead; what is about codes raises UserError. Signals of any size will
    do whose sides divide by the stride: large ones are cut in tiles that overlap (`smalti.tokenizers.tiling`), so that
    beside what comes in and goes out, memory does not grow with them.
    """

    @property
    def network(self) -> Autoencoder:
        return self.paradigm.tokenizer  # type: ignore[return-value]

    @torch.no_grad()
    def encode(self, x: Tensor, codebooks: int | None = None) -> Tensor:
        """x (B, C, *space) in [-1, 1] -> codes int64 (B, Q, *grid).

        `codebooks` keeps the first so many of a residual tokenizer, for a lower bitrate. Raises UserError on a wrong
        shape, on values that are not finite, and where there are not so many codebooks or they belong together.
        """
        count = self.codebooks(codebooks)
        return self._inwards(lambda part: self.network.encode(part)[:, :count], x)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """codes int64 (B, Q, *grid) -> x (B, C, *space) in [-1, 1]. Raises UserError on codes out of range.

        The first codebooks of a residual tokenizer will do.
        """
        return self._outwards(self.network.decode, codes)

    @torch.no_grad()
    def latents(self, x: Tensor) -> Tensor:
        """x (B, C, *space) -> (B, D, *grid): what the bottleneck quantizes, or the mean of a continuous one.

        Raises UserError on a wrong shape and on values that are not finite.
        """
        return self._inwards(lambda part: self.network.latents(part).float(), x)

    @torch.no_grad()
    def decode_latents(self, z: Tensor) -> Tensor:
        """(B, D, *grid) -> x (B, C, *space) in [-1, 1]."""
        return self._outwards(self.network.decode_latents, z)

    def reconstruct(self, x: Tensor, codebooks: int | None = None) -> Tensor:
        """x -> codes -> x, or latents for a continuous tokenizer. `codebooks` as in `encode`."""
        if self.network.continuous and codebooks is None:
            return self.decode_latents(self.latents(x))
        return self.decode(self.encode(x, codebooks))

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """New signals (n, C, *space) of a continuous tokenizer: latents drawn from its prior N(0, 1), and laid.

        They have the shape it was trained on. Sample i draws its noise from (seed, i), however the work is split.
        Raises UserError for a tokenizer of codes, which has no prior of its own.
        """
        parts = list(self.samples(n, seed))
        return torch.cat(parts) if parts else torch.zeros(0, self.signal.channels, *self.signal.shape)

    def samples(self, n: int, seed: int = 0) -> Iterator[Tensor]:
        """`sample`, some signals (B, C, *space) after the other, so that memory does not grow with n."""
        if not self.network.continuous:
            raise UserError("a tokenizer of codes draws nothing new: that needs a generator over its codes, trained")
        if n < 0:
            raise UserError(f"cannot draw {n} samples; ask for 1 or more")
        shape = (self.network.bottleneck.out_width, *(side // self.network.stride for side in self.signal.shape))
        for start in range(0, n, BATCH):
            moment = Moment(seed, 0, torch.arange(start, min(n, start + BATCH)), 0.0)
            yield self.decode_latents(moment.normal(PRIOR_STREAM, shape, torch.device("cpu")))

    def codebooks(self, first: int | None = None) -> int:
        """How many codebooks `encode` gives when asked for the first so many; None asks for all.

        Raises UserError for a continuous tokenizer, one that is not residual, and a number out of range.
        """
        there = self.network.codes.codebooks
        if first is None:
            return there
        if not self.network.bottleneck.fewer:
            raise UserError("this tokenizer is not residual: its codes mean nothing in part; leave the codebooks out")
        if not 1 <= first <= there:
            raise UserError(f"{first} codebooks: this tokenizer has 1 to {there}")
        return first

    def _inwards(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return self._in_parts(function, x, self.network.stride, 1, self.network.encoder.margin)

    def _outwards(self, function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        return self._in_parts(function, values, 1, self.network.stride, self.network.decoder.margin)

    def _in_parts(
        self, function: Callable[[Tensor], Tensor], values: Tensor, given: int, made: int, margin: int
    ) -> Tensor:
        """On the device and back, in batches and tiles."""

        def there_and_back(part: Tensor) -> Tensor:
            if part.is_floating_point():
                if not bool(part.isfinite().all()):
                    raise UserError(
                        "some of the values given are not finite (NaN or infinite); a signal lies in [-1, 1]"
                    )
                part = part.float()  # also numpy's float64, which networks do not take
            return function(part.to(self.device)).to(values.device)

        with autocast(self.device):
            return in_tiles(there_and_back, values, given=given, made=made, margin=margin, rows=BATCH)


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
        batch = self.at_once if batch is None else batch
        if n < 0 or batch < 1:
            raise UserError(f"cannot draw {n} samples; ask for 1 or more")
        for given in (known, mask):
            if given is not None and len(given) != n:
                raise UserError(f"known examples and their mask are for {n} samples; got {len(given)}")
        self._check_guidance(options)
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
        self._check_guidance(options)
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

    def _check_guidance(self, options: Config | None) -> None:
        """Guidance pulls towards a label or a text: without any it would do nothing, and nobody would know.

        That of the recipe was asked for by nobody who samples.
        """
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
            return [condition] * n
        prompts: list[str] = []
        for each in condition if isinstance(condition, Sequence) else [condition]:
            if not isinstance(each, str | None):
                raise UserError("this model draws what a text says: give a prompt, or one for each sample")
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


class Aligner(Model):
    """Pictures and texts as unit vectors of one space: the larger the product of two, the better they fit.

    Everything is in fp32, so that what it finds does not hang on the hardware.
    """

    @torch.no_grad()
    def pictures(self, x: Tensor) -> Tensor:
        """x (B, C, *space) in [-1, 1], in the shape it was trained on -> unit vectors fp32 (B, D).

        Raises UserError on another shape and on values that are not finite.
        """
        shape = (self.signal.channels, *self.signal.shape)
        if not x.is_floating_point() or x.shape[1:] != shape:
            wanted = ", ".join(map(str, ("B", *shape)))
            raise UserError(f"pictures to align are float ({wanted}) in [-1, 1]; got {x.dtype} {tuple(x.shape)}")
        if not bool(x.isfinite().all()):
            raise UserError("some of the values given are not finite (NaN or infinite); a signal lies in [-1, 1]")
        parts = [self.paradigm.pictures(part.float().to(self.device)) for part in x.split(BATCH) if len(part)]  # type: ignore[operator]
        return self._vectors(parts).to(x.device)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """B texts -> unit vectors fp32 (B, D).

        Raises UserError on a single text that stands in no list, and on one that is no proper Unicode.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise UserError("texts to align are a list of them, as in texts(['a red apple'])")
        parts = [self.paradigm.texts(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)]  # type: ignore[operator]
        return self._vectors(parts).cpu()

    def similarity(self, x: Tensor, texts: Sequence[str]) -> Tensor:
        """The cosines in [-1, 1] of pictures (B, C, *space) and N texts, (B, N); errors as of both."""
        return self.pictures(x).cpu() @ self.texts(texts).T

    def _vectors(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([torch.zeros(0, self.recipe.paradigm.width, device=self.device), *parts])


def in_all(progress: Progress, rows: slice, n: int) -> Progress:
    """What is told of the steps of some rows, as steps of rows of n examples in all."""
    return lambda done, total: progress(rows.start * total + (rows.stop - rows.start) * done, n * total)


def together(ways: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Trajectories of several batches as one: those that came to rest sooner wait in their last state."""
    longest = max((len(way) for way in ways), default=0)
    return [torch.cat([way[min(step, len(way) - 1)].cpu() for way in ways if way]) for step in range(longest)]


def build(recipe: Recipe, examples: Examples, text: TextTokenizer | None = None) -> Paradigm:
    """The untrained paradigm that a recipe describes, with what cuts its texts. Raises UserError as `check_size`."""
    check_size(recipe, examples.signal)
    paradigm = recipe.paradigm.build(recipe.model, examples, recipe.training.steps)
    paradigm.text = text
    return paradigm


def check_size(recipe: Recipe, signal: SignalSpec) -> None:
    """Raises UserError where the weights of a recipe's network are more than this machine has memory for."""
    with torch.device("meta"):  # shapes, and no memory
        if isinstance(recipe.model, TransformerConfig):
            context_width = recipe.model.width if recipe.paradigm.words else None
            network: nn.Module = Transformer(recipe.model, conditioned=True, context_width=context_width)
        else:
            network = Autoencoder(recipe.model, signal)
    needed = sum(each.numel() * each.element_size() for each in (*network.parameters(), *network.buffers()))
    if needed > memory():
        raise UserError(
            f"the network of {recipe.name} takes {needed / 2**30:,.0f} GiB, and this machine has"
            f" {memory() / 2**30:,.0f}: a smaller --model.width would do"
        )


def write(
    folder: Path,
    recipe: Recipe,
    examples: Examples,
    paradigm: Paradigm,
    figures: Mapping[str, Any],
    tokenizers: Mapping[str, Path] | None = None,
) -> None:
    """Write a model folder that `load` rebuilds with no other input."""
    config = {
        "smalti": checkpoint.VERSION,
        "recipe": recipe.model_dump(mode="json"),
        "examples": examples.model_dump(mode="json"),
        "figures": dict(figures),
        "relies_on": paradigm.relies_on(),
    }
    files = {} if paradigm.text is None else {TEXT_FILE: paradigm.text.json_text()}
    checkpoint.write_model(folder, config, paradigm.model_state(), card(recipe, examples, figures), tokenizers, files)


def write_card(path: Path, figures: Mapping[str, Any]) -> None:
    """Put measured figures into a model folder's card and config; the weights stay as they are."""
    folder = checkpoint.model_folder(path)
    config = checkpoint.read_config(folder)
    config["figures"] = {**config.get("figures", {}), **figures}
    recipe = parse(config["recipe"], str(folder / "config.json"))
    checkpoint.write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    text = card(recipe, Examples.model_validate(config["examples"]), config["figures"])
    checkpoint.write_text(folder / "README.md", text)


def load(path: str | Path, device: str = "auto") -> Tokenizer | Generator | Aligner:
    """Rebuild the model of a run, or of a model folder. Raises UserError when it is missing, damaged or too new."""
    folder = checkpoint.model_folder(path)
    config = checkpoint.read_config(folder)
    place, damaged = pick_device(device), f"{folder / 'config.json'} is damaged: it does not describe a model"
    try:
        recipe = parse(config["recipe"], str(folder / "config.json"))
        examples = checked(Examples, config["examples"], damaged)
    except KeyError as error:
        raise UserError(damaged) from error
    paradigm = build(recipe, examples, _carried_text(folder, examples))
    _check_relied_on(paradigm, config.get("relies_on", {}), folder)
    weights = checkpoint.read_weights(folder, config)
    if broken := [name for name, each in weights.items() if not bool(each.isfinite().all())]:
        raise UserError(f"{folder} is damaged: its weights are not finite, {broken[0]} among them; train it anew")
    try:
        paradigm.load_model_state(weights)
    except RuntimeError as error:
        raise UserError(f"{folder} is damaged: its weights do not fit its config.json") from error
    model: Tokenizer | Generator | Aligner
    if recipe.paradigm.makes == "aligner":
        model = Aligner(recipe, examples, paradigm, place)
    elif recipe.generates:
        tokenizer = None if recipe.paradigm.reads == "signals" else _carried_tokenizer(folder, device)
        model = _kind_of_generator(recipe)(recipe, examples, paradigm, place, tokenizer)
    else:
        model = Tokenizer(recipe, examples, paradigm, place)
    model.figures = config.get("figures", {})
    model.sha256 = config["weights_sha256"]
    return model


def _kind_of_generator(recipe: Recipe) -> type[Generator]:
    if recipe.paradigm.kind != "interleaved":
        return Generator
    from smalti.reader import Reader  # which is a Generator

    return Reader


def _carried_tokenizer(folder: Path, device: str) -> Tokenizer:
    carried = sorted((folder / "tokenizers").glob("*/config.json"))
    if not carried:
        raise UserError(f"{folder} is not whole: the generator's tokenizer is missing from {folder / 'tokenizers'}")
    tokenizer = load(carried[0].parent, device)
    assert isinstance(tokenizer, Tokenizer)
    return tokenizer


def _carried_text(folder: Path, examples: Examples) -> TextTokenizer | None:
    """The text tokenizer of a model that has one. Raises UserError where it is not the one of its vocabulary."""
    if examples.text is None:
        return None
    text = TextTokenizer.load((folder / TEXT_FILE).parent)
    if text.sha256 != examples.text.sha256:
        raise UserError(
            f"{folder / TEXT_FILE} is not the text tokenizer that this model was trained with: it would read every text"
            " as another; copy the folder again"
        )
    return text


def _check_relied_on(paradigm: Paradigm, trained_with: Mapping[str, str], folder: Path) -> None:
    """Raises UserError where a model from the user's disk is not the one that this model was trained with."""
    for path, sha in paradigm.relies_on().items():
        if trained_with.get(path) != sha:
            raise UserError(f"{path} is not the model that {folder} was trained with: put that one back")


def load_tokenizer(path: str | Path, device: str = "auto") -> Tokenizer:
    """The tokenizer of a run: itself, or the one a generator carries. Raises UserError where there is none."""
    model = load(path, device)
    if isinstance(model, Aligner):
        raise UserError(f"{path} holds {model.kind}, which cuts nothing into codes; choose a tokenizer's run")
    return model.tokenizer if isinstance(model, Generator) else model


def card(recipe: Recipe, examples: Examples, figures: Mapping[str, Any]) -> str:
    """The model card: what it is, what it was trained on and how, and what was measured."""
    shape = "×".join(map(str, examples.signal.shape))
    kind, call = CALLED[recipe.paradigm.makes], CALLS[recipe.paradigm.makes]
    if recipe.generates:
        reads = recipe.paradigm.reads
        kind += " of pixels" if reads == "signals" else f" over a tokenizer's {reads}"
    lines = [
        "---",
        "library_name: smalti",
        f"tags: [{recipe.paradigm.kind}, {examples.signal.kind}]",
        "---",
        f"# {recipe.name}",
        "",
        f"{kind[0].upper()}{kind[1:]} for {examples.signal.kind}s of {examples.signal.channels} channels and {shape},"
        f" trained with smalti on `{recipe.data.source}` for {recipe.training.steps} steps of {recipe.training.batch}.",
        "",
        "```python",
        "import smalti",
        "model = smalti.load('path/to/this/folder')",
        call,
        "```",
        "",
    ]
    if examples.labels:
        lines += [f"Labels: {', '.join(examples.labels)}.", ""]
    if recipe.data.source in NAMED_SETS:
        named = NAMED_SETS[recipe.data.source]
        lines += [f"Data: {named.title}. {named.attribution}; licence: {named.licence}.", ""]
    if figures:
        lines += ["| measured | value |", "|---|---|"]
        lines += [f"| {name} | {_shown(value)} |" for name, value in figures.items()]
        lines.append("")
    lines += ["## Recipe", "", "```json", recipe.json_text().rstrip(), "```", ""]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


__all__ = ["Aligner", "Generator", "Model", "Tokenizer", "build", "card", "load", "load_tokenizer", "write"]
