"""Rotary positions on any number of axes (Su et al. 2021, arXiv 2104.09864)."""

from __future__ import annotations

import torch
from torch import Tensor


def rotations(positions: Tensor, width: int, base: float = 100.0, interleaved: bool = False) -> tuple[Tensor, Tensor]:
    """Cosines and sines (…, T, width) for positions (…, T, axes); each axis turns its own share of the pairs.

    A share has all speeds from 1 to nearly 1 / base. `interleaved` are the pairs of one such scale, dealt to the axes
    in turn: what stands at the same place on all axes, as text does, is then turned as on one axis alone (as in Wang et
    al. 2024, arXiv 2409.12191, section 2.1, but for the order). Raises ValueError when the pairs of a head are fewer
    than the axes.
    """
    pairs, axes = width // 2, positions.shape[-1]
    if width % 2 or pairs < axes:
        raise ValueError(f"a head of width {width} has no pair for each of {axes} axes")
    if interleaved:
        every = torch.arange(pairs, device=positions.device)
        return _turns(positions[..., every % axes].float() * base ** (-every.float() / pairs))
    shares = [pairs // axes + (axis < pairs % axes) for axis in range(axes)]
    angles = []
    for axis, share in enumerate(shares):
        speeds = base ** (-torch.arange(share, device=positions.device, dtype=torch.float32) / share)
        angles.append(positions[..., axis, None].float() * speeds)
    return _turns(torch.cat(angles, -1))


def _turns(angle: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([angle.cos(), angle.cos()], -1), torch.cat([-angle.sin(), angle.sin()], -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (B, T, H, width) by its position: the first half of a head pairs with the second."""
    turned = torch.cat(x.chunk(2, -1)[::-1], -1)
    cos, sin = cos[..., None, :].to(x.dtype), sin[..., None, :].to(x.dtype)
    return torch.addcmul(x * cos, turned, sin)
