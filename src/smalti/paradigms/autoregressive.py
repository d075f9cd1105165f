"""Next-token prediction over a grid of codes, with a class as prefix.

The network reads [class, code 0, …, code T-2] and says code 0, …, code T-1: what stands at place i is asked for the
code at place i. The class of a share of the examples is hidden while training, so that the same network also gives
the unconditional prediction that guidance needs (Ho & Salimans 2022, arXiv 2207.12598).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from smalti.config import CodeSpec, Config, Examples, Reads
from smalti.data.batch import Batch
from smalti.data.order import uniform
from smalti.device import decoding_dtype, full_precision
from smalti.errors import UserError
from smalti.layers.stepper import Folded, Stepper
from smalti.layers.transformer import TransformerConfig
from smalti.paradigms.base import Loss, Progress, untold
from smalti.paradigms.choose import ChoiceConfig, choose
from smalti.paradigms.codes import CodeModel, check_finite
from smalti.paradigms.guidance import GuidanceConfig, guide
from smalti.term import Term

TOKEN_STREAM = 2  # of random numbers, apart from that of labels: no two decisions share one


class AutoregressiveOptions(ChoiceConfig, GuidanceConfig):
    """How to sample: how each code is chosen, and how guidance moves its logits along the sequence."""


class AutoregressiveConfig(Config):
    """`sampling` are the options used when none are given: the ones the recipe was measured with."""

    kind: Literal["autoregressive"] = "autoregressive"
    trains: ClassVar[str] = "transformer"
    reads: ClassVar[Reads] = "codes"
    label_dropout: float = Field(0.1, ge=0, le=1, description="share of examples that train without their class")
    sampling: AutoregressiveOptions = AutoregressiveOptions()

    def build(self, model: TransformerConfig, examples: Examples, steps: int) -> Autoregressive:
        if examples.codes is None:
            raise UserError("a next-token model needs codes, and this tokenizer has none: choose one with a codebook")
        return Autoregressive(self, model, examples.codes, len(examples.labels))


class Autoregressive(CodeModel):
    """A next-token model over codes (B, Q, *grid)."""

    def __init__(
        self, config: AutoregressiveConfig, network: TransformerConfig, codes: CodeSpec, classes: int = 0
    ) -> None:
        super().__init__(network, codes, classes)
        self.config = config
        self._last: tuple[tuple, Stepper] | None = None

    def loss(self, player: str, batch: Batch, step: int) -> Loss:
        labels = self.shown_labels(batch, self.config.label_dropout)
        targets = self.sequence(batch.x)
        logits = self.logits(labels, targets)
        with full_precision(logits.device):
            nats = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")
            hits = (logits.argmax(-1) == targets).sum()
        return Loss([Term("nats_a_code", nats, targets.numel()), Term("accuracy", hits, targets.numel(), 0.0)])

    def logits(self, labels: Tensor, sequence: Tensor) -> Tensor:
        """Class ids (B,) and codes (B, T) -> logits (B, T, size): entry i is for code i, given the codes before it."""
        inputs = torch.cat([self.label(labels)[:, None], self.embed(sequence[:, :-1])], 1)
        length = inputs.shape[1]
        return self.head(self.network(inputs + self.place[:length], self.positions[:length]))

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

        condition: class ids (n,). known: codes (n, Q, *grid) of which those under `mask` (bool, same shape) are kept;
        in reading order they must come first, for a next-token model cannot look ahead. Row i draws its noise from
        (seed, first + i). Without a condition the class is open and guidance does nothing. `trajectory` is given the
        grid after every code, -1 where none has been chosen yet. Raises UserError on a mask that is no prefix, on
        class ids that do not exist and on weights that are not finite.
        """
        options = options or self.config.sampling
        guided = options.guidance != 1 and condition is not None and self.classes > 0
        device = self.place.device
        labels = self.labels_of(condition, n, device)
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
                    along = step / max(1, self.codes.length - 1)
                    with_class, without = logits.log_softmax(-1).chunk(2)
                    logits = guide(with_class, without, options.scale(along))
                drawn = choose(logits, uniform(seed, step, rows, TOKEN_STREAM).to(device), options)
                out[:, step] = drawn if known is None else torch.where(step < kept, out[:, step], drawn)
            if trajectory is not None:
                chosen = torch.arange(self.codes.length, device=device) <= step
                trajectory.append(self.grid(torch.where(chosen, out, -1)).cpu())
            x = self.embed(out[:, step : step + 1], step)[:, 0].repeat(1 + guided, 1)
            progress(step + 1, self.codes.length)
        if n and given < self.codes.length:
            check_finite(logits)  # what is broken at one code stays in the cache, and breaks the last one too
        return self.grid(out)

    def _stepper(self, dtype: torch.dtype, rows: int) -> Stepper:
        """A stepper at its start. The last one is kept, with the memory it took, until the weights or rows change."""
        state = (dtype, self.place.device, *(p._version for p in self.network.parameters()))
        if self._last is None or self._last[0] != state:
            self._last = (state, Stepper(Folded(self.network, self.positions, dtype), rows))
        elif self._last[1].rows != rows:
            self._last = (state, Stepper(self._last[1].folded, rows))
        return self._last[1].restart()

    def _prefix(self, known: Tensor | None, mask: Tensor | None, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The sequence with its known codes, and how many of each row are known."""
        codes, keep = self.known_sequence(known, mask, n, device)
        kept = keep.sum(1)
        if (keep != (torch.arange(self.codes.length, device=device) < kept[:, None])).any():
            raise UserError(
                "a next-token model completes only what follows in reading order: the kept part must come first"
            )
        return codes, kept
