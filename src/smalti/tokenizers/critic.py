"""The critic of adversarial training: it looks at patches and says how real each one seems.

Isola et al. 2016 (arXiv 1611.07004, PatchGAN), with the downsampling of Zhang 2019 (arXiv 1904.11486).
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from smalti.config import Config
from smalti.device import full_precision
from smalti.layers.convnet import CHANNELS_LAST, CONV

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
LEAST = 4  # positions along a side that a product in bf16 may see
SLOPE = 0.2  # of the leaky rectifier, below zero


class CriticConfig(Config):
    """The network that tells reconstructions from real signals."""

    width: int = Field(64, ge=2, description="channels of its inner layers; the first has half of them")
    layers: int = Field(3, ge=1, le=8, description="halvings of each side, down to one verdict a patch")
    lr: float = Field(5e-4, gt=0, description="its learning rate, by AdamW, on the schedule of training.lr")


class BlurredConv(nn.Module):
    """A convolution of 3 that halves every side of a blurred signal: (B, C, *space) -> (B, out, *⌈space / 2⌉).

    What is finer than the new grid is averaged away before every second position is dropped, so that the verdict moves
    with the picture. The blur [1, 2, 1] / 4 along each axis is laid into the kernel, which then is one of 5: on a
    processor that takes a third of the time of a pass of its own.
    """

    blur: Tensor

    def __init__(self, dimensions: int, channels: int, out: int) -> None:
        super().__init__()
        plain = CONV[dimensions](channels, out, 3)
        self.weight, self.bias = plain.weight, plain.bias
        self.dimensions, self.memory_format = dimensions, CHANNELS_LAST[dimensions]
        blur = torch.tensor([1.0, 2.0, 1.0]) / 4
        for _ in range(dimensions - 1):
            blur = blur[..., None] * torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("blur", blur[None, None], persistent=False)

    def kernel(self) -> Tensor:
        """(out, C, 5, …)."""
        each = self.weight.flatten(0, 1).unsqueeze(1)
        blurred = CONVOLVE[self.dimensions](each, self.blur, padding=2)
        return blurred.squeeze(1).unflatten(0, self.weight.shape[:2])

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[2:]) < LEAST:
            # torch's bf16 gradient of a kernel far larger than what it sees reads memory that nobody has set
            with full_precision(x.device):
                return self._convolved(x.to(torch.promote_types(x.dtype, torch.float32)))
        return self._convolved(x)

    def _convolved(self, x: Tensor) -> Tensor:
        kernel = self.kernel().contiguous(memory_format=self.memory_format)
        return CONVOLVE[self.dimensions](x, kernel, self.bias, stride=2, padding=2)


class Critic(nn.Module):
    """x (B, C, *space) in [-1, 1] -> logits (B, 1, *patches), high for real, and the activations of every layer.

    Nothing is taken over the batch, so that splitting it changes nothing. The first layer sees pixels as they are, for
    a blur would hide what it is to judge.
    """

    def __init__(self, dimensions: int, channels: int, config: CriticConfig) -> None:
        super().__init__()
        self.memory_format = CHANNELS_LAST[dimensions]
        conv, width = CONV[dimensions], config.width
        layers: list[nn.Module] = [conv(channels, width // 2, 4, stride=2, padding=1)]
        layers += [BlurredConv(dimensions, width if i else width // 2, width) for i in range(config.layers - 1)]
        self.layers = nn.ModuleList(layers)
        self.verdict = conv(width if config.layers > 1 else width // 2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = x.contiguous(memory_format=self.memory_format)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
            features.append(x)
        return self.verdict(x), features
