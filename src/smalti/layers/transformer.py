"""The one Transformer (Vaswani et al. 2017), wherever a transformer is used.

It knows no vocabulary, patch or noise. Pre-norm blocks with RMSNorm, rotary positions on any number of axes,
normalised queries and keys (Henry et al. 2020), SwiGLU (Shazeer 2020) and output products that start at zero. With
other settings it is a Llama (Touvron et al. 2023, arXiv 2302.13971), whose weights it takes as they are.

With a condition every normalisation is shifted and scaled by it and every output gated, the gates starting at zero
(adaLN-zero, Peebles & Xie 2022, arXiv 2212.09748, section 3.2). One product makes the modulation of all blocks, to
which each adds offsets of its own (Chen et al. 2023, arXiv 2310.00426, adaLN-single): a third fewer weights.

With a context every block also reads that, between its attention and its MLP (`smalti.layers.cross`).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from smalti.config import Config
from smalti.device import full_precision, product_dtype_of
from smalti.layers.attention import attend
from smalti.layers.cache import Cache
from smalti.layers.cross import CrossAttention
from smalti.layers.dropout import Dropout
from smalti.layers.gated import gated_sum, swiglu
from smalti.layers.heads import Heads, turned_heads
from smalti.layers.norm import RMSNorm
from smalti.layers.rope import rotations


class TransformerConfig(Config):
    """The size of a transformer."""

    kind: Literal["transformer"] = "transformer"
    layers: int = Field(6, ge=1, le=1000)
    width: int = Field(256, ge=8)
    heads: int = Field(4, ge=1)
    hidden: int | None = Field(None, ge=1, description="width inside the MLP; None is 8/3 of the width, in steps of 32")
    dropout: float = Field(0.1, ge=0, lt=1)
    query_key_norm: bool = True
    rope: Literal["axial", "interleaved"] = Field(
        "axial", description="speeds of rotary positions: a scale for each axis, or one scale dealt to them in turn"
    )
    rope_base: float = Field(100.0, gt=1, description="how many times slower the slowest turns than the quickest")
    eps: float = Field(1e-6, gt=0, description="added to what norms take the root of")

    @model_validator(mode="after")
    def _heads_divide(self) -> TransformerConfig:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} over {self.heads} heads is not an even whole number")
        return self

    @property
    def inner(self) -> int:
        return self.hidden or -(-self.width * 8 // 3 // 32) * 32

    def rotations(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (…, T, D) for positions (…, T, axes)."""
        return rotations(positions, self.width // self.heads, self.rope_base, self.rope == "interleaved")


# shift, scale and gate (B, 1, width) of one half of a block; None where nothing is conditioned
Modulation = tuple[Tensor, Tensor, Tensor] | None
# a context (B, S, context_width) and where there is something to read, bool (B, 1, 1, S)
Context = tuple[Tensor, Tensor | None] | None


class Block(nn.Module):
    """Attention, then that over the context if there is one, then the MLP, each added to what came in."""

    def __init__(self, config: TransformerConfig, conditioned: bool = False, context_width: int | None = None) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.head_width = width // config.heads
        self.attention_norm = RMSNorm(width, config.eps)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.query_key_norm = Heads(self.head_width, config.eps) if config.query_key_norm else None
        self.out = nn.Linear(width, width, bias=False)
        self.mlp_norm = RMSNorm(width, config.eps)
        self.gate_up = nn.Linear(width, 2 * config.inner, bias=False)
        self.down = nn.Linear(config.inner, width, bias=False)
        self.dropout = Dropout(config.dropout)
        for layer in (self.qkv, self.gate_up):
            nn.init.normal_(layer.weight, std=width**-0.5)
        if conditioned:
            self.offsets = nn.Parameter(torch.zeros(6, width))
        for layer in (self.out, self.down):
            if conditioned:  # the gates are zero; with both at zero neither would have a gradient
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            else:
                nn.init.zeros_(layer.weight)
        self.cross = None if context_width is None else CrossAttention(width, self.heads, context_width)

    def forward(
        self,
        x: Tensor,
        turn: tuple[Tensor, Tensor],
        mask: Tensor | None,
        causal: bool,
        cache: Cache | None,
        layer: int,
        shared: Tensor | None = None,
        context: Context = None,
    ) -> Tensor:
        first, second = self._modulations(shared)
        dtype = product_dtype_of(x)
        attention = self._attention(_normed(x, self.attention_norm, first, dtype), turn, mask, causal, cache, layer)
        x = _added(x, self.dropout(attention), first)
        if self.cross is not None and context is not None:
            x = x + self.dropout(self.cross(x, *context, dtype))
        hidden = swiglu(self.gate_up(_normed(x, self.mlp_norm, second, dtype)))
        return _added(x, self.dropout(self.down(hidden)), second)

    def _modulations(self, shared: Tensor | None) -> tuple[Modulation, Modulation]:
        if shared is None:
            return None, None
        shift, scale, gate, other_shift, other_scale, other_gate = (shared + self.offsets).unbind(-2)
        return (shift, scale, gate), (other_shift, other_scale, other_gate)

    def _attention(
        self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor | None, causal: bool, cache: Cache | None, layer: int
    ) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, self.head_width))  # (B, T, 3, H, D)
        split = turned_heads if self.query_key_norm is None else self.query_key_norm
        q, k, v = split(qkv, *turn)  # (B, H, T, D) each
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        return self.out(attend(q, k, v, mask, causal).transpose(1, 2).flatten(2))


