"""A block's weights for attention by complex numbers: the two halves of a head that a rotation mixes, side by side."""

from __future__ import annotations

import torch
from torch import Tensor

from smalti.layers.rope import rotations
from smalti.layers.transformer import Block


def paired_turns(positions: Tensor, width: int) -> Tensor:
    """The rotations of positions (T, axes) for heads of so many numbers: complex (T, 1, 1, width / 2)."""
    cos, sin = rotations(positions, width)
    # the second half of `sin` has the sign of a turn forward
    return torch.complex(cos, sin)[:, None, None, width // 2 :].contiguous()


def paired_qkv(block: Block) -> Tensor:
    """The weights of queries, keys and values, the pairs of the former two side by side: (3, H, D, in)."""
    weight = block.qkv.weight.view(3, block.heads, block.head_width, -1)
    return torch.cat([_paired(weight[:2], 2), weight[2:]])


def paired_norm(block: Block) -> Tensor:
    """What queries and keys are multiplied by once divided by their length: (2, D).

    Queries carry attention's scale, 1 / sqrt(D), which cancels the sqrt(D) between a length and an rms.
    """
    weight = _paired(block.query_key_norm.weight.squeeze(1), 1)
    return weight * weight.new_tensor([[1.0], [block.head_width**0.5]])


def _paired(x: Tensor, axis: int) -> Tensor:
    return x.unflatten(axis, (2, -1)).transpose(axis, axis + 1).flatten(axis, axis + 1)
