"""The way from data to noise: x(t) = alpha(t) * data + sigma(t) * noise, with t in [0, 1], data at 0 and noise at 1.

A network may be asked for the noise, for the data, or for a velocity between them; given x(t), each says the same.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from smalti.errors import UserError

Predicts = Literal["noise", "velocity", "data"]
PathName = Literal["ddpm", "cosine", "flow"]

STEPS = 1000  # of noise, of the paths that have steps
LEAST = 1 / STEPS  # the time that likelihoods take for that of the data
CROWDING = 7  # the paper's rho: how much closer together times stand where there is little noise


@dataclass(frozen=True)
class Estimate:
    """What a network makes of x(t): data and noise of the shape of x, with x = alpha * data + sigma * noise.

    `spread`, where a variance was learned, says where between its bounds it lies: 0 the smallest, 1 the largest.
    """

    data: Tensor
    noise: Tensor
    spread: Tensor | None = None


class Level(NamedTuple):
    """How much is left of the data, and how much noise there is."""

    alpha: float
    sigma: float

    @property
    def log_ratio(self) -> float:
        """log(alpha / sigma), half the logarithm of the signal-to-noise ratio; infinite at either end."""
        if not self.sigma:
            return math.inf
        return math.log(self.alpha / self.sigma) if self.alpha else -math.inf


def shifted(t: Tensor, shift: float) -> Tensor:
    """Times (…) in [0, 1] moved towards 1 where `shift` s is above 1, by s t / (1 + (s - 1) t): Esser et al. 2024
    (arXiv 2403.03206), equation 23. On the straight path the ratio of noise to data is s times as large."""
    return shift * t / (1 + (shift - 1) * t)


class NoisePath(ABC):
    """One choice of alpha and sigma, of the times that a network learns, and of how its ordinary differential
    equation is written."""

    @abstractmethod
    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at times (…) in [0, 1], float64, of the same shape."""

    @abstractmethod
    def learnt(self, uniform: Tensor, shift: float = 1.0) -> Tensor:
        """Times (…) to learn, in (0, 1], from numbers in [0, 1); with a shift above 1 there are more of much noise."""

    @abstractmethod
    def times(self, steps: int, start: float = 1.0) -> list[float]:
        """The `steps` times to visit on the way down from `start`, and 0 behind them.

        Raises UserError on steps that do not fit.
        """

    def rising(self, steps: int) -> list[float]:
        """The times from LEAST to 1 of an equation that is steep where there is little noise, `steps` steps apart.

        Close together at its beginning: Karras et al. 2022 (arXiv 2206.00364), equation 5. Raises UserError on steps
        that do not fit.
        """
        self.times(steps)
        first = LEAST ** (1 / CROWDING)
        return [(first + (1 - first) * k / steps) ** CROWDING for k in range(steps)] + [1.0]

    @abstractmethod
    def velocity(self, data: Tensor, noise: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """What `velocity` predicts."""

    @abstractmethod
    def from_velocity(
        self, x: Tensor, velocity: Tensor, alpha: Tensor | float, sigma: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """Data and noise."""

    @abstractmethod
    def scale(self, level: Level) -> float:
        """The equation is about y = x / scale, as a function of the clock: dy / dclock = slope."""

    @abstractmethod
    def clock(self, level: Level) -> float:
        """The variable that the equation runs in."""

    @abstractmethod
    def slope(self, estimate: Estimate) -> Tensor:
        """dy / dclock of the probability flow."""

    @abstractmethod
    def turned(self, level: Level) -> float:
        """The variable in which x moves by the velocity: dx / dturned = velocity. It has no end where alpha is 0."""

    def level(self, t: float) -> Level:
        """alpha and sigma at one time."""
        alpha, sigma = self.levels(torch.tensor(t, dtype=torch.float64))
        return Level(float(alpha), float(sigma))

    def target(
        self, predicts: Predicts, data: Tensor, noise: Tensor, alpha: Tensor | float, sigma: Tensor | float
    ) -> Tensor:
        """What a network that `predicts` so should say; alpha and sigma broadcast against data."""
        if predicts == "velocity":
            return self.velocity(data, noise, alpha, sigma)
        return noise if predicts == "noise" else data

    def estimate(
        self, predicts: Predicts, x: Tensor, said: Tensor, alpha: Tensor | float, sigma: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """Data and noise, from x(t) and what the network said: the inverse of `target`.

        Noise says nothing of the data where alpha is 0, nor data of the noise where sigma is 0.
        """
        if predicts == "velocity":
            return self.from_velocity(x, said, alpha, sigma)
        if predicts == "noise":
            return (x - sigma * said) / alpha, said
        return said, (x - alpha * said) / sigma


class Steps(NoisePath):
    """A path in 1,000 steps that keeps the variance: alpha² + sigma² = 1. Time i / 1000 is after i steps of noise.

    betas: float64 (1000,), the share of the variance that each step replaces by noise.

    Velocity is alpha * noise - sigma * data (Salimans & Ho 2022, arXiv 2202.00512, appendix D). The probability flow is
    that of Song et al. 2020 (arXiv 2010.02502, equation 14): d(x / alpha) / d(sigma / alpha) = noise.
    """

    def __init__(self, betas: Tensor) -> None:
        kept = torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas).cumprod(0)])  # alpha², after 0 to 1000 steps
        self.alphas, self.sigmas = kept.sqrt(), (1 - kept).sqrt()

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        step = (t.double() * STEPS).round().long().cpu()
        return self.alphas[step].to(t.device), self.sigmas[step].to(t.device)

    def learnt(self, uniform: Tensor, shift: float = 1.0) -> Tensor:
        return ((shifted(uniform, shift) * STEPS).floor().clamp(0, STEPS - 1) + 1) / STEPS

    def times(self, steps: int, start: float = 1.0) -> list[float]:
        """`Trailing` spacing: the first is always `start`, so that sampling begins where there is nothing but noise.

        Lin et al. 2023 (arXiv 2305.08891), table 2. `start` is taken to the nearest step, and at least the first.
        """
        most = max(1, round(start * STEPS))
        if not 1 <= steps <= most:
            raise UserError(f"{steps} sampling steps: from noise level {most / STEPS:g} down there are 1 to {most}")
        return [round(most - k * most / steps) / STEPS for k in range(steps)] + [0.0]

    def rising(self, steps: int) -> list[float]:
        """Each taken to the nearest step of the path; where several meet, there is one."""
        return sorted({round(t * STEPS) / STEPS for t in super().rising(steps)})

    def velocity(self, data: Tensor, noise: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        return alpha * noise - sigma * data

    def from_velocity(
        self, x: Tensor, velocity: Tensor, alpha: Tensor | float, sigma: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        return alpha * x - sigma * velocity, sigma * x + alpha * velocity

    def scale(self, level: Level) -> float:
        return level.alpha

    def clock(self, level: Level) -> float:
        return level.sigma / level.alpha

    def slope(self, estimate: Estimate) -> Tensor:
        return estimate.noise

    def turned(self, level: Level) -> float:
        """The angle of (alpha, sigma): on the circle, velocity is the derivative."""
        return math.atan2(level.sigma, level.alpha)


class Flow(NoisePath):
    """The straight path, at any time: alpha = 1 - t, sigma = t.

    Velocity is noise - data, which is also dx / dt (Liu et al. 2022, arXiv 2209.03003; Lipman et al. 2022,
    arXiv 2210.02747; time runs here as in diffusion, from data to noise).
    """

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t.double(), t.double()

    def learnt(self, uniform: Tensor, shift: float = 1.0) -> Tensor:
        return shifted(1 - uniform, shift).clamp(LEAST, 1)

    def times(self, steps: int, start: float = 1.0) -> list[float]:
        """Evenly spaced."""
        if steps < 1:
            raise UserError(f"{steps} sampling steps: at least 1")
        return [start * (1 - k / steps) for k in range(steps)] + [0.0]

    def velocity(self, data: Tensor, noise: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        return noise - data

    def from_velocity(
        self, x: Tensor, velocity: Tensor, alpha: Tensor | float, sigma: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        return x - sigma * velocity, x + alpha * velocity

    def scale(self, level: Level) -> float:
        return 1.0

    def clock(self, level: Level) -> float:
        return level.sigma

    def slope(self, estimate: Estimate) -> Tensor:
        return estimate.noise - estimate.data

    def turned(self, level: Level) -> float:
        return level.sigma


def slerp(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Noise (n, …) a share of the way from one to the other, along the great circle through each pair of rows.

    The straight way would pass through noise too weak for the network (Song et al. 2020, arXiv 2010.02502, equation
    67).
    """
    a, b = one.flatten(1).double(), other.flatten(1).double()
    cosine = (a * b).sum(1, keepdim=True) / (a.norm(dim=1, keepdim=True) * b.norm(dim=1, keepdim=True)).clamp_min(1e-12)
    angle = cosine.clamp(-1, 1).acos()
    straight = angle.sin() < 1e-6  # nearly the same direction: there is no circle to follow
    safe = torch.where(straight, 1.0, angle.sin())
    first = torch.where(straight, 1 - share, ((1 - share) * angle).sin() / safe)
    second = torch.where(straight, share, (share * angle).sin() / safe)
    return (first * a + second * b).view_as(one).to(one.dtype)


def linear_betas() -> Tensor:
    """Ho et al. 2020 (arXiv 2006.11239), section 4."""
    return torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64)


def cosine_betas() -> Tensor:
    """Nichol & Dhariwal 2021 (arXiv 2102.09672), equation 17."""
    wave = torch.cos((torch.arange(STEPS + 1, dtype=torch.float64) / STEPS + 0.008) / 1.008 * math.pi / 2).square()
    return (1 - wave[1:] / wave[:-1]).clamp(max=0.999)


PATHS: dict[PathName, NoisePath] = {
    "ddpm": Steps(linear_betas()),
    "cosine": Steps(cosine_betas()),
    "flow": Flow(),
}
