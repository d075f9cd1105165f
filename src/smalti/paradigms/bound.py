"""What teaches a variance: the variational bound of a diffusion model in steps.

Nichol & Dhariwal 2021 (arXiv 2102.09672), sections 2.1 and 3.1.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from smalti.paradigms.noise import PATHS, STEPS
from smalti.paradigms.solvers import log_between, variances

WEIGHT = 0.001  # of the bound beside the error (equation 16)


def variational_bound(miss: Tensor, spread: Tensor, t: Tensor) -> Tensor:
    """An estimate of the whole bound of each row, in nats for each number: (n,).

    miss: data less predicted data (n, …), without a gradient, for the bound is to teach the variance alone. spread: the
    variance's place between its bounds (n, …). t: (n,), the times asked for. It is the term of one step times their
    number: the divergence of the step's two normal distributions, and at the first step, where the data come out, the
    density of the data.
    """
    step = (t.double() * STEPS).round().long() - 1
    small, large, share = (each[step].view(-1, *[1] * (miss.ndim - 1)).to(miss) for each in _tables())
    log_variance = log_between(spread, small, large)
    squared = (share * miss).square() * (-log_variance).exp()
    divergence = 0.5 * (log_variance - small.log() - 1 + (small.log() - log_variance).exp() + squared)
    density = 0.5 * (math.log(2 * math.pi) + log_variance + squared)
    first = (step == 0).view(-1, *[1] * (miss.ndim - 1)).to(miss.device)
    return STEPS * torch.where(first, density, divergence).flatten(1).mean(1)


@cache
def _tables() -> tuple[Tensor, Tensor, Tensor]:
    """For each step: its smallest and largest variance, and the share of the data in its mean; float64 (1000,)."""
    path = PATHS["ddpm"]
    levels = [path.level(k / STEPS) for k in range(STEPS + 1)]
    pairs = [variances(now, then) for then, now in pairwise(levels)]
    small, large = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    small[0] = small[1]  # at the first step it is 0, which has no logarithm
    share = [then.alpha / now.sigma**2 for then, now in pairwise(levels)]
    return small, large, torch.tensor(share, dtype=torch.float64) * large
