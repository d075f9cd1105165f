"""Training a tokenizer: what comes out should be what went in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor, nn

from smalti.config import Examples
from smalti.data.batch import Batch
from smalti.device import full_precision
from smalti.paradigms.base import Loss, Makes, Paradigm, ParadigmConfig
from smalti.term import Term
from smalti.tokenizers.autoencoder import Autoencoder, AutoencoderConfig, to_vectors
from smalti.tokenizers.bottlenecks import Moment


class AutoencodeConfig(ParadigmConfig):
    """Mean squared error between signal and reconstruction, on the [-1, 1] scale, and the bottleneck's own terms."""

    kind: Literal["autoencode"] = "autoencode"
    trains: ClassVar[str] = "autoencoder"
    makes: ClassVar[Makes] = "tokenizer"

    def build(self, model: AutoencoderConfig, examples: Examples, steps: int) -> Autoencode:
        return Autoencode(self, Autoencoder(model, examples.signal), steps)


class Autoencode(Paradigm):
    """Loss of VQ-VAE and its kin: reconstruction + the bottleneck's terms (arXiv 1711.00937, equation 3)."""

    def __init__(self, config: AutoencodeConfig, tokenizer: Autoencoder, steps: int) -> None:
        super().__init__()
        self.config, self.tokenizer, self.steps = config, tokenizer, steps

    def players(self) -> dict[str, nn.Module]:
        return {"tokenizer": self.tokenizer}

    def loss(self, player: str, batch: Batch, step: int) -> Loss:
        reconstruction, quantized = self.tokenizer(batch.x, self.moment(batch, step))
        with full_precision(batch.x.device):
            squares = (reconstruction.float() - batch.x).square().sum()
            # the error of the [0, 1] scale, which is what people compare: a quarter of that on [-1, 1]
            reported = Term("mse", squares.detach() / 4, batch.x.numel(), 0.0)
        terms = [Term("reconstruction", squares, batch.x.numel()), reported, *quantized.terms]
        return Loss(terms, quantized.statistics)

    def moment(self, batch: Batch, step: int) -> Moment | None:
        """What chance and schedules hang on while training; held-out examples are looked at without either."""
        return Moment(batch.seed, batch.step, batch.rows, step / self.steps) if self.training else None

    def score(self, means: Mapping[str, float], loss: float) -> float:
        # the bottleneck's terms may follow a schedule, so that the whole loss of two steps cannot be compared
        return loss if self.tokenizer.continuous else means["reconstruction"]

    def first_latents(self, batch: Batch) -> Tensor:
        return to_vectors(self.tokenizer.encoder(batch.x)).flatten(0, 1).float()

    def initialise(self, latents: Tensor) -> None:
        self.tokenizer.bottleneck.initialise(latents)

    def after_step(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        return self.tokenizer.bottleneck.after_step(statistics) if statistics else {}
