"""Keys and values of the tokens already read, in memory taken once."""

from __future__ import annotations

import torch
from torch import Tensor


class Cache:
    """Room for `length` tokens of `batch` rows in every layer. `filled` says how many have been read."""

    def __init__(
        self, layers: int, batch: int, heads: int, length: int, width: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (layers, batch, heads, length, width)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.filled = 0

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, H, T, width) behind what is there; gives back all that has been read, (B, H, filled + T, width)."""
        end = self.filled + keys.shape[2]
        if end > self.keys.shape[3]:
            raise ValueError(f"the cache holds {self.keys.shape[3]} tokens, {end} were given")
        self.keys[layer, :, :, self.filled : end] = keys
        self.values[layer, :, :, self.filled : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
