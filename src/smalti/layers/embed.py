"""What is not a token yet made into vectors: times."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smalti.device import full_precision

FREQUENCIES = 128
SLOWEST = 10_000.0  # the longest wave is so many times as long as the shortest
SPAN = 1000.0  # times in [0, 1] are told apart as a thousand steps are


def waves(t: Tensor) -> Tensor:
    """Times in [0, 1], (…), to cosines and sines (…, 2 * FREQUENCIES) in fp32.

    Vaswani et al. 2017 (arXiv 1706.03762), section 3.5, in the order that diffusion models use.
    """
    speeds = torch.exp(-math.log(SLOWEST) / FREQUENCIES * torch.arange(FREQUENCIES, device=t.device))
    angles = SPAN * t.float().unsqueeze(-1) * speeds
    return torch.cat([angles.cos(), angles.sin()], -1)


class TimeEmbedding(nn.Module):
    """Times in [0, 1], (B,) -> (B, width), always in fp32: bf16 cannot tell whole numbers above 256 apart."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2 * FREQUENCIES, width), nn.Linear(width, width)
        for layer in (self.first, self.second):
            nn.init.normal_(layer.weight, std=0.02)

    def forward(self, t: Tensor) -> Tensor:
        with full_precision(t.device):
            return self.second(F.silu(self.first(waves(t))))
