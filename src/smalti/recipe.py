"""Recipe: what to train, on what, how. A frozen tree of typed settings, JSON both ways."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from smalti.config import Config, changed, checked
from smalti.data.sources import DataConfig
from smalti.device import Precision
from smalti.errors import UserError
from smalti.layers.transformer import TransformerConfig
from smalti.paradigms import PARADIGMS, AnyParadigm
from smalti.tokenizers.autoencoder import AutoencoderConfig
from smalti.tokenizers.bottlenecks import BOTTLENECKS

MODELS: dict[str, type[Config]] = {"autoencoder": AutoencoderConfig, "transformer": TransformerConfig}
Share = Annotated[float, Field(ge=0, lt=1)]
KINDS = {**MODELS, **PARADIGMS, **BOTTLENECKS}


class TrainingConfig(Config):
    """How long and how hard to train. `batch` counts examples of one optimizer step over all ranks."""

    steps: int = Field(1000, ge=1)
    batch: int = Field(128, ge=1)
    micro_batch: int | None = Field(None, ge=1, description="examples at once on one rank; None is all of them")
    lr: float = Field(1e-3, gt=0)
    muon_lr: float | None = Field(None, gt=0, description="Muon's, on hidden matrices; None trains them by AdamW too")
    lr_end: float = Field(0.01, ge=0, le=1, description="share of the learning rate left at the end of its cosine")
    warmup: int = Field(100, ge=0, description="steps to the full learning rate")
    weight_decay: float = Field(0.05, ge=0, description="on matrices and kernels only")
    betas: tuple[Share, Share] = (0.9, 0.95)
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    ema: float = Field(0.999, ge=0, lt=1, description="most that the running average of the weights keeps a step")
    init_share: float = Field(
        0.0, ge=0, lt=1, description="how much of the weights kept are those that training began with (--init)"
    )
    seed: int = Field(0, ge=0, lt=1 << 32)
    precision: Precision = "auto"
    validate_every: int = Field(250, ge=1)
    keep: Literal["best", "last"] = Field("best", description="which of the held-out losses is that of the model")
    validate_on: int = Field(2000, ge=1, description="held-out examples looked at each time")
    log_every: int = Field(10, ge=1)
    save_seconds: float = Field(8.0, gt=0, description="most work that a kill may cost")
    variants: int = Field(1, ge=1, description="for generators: how many augmented codings of each example to cache")


class Recipe(Config):
    """The full description of one training. A generator's `tokenizer` is a recipe, trained first, or a run's path."""

    name: str
    data: DataConfig
    model: Annotated[AutoencoderConfig | TransformerConfig, Field(discriminator="kind")]
    paradigm: AnyParadigm
    training: TrainingConfig = TrainingConfig()
    tokenizer: Recipe | str | None = None
    init: str | None = Field(None, description="a run whose weights training starts from")

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        wanted = self.paradigm.trains
        if self.model.kind != wanted:
            raise ValueError(f"paradigm {self.paradigm.kind} trains model.kind {wanted}, not {self.model.kind}")
        if self.paradigm.makes != "tokenizer":
            if self.paradigm.reads != "signals" and self.tokenizer is None:
                raise ValueError(f"paradigm {self.paradigm.kind} needs a tokenizer: a recipe, or the path of a run")
            if self.paradigm.reads == "signals" and self.tokenizer is not None:
                raise ValueError(f"paradigm {self.paradigm.kind} on pixels takes no tokenizer; leave it out")
            if isinstance(self.tokenizer, Recipe):
                self._check_tokenizer(self.tokenizer)
        per_rank, micro = self.training.batch, self.training.micro_batch
        if micro and per_rank % micro:
            raise ValueError(f"training.batch {per_rank} is not a multiple of training.micro_batch {micro}")
        if self.paradigm.whole_batch and (micro or per_rank) < per_rank:
            raise ValueError(
                f"paradigm {self.paradigm.kind} compares all examples of a batch with each other: leave"
                " training.micro_batch out"
            )
        if self.paradigm.whole_batch and per_rank < 2:
            raise ValueError(f"paradigm {self.paradigm.kind} compares examples: training.batch must be 2 or more")
        return self

    def _check_tokenizer(self, tokenizer: Recipe) -> None:
        """What would only come to light when the tokenizer has been trained."""
        bottleneck = getattr(tokenizer.model, "bottleneck", None)
        if self.paradigm.reads == "codes" and bottleneck is not None and bottleneck.kind == "kl":
            raise ValueError(
                f"paradigm {self.paradigm.kind} reads codes, and tokenizer.model.bottleneck kl has none: choose another"
            )
        for name in ("shape", "channels"):
            ours, theirs = getattr(self.data, name), getattr(tokenizer.data, name)
            if None not in (ours, theirs) and ours != theirs:
                raise ValueError(f"data.{name} {ours} and tokenizer.data.{name} {theirs} differ: set both alike")

    @property
    def generates(self) -> bool:
        """Whether this recipe trains a generator, rather than a tokenizer or an aligner."""
        return self.paradigm.makes == "generator"

    def json_text(self) -> str:
        """Everything, every default spelled out."""
        return self.model_dump_json(indent=2) + "\n"

    def changed(self, **changes: Any) -> Recipe:
        """A copy with dotted fields changed: `recipe.changed(**{"training.steps": 10})`. Raises UserError."""
        return override(self, changes)


def parse(settings: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from its JSON tree. Raises UserError naming the field that is wrong."""
    return checked(Recipe, settings, where)


def read(path: Path) -> Recipe:
    """The recipe in a run folder's recipe.json."""
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")), str(path))
    except FileNotFoundError as error:
        raise UserError(f"no recipe at {path}: is {path.parent} the folder of a run?") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error


def override(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Change dotted fields, each value given as itself or as text (JSON, or a plain word). Raises UserError.

    Choosing another `kind` starts that group of settings from its own defaults.
    """
    return changed(recipe, changes, KINDS)
