"""The tokenizer: encoder, bottleneck, decoder, over signals of one, two or three dimensions."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from smalti.config import CodeSpec, Config, SignalSpec
from smalti.errors import UserError
from smalti.layers.convnet import Decoder, Encoder, total_stride
from smalti.tokenizers.bottlenecks import AnyBottleneck, Moment, Quantized
from smalti.tokenizers.bottlenecks.vq import VQConfig


class AutoencoderConfig(Config):
    """The network of a tokenizer. `strides` from the signal inwards: (4,) cuts 28x28 into a 7x7 grid at once.

    A `local` encoder gives the same part of a signal the same code wherever it stands and whatever is beside it: a
    generator then learns far fewer codes for each thing, and the decoder, which sees around, has to hide the seams.
    """

    kind: Literal["autoencoder"] = "autoencoder"
    width: int = Field(96, ge=1, description="channels at the grid")
    strides: tuple[PositiveInt, ...] = Field((4,), min_length=1)
    blocks: int = Field(2, ge=0, le=1000, description="residual blocks a level")
    local: bool = Field(False, description="encode each position of the grid from what lies under it alone")
    bottleneck: AnyBottleneck = VQConfig()


class Autoencoder(nn.Module):
    """Cuts signals into codes and lays them again.

    signal: x is float (B, channels, *space) in [-1, 1]; any space divisible by the stride will do.
    codes: int64 (B, codebooks, *space / stride).
    """

    def __init__(self, config: AutoencoderConfig, signal: SignalSpec) -> None:
        super().__init__()
        self.config, self.signal = config, signal
        self.stride = total_stride(config.strides)
        if any(side % self.stride for side in signal.shape):
            raise UserError(
                f"pictures of {'x'.join(map(str, signal.shape))} do not divide by the tokenizer's stride {self.stride};"
                f" choose --data.shape in multiples of {self.stride}, or other --model.strides"
            )
        dimensions = len(signal.shape)
        self.bottleneck = config.bottleneck.build()
        shape = (config.width, config.strides, config.blocks)
        self.encoder = Encoder(dimensions, signal.channels, self.bottleneck.in_width, *shape, config.local)
        self.decoder = Decoder(dimensions, self.bottleneck.out_width, signal.channels, *shape)

    @property
    def continuous(self) -> bool:
        """Whether it has latents only, and no codes."""
        return not self.bottleneck.codebooks

    @property
    def codes(self) -> CodeSpec:
        """What the codes of one signal of the trained shape look like. Raises UserError where there are none."""
        self._needs_codes()
        grid = tuple(side // self.stride for side in self.signal.shape)
        return CodeSpec(codebooks=self.bottleneck.codebooks, grid=grid, size=self.bottleneck.size)

    def forward(self, x: Tensor, moment: Moment | None = None) -> tuple[Tensor, Quantized]:
        """The reconstruction (B, C, *space), not clamped, and what the bottleneck saw."""
        self._check(x)
        z = self.encoder(x)
        quantized = self.bottleneck(to_vectors(z), moment)
        return self.decoder(to_grid(quantized.vectors, z.shape[2:])), quantized

    def encode(self, x: Tensor) -> Tensor:
        """x (B, C, *space) in [-1, 1] -> codes int64 (B, codebooks, *grid). Raises UserError on a wrong shape."""
        self._needs_codes()
        self._check(x)
        z = self.encoder(x)
        return to_grid(self.bottleneck(to_vectors(z)).codes, z.shape[2:])

    def decode(self, codes: Tensor) -> Tensor:
        """codes int64 (B, codebooks, *grid) -> x (B, C, *space) in [-1, 1]. Raises UserError on codes out of range.

        Where the bottleneck allows it (`fewer`: residual codes), the first few codebooks will do.
        """
        self._needs_codes()
        expected, size, books = len(self.signal.shape) + 2, self.bottleneck.size, self.bottleneck.codebooks
        least = 1 if self.bottleneck.fewer else books
        if codes.is_floating_point() or codes.dtype == torch.bool:
            raise UserError(f"codes are whole numbers, int64; got {codes.dtype}")
        if codes.ndim != expected or not least <= codes.shape[1] <= books or 0 in codes.shape[2:]:
            raise UserError(
                f"codes of shape {tuple(codes.shape)} do not fit: expected (B, {books}, *grid) with {expected - 2}"
                " grid axes" + (f", or the first of the {books}" if least < books else "")
            )
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < size:
            raise UserError(f"codes must lie in [0, {size}); got [{int(codes.min())}, {int(codes.max())}]")
        vectors = self.bottleneck.lookup(codes.long().flatten(2).movedim(1, -1))
        return self.decode_latents(to_grid(vectors, codes.shape[2:]))

    @torch.no_grad()
    def code_vectors(self) -> Tensor:
        """What the decoder is given for every code, (codebooks, size, out_width): each beside codes 0 of the others."""
        self._needs_codes()
        books, size = self.bottleneck.codebooks, self.bottleneck.size
        every = torch.zeros(books, size, books, dtype=torch.long, device=next(self.parameters()).device)
        for book in range(books):
            every[book, :, book] = torch.arange(size)
        return self.bottleneck.lookup(every)

    def latents(self, x: Tensor) -> Tensor:
        """x (B, C, *space) -> the continuous latent that `decode_latents` lays again, (B, out_width, *grid).

        It is what gets quantized, or the mean of a KL bottleneck. Raises UserError on a wrong shape.
        """
        self._check(x)
        z = self.encoder(x)
        return to_grid(self.bottleneck.latent(to_vectors(z)), z.shape[2:])

    def decode_latents(self, z: Tensor) -> Tensor:
        """(B, out_width, *grid) -> x (B, C, *space), clamped to [-1, 1]. Raises UserError on a wrong shape."""
        expected, width = len(self.signal.shape) + 2, self.bottleneck.out_width
        if z.ndim != expected or z.shape[1] != width or 0 in z.shape[2:]:
            raise UserError(
                f"latents of shape {tuple(z.shape)} do not fit: expected (B, {width}, *grid) with {expected - 2}"
                " grid axes"
            )
        return self.decoder(z).float().clamp(-1, 1)

    def _check(self, x: Tensor) -> None:
        space, channels = x.shape[2:], self.signal.channels
        if not x.is_floating_point():
            raise UserError(
                f"a signal is float in [-1, 1]; got {x.dtype} (smalti.data.image.to_signal converts pixels)"
            )
        if x.ndim != len(self.signal.shape) + 2 or x.shape[1] != channels:
            raise UserError(
                f"a signal of shape {tuple(x.shape)} does not fit: expected (B, {channels}, *space) with"
                f" {len(self.signal.shape)} axes of space"
            )
        if any(side % self.stride or side == 0 for side in space):
            raise UserError(f"a signal of {'x'.join(map(str, space))} does not divide by the stride {self.stride}")

    def _needs_codes(self) -> None:
        if self.continuous:
            raise UserError("this tokenizer is continuous: it has latents and no codes; ask for its latents instead")


def to_vectors(grid: Tensor) -> Tensor:
    """(B, D, *grid) -> (B, N, D)."""
    return grid.flatten(2).movedim(1, -1)


def to_grid(vectors: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(B, N, D) -> (B, D, *grid): vectors, or codes."""
    assert vectors.shape[1] == math.prod(grid)
    return vectors.movedim(-1, 1).unflatten(2, tuple(grid))
