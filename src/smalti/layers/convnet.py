"""Residual encoder and decoder, in one, two or three dimensions from one definition.

Down- and upsampling use kernels as large as their stride, and normalisation is per position over channels, so a
position sees only its neighbourhood: tiles of a signal come out as in the whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
CHANNELS_LAST = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each position: (B, C, *space) -> (B, C, *space)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight.to(x.dtype))
        return normed.movedim(-1, 1)


class ResidualBlock(nn.Module):
    """x + 1x1(act(3x3(norm(x)))), the last product starting at zero so that a deep stack begins as the identity.

    With a `kernel` of 1 in place of 3 positions see nothing of each other.
    """

    def __init__(self, dimensions: int, channels: int, kernel: int = 3) -> None:
        super().__init__()
        conv = CONV[dimensions]
        self.norm = ChannelNorm(channels)
        self.spatial = conv(channels, channels, kernel, padding=kernel // 2)
        self.point = conv(channels, channels, 1)
        for parameter in self.point.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.point(F.silu(self.spatial(self.norm(x))))


def stages(strides: Sequence[int], width: int, blocks: int) -> list[tuple[int, int, int]]:
    """(stride, channels, blocks) of each level, from the signal inwards: half the width for each stride outwards."""
    levels = len(strides)
    return [(stride, max(16, width >> (levels - 1 - level)), blocks) for level, stride in enumerate(strides)]


class Encoder(nn.Module):
    """(B, channels, *space) -> (B, out, *space / product of strides).

    `margin`: a position of the grid depends on the samples under it and under so many positions to each side; none
    where it is `local`.
    """

    def __init__(
        self,
        dimensions: int,
        channels: int,
        out: int,
        width: int,
        strides: Sequence[int],
        blocks: int,
        local: bool = False,
    ) -> None:
        super().__init__()
        self.memory_format = CHANNELS_LAST[dimensions]
        layers: list[nn.Module] = []
        previous = channels
        reach, spacing = 0, 1  # both in samples: how far to each side, and from one position to the next
        for stride, inner, count in stages(strides, width, blocks):
            layers.append(CONV[dimensions](previous, inner, stride, stride=stride))
            layers += [ResidualBlock(dimensions, inner, 1 if local else 3) for _ in range(count)]
            previous = inner
            spacing *= stride
            reach += 0 if local else count * spacing
        self.layers = nn.Sequential(*layers, ChannelNorm(previous), CONV[dimensions](previous, out, 1))
        self.margin = -(-reach // spacing)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.contiguous(memory_format=self.memory_format))


class Decoder(nn.Module):
    """(B, inputs, *grid) -> (B, channels, *grid * product of strides).

    `margin`: the samples under a position of the grid depend on so many positions to each side of it.
    """

    def __init__(
        self, dimensions: int, inputs: int, channels: int, width: int, strides: Sequence[int], blocks: int
    ) -> None:
        super().__init__()
        self.memory_format = CHANNELS_LAST[dimensions]
        levels = stages(strides, width, blocks)[::-1]
        layers: list[nn.Module] = [CONV[dimensions](inputs, levels[0][1], 3, padding=1)]
        for index, (stride, inner, count) in enumerate(levels):
            layers += [ResidualBlock(dimensions, inner) for _ in range(count)]
            last = index == len(levels) - 1
            following = channels if last else levels[index + 1][1]
            layers += [ChannelNorm(inner), CONV_TRANSPOSE[dimensions](inner, following, stride, stride=stride)]
        self.layers = nn.Sequential(*layers)
        reach = 0  # in positions of a level, from the signal inwards: part of a coarser position needs all of it
        for stride, _, count in reversed(levels):
            reach = -(-reach // stride) + count
        self.margin = reach + 1  # the first kernel of 3

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z.contiguous(memory_format=self.memory_format))


def total_stride(strides: Sequence[int]) -> int:
    """How many samples of the signal, along each axis, make one position of the grid."""
    return math.prod(strides)
