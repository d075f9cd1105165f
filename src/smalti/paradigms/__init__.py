"""The table of paradigms. A new one is a new file and a line here."""

from __future__ import annotations

from smalti.config import Config, one_of
from smalti.paradigms.adversarial import AdversarialConfig
from smalti.paradigms.autoencode import AutoencodeConfig
from smalti.paradigms.autoregressive import AutoregressiveConfig
from smalti.paradigms.contrastive import ContrastiveConfig
from smalti.paradigms.diffusion import DiffusionConfig
from smalti.paradigms.discrete_diffusion import DiscreteDiffusionConfig
from smalti.paradigms.interleaved import InterleavedConfig

PARADIGMS: dict[str, type[Config]] = {
    "autoencode": AutoencodeConfig,
    "adversarial": AdversarialConfig,
    "autoregressive": AutoregressiveConfig,
    "diffusion": DiffusionConfig,
    "discrete-diffusion": DiscreteDiffusionConfig,
    "interleaved": InterleavedConfig,
    "contrastive": ContrastiveConfig,
}
AnyParadigm = one_of(PARADIGMS)
