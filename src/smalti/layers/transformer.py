"""The one Transformer (Vaswani et al. 2017), wherever a transformer is used.

It knows no vocabulary, patch or noise. Pre-norm blocks with RMSNorm, rotary positions on any number of axes,
normalised queries and keys (Henry et al. 2020), SwiGLU (Shazeer 2020) and output products that start at zero.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from smalti.config import Config
from smalti.layers.attention import attend
from smalti.layers.cache import Cache
from smalti.layers.norm import RMSNorm
from smalti.layers.rope import rotate, rotations


class TransformerConfig(Config):
    """The size of a transformer."""

    kind: Literal["transformer"] = "transformer"
    layers: int = Field(6, ge=1)
    width: int = Field(256, ge=8)
    heads: int = Field(4, ge=1)
    hidden: int | None = Field(None, ge=1, description="width inside the MLP; None is 8/3 of the width, in steps of 32")
    dropout: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide(self) -> TransformerConfig:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} over {self.heads} heads is not an even whole number")
        return self

    @property
    def inner(self) -> int:
        return self.hidden or -(-self.width * 8 // 3 // 32) * 32


class Block(nn.Module):
    """Attention, then the MLP, each added to what came in."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.head_width = width // config.heads
        self.attention_norm = RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.query_key_norm = RMSNorm(2, 1, self.head_width)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp_norm = RMSNorm(width)
        self.gate_up = nn.Linear(width, 2 * config.inner, bias=False)
        self.down = nn.Linear(config.inner, width, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        for layer in (self.qkv, self.gate_up):
            nn.init.normal_(layer.weight, std=width**-0.5)
        for layer in (self.out, self.down):
            nn.init.zeros_(layer.weight)

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor | None, causal: bool, cache: Cache | None, layer: int
    ) -> Tensor:
        x = x + self.dropout(self._attention(self.attention_norm(x), turn, mask, causal, cache, layer))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        return x + self.dropout(self.down(F.silu(gate) * up))

    def _attention(
        self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor | None, causal: bool, cache: Cache | None, layer: int
    ) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, self.head_width))  # (B, T, 3, H, D)
        # queries and keys are normalised and turned together: half as many operations to start
        both = rotate(self.query_key_norm(qkv[:, :, :2]).flatten(2, 3), *turn)  # (B, T, 2H, D)
        q, k = both.transpose(1, 2).chunk(2, 1)  # (B, H, T, D) each
        v = qkv[:, :, 2].transpose(1, 2)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        return self.out(attend(q, k, v, mask, causal).transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """(B, T, width) -> (B, T, width)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        attend: Literal["causal", "full"] | Tensor = "causal",
        cache: Cache | None = None,
    ) -> Tensor:
        """Run the blocks.

        x: (B, T, width). positions: (T, axes) or (B, T, axes). attend: `causal`, `full`, or a bool mask, True where a
        token may look, broadcastable to (B, heads, T, S). cache: what was read before; x is what follows it, and the
        cache moves on by T.
        """
        turn = rotations(positions, self.config.width // self.config.heads)
        if not torch.is_autocast_enabled(x.device.type):
            turn = (turn[0].to(x.dtype), turn[1].to(x.dtype))
        mask = attend if isinstance(attend, Tensor) else None
        for layer, block in enumerate(self.blocks):
            x = block(x, turn, mask, isinstance(attend, str) and attend == "causal", cache, layer)
        if cache is not None:
            cache.filled += x.shape[1]
        return self.norm(x)

    def cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `batch` rows of up to `length` tokens, where the weights are."""
        config, weight = self.config, self.norm.weight
        width = config.width // config.heads
        return Cache(config.layers, batch, config.heads, length, width, weight.device, weight.dtype)
