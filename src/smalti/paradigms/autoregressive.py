"""Next-token prediction over a grid of codes, with a class as prefix.

The network reads [class, code 0, …, code T-2] and says code 0, …, code T-1: what stands at place i is asked for the
code at place i. The class of a share of the examples is hidden while training, so that the same network also gives
the unconditional prediction that guidance needs (Ho & Salimans 2022, arXiv 2207.12598).

Codes may be read in another order than that of the grid (RAR, Yu et al. 2024, arXiv 2411.00776, section 3).
What stands at step i is still told the place it is asked for, and beside it the place of the code it carries.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from smalti.config import CodeSpec, Examples, Reads
from smalti.data.batch import Batch
from smalti.data.order import uniform
from smalti.device import decoding_dtype, full_precision
from smalti.errors import UserError
from smalti.layers.kept import Kept
from smalti.layers.stepper import Folded, Stepper
from smalti.layers.transformer import TransformerConfig
from smalti.paradigms.base import Loss, ParadigmConfig, Progress, untold
from smalti.paradigms.choose import ChoiceConfig, choose
from smalti.paradigms.codes import CodeModel, check_finite, only_first
from smalti.paradigms.guidance import GuidanceConfig, guide
from smalti.term import Term
from smalti.tokenizers.bottlenecks import Moment

# streams of random numbers, apart from that of labels: no two decisions share one
TOKEN_STREAM, SHUFFLED_STREAM, ORDER_STREAM = 2, 3, 4

Order = Literal["raster", "random"]


class AutoregressiveOptions(ChoiceConfig, GuidanceConfig):
    """How to sample: how each code is chosen, and how guidance moves its logits along the sequence.

    `order` in which the codes are drawn: `random` is each sample's own, and for models that were trained so.
    """

    order: Order = "raster"


class AutoregressiveConfig(ParadigmConfig):
    """`sampling` are the options used when none are given: the ones the recipe was measured with.

    `order` is that of training. With `random`, every example is read in an order of its own up to the share
    `anneal_from` of the training; from there on ever fewer are, and from `anneal_until` on none, so that the model ends
    at its best in raster order. One that is to fill holes well is not annealed: both are 1.
    """

    kind: Literal["autoregressive"] = "autoregressive"
    trains: ClassVar[str] = "transformer"
    reads: ClassVar[Reads] = "codes"
    label_dropout: float = Field(0.1, ge=0, le=1, description="share of examples that train without their class")
    order: Order = "raster"
    anneal_from: float = Field(0.5, ge=0, le=1, description="share of the training up to which all orders are random")
    anneal_until: float = Field(0.75, ge=0, le=1, description="share of the training from which none is")
    sampling: AutoregressiveOptions = AutoregressiveOptions()

    @model_validator(mode="after")
    def _orders_fit(self) -> AutoregressiveConfig:
        if self.anneal_from > self.anneal_until:
            raise ValueError(f"anneal_from {self.anneal_from:g} lies after anneal_until {self.anneal_until:g}")
        if self.sampling.order == "random" and self.order == "raster":
            raise ValueError("sampling in random order needs a model trained so: order random")
        return self

    def shuffled(self, along: float) -> float:
        """The share of examples in random order when this share of the training is done, both in [0, 1]."""
        if self.order == "raster" or along >= self.anneal_until:
            return 0.0
        if along < self.anneal_from:
            return 1.0
        return (self.anneal_until - along) / (self.anneal_until - self.anneal_from)

    def build(self, model: TransformerConfig, examples: Examples, steps: int) -> Autoregressive:
        if examples.codes is None:
            raise UserError("a next-token model needs codes, and this tokenizer has none: choose one with a codebook")
        return Autoregressive(self, model, examples.codes, len(examples.labels), steps)


class Autoregressive(CodeModel):
    """A next-token model over codes (B, Q, *grid), trained for so many `steps`.

    An order int64 (B, T) says which place of the raster sequence is read at each step; None stands for raster order. It
    is one of positions: the codebooks of a position stay together.
    """

    sequential = True

    def __init__(
        self,
        config: AutoregressiveConfig,
        network: TransformerConfig,
        codes: CodeSpec,
        classes: int = 0,
        steps: int = 1,
    ) -> None:
        super().__init__(network, codes, classes)
        self.config, self.steps = config, steps
        if config.order == "random":  # where the code that is read stood; in raster order that is known
            self.own = nn.Parameter(torch.randn(codes.length, network.width) * 0.02)
        self._folded = Kept[Folded]()
        self._last: Stepper | None = None

    def loss(self, player: str, batch: Batch, step: int) -> Loss:
        labels = self.shown_labels(batch, self.config.label_dropout)
        order = self._training_order(batch, step)
        targets = read_in(order, self.sequence(batch.x))
        logits = self.logits(labels, targets, order)
        with full_precision(logits.device):
            nats = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")
            hits = (logits.argmax(-1) == targets).sum()
        return Loss([Term("nats_a_code", nats, targets.numel()), Term("accuracy", hits, targets.numel(), 0.0)])

    def logits(self, labels: Tensor, sequence: Tensor, order: Tensor | None = None) -> Tensor:
        """Class ids (B,) and codes (B, T) -> logits (B, T, size): entry i is for code i, given the codes before it.

        The codes are given in the order in which they are read.
        """
        length = sequence.shape[1]
        place, positions = self.place[:length], self.positions[:length]
        if order is not None:  # by embedding: the gradient of an index is summed as threads come along
            place, positions = F.embedding(order, self.place), self.positions[order]
        read = self.embed(sequence[:, :-1])
        if self.config.order == "random":
            read = read + (self.own[: length - 1] if order is None else F.embedding(order[:, :-1], self.own))
        inputs = torch.cat([self.label(labels)[:, None], read], 1)
        return self.head(self.network(inputs + place, positions))

    def _training_order(self, batch: Batch, step: int) -> Tensor | None:
        """The order of each example's own; held-out ones are in raster order."""
        share = self.config.shuffled(step / self.steps) if self.training else 0.0
        if not share:
            return None
        moment = Moment(batch.seed, batch.step, batch.rows, step / self.steps)
        turn = self._chance(moment, batch.x.device)
        shuffled = (moment.one(SHUFFLED_STREAM) < share).to(turn.device)
        return self._by_turn(torch.where(shuffled[:, None], turn, 0.0))

    def _chance(self, moment: Moment, device: torch.device) -> Tensor:
        """A number (B, positions) in [0, 1) for each position, each row's own."""
        return moment.uniform(ORDER_STREAM, (self.codes.length // self.codes.codebooks,), device)

    def _by_turn(self, turn: Tensor) -> Tensor:
        """The order that reads the positions of least `turn` (B, positions) first, of equal ones as in raster order."""
        books = torch.arange(self.codes.codebooks, device=turn.device)
        first = turn.argsort(dim=1, stable=True) * self.codes.codebooks
        return (first.unsqueeze(-1) + books).flatten(1)

    @torch.no_grad()
    def log_likelihood(
        self, x: Tensor, condition: Tensor | None = None, seed: int = 0, steps: int | None = None, first: int = 0
    ) -> Tensor:
        """The log probability of codes (n, Q, *grid) given class ids (n,), in nats: float64 (n,), exact.

        Nothing is drawn here, and there are no steps. Raises UserError on codes and class ids that do not exist.
        """
        device = self.place.device
        labels = self.labels_of(condition, len(x), device)
        sequence, _ = self.known_sequence(x, torch.ones_like(x, dtype=torch.bool), len(x), device)
        log_p = self.logits(labels, sequence).double().log_softmax(-1)
        check_finite(log_p)
        return log_p.gather(-1, sequence[..., None]).sum((1, 2))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        condition: Tensor | None = None,
        known: Tensor | None = None,
        mask: Tensor | None = None,
        seed: int = 0,
        options: AutoregressiveOptions | None = None,
        first: int = 0,
        trajectory: list[Tensor] | None = None,
        progress: Progress = untold,
    ) -> Tensor:
        """Draw codes (n, Q, *grid).

        condition: class ids (n,). known: codes (n, Q, *grid) of which those under `mask` (bool, same shape) are kept; a
        model trained in random order reads them first, wherever they stand, and for one that was not they must come
        first in raster order, for a next-token model cannot look ahead. Row i draws its noise from (seed, first + i).
        Without a condition the class is open and guidance does nothing. `trajectory` is given the grid after every
        code, -1 where none has been chosen yet. Raises UserError on a mask or an order that the model was not trained
        for, on class ids that do not exist and on weights that are not finite.
        """
        options = options or self.config.sampling
        guided = options.guidance != 1 and condition is not None and self.classes > 0
        device, rows = self.place.device, torch.arange(first, first + n)
        labels = self.labels_of(condition, n, device)
        codes, keep = self.known_sequence(known, mask, n, device)
        order = self._sampling_order(keep, options.order, seed, rows)
        out, keep = read_in(order, codes), read_in(order, keep)
        given = int(keep.all(0).long().cumprod(0).sum())  # so many codes of every row are known and need no choice
        if guided:
            labels = torch.cat([labels, torch.full_like(labels, self.classes)])
        dtype = decoding_dtype(device, len(labels))
        stepper = self._stepper(dtype, len(labels))
        head = self.head.weight.t().to(dtype)
        x = self.label(labels)
        for step in range(self.codes.length):
            place = step if order is None else order[:, step].repeat(1 + guided)
            hidden = stepper.step((x + self.place[place]).to(dtype), place)
            if step >= given:
                logits = torch.mm(hidden, head).float()
                if guided:
                    along = step / max(1, self.codes.length - 1)
                    with_class, without = logits.log_softmax(-1).chunk(2)
                    logits = guide(with_class, without, options.scale(along))
                drawn = choose(logits, uniform(seed, step, rows, TOKEN_STREAM).to(device), options)
                out[:, step] = torch.where(keep[:, step], out[:, step], drawn)
            if trajectory is not None:
                chosen = torch.arange(self.codes.length, device=device) <= step
                trajectory.append(self.grid(in_raster(order, torch.where(chosen, out, -1))).cpu())
            x = self.embed(out[:, step : step + 1], step)[:, 0].repeat(1 + guided, 1)
            if self.config.order == "random":
                x = x + self.own[place]
            progress(step + 1, self.codes.length)
        if n and given < self.codes.length:
            check_finite(logits)  # what is broken at one code stays in the cache, and breaks the last one too
        return self.grid(in_raster(order, out))

    def _stepper(self, dtype: torch.dtype, rows: int) -> Stepper:
        """A stepper at its start. The last one is kept, with the memory it took, until the weights or rows change."""
        folded = self._folded.of([self.network], lambda: Folded(self.network, self.positions, dtype), dtype)
        if self._last is None or self._last.folded is not folded or self._last.rows != rows:
            self._last = Stepper(folded, rows)
        return self._last.restart()

    def _sampling_order(self, keep: Tensor, order: Order, seed: int, rows: Tensor) -> Tensor | None:
        """The order that reads what is kept, bool (n, T), first, and then the rest in `order`, each row its own.

        Positions of which some codebooks are known come between. Raises UserError where the model knows raster order
        alone, and this is not it.
        """
        if self.config.order == "raster":
            if order == "random":
                raise UserError("this next-token model was not trained with paradigm.order random; leave the order out")
            if not only_first(keep):
                raise UserError(
                    "this next-token model was not trained with paradigm.order random, so it completes only what"
                    " follows in reading order: the kept part must come first"
                )
            return None
        known = keep.unflatten(1, (-1, self.codes.codebooks)).sum(2)
        if order == "raster" or not len(keep):
            return self._by_turn(-known)
        return self._by_turn(self._chance(Moment(seed, 0, rows, 0.0), keep.device).double() - known)


def read_in(order: Tensor | None, sequence: Tensor) -> Tensor:
    """What stands in raster order (B, T), in the order in which it is read."""
    return sequence if order is None else sequence.gather(1, order)


def in_raster(order: Tensor | None, sequence: Tensor) -> Tensor:
    """The inverse of `read_in`."""
    return sequence if order is None else torch.empty_like(sequence).scatter_(1, order, sequence)
