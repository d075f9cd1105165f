"""From noise back to data: samplers as functions, for any noise path and any denoiser.

All take `denoise(x, t) -> Estimate`, the noise x (n, …), the falling times to visit with 0 at the end, and the path.
`watch` is shown the predicted data of every step. `keep(x, t)` may change what has arrived at a time, such as to put
known parts back. `noise(k)` is fresh noise of the shape of x for step k; nothing is added in the step that reaches 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor

from smalti.paradigms.noise import Estimate, Level, NoisePath

Denoise = Callable[[Tensor, float], Estimate]
Keep = Callable[[Tensor, float], Tensor]
Watch = Callable[[Tensor], object]
Noise = Callable[[int], Tensor]
Variance = Literal["fixed-small", "fixed-large", "learned"]

SMALLEST = 1e-20  # a variance whose logarithm is still taken


def as_it_is(x: Tensor, t: float) -> Tensor:
    """Nothing is known."""
    return x


def unseen(data: Tensor) -> None:
    """Nobody watches."""


def variances(now: Level, then: Level) -> tuple[float, float]:
    """The smallest and the largest variance of a step back from one level to a lower one, given x.

    They are exact where the data is a single point, and where it is as spread as the noise (Ho et al. 2020, arXiv
    2006.11239, section 3.2; for any alpha and sigma Kingma et al. 2021, arXiv 2107.00630, appendix A).
    """
    large = now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2
    return large * (then.sigma / now.sigma) ** 2, large


def posterior_mean(x: Tensor, data: Tensor, now: Level, then: Level) -> Tensor:
    """The mean of x at the lower level `then`, given x at the level `now` and the data (equation 7 of Ho et al.)."""
    shrunk, (_, large) = now.alpha / then.alpha, variances(now, then)
    return (shrunk * (then.sigma / now.sigma) ** 2) * x + (then.alpha * large / now.sigma**2) * data


def ddpm(
    denoise: Denoise,
    x: Tensor,
    times: Sequence[float],
    path: NoisePath,
    noise: Noise,
    variance: Variance = "fixed-small",
    keep: Keep = as_it_is,
    watch: Watch = unseen,
) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, arXiv 2006.11239, algorithm 2), also in fewer steps than were learnt.

    A learned variance lies between the fixed ones, on a logarithmic scale (Nichol & Dhariwal 2021, arXiv 2102.09672,
    equation 15).
    """
    for k, (t, s) in enumerate(pairwise(times)):
        estimate, now, then = denoise(x, t), path.level(t), path.level(s)
        watch(estimate.data)
        x = posterior_mean(x, estimate.data, now, then)
        if then.sigma:
            small, large = variances(now, then)
            deviation: Tensor | float = math.sqrt(large if variance == "fixed-large" else small)
            if variance == "learned":
                assert estimate.spread is not None
                deviation = (0.5 * log_between(estimate.spread, small, large)).exp()
            x = x + deviation * noise(k)
        x = keep(x, s)
    return x


def log_between(spread: Tensor, small: Tensor | float, large: Tensor | float) -> Tensor:
    """The logarithm of a variance at the share `spread` of the way from log(small) to log(large)."""
    low, high = (
        math.log(max(each, SMALLEST)) if isinstance(each, float) else each.clamp_min(SMALLEST).log()
        for each in (small, large)
    )
    return spread * high + (1 - spread) * low


def ddim(
    denoise: Denoise,
    x: Tensor,
    times: Sequence[float],
    path: NoisePath,
    noise: Noise | None = None,
    eta: float = 0.0,
    keep: Keep = as_it_is,
    watch: Watch = unseen,
) -> Tensor:
    """Song et al. 2020 (arXiv 2010.02502), equations 12 and 16: eta 0 adds no noise, 1 as much as ancestral sampling.

    `noise` is asked for where eta is above 0.
    """
    for k, (t, s) in enumerate(pairwise(times)):
        estimate, now, then = denoise(x, t), path.level(t), path.level(s)
        watch(estimate.data)
        added = eta * math.sqrt(variances(now, then)[0])
        x = then.alpha * estimate.data + math.sqrt(max(0.0, then.sigma**2 - added**2)) * estimate.noise
        if added:
            assert noise is not None
            x = x + added * noise(k)
        x = keep(x, s)
    return x


def euler(
    denoise: Denoise,
    x: Tensor,
    times: Sequence[float],
    path: NoisePath,
    keep: Keep = as_it_is,
    watch: Watch = unseen,
) -> Tensor:
    """Straight steps along the path's equation. On the paths in steps that is ddim without noise."""
    for t, s in pairwise(times):
        estimate, now, then = denoise(x, t), path.level(t), path.level(s)
        watch(estimate.data)
        x = keep(moved(x, path.slope(estimate), path, now, then), s)
    return x


def heun(
    denoise: Denoise,
    x: Tensor,
    times: Sequence[float],
    path: NoisePath,
    keep: Keep = as_it_is,
    watch: Watch = unseen,
) -> Tensor:
    """Steps by the mean of the slopes at both ends, the last one straight: two questions a step (Karras et al. 2022,
    arXiv 2206.00364, algorithm 1)."""
    for t, s in pairwise(times):
        estimate, now, then = denoise(x, t), path.level(t), path.level(s)
        watch(estimate.data)
        slope = path.slope(estimate)
        arrived = moved(x, slope, path, now, then)
        if then.sigma:
            arrived = moved(x, (slope + path.slope(denoise(arrived, s))) / 2, path, now, then)
        x = keep(arrived, s)
    return x


def moved(x: Tensor, slope: Tensor, path: NoisePath, now: Level, then: Level) -> Tensor:
    """x at another level, along a straight line in the variables of the path's equation."""
    scale = path.scale(then)
    return (scale / path.scale(now)) * x + (scale * (path.clock(then) - path.clock(now))) * slope


def dpm_solver_2m(
    denoise: Denoise,
    x: Tensor,
    times: Sequence[float],
    path: NoisePath,
    keep: Keep = as_it_is,
    watch: Watch = unseen,
) -> Tensor:
    """DPM-Solver++ 2M (Lu et al. 2022, arXiv 2211.01095, algorithm 2): one question a step, and the answer before.

    The first step and the last, which ends where the logarithm of the ratio is infinite, are of first order.
    """
    before: Tensor | None = None
    width = 0.0  # of the step before, in log(alpha / sigma)
    for t, s in pairwise(times):
        data, now, then = denoise(x, t).data, path.level(t), path.level(s)
        watch(data)
        step = then.log_ratio - now.log_ratio
        ahead = data
        if before is not None and then.sigma:
            ahead = data + (step / (2 * width)) * (data - before)  # 0 where the step before began in pure noise
        x = (then.sigma / now.sigma) * x - (then.alpha * math.expm1(-step)) * ahead
        x, before, width = keep(x, s), data, step
    return x
