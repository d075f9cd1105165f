"""A running average of the weights, which samples and reconstructs better than the weights themselves."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Averaged = TypeVar("Averaged", bound=nn.Module)


class WeightAverage(Generic[Averaged]):
    """Keeps (1 + t)^(-2/3) of the newest weights, at least 1 - cap: short runs are not held back by their start.

    Buffers are copied: a codebook of running means is an average already, and averaged once more its codes lie where
    they were never meant to (on emoji a tenth of them lost, and 0.15 dB). The power follows Karras et al. 2023 (arXiv
    2312.02696) in spirit: the horizon grows with training.
    """

    def __init__(self, module: Averaged, cap: float) -> None:
        self.cap = cap
        self.updates = 0
        self.module = copy.deepcopy(module).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, module: Averaged) -> None:
        self.updates += 1
        fresh = max(1 - self.cap, (1 + self.updates) ** (-2 / 3))
        ours: list[Tensor] = list(self.module.parameters())  # themselves, so that each counts how often it was written
        torch._foreach_lerp_(ours, list[Tensor](module.parameters()), fresh)
        for kept, now in zip(self.module.buffers(), module.buffers(), strict=True):
            kept.copy_(now)
