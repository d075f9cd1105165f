"""What every bottleneck promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from smalti.term import Term


@dataclass(frozen=True)
class Statistic:
    """Something a forward pass saw, to be merged over micro-batches and ranks: added, or laid end to end."""

    value: Tensor
    merge: str = "sum"  # or "gather": concatenated along the first axis, in the order of the batch's rows


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
    """What stands between encoder and decoder. It sees channel-last vectors (B, N, in_width) and nothing else."""

    in_width: int
    out_width: int
    codebooks: int
    size: int

    @abstractmethod
    def forward(self, z: Tensor) -> Quantized:
        """Quantize (B, N, in_width). Changes no state."""

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """(B, N, codebooks) int64 -> (B, N, out_width)."""

    def initialise(self, vectors: Tensor) -> None:
        """Set state from real latents (n, in_width), once, before the first step."""

    def after_step(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """Move state by the merged statistics of one whole step; gives back figures to log."""
        return {}
