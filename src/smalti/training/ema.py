"""A running average of the weights, which samples and reconstructs better than the weights themselves."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Averaged = TypeVar("Averaged", bound=nn.Module)


class WeightAverage(Generic[Averaged]):
    """Keeps (1 + t)^(-2/3) of the newest weights, at least 1 - cap: short runs are not held back by their start.

    Buffers of floating point are averaged too, for a codebook belongs to the encoder it was averaged with; counters are
    copied. The power follows Karras et al. 2023 (arXiv 2312.02696) in spirit: the horizon grows with training.
    """

    def __init__(self, module: Averaged, cap: float) -> None:
        self.cap = cap
        self.updates = 0
        self.module = copy.deepcopy(module).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, module: Averaged) -> None:
        self.updates += 1
        fresh = max(1 - self.cap, (1 + self.updates) ** (-2 / 3))
        ours, theirs = _tensors(self.module), _tensors(module)
        floating = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floating], [b for _, b in floating], fresh)
        for a, b in zip(ours, theirs, strict=True):
            if not a.is_floating_point():
                a.copy_(b)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [tensor.data for tensor in [*module.parameters(), *module.buffers()]]
