"""Cross-attention: tokens read a context that stands beside them, such as the pieces of a caption.

As PixArt-alpha has it (Chen et al. 2023, arXiv 2310.00426, section 2.3): between self-attention and the MLP, untouched
by the condition, and with an output product that starts at zero, so that an untrained one changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smalti.layers.attention import attend
from smalti.layers.norm import RMSNorm


class CrossAttention(nn.Module):
    """Tokens (B, T, width) and a context (B, S, context_width) -> what is to be added to the tokens (B, T, width).

    Queries and keys are normalised (Henry et al. 2020, arXiv 2010.04245) and not turned: where a token stands in its
    picture says nothing of a place in the context, and the context knows its own order.
    """

    def __init__(self, width: int, heads: int, context_width: int) -> None:
        super().__init__()
        self.heads, head_width = heads, width // heads
        self.norm = RMSNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(context_width, 2 * width, bias=False)
        self.query_norm, self.key_norm = RMSNorm(head_width), RMSNorm(head_width)
        self.out = nn.Linear(width, width, bias=False)
        for layer in (self.query, self.key_value):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        """mask: bool (B, 1, 1, S), True where there is something to read; a row without any is given zeros. dtype: that
        of the products."""
        q = self.query(self.norm(x, dtype=dtype)).unflatten(-1, (self.heads, -1))  # (B, T, H, D)
        k, v = self.keys_values(context)
        read = attend(self.query_norm(q).transpose(1, 2), k, v, mask, causal=False)
        return self.out(read.transpose(1, 2).flatten(2))

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, context_width) -> keys, normalised, and values, (B, H, S, D) each."""
        k, v = self.key_value(context).unflatten(-1, (2, self.heads, -1)).unbind(2)
        return self.key_norm(k).transpose(1, 2), v.transpose(1, 2)
