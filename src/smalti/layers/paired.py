"""A block's weights for attention by complex numbers: the two halves of a head that a rotation mixes, side by side."""

from __future__ import annotations

import torch
from torch import Tensor

from smalti.layers.transformer import Block, TransformerConfig


def paired_turns(positions: Tensor, config: TransformerConfig) -> Tensor:
    """The rotations of positions (T, axes): complex (T, 1, 1, D / 2)."""
    cos, sin = config.rotations(positions)
    # the second half of `sin` has the sign of a turn forward
    return torch.complex(cos, sin)[:, None, None, cos.shape[-1] // 2 :].contiguous()


def paired_qkv(block: Block) -> Tensor:
    """The weights of queries, keys and values, the pairs of the former two side by side: (3, H, D, in).

    Where there is no norm to carry it, queries carry attention's scale, 1 / sqrt(D), here.
    """
    weight = block.qkv.weight.view(3, block.heads, block.head_width, -1)
    if block.query_key_norm is None:
        weight = weight * weight.new_tensor([block.head_width**-0.5, 1.0, 1.0]).view(3, 1, 1, 1)
    return torch.cat([paired(weight[:2], 2), weight[2:]])


def paired_norm(block: Block) -> Tensor | None:
    """What queries and keys are multiplied by once divided by their length: (2, D); None where they stay as they are.

    Queries carry attention's scale, 1 / sqrt(D), which cancels the sqrt(D) between a length and an rms.
    """
    if block.query_key_norm is None:
        return None
    weight = paired(block.query_key_norm.weight.squeeze(1), 1)
    return weight * weight.new_tensor([[1.0], [block.head_width**0.5]])


def paired(x: Tensor, axis: int) -> Tensor:
    """The two halves of an axis D, dealt in turn."""
    return x.unflatten(axis, (2, -1)).transpose(axis, axis + 1).flatten(axis, axis + 1)
