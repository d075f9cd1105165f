"""The table of bottlenecks. A new one is a new file and a line here."""

from __future__ import annotations

from smalti.config import Config, one_of
from smalti.tokenizers.bottlenecks.base import Bottleneck, Quantized, Statistic
from smalti.tokenizers.bottlenecks.vq import VQConfig

BOTTLENECKS: dict[str, type[Config]] = {
    "vq": VQConfig,
}
AnyBottleneck = one_of(BOTTLENECKS)

__all__ = ["BOTTLENECKS", "AnyBottleneck", "Bottleneck", "Quantized", "Statistic"]
