"""Classifier-free guidance: away from what the model would draw for no class (Ho & Salimans 2022, arXiv 2207.12598).

One convention everywhere: u + s (c - u), with c the prediction for the class and u the one without; s = 1 is none.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field
from torch import Tensor

from smalti.config import Config


class GuidanceConfig(Config):
    """How hard samples are pulled towards their class, and where on the way from the first choice to the last.

    `guidance_ramp`: `none` pulls equally all the way; `linear` and `cosine` rise from no guidance at the first choice
    to the whole at the last. `guidance_from` and `guidance_until` leave it out before and after those shares of the
    way (Kynkäänniemi et al. 2024, arXiv 2404.07724).
    """

    guidance: float = Field(1.0, ge=0, le=1000, description="s of u + s (c - u); 1 is none")
    guidance_ramp: Literal["none", "linear", "cosine"] = "none"
    guidance_from: float = Field(0.0, ge=0, le=1, description="share of the way before which there is none")
    guidance_until: float = Field(1.0, ge=0, le=1, description="share of the way after which there is none")

    def scale(self, along: float) -> float:
        """s at this share of the way, in [0, 1]."""
        if not self.guidance_from <= along <= self.guidance_until:
            return 1.0
        share = {"none": 1.0, "linear": along, "cosine": 0.5 - 0.5 * math.cos(math.pi * along)}[self.guidance_ramp]
        return 1 + share * (self.guidance - 1)


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """u + s (c - u)."""
    return unconditional + scale * (conditional - unconditional)
