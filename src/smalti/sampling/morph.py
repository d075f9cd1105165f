"""Morphing: cross-fading two signals' code grids position by position, or moving through a latent or through noise."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from smalti.errors import UserError
from smalti.model import Generator, Labels, Tokenizer
from smalti.paradigms.diffusion import Diffusion
from smalti.paradigms.noise import slerp
from smalti.sampling.files import padded, read_fitted, read_signal, same_shape, spare, write_picture


def morph_codes(first: Tensor, second: Tensor, steps: int, seed: int = 0) -> Tensor:
    """Blends (steps, Q, *grid) from `first` to `second`, both int64 (Q, *grid).

    One random field decides when each position changes over, so every blend contains what the one before had taken
    from `second`; the first blend is `first` and the last is `second`. Raises UserError on different grids.
    """
    if first.shape != second.shape:
        raise UserError(f"a morph needs two signals of one size; got grids {first.shape[1:]} and {second.shape[1:]}")
    _check_steps(steps)
    generator = torch.Generator().manual_seed(seed)
    field = torch.rand(first.shape[1:], generator=generator)
    amounts = torch.linspace(0, 1, steps).view(-1, *[1] * field.ndim)
    return torch.where((field < amounts)[:, None], second, first)


def morph_latents(first: Tensor, second: Tensor, steps: int) -> Tensor:
    """The straight line (steps, D, *grid) from `first` to `second`, both (D, *grid), both ends exact."""
    _check_steps(steps)
    along = torch.linspace(0, 1, steps).view(-1, *[1] * first.ndim)
    return torch.lerp(first, second, along)


def morph(tokenizer: Tokenizer, first: Tensor, second: Tensor, steps: int, seed: int = 0) -> Tensor:
    """Pictures (steps, C, H, W) on the way from `first` to `second`, both (C, H, W) in [-1, 1].

    A continuous tokenizer interpolates its latents linearly, the way of the VAE; `seed` then means nothing.
    """
    pair = torch.stack([first, second])
    if tokenizer.network.continuous:
        start, end = tokenizer.latents(pair)
        return tokenizer.decode_latents(morph_latents(start, end, steps))
    start, end = tokenizer.encode(pair)
    return tokenizer.decode(morph_codes(start, end, steps, seed))


@torch.no_grad()
def morph_in_noise(generator: Generator, first: Tensor, second: Tensor, steps: int, condition: Labels = None) -> Tensor:
    """Pictures (steps, C, H, W) on the way from `first` to `second`, both (C, H, W) in [-1, 1].

    Both are turned into the noise they would be drawn from, and the great circle between these is walked (Song et al.
    2020, arXiv 2010.02502, section 5.3). Raises UserError where the model is no diffusion model.
    """
    _check_steps(steps)
    paradigm = generator.paradigm
    if not isinstance(paradigm, Diffusion):
        raise UserError(
            f"paradigm {generator.recipe.paradigm.kind} has no noise to walk through; leave --through noise out"
        )
    pair = generator.inwards(torch.stack([first, second]))
    one, other = paradigm.noise_of(pair, generator.conditions(condition, 2))
    noise = torch.cat([slerp(one[None], other[None], share) for share in torch.linspace(0, 1, steps).tolist()])
    return generator.outwards(paradigm.from_noise(noise, generator.conditions(condition, steps)).cpu())


def _check_steps(steps: int) -> None:
    if steps < 2:
        raise UserError(f"a morph needs at least 2 steps, from one signal to the other; got {steps}")


def morph_files(tokenizer: Tokenizer, first: Path, second: Path, steps: int, seed: int, out: Path) -> None:
    """Write a morph between two pictures of one size as one strip.

    Raises UserError when the sizes differ, and as `spare` does.
    """
    spare([out], [first, second])
    a, b = read_signal(first, tokenizer.signal), read_signal(second, tokenizer.signal)
    same_shape(a, b, (str(first), str(second)))
    height, width = a.shape[1:]
    stride = tokenizer.network.stride
    blends = morph(tokenizer, padded(a, stride), padded(b, stride), steps, seed)
    text = {"smalti:model": tokenizer.sha256, "smalti:seed": str(seed)}
    write_picture(out, torch.cat(list(blends[:, :, :height, :width]), -1), text)


def morph_files_in_noise(
    generator: Generator, first: Path, second: Path, steps: int, condition: Labels, out: Path
) -> None:
    """Write a morph through noise between two pictures, in the shape the model was trained on, as one strip."""
    spare([out], [first, second])
    blends = morph_in_noise(generator, read_fitted(first, generator), read_fitted(second, generator), steps, condition)
    write_picture(out, torch.cat(list(blends), -1), {"smalti:model": generator.sha256})
