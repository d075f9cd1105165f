"""How likely data are under a diffusion model: the probability flow carries them to noise, whose density is known.

Song et al. 2021 (arXiv 2011.13456), section 4.3 and equation 39.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from smalti.paradigms.noise import NoisePath
from smalti.paradigms.solvers import Denoise


def log_likelihood(denoise: Denoise, x: Tensor, times: Sequence[float], path: NoisePath, probe: Tensor) -> Tensor:
    """The logarithm of the density of each row of x (n, …), in nats: float64 (n,).

    `denoise` must let gradients through. x is taken for data at the first of the rising `times`; the last should be 1,
    where all is noise. `probe`, of the shape of x and of values ±1, estimates the divergence (Hutchinson's trace): the
    result is exact where the Jacobian is diagonal, otherwise right in the mean over probes. Steps are Heun's.
    """
    x = x.detach()
    gained = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    slope, divergence = velocity(denoise, x, times[0], path, probe)
    for t, s in pairwise(times):
        width = path.turned(path.level(s)) - path.turned(path.level(t))
        tried = velocity(denoise, x + width * slope, s, path, probe)
        x = x + width / 2 * (slope + tried[0])
        gained += width / 2 * (divergence + tried[1])
        if s != times[-1]:
            slope, divergence = velocity(denoise, x, s, path, probe)
    noise = -0.5 * (x.double().square() + math.log(2 * math.pi)).flatten(1).sum(1)
    return noise + gained


def velocity(denoise: Denoise, x: Tensor, t: float, path: NoisePath, probe: Tensor) -> tuple[Tensor, Tensor]:
    """The velocity at x, and an estimate of its divergence: float64 (n,)."""
    level = path.level(t)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        estimate = denoise(x, t)
        moving = path.velocity(estimate.data, estimate.noise, *level)
        (slope,) = torch.autograd.grad((moving * probe).sum(), x)
    return moving.detach(), (slope * probe).double().flatten(1).sum(1)


def bits_per_dimension(nats: Tensor, dimensions: int, levels: int = 256) -> Tensor:
    """From log densities (n,) of signals on the [-1, 1] scale to bits for each of their numbers.

    `levels` evenly spaced values stand on that scale; their spacing, 2 / (levels - 1), is what one of them takes up. It
    bounds the bits of the levels themselves where uniform noise of that width was added to them before (Theis et al.
    2015, arXiv 1511.01844, section 3.1).
    """
    return -nats / (dimensions * math.log(2)) + math.log2((levels - 1) / 2)
