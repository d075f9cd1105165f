from __future__ import annotations

import pytest
import torch

from smalti.layers.paired import paired_norm, paired_qkv, paired_turns
from smalti.layers.rope import rotate, rotations
from smalti.layers.transformer import Block, TransformerConfig


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_scores_and_values_are_those_of_the_block(axes, generator):
    """Pairs side by side, turned as complex numbers, against halves turned by cosines and sines."""
    config = TransformerConfig(width=24, heads=2)
    block, positions = Block(config), torch.randint(0, 9, (7, axes), generator=generator)
    with torch.no_grad():
        block.query_key_norm.weight.normal_(generator=generator)
    x = torch.randn(1, 7, 24, generator=generator)
    cos, sin = rotations(positions, 12)
    q, k, v = block.qkv(x).unflatten(-1, (3, 2, 12)).unbind(2)  # (1, 7, 2, 12)
    weights = block.query_key_norm.weight
    q, k = (
        rotate(torch.nn.functional.normalize(each, dim=-1) * 12**0.5 * weight, cos, sin)
        for each, weight in zip((q, k), weights, strict=True)
    )
    expected = torch.einsum("bqhd,bkhd->bhqk", q, k) / 12**0.5

    both = torch.einsum("bti,chdi->btchd", x, paired_qkv(block))
    torch.testing.assert_close(both[:, :, 2], v)
    query_key = torch.nn.functional.normalize(both[:, :, :2], dim=-1) * paired_norm(block).unsqueeze(1)
    turned = torch.view_as_complex(query_key.unflatten(-1, (-1, 2)).contiguous()) * paired_turns(positions, config)
    ours, theirs = torch.view_as_real(turned).flatten(-2).unbind(2)
    torch.testing.assert_close(torch.einsum("bqhd,bkhd->bhqk", ours, theirs), expected)
