"""A trained tokenizer in use: signals to codes or latents and back, in batches and tiles, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from smalti.device import autocast
from smalti.errors import UserError
from smalti.model.base import BATCH, Model
from smalti.tokenizers.autoencoder import Autoencoder
from smalti.tokenizers.bottlenecks import Moment
from smalti.tokenizers.tiling import in_tiles

PRIOR_STREAM = 130  # of random numbers: what is drawn from a continuous tokenizer's prior


class Tokenizer(Model):
    """Cuts signals (B, C, *space) in [-1, 1] into codes int64 (B, Q, *grid), and lays them again.

    A continuous one has latents (B, D, *grid) instead; what is about codes raises UserError. Signals of any size will
    do whose sides divide by the stride: large ones are cut in tiles that overlap (`smalti.tokenizers.tiling`), so that
    beside what comes in and goes out, memory does not grow with them.
    """

    @property
    def network(self) -> Autoencoder:
        return self.paradigm.tokenizer  # type: ignore[return-value]

    @torch.no_grad()
    def encode(self, x: Tensor, codebooks: int | None = None) -> Tensor:
        """x (B, C, *space) in [-1, 1] -> codes int64 (B, Q, *grid).

        `codebooks` keeps the first so many of a residual tokenizer, for a lower bitrate. Raises UserError on a wrong
        shape, on values that are not finite, and where there are not so many codebooks or they belong together.
        """
        count = self.codebooks(codebooks)
        return self._inwards(lambda part: self.network.encode(part)[:, :count], x)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """codes int64 (B, Q, *grid) -> x (B, C, *space) in [-1, 1]. Raises UserError on codes out of range.

        The first codebooks of a residual tokenizer will do.
        """
        return self._outwards(self.network.decode, codes)

    @torch.no_grad()
    def latents(self, x: Tensor) -> Tensor:
        """x (B, C, *space) -> (B, D, *grid): what the bottleneck quantizes, or the mean of a continuous one.

        Raises UserError on a wrong shape and on values that are not finite.
        """
        return self._inwards(lambda part: self.network.latents(part).float(), x)

    @torch.no_grad()
    def decode_latents(self, z: Tensor) -> Tensor:
        """(B, D, *grid) -> x (B, C, *space) in [-1, 1]."""
        return self._outwards(self.network.decode_latents, z)

    def reconstruct(self, x: Tensor, codebooks: int | None = None) -> Tensor:
        """x -> codes -> x, or latents for a continuous tokenizer. `codebooks` as in `encode`."""
        if self.network.continuous and codebooks is None:
            return self.decode_latents(self.latents(x))
        return self.decode(self.encode(x, codebooks))

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """New signals (n, C, *space) of a continuous tokenizer: latents drawn from its prior N(0, 1), and laid.

        They have the shape it was trained on. Sample i draws its noise from (seed, i), however the work is split.
        Raises UserError for a tokenizer of codes, which has no prior of its own.
        """
        parts = list(self.samples(n, seed))
        return torch.cat(parts) if parts else torch.zeros(0, self.signal.channels, *self.signal.shape)

    def samples(self, n: int, seed: int = 0) -> Iterator[Tensor]:
        """`sample`, some signals (B, C, *space) after the other, so that memory does not grow with n."""
        if not self.network.continuous:
            raise UserError("a tokenizer of codes draws nothing new: that needs a generator over its codes, trained")
        if n < 0:
            raise UserError(f"cannot draw {n} samples; ask for 1 or more")
        shape = (self.network.bottleneck.out_width, *(side // self.network.stride for side in self.signal.shape))
        for start in range(0, n, BATCH):
            moment = Moment(seed, 0, torch.arange(start, min(n, start + BATCH)), 0.0)
            yield self.decode_latents(moment.normal(PRIOR_STREAM, shape, torch.device("cpu")))

    def codebooks(self, first: int | None = None) -> int:
        """How many codebooks `encode` gives when asked for the first so many; None asks for all.

        Raises UserError for a continuous tokenizer, one that is not residual, and a number out of range.
        """
        there = self.network.codes.codebooks
        if first is None:
            return there
        if not self.network.bottleneck.fewer:
            raise UserError("this tokenizer is not residual: its codes mean nothing in part; leave the codebooks out")
        if not 1 <= first <= there:
            raise UserError(f"{first} codebooks: this tokenizer has 1 to {there}")
        return first

    def _inwards(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise UserError(f"signals are a float tensor (B, C, *space) in [-1, 1], not {type(x).__name__}")
        return self._in_parts(function, x, self.network.stride, 1, self.network.encoder.margin)

    def _outwards(self, function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        return self._in_parts(function, values, 1, self.network.stride, self.network.decoder.margin)

    def _in_parts(
        self, function: Callable[[Tensor], Tensor], values: Tensor, given: int, made: int, margin: int
    ) -> Tensor:
        """On the device and back, in batches and tiles."""

        def there_and_back(part: Tensor) -> Tensor:
            if part.is_floating_point():
                if not bool(part.isfinite().all()):
                    raise UserError(
                        "some of the values given are not finite (NaN or infinite); a signal lies in [-1, 1]"
                    )
                part = part.float()  # also numpy's float64, which networks do not take
            return function(part.to(self.device)).to(values.device)

        with autocast(self.device):
            return in_tiles(there_and_back, values, given=given, made=made, margin=margin, rows=BATCH)
