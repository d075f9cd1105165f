"""What every bottleneck promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from smalti.data.order import uniform
from smalti.term import Term


@dataclass(frozen=True)
class Statistic:
    """Something a forward pass saw, to be merged over micro-batches and ranks: added, or laid end to end."""

    value: Tensor
    merge: str = "sum"  # or "gather": concatenated along the first axis, in the order of the batch's rows


@dataclass(frozen=True)
class Moment:
    """Where a training stands, and which examples it looks at: all that chance and schedules may hang on.

    `rows` int64 (B,) are the examples' places in the global batch of the step, so that what is drawn for an example
    does not depend on how the batch was split. `along` is the share of the training that is done, in [0, 1].
    """

    seed: int
    step: int
    rows: Tensor
    along: float

    def uniform(self, stream: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """float32 (B, *shape) in [0, 1)."""
        return torch.stack([torch.rand(shape, generator=each, device=device) for each in self._each(stream, device)])

    def normal(self, stream: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """float32 (B, *shape) of mean 0 and variance 1."""
        return torch.stack([torch.randn(shape, generator=each, device=device) for each in self._each(stream, device)])

    def exponential(self, stream: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """float32 (B, *shape) of mean 1, above 0."""
        # by the logarithm: torch's own draw takes six times as long on a processor
        return self.uniform(stream, shape, device).clamp_min_(1e-20).log_().neg_()

    def one(self, stream: int) -> Tensor:
        """float64 (B,) in [0, 1): one number for each example."""
        return uniform(self.seed, self.step, self.rows, stream)

    def _each(self, stream: int, device: torch.device) -> list[torch.Generator]:
        seeds = (self.one(stream) * 2**53).long().tolist()
        return [torch.Generator(device).manual_seed(seed) for seed in seeds]


@dataclass(frozen=True)
class Quantized:
    """The result of a bottleneck.

    vectors: (B, N, out_width), with the gradient already arranged.
    codes: (B, N, codebooks) int64, or None for a continuous bottleneck.
    """

    vectors: Tensor
    codes: Tensor | None
    terms: list[Term] = field(default_factory=list)
    statistics: dict[str, Statistic] = field(default_factory=dict)


class Bottleneck(nn.Module, ABC):
    """What stands between encoder and decoder. It sees channel-last vectors (B, N, in_width) and nothing else.

    A continuous one has latents and no codes: `codebooks` and `size` are 0, and `lookup` is never asked.
    """

    in_width: int
    out_width: int
    codebooks: int
    size: int
    fewer: ClassVar[bool] = False  # whether `lookup` also takes the first few codebooks' codes, for a lower bitrate

    @abstractmethod
    def forward(self, z: Tensor, moment: Moment | None = None) -> Quantized:
        """Quantize (B, N, in_width). Changes no state; takes no chances without a `moment`."""

    def lookup(self, codes: Tensor) -> Tensor:
        """(B, N, codebooks) int64 -> (B, N, out_width)."""
        raise NotImplementedError

    def latent(self, z: Tensor) -> Tensor:
        """(B, N, in_width) -> (B, N, out_width): the continuous latent, what is quantized or stands in for it."""
        return z

    def initialise(self, vectors: Tensor) -> None:
        """Set state from real encoder outputs (n, in_width), once, before the first step."""

    def after_step(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """Move state by the merged statistics of one whole step; gives back figures to log."""
        return {}
