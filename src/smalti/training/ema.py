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

    `start_share` is how much of the average the weights given here always make up: between those that training goes on
    from and those it reaches lie some that are better than either (Wortsman et al. 2022, arXiv 2109.01903).
    """

    def __init__(self, module: Averaged, cap: float, start_share: float = 0.0) -> None:
        self.cap, self.start_share = cap, start_share
        self.updates = 0
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self.start: list[Tensor] | None = None
        if start_share:
            self.start = [parameter.detach().clone() for parameter in module.parameters()]

    @torch.no_grad()
    def update(self, module: Averaged) -> None:
        self.updates += 1
        fresh = max(1 - self.cap, (1 + self.updates) ** (-2 / 3))
        ours: list[Tensor] = list(self.module.parameters())  # themselves, so that each counts how often it was written
        newest = list[Tensor](module.parameters())
        if self.start is not None:
            newest = list(torch._foreach_lerp(newest, self.start, self.start_share))
        torch._foreach_lerp_(ours, newest, fresh)
        for kept, now in zip(self.module.buffers(), module.buffers(), strict=True):
            kept.copy_(now)
