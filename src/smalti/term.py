"""A loss as a sum and a weight, so that micro-batches and ranks add up exactly."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Term:
    """One named part of a loss: the sum over what it counts, and how many it counted.

    The loss is `coefficient * sum / weight`, with both added up over all micro-batches and ranks first. A
    coefficient of 0 makes a term that is only reported.
    """

    name: str
    sum: Tensor  # scalar, with gradient
    weight: float
    coefficient: float = 1.0
