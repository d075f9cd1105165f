"""The Transformer one token at a time: the same arithmetic as `Transformer`, arranged for the least work a token.

At one token a row, starting an operation costs as much as doing it. So what can be done once is done once: the weights
of the norms are folded into the products behind them, the two halves of a head that a rotation mixes are laid side by
side and turned as complex numbers, and every result has its place in memory from the start. Products run in the dtype
that is asked for; attention and its cache are fp32, which is also the quickest for one token.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from smalti.device import roomy
from smalti.layers.cache import Cache
from smalti.layers.paired import paired, paired_norm, paired_qkv, paired_turns
from smalti.layers.transformer import Block, Transformer


class Folded:
    """A transformer's weights as a Stepper wants them, for up to the given positions (T, axes)."""

    def __init__(self, network: Transformer, positions: Tensor, dtype: torch.dtype) -> None:
        self.config, self.dtype = network.config, dtype
        self.turns = self.turned(positions)  # (T, 1, 1, D / 2)
        self.layers = [_Layer(cast(Block, block), dtype) for block in network.blocks]
        self.norm = (network.norm.weight * network.config.width**0.5).to(dtype)

    def turned(self, positions: Tensor) -> Tensor:
        """How what stands at positions (T, axes) is turned."""
        return paired_turns(positions, self.config)


class _Layer:
    """One block's weights; products take (B, in) @ (in, out)."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        length = (
            block.qkv.in_features**0.5
        )  # between the rms, which the norm means, and the length, which it divides by
        qkv = paired_qkv(block).flatten(0, 2) * (block.attention_norm.weight * length)  # (3 * width, width)
        self.products = qkv.to(dtype).t().contiguous()
        self.out = block.out.weight.to(dtype).t().contiguous()
        self.gate_up = (block.gate_up.weight * (block.mlp_norm.weight * length)).to(dtype).t().contiguous()
        self.down = block.down.weight.to(dtype).t().contiguous()
        norm = paired_norm(block)
        self.query_key = None if norm is None else norm.unsqueeze(1)  # (2, 1, D)


class Stepper:
    """Reads `batch` rows one token at a time, in causal order; `length` of them, or as many as there are positions."""

    def __init__(self, folded: Folded, batch: int, length: int | None = None) -> None:
        config, device, dtype = folded.config, folded.norm.device, folded.dtype
        width, heads, head = config.width, config.heads, config.width // config.heads
        self.folded, self.rows = folded, batch
        self.cache = roomy((config.layers, 2, batch, heads, length or len(folded.turns), head), device)
        self.filled = 0

        # workspaces, and the views of them that the steps use
        self.hidden = torch.empty(batch, width, device=device, dtype=dtype)
        self.length = torch.empty(batch, 1, device=device, dtype=dtype)
        self.products = torch.empty(batch, 3 * width, device=device, dtype=dtype)
        self.gate_up = torch.empty(batch, 2 * config.inner, device=device, dtype=dtype)
        self.gate, self.up = self.gate_up.chunk(2, -1)
        self.wide = torch.empty(batch, 3 * width, device=device)
        by_head = self.wide.view(batch, 3, heads, head)  # queries, keys, values
        self.query_key = by_head[:, :2]
        self.pairs = torch.view_as_complex(self.query_key.unflatten(-1, (-1, 2)))
        self.key_value = by_head[:, 1:].transpose(0, 1)  # (2, B, H, D)
        self.query = by_head[:, 0].unsqueeze(2)  # (B, H, 1, D)
        self.lengths = torch.empty(batch, 2, heads, 1, device=device)

    def restart(self) -> Stepper:
        """Forget what was read, and begin again in the same memory."""
        self.filled = 0
        return self

    def follow(self, cache: Cache) -> Stepper:
        """Go on behind what the transformer itself has read, in whatever order it did."""
        self.filled = cache.filled
        self.cache[:, 0, :, :, : self.filled] = paired(cache.keys[:, :, :, : self.filled], 4)
        self.cache[:, 1, :, :, : self.filled] = cache.values[:, :, :, : self.filled]
        return self

    def step(self, x: Tensor, place: int | Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """The next token of every row: (B, width) -> (B, width), normalised. x is used up.

        place: which of the positions it stands at, one for all rows or int64 (B,); unless said, they follow each other.
        positions int64 (B, axes), instead: where it stands, whether that is one of them or not.
        """
        slot = self.filled
        if positions is not None:
            turn = self.folded.turned(positions)
        else:
            turn = self.folded.turns[slot if place is None else place]
        self.filled += 1
        rows = self.cache.flatten(2, 3)  # (L, 2, B * H, T, D)
        keys = rows[:, 0, :, : self.filled].transpose(2, 3).unbind(0)
        values = rows[:, 1, :, : self.filled].unbind(0)
        here = self.cache[:, :, :, :, slot].unbind(0)
        for layer, k, v, now in zip(self.folded.layers, keys, values, here, strict=True):
            self._normalise(x)
            torch.mm(self.hidden, layer.products, out=self.products)
            self.wide.copy_(self.products)
            if layer.query_key is not None:
                torch.linalg.vector_norm(self.query_key, dim=-1, keepdim=True, out=self.lengths)
                self.query_key.mul_(layer.query_key).div_(self.lengths)
            self.pairs.mul_(turn)
            now.copy_(self.key_value)
            read = torch.bmm(torch.bmm(self.query.flatten(0, 1), k).softmax(-1), v)
            x.addmm_(read.view(x.shape).to(x.dtype), layer.out)
            self._normalise(x)
            torch.mm(self.hidden, layer.gate_up, out=self.gate_up)
            x.addmm_(F.silu(self.gate).mul_(self.up), layer.down)
        self._normalise(x)
        return self.hidden * self.folded.norm

    def _normalise(self, x: Tensor) -> None:
        """x over its length; the factor sqrt(width) between length and rms is in the product that follows."""
        torch.linalg.vector_norm(x, dim=-1, keepdim=True, out=self.length)
        torch.div(x, self.length, out=self.hidden)
