"""What a continuous latent holds: its spread, the units that say something, and its distance from the prior."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ACTIVE = 0.01  # variance of the posterior mean above which a unit is active (Burda et al. 2015, arXiv 1509.00519)


class LatentMeter:
    """Gathers posterior means. A unit is one number of one signal's latent: a channel at one position of the grid."""

    def __init__(self) -> None:
        self.signals = 0
        self._sums: Tensor | None = None  # (D, *grid), float64
        self._squares: Tensor | None = None
        self._nats = 0.0

    def update(self, means: Tensor, nats: float) -> None:
        """Add the posterior means (B, D, *grid) of B signals, and their divergences from the prior added up, in nats.

        Raises ValueError when the shape of one signal's latent changes.
        """
        means = means.detach().cpu().double()
        if self._sums is None or self._squares is None:
            self._sums = self._squares = torch.zeros(means.shape[1:], dtype=torch.float64)
        elif self._sums.shape != means.shape[1:]:
            raise ValueError(f"latents are (B, {', '.join(map(str, self._sums.shape))}), not {tuple(means.shape)}")
        self.signals += len(means)
        self._sums = self._sums + means.sum(0)
        self._squares = self._squares + means.square().sum(0)
        self._nats += float(nats)

    def variances(self) -> Tensor:
        """The variance of each unit's posterior mean over the signals, float64 (D, *grid)."""
        means, squares = self._moments()
        return (squares - means.square()).clamp(min=0)

    def channels(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel over signals and positions, float64, both (D,)."""
        means, squares = (moment.flatten(1).mean(1) for moment in self._moments())
        return means, (squares - means.square()).clamp(min=0).sqrt()

    def result(self) -> dict[str, Any]:
        """Figures ready for JSON.

        `numbers` in one signal's latent, its `channels`, `nats_a_picture` of divergence from the prior,
        `active_units` (variance of the posterior mean over 0.01), `active_share` of all units; `mean` and `deviation`
        of all numbers together, and the `least` and `most` of the channels' own means and deviations.
        """
        means, squares = self._moments()
        variances = self.variances()
        mean, deviation = self.channels()
        active = int((variances > ACTIVE).sum())
        return {
            "numbers": variances.numel(),
            "channels": len(variances),
            "nats_a_picture": self._nats / self.signals,
            "active_units": active,
            "active_share": active / variances.numel(),
            "mean": means.mean().item(),
            "deviation": (squares.mean() - means.mean().square()).clamp(min=0).sqrt().item(),
            "least_mean": mean.min().item(),
            "most_mean": mean.max().item(),
            "least_deviation": deviation.min().item(),
            "most_deviation": deviation.max().item(),
        }

    def _moments(self) -> tuple[Tensor, Tensor]:
        if self._sums is None or self._squares is None:
            raise ValueError("nothing was measured: update() was never called")
        return self._sums / self.signals, self._squares / self.signals
