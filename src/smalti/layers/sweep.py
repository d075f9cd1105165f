"""The Transformer over whole grids, again and again: the same arithmetic as `Transformer`, arranged for sampling.

A sampler asks the network a dozen or a thousand times for the same places, and without gradients. So what can be done
once is done once: weights are laid out as the products want them, and the modulations of all blocks are made together,
one time for each condition. Tokens lie by place and then by row: so queries, keys and values are read out of the
product that made them, head by head, without being copied.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smalti.device import full_precision, product, product_dtype
from smalti.layers.attention import WRITTEN_OUT
from smalti.layers.cross import CrossAttention
from smalti.layers.kept import Kept
from smalti.layers.paired import paired_norm, paired_qkv, paired_turns
from smalti.layers.transformer import Block, Transformer

AT_ONCE = 4096  # tokens whose numbers stay near the processor from one product to the next


class Modulations(NamedTuple):
    """Of two halves in every block (L, 2, B, width), and of the last norm (B, width)."""

    shift: Tensor
    scale: Tensor
    gate: Tensor
    last_shift: Tensor
    last_scale: Tensor

    def rows(self, start: int, stop: int) -> Modulations:
        return Modulations(*(each[..., start:stop, :] for each in self))


class Told(NamedTuple):
    """A context as every block reads it: keys and values (L, B, H, S, D), and what is added to scores (B, H, 1, S)."""

    keys: Tensor
    values: Tensor
    bias: Tensor

    def rows(self, start: int, stop: int) -> Told:
        return Told(self.keys[:, start:stop], self.values[:, start:stop], self.bias[start:stop])


class Sweep:
    """Reads all tokens of every row at once, each seeing all others, under a condition for each row.

    positions: (T, axes), the same for all rows. head: a product that follows, without a bias. The weights are taken as
    they are now. Raises ValueError on a transformer that was not made for conditions.
    """

    @torch.no_grad()
    def __init__(
        self, network: Transformer, positions: Tensor, dtype: torch.dtype, head: nn.Linear | None = None
    ) -> None:
        if not hasattr(network, "modulation"):
            raise ValueError("a sweep is for a transformer that was made with conditioned=True")
        blocks = [cast(Block, block) for block in network.blocks]
        self.network, self.dtype = network, dtype
        self.turns = paired_turns(positions, network.config)
        self.layers = [_Layer(block, dtype) for block in blocks]
        self.offsets = torch.stack([block.offsets.unflatten(0, (2, 3)) for block in blocks])  # (L, 2, 3, width)
        length = network.config.width**0.5  # between the rms, which the norm means, and the length, which it divides by
        norms = [torch.stack([block.attention_norm.weight, block.mlp_norm.weight]) for block in blocks]
        self.norms = torch.stack(norms).unsqueeze(2) * length  # (L, 2, 1, width)
        self.last_norm = network.norm.weight * length
        self.head = product(head.weight, dtype) if head is not None else None
        self._last: tuple[Tensor, Modulations] | None = None

    def modulated(self, condition: Tensor) -> Modulations:
        """What a condition (B, width) does in every block. The last is kept: where time is not told, it stays."""
        last = self._last
        if last is None or not torch.equal(last[0], condition):
            self._last = last = condition, self._modulated(condition)
        return last[1]

    def _modulated(self, condition: Tensor) -> Modulations:
        with full_precision(condition.device):
            made = self.network.modulation(F.silu(condition.float())).unflatten(-1, (8, -1))
        of_blocks, of_norm = made.split([6, 2], 1)
        each = of_blocks.unflatten(1, (2, 3)) + self.offsets.unsqueeze(1)  # (L, B, 2, 3, width)
        shift, scale, gate = each.transpose(1, 2).unbind(3)
        last_shift, last_scale = of_norm.unbind(1)
        scale, last_scale = (1 + scale) * self.norms, (1 + last_scale) * self.last_norm
        return Modulations(shift, scale, gate, last_shift, last_scale)

    @torch.no_grad()
    def told(self, context: Tensor, mask: Tensor) -> Told:
        """What a context (B, S, context_width), and where there is something to read, bool (B, S), are to every block.

        It stays as it is all the way through a sample, so it is to be made once. Raises ValueError on a transformer
        that was not made for contexts.
        """
        crosses = [cast(Block, block).cross for block in self.network.blocks]
        with full_precision(context.device):
            made = [each.keys_values(context.float()) for each in crosses if each is not None]
        if not made:
            raise ValueError("a context belongs to a transformer that was made with a context_width, and only there")
        keys, values = (torch.stack(each) for each in zip(*made, strict=True))
        # of nothing but what counts for nothing, softmax makes equal shares: zeros are what is to be read of it
        values = values * mask.any(1)[:, None, None, None]
        bias = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, -1e4)
        return Told(keys, values, bias[:, None, None].expand(-1, keys.shape[2], -1, -1))

    def __call__(self, x: Tensor, modulations: Modulations, told: Told | None = None) -> Tensor:
        """(B, T, width) -> what the head says of them (B, T, …), in the dtype of products; without a head themselves,
        normalised, in fp32. Raises ValueError without what it is `told` where the transformer was made for a context,
        and the other way round."""
        if (told is None) != (self.network.context_width is None):
            raise ValueError("a context belongs to a transformer that was made with a context_width, and only there")
        most = max(1, AT_ONCE // x.shape[1])
        parts = range(0, len(x), most)
        with full_precision(x.device):  # products have their dtype already, and attention has its own
            read = [
                self._read(
                    x[i : i + most], modulations.rows(i, i + most), None if told is None else told.rows(i, i + most)
                )
                for i in parts
            ]
        return read[0] if len(read) == 1 else torch.cat(read)

    def _read(self, x: Tensor, modulations: Modulations, told: Told | None) -> Tensor:
        x = x.float().transpose(0, 1).contiguous()  # (T, B, width)
        each = (of_all.unbind(0) for of_all in modulations[:3])
        for i, (layer, shift, scale, gate) in enumerate(zip(self.layers, *each, strict=True)):
            normed = self._normed(x, shift[0], scale[0]).to(self.dtype)
            x = torch.addcmul(x, gate[0], self._attention(layer, normed))
            if told is not None and layer.cross is not None:
                x = x + self._across(layer.cross, x, told.keys[i], told.values[i], told.bias)
            normed = self._normed(x, shift[1], scale[1]).to(self.dtype)
            opened, up = layer.gate_up(normed).chunk(2, -1)
            x = torch.addcmul(x, gate[1], layer.down(F.silu(opened).mul_(up)).float())
        x = self._normed(x, modulations.last_shift, modulations.last_scale)
        return (x if self.head is None else self.head(x.to(self.dtype))).transpose(0, 1)

    def _attention(self, layer: _Layer, x: Tensor) -> Tensor:
        """(T, B, width) -> (T, B, width) fp32. Between the products it runs in fp32, which is as quick for so few."""
        length, rows, _ = x.shape
        qkv = layer.qkv(x).float().view(length, -1, 3, self.turns.shape[-1] * 2)  # (T, B * H, 3, D)
        query_key = qkv[:, :, :2]
        if layer.query_key is not None:
            query_key.mul_(layer.query_key / torch.linalg.vector_norm(query_key, dim=-1, keepdim=True))
        torch.view_as_complex(query_key.unflatten(-1, (-1, 2))).mul_(self.turns)
        q, k, v = qkv.transpose(0, 1).unbind(2)
        read = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        return layer.out(self._low(read, rows)).float()

    def _across(self, cross: _Cross, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """The same over a context: keys and values (B, H, S, D), bias (B, H, 1, S)."""
        length, rows, _ = x.shape
        normed = (x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)).mul_(cross.norm)
        q = cross.query(normed.to(self.dtype)).float().view(length, -1, keys.shape[-1])  # (T, B * H, D)
        q = q.mul_(cross.query_norm / torch.linalg.vector_norm(q, dim=-1, keepdim=True)).transpose(0, 1)
        k, v, bias = (each.flatten(0, 1) for each in (keys, values, bias))
        read = torch.bmm(torch.baddbmm(bias, q, k.transpose(1, 2)).softmax(-1), v)
        return cross.out(self._low(read, rows)).float()

    def _low(self, read: Tensor, rows: int) -> Tensor:
        """What heads have read (B * H, T, D), as the product behind it wants it: (T, B, width)."""
        by_place = read.transpose(0, 1)
        low = torch.empty(by_place.shape, dtype=self.dtype, device=read.device)
        return low.copy_(by_place).view(len(low), rows, -1)

    def _normed(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return torch.addcmul(shift, x / torch.linalg.vector_norm(x, dim=-1, keepdim=True), scale)


class _Layer:
    """One block's products."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        by_head = paired_qkv(block).transpose(0, 1).flatten(0, 2)  # rows by head, then query, key and value
        self.qkv = product(by_head, dtype)
        self.out, self.gate_up, self.down = (
            product(each.weight, dtype) for each in (block.out, block.gate_up, block.down)
        )
        self.query_key = paired_norm(block)
        self.cross = None if block.cross is None else _Cross(block.cross, dtype)


class _Cross:
    """One block's products over a context; those of the context itself are taken once, by the block's own layer."""

    def __init__(self, cross: CrossAttention, dtype: torch.dtype) -> None:
        self.query, self.out = product(cross.query.weight, dtype), product(cross.out.weight, dtype)
        self.norm = cross.norm.weight * cross.query.in_features**0.5
        # the scale of attention, 1 / sqrt(D), cancels the sqrt(D) between a query's length and its rms
        self.query_norm = cross.query_norm.weight


class Sweeps:
    """A model's sweep, made anew when its weights have changed."""

    def __init__(self) -> None:
        self._kept = Kept[Sweep]()

    def of(self, network: Transformer, positions: Tensor, head: nn.Linear | None = None) -> Sweep | None:
        """None where the network itself is the better: off the processor, and where scores of all tokens with all are
        too many to be held, it has attention in one piece."""
        if positions.device.type != "cpu" or len(positions) ** 2 > WRITTEN_OUT:
            return None
        dtype = product_dtype(positions.device)
        weights = [network] if head is None else [network, head]
        return self._kept.of(weights, lambda: Sweep(network, positions, dtype, head), dtype)
