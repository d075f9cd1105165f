"""Pictures and texts in one space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from smalti.errors import UserError
from smalti.model.base import BATCH, Model


class Aligner(Model):
    """Pictures and texts as unit vectors of one space: the larger the product of two, the better they fit.

    Everything is in fp32, so that what it finds does not hang on the hardware.
    """

    @torch.no_grad()
    def pictures(self, x: Tensor) -> Tensor:
        """x (B, C, *space) in [-1, 1], in the shape it was trained on -> unit vectors fp32 (B, D).

        Raises UserError on another shape and on values that are not finite.
        """
        shape = (self.signal.channels, *self.signal.shape)
        if not x.is_floating_point() or x.shape[1:] != shape:
            wanted = ", ".join(map(str, ("B", *shape)))
            raise UserError(f"pictures to align are float ({wanted}) in [-1, 1]; got {x.dtype} {tuple(x.shape)}")
        if not bool(x.isfinite().all()):
            raise UserError("some of the values given are not finite (NaN or infinite); a signal lies in [-1, 1]")
        parts = [self.paradigm.pictures(part.float().to(self.device)) for part in x.split(BATCH) if len(part)]  # type: ignore[operator]
        return self._vectors(parts).to(x.device)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """B texts -> unit vectors fp32 (B, D).

        Raises UserError on a single text that stands in no list, and on one that is no proper Unicode.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise UserError("texts to align are a list of them, as in texts(['a red apple'])")
        parts = [self.paradigm.texts(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)]  # type: ignore[operator]
        return self._vectors(parts).cpu()

    def similarity(self, x: Tensor, texts: Sequence[str]) -> Tensor:
        """The cosines in [-1, 1] of pictures (B, C, *space) and N texts, (B, N); errors as of both."""
        return self.pictures(x).cpu() @ self.texts(texts).T

    def _vectors(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([torch.zeros(0, self.recipe.paradigm.width, device=self.device), *parts])
