"""Signals with something to learn in them, in one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture
def waves() -> Callable[[int, int], Tensor]:
    """waves(dimensions, n): (n, 2, 8, …) in [-1, 1], each a plane wave of its own direction and place."""

    def make(dimensions: int, n: int) -> Tensor:
        generator = torch.Generator().manual_seed(dimensions)
        axes = torch.meshgrid(*[torch.arange(8.0)] * dimensions, indexing="ij")
        direction = torch.randn(n, dimensions, *[1] * dimensions, generator=generator)
        phase = torch.rand(n, 2, *[1] * dimensions, generator=generator) * 6.28
        return ((direction * torch.stack(axes)).sum(1, keepdim=True) + phase).sin()

    return make
