"""Next-token prediction over a grid of codes, with a class as prefix.

The network reads [class, code 0, …, code T-2] and says code 0, …, code T-1: what stands at place i is asked for the
code at place i. The class of a share of the examples is hidden while training, so that the same network also gives
the unconditional prediction that guidance needs (Ho & Salimans 2022, arXiv 2207.12598).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from smalti.config import CodeSpec, Config, Examples
from smalti.data.batch import Batch
from smalti.data.order import uniform
from smalti.device import decoding_dtype, full_precision
from smalti.errors import UserError
from smalti.layers.stepper import Folded, Stepper
from smalti.layers.transformer import Transformer, TransformerConfig
from smalti.paradigms.base import Loss, Paradigm
from smalti.paradigms.choose import ChoiceConfig, choose
from smalti.term import Term

LABEL_STREAM, TOKEN_STREAM = 1, 2  # apart from each other, so that no two decisions share a random number


class AutoregressiveOptions(ChoiceConfig):
    """How to sample. `guidance` s takes u + s(c - u) of the logits with class c and without u; 1 is no guidance."""

    guidance: float = Field(1.0, ge=0)


class AutoregressiveConfig(Config):
    """`sampling` are the options used when none are given: the ones the recipe was measured with."""

    kind: Literal["autoregressive"] = "autoregressive"
    trains: ClassVar[str] = "transformer"
    label_dropout: float = Field(0.1, ge=0, le=1, description="share of examples that train without their class")
    sampling: AutoregressiveOptions = AutoregressiveOptions()

    def build(self, model: TransformerConfig, examples: Examples, steps: int) -> Autoregressive:
        if examples.codes is None:
            raise UserError("a next-token model needs codes, and this tokenizer has none: choose one with a codebook")
        return Autoregressive(self, model, examples.codes, len(examples.labels))


class Autoregressive(Paradigm):
    """Codes (B, Q, *grid) are read position by position, the codebooks of one position one after the other."""

    positions: Tensor

    def __init__(
        self, config: AutoregressiveConfig, network: TransformerConfig, codes: CodeSpec, classes: int = 0
    ) -> None:
        super().__init__()
        self.config, self.codes, self.classes = config, codes, classes
        width = network.width
        self.label = nn.Embedding(classes + 1, width)  # the last row is "no class"
        self.token = nn.Embedding(codes.codebooks * codes.size, width)
        self.place = nn.Parameter(torch.randn(codes.length, width) * 0.02)
        self.network = Transformer(network)
        self.head = nn.Linear(width, codes.size, bias=False)
        for table in (self.label, self.token):
            nn.init.normal_(table.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)
        self._last: tuple[tuple, Stepper] | None = None
        self.register_buffer("positions", grid_positions(codes), persistent=False)

    def players(self) -> dict[str, nn.Module]:
        return {"network": self}

    def loss(self, player: str, batch: Batch, step: int) -> Loss:
        labels = self._labels(batch.labels, len(batch.x), batch.x.device)
        if self.training and self.classes and self.config.label_dropout:
            hidden = uniform(batch.seed, batch.step, batch.rows, LABEL_STREAM) < self.config.label_dropout
            labels = labels.masked_fill(hidden.to(labels.device), self.classes)
        targets = self.sequence(batch.x)
        logits = self.logits(labels, targets)
        with full_precision(logits.device):
            nats = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")
            hits = (logits.argmax(-1) == targets).sum()
        return Loss([Term("nats_a_code", nats, targets.numel()), Term("accuracy", hits, targets.numel(), 0.0)])

    def sequence(self, codes: Tensor) -> Tensor:
        """(B, Q, *grid) -> (B, T), positions in raster order, the codebooks of each position together."""
        return codes.flatten(2).transpose(1, 2).flatten(1)

    def grid(self, sequence: Tensor) -> Tensor:
        """(B, T) -> (B, Q, *grid), the inverse of `sequence`."""
        codes = self.codes
        return sequence.unflatten(1, (-1, codes.codebooks)).transpose(1, 2).unflatten(2, codes.grid)

    def logits(self, labels: Tensor, sequence: Tensor) -> Tensor:
        """Class ids (B,) and codes (B, T) -> logits (B, T, size): entry i is for code i, given the codes before it."""
        inputs = torch.cat([self.label(labels)[:, None], self._embed(sequence[:, :-1], 0)], 1)
        length = inputs.shape[1]
        return self.head(self.network(inputs + self.place[:length], self.positions[:length]))

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
    ) -> Tensor:
        """Draw codes (n, Q, *grid).

        condition: class ids (n,). known: codes (n, Q, *grid) of which those under `mask` (bool, same shape) are kept;
        in reading order they must come first, for a next-token model cannot look ahead. Row i draws its noise from
        (seed, first + i). Without a condition the class is open and guidance does nothing. Raises UserError on a mask
        that is no prefix and on class ids that do not exist.
        """
        options = options or self.config.sampling
        guided = options.guidance != 1 and condition is not None and self.classes > 0
        device = self.place.device
        labels = self._labels(condition, n, device)
        out, kept = self._prefix(known, mask, n, device)
        given = int(kept.min()) if n else 0  # so many codes of every row are known and need no choice
        if guided:
            labels = torch.cat([labels, torch.full_like(labels, self.classes)])
        dtype = decoding_dtype(device, len(labels))
        stepper = self._stepper(dtype, len(labels))
        head, rows = self.head.weight.t().to(dtype), torch.arange(first, first + n)
        x = self.label(labels)
        for step in range(self.codes.length):
            hidden = stepper.step((x + self.place[step]).to(dtype))
            if step >= given:
                logits = torch.mm(hidden, head).float()
                if guided:
                    with_class, without = logits.log_softmax(-1).chunk(2)
                    logits = without + options.guidance * (with_class - without)
                drawn = choose(logits, uniform(seed, step, rows, TOKEN_STREAM).to(device), options)
                out[:, step] = drawn if known is None else torch.where(step < kept, out[:, step], drawn)
            x = self._embed(out[:, step : step + 1], step)[:, 0].repeat(1 + guided, 1)
        return self.grid(out)

    def _stepper(self, dtype: torch.dtype, rows: int) -> Stepper:
        """A stepper at its start. The last one is kept, with the memory it took, until the weights or rows change."""
        state = (dtype, self.place.device, *(p._version for p in self.network.parameters()))
        if self._last is None or self._last[0] != state:
            self._last = (state, Stepper(Folded(self.network, self.positions, dtype), rows))
        elif self._last[1].rows != rows:
            self._last = (state, Stepper(self._last[1].folded, rows))
        return self._last[1].restart()

    def _embed(self, sequence: Tensor, start: int) -> Tensor:
        if self.codes.codebooks > 1:
            place = torch.arange(start, start + sequence.shape[1], device=sequence.device)
            sequence = sequence + place % self.codes.codebooks * self.codes.size
        return self.token(sequence)

    def _labels(self, labels: Tensor | None, n: int, device: torch.device) -> Tensor:
        if labels is None or not self.classes:
            return torch.full((n,), self.classes, device=device)
        if labels.shape != (n,) or (n and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes):
            raise UserError(f"condition must be {n} class ids in [0, {self.classes})")
        return labels.to(device)

    def _prefix(self, known: Tensor | None, mask: Tensor | None, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The sequence with its known codes, and how many of each row are known."""
        shape = (n, self.codes.codebooks, *self.codes.grid)
        if known is None or mask is None:
            if (known is None) != (mask is None):
                raise UserError("known codes need a mask that says which to keep, and a mask needs known codes")
            return torch.zeros(n, self.codes.length, dtype=torch.int64, device=device), torch.zeros(n, device=device)
        if known.shape != shape or mask.shape != shape:
            raise UserError(f"known codes and mask must be {shape}; got {tuple(known.shape)} and {tuple(mask.shape)}")
        keep = self.sequence(mask.bool()).to(device)
        kept = keep.sum(1)
        if (keep != (torch.arange(self.codes.length, device=device) < kept[:, None])).any():
            raise UserError(
                "a next-token model completes only what follows in reading order: the kept part must come first"
            )
        return self.sequence(known).to(device) * keep, kept


def grid_positions(codes: CodeSpec) -> Tensor:
    """The place (T, axes) of each code in reading order."""
    axes = torch.meshgrid(*(torch.arange(side) for side in codes.grid), indexing="ij")
    return torch.stack(axes, -1).flatten(0, -2).repeat_interleave(codes.codebooks, 0)
