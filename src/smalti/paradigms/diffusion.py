"""A diffusion transformer: noise is taken from a signal, or from a tokenizer's latents, little by little.

Peebles & Xie 2022 (arXiv 2212.09748): the signal is cut into patches, each a token; time and class condition every
layer. The class of a share of the examples is hidden while training, for guidance.

With text it is P(picture | caption): every layer also reads the caption, by cross-attention (Chen et al. 2023, arXiv
2310.00426), and the caption as a whole takes the place of the class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from smalti.config import CodeSpec, Examples, Reads
from smalti.data.batch import Batch
from smalti.device import autocast, full_precision, weights_ready
from smalti.errors import UserError
from smalti.layers.embed import TimeEmbedding
from smalti.layers.sweep import Sweep, Sweeps
from smalti.layers.transformer import Transformer, TransformerConfig
from smalti.paradigms import likelihood
from smalti.paradigms.base import Loss, Paradigm, ParadigmConfig, Progress, untold
from smalti.paradigms.bound import WEIGHT, variational_bound
from smalti.paradigms.codes import check_finite, class_ids, grid_positions, shown_labels
from smalti.paradigms.guidance import GuidanceConfig, guide
from smalti.paradigms.noise import PATHS, Estimate, PathName, Predicts
from smalti.paradigms.solvers import (
    Denoise,
    Keep,
    Noise,
    Variance,
    Watch,
    as_it_is,
    ddim,
    ddpm,
    dpm_solver_2m,
    euler,
    heun,
    moved,
)
from smalti.paradigms.text_encoder import Context, PretrainedReader, TextEncoder, TextEncoderConfig, shown_texts
from smalti.term import Term
from smalti.tokenizers.bottlenecks import Moment

# streams of random numbers, apart from that of labels: no two decisions share one
TIME, NOISE, START, ON_THE_WAY, PROBE = 3, 4, 5, 6, 7
LIKELIHOOD_STEPS = 50
GAMMA = 4.0  # where the soft weight of the signal-to-noise ratio bends
ROUNDS = 3  # in which a step of the inversion is made exact
LEAST_DEVIATION = 1e-3  # of a channel: one that never changes is not blown up

Asked = Tensor | Sequence[str | None] | None  # class ids (n,), or n prompts


class DiffusionOptions(GuidanceConfig):
    """How to sample. Steps are evenly spaced; a path in 1,000 steps has no more than those."""

    solver: Literal["ddpm", "ddim", "euler", "heun", "dpm-solver-2m"] = "ddim"
    steps: int = Field(50, ge=1, le=10_000)
    eta: float = Field(0.0, ge=0, le=1, description="noise that ddim adds on the way; 1 is as much as ddpm's")
    clip: bool = Field(True, description="hold predicted signals within [-1, 1]; latents are never held")


class DiffusionConfig(ParadigmConfig):
    """`path` says how noise comes in, `predict` what the network is asked for. The loss is the mean squared error of
    that, on data of mean 0 and deviation 1.

    `variance` is that of the solver ddpm; `learned` needs the path ddpm, and adds the variational bound to the loss.
    `times`: which noise levels are trained on, all alike, or rather those in the middle (`logit-normal`: Esser et al.
    2024, arXiv 2403.03206, section 3.1). A `shift` above 1 moves them towards noise (section 5.3.2): with little of it
    an example gives itself away, and what a caption says is hardly looked at. `weighting` soft-min-snr holds back the
    levels that are nearly free of noise (Crowson et al. 2024, arXiv 2401.11605, section 3.4). `text` says how captions
    are read; with it, labels are not used. `sampling` are the options used when none are given.
    """

    kind: Literal["diffusion"] = "diffusion"
    trains: ClassVar[str] = "transformer"
    on: Literal["pixels", "latents"] = "pixels"
    patch: int = Field(2, ge=1, description="side of what becomes one token")
    path: PathName = "flow"
    predict: Predicts = "velocity"
    variance: Variance = "fixed-small"
    times: Literal["uniform", "logit-normal"] = "uniform"
    shift: float = Field(1.0, ge=0.01, le=100, description="above 1, training sees more noise")
    weighting: Literal["none", "soft-min-snr"] = "none"
    label_dropout: float = Field(0.1, ge=0, le=1, description="share of examples that train without their class")
    text: TextEncoderConfig | None = Field(None, description="how captions are read; none is told labels")
    sampling: DiffusionOptions = DiffusionOptions()

    @model_validator(mode="after")
    def _fits(self) -> DiffusionConfig:
        if self.variance == "learned" and self.path != "ddpm":
            raise ValueError(f"a learned variance belongs to the path ddpm, not to {self.path}")
        if self.predict == "noise" and self.path == "flow":
            raise ValueError(
                "on the path flow, predict velocity or data: where all is noise, noise says nothing of them"
            )
        return self

    @property
    def reads(self) -> Reads:
        return "signals" if self.on == "pixels" else "latents"

    @property
    def words(self) -> bool:
        return self.text is not None

    @property
    def pieces(self) -> int | None:
        """Most pieces of text in the vocabulary that is to be learnt; None where there is none to learn."""
        return None if self.text is None or self.text.folder is not None else self.text.pieces

    @property
    def longest(self) -> int | None:
        """Pieces of a text that are read."""
        return None if self.text is None else self.text.longest

    def check(self) -> None:
        if self.text is not None and self.text.folder is not None:
            PretrainedReader(self.text, 1)

    def build(self, model: TransformerConfig, examples: Examples, steps: int) -> Diffusion:
        """Raises UserError where there are no latents, or no captions for a model of text, and where patches do not
        fit."""
        classes, pieces = len(examples.labels), 0
        if self.pieces is not None:
            if examples.text is None:
                raise UserError("a model of text needs captions, and this data has none; leave --paradigm.text out")
            pieces = examples.text.pieces
        if self.on == "pixels":
            return Diffusion(self, model, examples.signal.channels, examples.signal.shape, classes, pieces)
        if examples.latents is None:
            raise UserError(
                "diffusion on latents needs a tokenizer, and this recipe has none: add one, or --paradigm.on pixels"
            )
        return Diffusion(self, model, examples.latents.channels, examples.latents.grid, classes, pieces)


class Diffusion(Paradigm):
    """A diffusion model over signals or latents: float (B, C, *space), any number of axes.

    With text, `classes` means nothing; `text` cuts texts into its `pieces`, unless they are read by an encoder from
    disk.
    """

    positions: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        config: DiffusionConfig,
        network: TransformerConfig,
        channels: int,
        space: Sequence[int],
        classes: int = 0,
        pieces: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.path = config, PATHS[config.path]
        self.classes = 0 if config.words else classes
        self.shape = (channels, *space)
        if any(side % config.patch for side in space):
            sides = "×".join(map(str, space))
            raise UserError(f"patches of {config.patch} do not fill {sides}: --paradigm.patch must divide every side")
        self.grid = tuple(side // config.patch for side in space)
        self.learned = config.variance == "learned"
        size, width = channels * config.patch ** len(self.grid), network.width
        self.time = TimeEmbedding(width)
        if not config.words:
            self.label = nn.Embedding(classes + 1, width)  # the last row is "no class"
        self.patches = nn.Linear(size, width)
        self.place = nn.Parameter(torch.randn(math.prod(self.grid), width) * 0.02)
        self.network = Transformer(network, conditioned=True, context_width=width if config.words else None)
        self.sweeps = Sweeps()
        self.head = nn.Linear(width, size * (1 + self.learned))
        if not config.words:
            nn.init.normal_(self.label.weight, std=0.02)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.encoder = None if config.text is None else TextEncoder(config.text, network, pieces)
        places = grid_positions(CodeSpec(codebooks=1, grid=self.grid, size=1))
        self.register_buffer("positions", places, persistent=False)
        self.register_buffer("mean", torch.zeros(channels))  # of the data, measured before the first step
        self.register_buffer("deviation", torch.ones(channels))

    def players(self) -> dict[str, nn.Module]:
        return {"network": self}

    def relies_on(self) -> dict[str, str]:
        return {} if self.encoder is None else self.encoder.relies_on()

    def carries(self) -> dict[str, Path]:
        return {} if self.encoder is None else self.encoder.carries()

    def first_latents(self, batch: Batch) -> Tensor:
        return batch.x.float().flatten(2).transpose(1, 2).flatten(0, 1)

    @torch.no_grad()
    def initialise(self, latents: Tensor) -> None:
        self.mean.copy_(latents.mean(0))
        self.deviation.copy_(latents.std(0, correction=0).clamp_min(LEAST_DEVIATION))

    def normal(self, x: Tensor) -> Tensor:
        """Data (B, C, *space) as the network sees them: mean 0, deviation 1 in each channel."""
        return (x.float() - self._along(self.mean)) / self._along(self.deviation)

    def plain(self, x: Tensor) -> Tensor:
        """The inverse of `normal`."""
        return x * self._along(self.deviation) + self._along(self.mean)

    def _along(self, values: Tensor) -> Tensor:
        return values.view(-1, *[1] * len(self.grid))

    # --- training -----------------------------------------------------------------------------------------------------

    def loss(self, player: str, batch: Batch, step: int) -> Loss:
        condition = self._shown(batch)
        moment, rows = Moment(batch.seed, batch.step, batch.rows, 0.0), len(batch.x)
        with full_precision(batch.x.device):
            data = self.normal(batch.x)
            noise = moment.normal(NOISE, self.shape, data.device)
            t = self.path.learnt(self._times(moment.one(TIME)), self.config.shift).to(data.device)
            alpha, sigma = (each.float().view(-1, *[1] * len(self.shape)) for each in self.path.levels(t))
            x = alpha * data + sigma * noise
        said, spread = self(x, t, condition)
        with full_precision(x.device):
            target = self.path.target(self.config.predict, data, noise, alpha, sigma)
            error = (said - target).square().flatten(1).mean(1) * self._weight(alpha.flatten(), sigma.flatten())
            terms = [Term("error", error.sum(), rows)]
            if spread is not None:
                with torch.no_grad():
                    miss = data - self.path.estimate(self.config.predict, x, said, alpha, sigma)[0]
                terms.append(Term("bound", variational_bound(miss, spread, t).sum(), rows, WEIGHT))
        return Loss(terms)

    def _shown(self, batch: Batch) -> Tensor | Context:
        """The class ids (B,) of a batch, or what its captions tell; while training a share of either is hidden."""
        if self.encoder is None or self.config.text is None:
            return shown_labels(batch, self.classes, self.config.label_dropout if self.training else 0.0)
        texts = shown_texts(batch, self.config.text.caption_dropout if self.training else 0.0)
        return self.encoder(texts, self.text)

    def forward(
        self, x: Tensor, t: Tensor, told: Tensor | Context, sweep: Sweep | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Noised data (B, C, *space), times (B,) and class ids (B,) or texts -> what is predicted (B, C, *space), fp32,
        and the place of a learned variance between its bounds, alike. By the network, or by a sweep made of it."""
        texts = told if isinstance(told, Context) else None
        condition = self.time(t) + (told.pooled if isinstance(told, Context) else self.label(told))
        with full_precision(x.device):  # little noise is lost in bf16 numbers, and these two products are small
            tokens = self.patches(self.cut(x)) + self.place  # (B, T, width)
        if sweep is not None:
            tokens = sweep(tokens, sweep.modulated(condition), None if texts is None else texts.told(sweep))
        else:
            context, mask = (None, None) if texts is None else (texts.pieces, texts.mask)
            tokens = self.network(
                tokens, self.positions, "full", condition=condition, context=context, context_mask=mask
            )
        with full_precision(x.device):
            said = self.head(tokens.float())
        if not self.learned:
            return self.joined(said), None
        said, spread = said.chunk(2, -1)
        return self.joined(said), (self.joined(spread) + 1) / 2

    def cut(self, x: Tensor) -> Tensor:
        """(B, C, *space) -> (B, T, C * patch ** axes), patches in raster order."""
        axes = len(self.grid)
        for axis, side in enumerate(self.grid):
            x = x.unflatten(2 + 2 * axis, (side, self.config.patch))  # (B, C, side, patch, …)
        sides, inner = range(2, 2 + 2 * axes, 2), range(3, 3 + 2 * axes, 2)
        return x.permute(0, *sides, 1, *inner).flatten(1 + axes).flatten(1, axes)

    def joined(self, tokens: Tensor) -> Tensor:
        """(B, T, C * patch ** axes) -> (B, C, *space), the inverse of `cut`."""
        axes = len(self.grid)
        x = tokens.unflatten(2, (self.shape[0], *[self.config.patch] * axes)).unflatten(1, self.grid)
        pairs = [axis for i in range(axes) for axis in (1 + i, 2 + axes + i)]
        return x.permute(0, 1 + axes, *pairs).reshape(len(x), *self.shape)

    def _times(self, uniform: Tensor) -> Tensor:
        if self.config.times == "uniform":
            return uniform
        return torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9)).sigmoid()

    def _weight(self, alpha: Tensor, sigma: Tensor) -> Tensor | float:
        """What the squared error of each row counts.

        soft-min-snr is g S / (S + g) on the data's error, with S = alpha² / sigma²; the data's error is sigma times the
        velocity's, and sigma / alpha times the noise's.
        """
        if self.config.weighting == "none":
            return 1.0
        soft = GAMMA / (alpha.square() + GAMMA * sigma.square())  # the weight over alpha²
        return (
            soft
            * {"noise": sigma.square(), "velocity": (alpha * sigma).square(), "data": alpha.square()}[
                self.config.predict
            ]
        )

    # --- sampling -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        n: int,
        condition: Asked = None,
        known: Tensor | None = None,
        mask: Tensor | None = None,
        seed: int = 0,
        options: DiffusionOptions | None = None,
        first: int = 0,
        trajectory: list[Tensor] | None = None,
        progress: Progress = untold,
    ) -> Tensor:
        """Draw signals in [-1, 1], or latents: float (n, C, *space).

        condition: class ids (n,), or with text a prompt for each, None or "" for none; what is left out is open, and
        guidance does nothing to it. known: data (n, C, *space) of which those under `mask` (bool, same shape) come back
        as they are; on the way they stand at the noise level of each step (Lugmayr et al. 2022, arXiv 2201.09865,
        equation 8, without resampling). Row i draws its noise from (seed, first + i). trajectory takes the predicted
        data of every step, (n, C, *space) each. Raises UserError on what does not fit, and on weights that are not
        finite.
        """
        options = options or self.config.sampling
        times = self.path.times(options.steps)
        noise = self._noise(n, seed, START, 0, first)
        return self._sampled(noise, times, condition, known, mask, seed, options, first, trajectory, progress)

    @torch.no_grad()
    def vary(
        self,
        x: Tensor,
        noise_level: float,
        condition: Asked = None,
        seed: int = 0,
        options: DiffusionOptions | None = None,
        first: int = 0,
        trajectory: list[Tensor] | None = None,
        progress: Progress = untold,
    ) -> Tensor:
        """New data like x (n, C, *space): x with noise up to a time in (0, 1], and sampled from there.

        Of the steps, the share `noise_level` is walked (Meng et al. 2021, arXiv 2108.01073, algorithm 1).
        """
        options = options or self.config.sampling
        self._check(x, len(x), "what is to be varied")
        if not 0 < noise_level <= 1:
            raise UserError(f"noise level {noise_level:g}: it must lie above 0 and be at most 1")
        self.path.times(options.steps)  # too many of the whole are too many
        times = self.path.times(max(1, round(options.steps * noise_level)), noise_level)
        noise, (alpha, sigma) = self._noise(len(x), seed, START, 0, first), self.path.level(times[0])
        start = alpha * self.normal(x.to(noise.device)) + sigma * noise
        return self._sampled(start, times, condition, None, None, seed, options, first, trajectory, progress)

    @torch.no_grad()
    def noise_of(self, x: Tensor, condition: Asked = None, options: DiffusionOptions | None = None) -> Tensor:
        """The noise (n, C, *space) that `from_noise` turns into x: the steps of ddim, walked backwards.

        Each step asks what was there before it, and that is found in a few rounds (Pan et al. 2023, arXiv 2309.04907).
        """
        options = options or self.config.sampling
        self._check(x, len(x), "what is to be turned into noise")
        x = self.normal(x.to(self.mean.device))
        times = self.path.times(options.steps)
        denoise = self._denoiser(self._told(condition, len(x)), times, options, clip=False)
        for s, t in zip(times[-1:0:-1], times[-2::-1], strict=True):
            arrived, here, there = x, self.path.level(s), self.path.level(t)
            for _ in range(ROUNDS):
                x = moved(arrived, self.path.slope(denoise(x, t)), self.path, here, there)
        return x

    @torch.no_grad()
    def from_noise(
        self,
        noise: Tensor,
        condition: Asked = None,
        options: DiffusionOptions | None = None,
        trajectory: list[Tensor] | None = None,
    ) -> Tensor:
        """The data (n, C, *space) that noise becomes by ddim without fresh noise; the options' steps and guidance."""
        options = (options or self.config.sampling).model_copy(update={"solver": "ddim", "eta": 0.0, "clip": False})
        self._check(noise, len(noise), "noise")
        times = self.path.times(options.steps)
        return self._sampled(noise.to(self.mean.device), times, condition, None, None, 0, options, 0, trajectory)

    def log_likelihood(
        self, x: Tensor, condition: Asked = None, seed: int = 0, steps: int | None = None, first: int = 0
    ) -> Tensor:
        """The log density of data (n, C, *space) in their own units, in nats: float64 (n,).

        By the probability flow in that many steps of Heun (None: 50), without guidance and in fp32. Data count as being
        at the least noise level, a thousandth. Row i draws its probe of the divergence from (seed, first + i).
        `likelihood.bits_per_dimension` says it in bits.
        """
        self._check(x, len(x), "what a likelihood is asked of")
        probe = torch.where(self._noise(len(x), seed, PROBE, 0, first) < 0, -1.0, 1.0)
        times, options = self.path.rising(LIKELIHOOD_STEPS if steps is None else steps), DiffusionOptions()
        with full_precision(x.device):
            denoise = self._denoiser(self._told(condition, len(x)), [*times[::-1], 0.0], options, False, exact=True)
            nats = likelihood.log_likelihood(denoise, self.normal(x.to(probe.device)), times, self.path, probe)
        pixels = math.prod(self.shape[1:])
        return nats - pixels * self.deviation.double().log().sum()

    def _sampled(
        self,
        x: Tensor,
        times: Sequence[float],
        condition: Asked,
        known: Tensor | None,
        mask: Tensor | None,
        seed: int,
        options: DiffusionOptions,
        first: int,
        trajectory: list[Tensor] | None,
        progress: Progress = untold,
    ) -> Tensor:
        """From noise, or what is partly noise, at times[0] to data."""
        n, signals = len(x), self.config.on == "pixels"
        told = self._told(condition, n)
        known, mask = self._known(known, mask, n, x.device)
        if not n:
            return x

        def shown(data: Tensor) -> Tensor:
            data = self.plain(data)
            data = data.clamp(-1, 1) if signals else data
            return data if known is None or mask is None else torch.where(mask, known, data)

        steps = count(1)

        def watch(data: Tensor) -> None:
            if trajectory is not None:
                trajectory.append(shown(data))
            progress(next(steps), len(times) - 1)

        keep: Keep = as_it_is
        if known is not None and mask is not None:
            keep = self._kept(self.normal(known), mask, x)
            x = keep(x, times[0])
        denoise = self._denoiser(told, times, options, options.clip and signals)
        swept = self.sweeps.of(self.network, self.positions) is not None
        with autocast(x.device), nullcontext() if swept else weights_ready(self.network.blocks):
            x = self._solved(
                denoise, x, times, options, lambda k: self._noise(n, seed, ON_THE_WAY, k, first), keep, watch
            )
        return shown(x)

    def _solved(
        self,
        denoise: Denoise,
        x: Tensor,
        times: Sequence[float],
        options: DiffusionOptions,
        noise: Noise,
        keep: Keep,
        watch: Watch,
    ) -> Tensor:
        if options.solver == "ddpm":
            return ddpm(denoise, x, times, self.path, noise, self.config.variance, keep, watch)
        if options.solver == "ddim":
            return ddim(denoise, x, times, self.path, noise, options.eta, keep, watch)
        solve = {"euler": euler, "heun": heun, "dpm-solver-2m": dpm_solver_2m}[options.solver]
        return solve(denoise, x, times, self.path, keep, watch)

    def _kept(self, known: Tensor, mask: Tensor, noise: Tensor) -> Keep:
        """Puts the known part back at the noise level of the time, always with the same noise: that which it began
        with, so that it moves as a sample would."""

        def keep(x: Tensor, t: float) -> Tensor:
            alpha, sigma = self.path.level(t)
            return torch.where(mask, alpha * known + sigma * noise, x)

        return keep

    def _denoiser(
        self,
        told: Tensor | Context,
        times: Sequence[float],
        options: DiffusionOptions,
        clip: bool,
        exact: bool = False,
    ) -> Denoise:
        """The network with its guidance as a function of x and the time; `exact` in fp32."""
        along = {t: k / max(1, len(times) - 2) for k, t in enumerate(times[:-1])}
        asked = told.mask if isinstance(told, Context) else told < self.classes
        guided = bool(asked.any())
        sweep = None if exact else self.sweeps.of(self.network, self.positions)
        low, high = (self.normal(torch.full((1, *self.shape), end, device=self.mean.device)) for end in (-1.0, 1.0))

        def denoise(x: Tensor, t: float) -> Estimate:
            scale = options.scale(along[t]) if guided else 1.0
            with autocast(x.device, "fp32" if exact else "auto"):
                said, spread = self._said(x, t, told, scale, sweep)
            alpha, sigma = self.path.level(t)
            data, noise = self.path.estimate(self.config.predict, x, said, alpha, sigma)
            if clip:
                data = data.clamp(low, high)
                noise = (x - alpha * data) / sigma
            return Estimate(data, noise, spread)

        return denoise

    def _said(
        self, x: Tensor, t: float, told: Tensor | Context, scale: float, sweep: Sweep | None
    ) -> tuple[Tensor, Tensor | None]:
        """What the network says with guidance, on all channels alike; the variance stays that of the class or text."""
        if scale != 1:
            x = torch.cat([x, x])
            if isinstance(told, Context):
                told = told.beside_open
            else:
                told = torch.cat([told, torch.full_like(told, self.classes)])
        said, spread = self(x, torch.full((len(x),), t, device=x.device), told, sweep)
        check_finite(said)
        if scale != 1:
            conditional, without = said.chunk(2)
            said = guide(conditional, without, scale)
            spread = None if spread is None else spread.chunk(2)[0]
        return said, spread

    # --- what is asked for --------------------------------------------------------------------------------------------

    def _noise(self, n: int, seed: int, stream: int, step: int, first: int) -> Tensor:
        device = self.mean.device
        if not n:
            return torch.zeros(0, *self.shape, device=device)
        return Moment(seed, step, torch.arange(first, first + n), 0.0).normal(stream, self.shape, device)

    def _told(self, condition: Asked, n: int) -> Tensor | Context:
        """Class ids (n,), or what the texts tell, read once for all steps. Raises UserError on what does not fit."""
        if self.encoder is None:
            if condition is not None and not isinstance(condition, Tensor):
                raise UserError("this model was trained without text; ask for one of its labels")
            return class_ids(condition, n, self.classes, self.mean.device)
        texts = [""] * n if condition is None else condition
        if isinstance(texts, str | Tensor) or len(texts) != n or not all(isinstance(each or "", str) for each in texts):
            raise UserError(f"condition must be {n} prompts, a text each, None or an empty one for none")
        with torch.no_grad():
            return self.encoder([each or "" for each in texts], self.text)

    def _known(
        self, known: Tensor | None, mask: Tensor | None, n: int, device: torch.device
    ) -> tuple[Tensor | None, Tensor | None]:
        """Known data, 0 where they are not, and their mask. Raises UserError on what does not fit."""
        if known is None or mask is None:
            if (known is None) != (mask is None):
                raise UserError("known data need a mask that says which to keep, and a mask needs known data")
            return None, None
        shape = (n, *self.shape)
        if known.shape != shape or mask.shape != shape:
            raise UserError(f"known data and mask must be {shape}; got {tuple(known.shape)} and {tuple(mask.shape)}")
        mask = mask.bool().to(device)
        known = torch.where(mask, known.to(device), 0.0)
        self._check(known, n, "known data")
        return known, mask

    def _check(self, x: Tensor, n: int, what: str) -> None:
        if x.shape != (n, *self.shape) or not x.isfinite().all():
            raise UserError(f"{what} must be {(n, *self.shape)}, all finite; got {tuple(x.shape)}")