def _normed(x: Tensor, norm: RMSNorm, modulation: Modulation, dtype: torch.dtype | None = None) -> Tensor:
    if modulation is None:
        return norm(x, dtype=dtype)
    shift, scale, _ = modulation
    return norm(x, 1 + scale, shift, dtype)


def _added(x: Tensor, change: Tensor, modulation: Modulation) -> Tensor:
    return x + change if modulation is None else gated_sum(x, change, modulation[2])


class Transformer(nn.Module):
    """(B, T, width) -> (B, T, width).

    If `conditioned`, it takes a condition for each row, or for each token; with a `context_width`, a context for each
    row, any number of vectors that wide.
    """

    def __init__(self, config: TransformerConfig, conditioned: bool = False, context_width: int | None = None) -> None:
        super().__init__()
        self.config, self.context_width = config, context_width
        self.blocks = nn.ModuleList(Block(config, conditioned, context_width) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.eps)
        if conditioned:
            self.modulation = nn.Linear(config.width, 8 * config.width)  # six for the blocks, two for the last norm
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        attend: Literal["causal", "full"] | Tensor = "causal",
        cache: Cache | None = None,
        condition: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """Run the blocks.

        x: (B, T, width). positions: (T, axes) or (B, T, axes). attend: `causal`, `full`, or a bool mask, True where a
        token may look, broadcastable to (B, heads, T, S). cache: what was read before; x is what follows it, and the
        cache moves on by T. condition: (B, width) or (B, T, width), just where the transformer was made for one.
        context: (B, S, context_width), likewise, S at least 1. context_mask: bool (B, S), True where there is something
        to read, all of it unless given; rows without anything are told nothing. Raises ValueError on a condition or
        context where none was promised, and on none where one was.
        """
        shared, last = self._modulation(condition)
        turn = self.config.rotations(positions)
        mask = attend if isinstance(attend, Tensor) else None
        told = self._context(context, context_mask, product_dtype_of(x))
        for layer, block in enumerate(self.blocks):
            x = block(x, turn, mask, isinstance(attend, str) and attend == "causal", cache, layer, shared, told)
        if cache is not None:
            cache.filled += x.shape[1]
        return _normed(x, self.norm, last)

    def _modulation(self, condition: Tensor | None) -> tuple[Tensor | None, Modulation]:
        """What the blocks share (B, 1 or T, 6, width), and the last norm's own, whose gate is not used."""
        if (condition is None) == hasattr(self, "modulation"):
            raise ValueError("a condition belongs to a transformer that was made with conditioned=True, and only there")
        if condition is None:
            return None, None
        with full_precision(condition.device):  # times that are near each other must stay apart
            made = self.modulation(F.silu(condition.float())).unflatten(-1, (8, -1))
        made = made.unsqueeze(1) if condition.ndim == 2 else made
        shift, scale = made[..., 6, :], made[..., 7, :]
        return made[..., :6, :], (shift, scale, scale)

    def _context(self, context: Tensor | None, mask: Tensor | None, dtype: torch.dtype) -> Context:
        """The context as the blocks' products take it, cast once for all of them."""
        if (context is None) != (self.context_width is None) or (context is None and mask is not None):
            raise ValueError("a context belongs to a transformer that was made with a context_width, and only there")
        return None if context is None else (context.to(dtype), None if mask is None else mask[:, None, None])

    def cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `batch` rows of up to `length` tokens, where the weights are."""
        config, weight = self.config, self.norm.weight
        width = config.width // config.heads
        return Cache(config.layers, batch, config.heads, length, width, weight.device, weight.dtype)
