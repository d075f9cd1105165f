"""How close a decoded signal is to its original: MSE, PSNR and SSIM, all on the [0, 1] scale."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW = 11  # pixels across the Gaussian window of SSIM (sigma 1.5)
AT_ONCE = 1 << 20  # values compared at once: SSIM takes some 60 times the memory of what it compares
LEAST_MSE = 1e-10  # an exact copy has 100 dB, a number that JSON can hold, rather than infinitely many


class ReconstructionMeter:
    """Gathers batches of originals and their reconstructions; every signal counts the same, whatever its batch."""

    def __init__(self) -> None:
        self.signals = 0
        self._squared = 0.0
        self._similarity: float | None = None

    def update(self, x: Tensor, x_hat: Tensor) -> None:
        """Add a batch: both (B, C, *space) in [-1, 1], compared as floats; what lies outside is clamped.

        Raises ValueError when the shapes differ.
        """
        if x.shape != x_hat.shape:
            raise ValueError(f"originals are {tuple(x.shape)}, reconstructions {tuple(x_hat.shape)}")
        if not len(x):
            return
        self.signals += len(x)
        rows = max(1, AT_ONCE // x[0].numel())
        for some, some_hat in zip(x.split(rows), x_hat.split(rows), strict=True):
            self._add(_unit_scale(some), _unit_scale(some_hat))

    def _add(self, x: Tensor, x_hat: Tensor) -> None:
        self._squared += (x - x_hat).double().square().flatten(1).mean(1).sum().item()
        if x.ndim >= 4:
            self._similarity = (self._similarity or 0.0) + ssim(x, x_hat).double().sum().item()

    def result(self) -> dict[str, float]:
        """`mse`; `psnr` in dB, of the mean MSE, at most 100; `ssim` for pictures and video (the mean over frames)."""
        if not self.signals:
            raise ValueError("nothing was measured: update() was never called")
        mse = self._squared / self.signals
        figures = {"mse": mse, "psnr": psnr(mse)}
        if self._similarity is not None:
            figures["ssim"] = self._similarity / self.signals
        return figures


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error on the [0, 1] scale; 100 dB for an exact copy."""
    return -10 * math.log10(max(mse, LEAST_MSE))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of each signal: two (B, C, *space) in [0, 1] -> (B,).

    Pictures (B, C, H, W), or video (B, C, T, H, W) as the mean over its frames. The window is 11 pixels, or the
    largest odd size that fits a smaller picture; below 3 pixels a side is repeated to 3. The mean is over all pixels,
    with the picture reflected at its edges, as torchmetrics has it.
    """
    # torchmetrics takes a second to import, which only those who measure should pay
    from torchmetrics.functional.image import structural_similarity_index_measure

    if x.ndim == 5:
        batch, frames = x.shape[0], x.shape[2]
        return ssim(x.transpose(1, 2).flatten(0, 1), y.transpose(1, 2).flatten(0, 1)).view(batch, frames).mean(1)
    height, width = x.shape[-2:]
    if min(height, width) < 3:
        grow = (0, max(0, 3 - width), 0, max(0, 3 - height))
        x, y = F.pad(x, grow, mode="replicate"), F.pad(y, grow, mode="replicate")
    side = min(x.shape[-2:])
    window = min(WINDOW, side - 1 + side % 2)
    # torchmetrics derives the window from sigma: 2 * int(3.5 * sigma + 0.5) + 1 pixels
    sigma = 1.5 if window == WINDOW else (window // 2) / 3.5
    values = structural_similarity_index_measure(x, y, sigma=sigma, data_range=1.0, reduction="none")
    return torch.as_tensor(values).reshape(len(x))


def _unit_scale(x: Tensor) -> Tensor:
    return x.detach().float().clamp(-1, 1).add(1).div(2)
