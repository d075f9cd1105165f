"""The table of bottlenecks. A new one is a new file and a line here."""

from __future__ import annotations

from smalti.config import Config, one_of
from smalti.tokenizers.bottlenecks.base import Bottleneck, Moment, Quantized, Statistic
from smalti.tokenizers.bottlenecks.fsq import FSQConfig
from smalti.tokenizers.bottlenecks.gumbel import GumbelConfig
from smalti.tokenizers.bottlenecks.kl import KLConfig
from smalti.tokenizers.bottlenecks.lfq import LFQConfig
from smalti.tokenizers.bottlenecks.rvq import RVQConfig
from smalti.tokenizers.bottlenecks.vq import VQConfig

BOTTLENECKS: dict[str, type[Config]] = {
    "vq": VQConfig,
    "rvq": RVQConfig,
    "fsq": FSQConfig,
    "lfq": LFQConfig,
    "gumbel": GumbelConfig,
    "kl": KLConfig,
}
AnyBottleneck = one_of(BOTTLENECKS)

__all__ = ["BOTTLENECKS", "AnyBottleneck", "Bottleneck", "Moment", "Quantized", "Statistic"]
