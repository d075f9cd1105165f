"""Discrete diffusion over a grid of codes: noise a grid, learn to undo it, and draw all codes in parallel.

Four schemes of noise, one network. `masked`: a code becomes a mask (MaskGIT, Chang et al. 2022, arXiv 2202.04200; the
absorbing diffusion of Austin et al. 2021, arXiv 2107.03006). `uniform`: it becomes a random code (the same, section
3.1). `mask-and-replace`: some become a mask and some a random code (VQ-Diffusion, Gu et al. 2021, arXiv 2111.14822).
`simple`: a random share of the codes is made random, then a further fixed share, and the network learns the step back.

At time t in [0, 1] a code is noised with probability r(t), 0 at t = 0 and 1 at t = 1. The network says how likely
every code is to be the clean one (of `simple`: the one before the last step), and never says the mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from smalti.config import CodeSpec, Examples, Reads
from smalti.data.batch import Batch
from smalti.device import autocast, full_precision, weights_ready
from smalti.errors import UserError
from smalti.layers.embed import TimeEmbedding
from smalti.layers.sweep import Sweep, Sweeps
from smalti.layers.transformer import TransformerConfig
from smalti.paradigms.base import Loss, ParadigmConfig, Progress, untold
from smalti.paradigms.choose import ChoiceConfig, choose, drawn, limited
from smalti.paradigms.codes import CodeModel, check_finite
from smalti.paradigms.guidance import GuidanceConfig, guide
from smalti.term import Term
from smalti.tokenizers.bottlenecks import Moment

TIME, WHERE, WHAT, WHICH, ORDER = 20, 21, 22, 23, 24  # streams of random numbers
BOUND_STEPS = 100  # of the reverse process that the bound on the likelihood is taken over

ScheduleName = Literal["linear", "sqrt", "cosine", "arccos"]


@dataclass(frozen=True)
class Scheme:
    """`masks`: the share of noised codes that become the mask; the others become a random code.

    `timed`: whether the network is told the time; a mask shows by itself how much is left to do.
    `step_back`: whether the network learns to undo one step, rather than all of them.
    `steps`, `temperature`, `guidance`: how it is sampled where nothing else is asked for, and `schedule` how trained.
    """

    masks: float
    timed: bool
    steps: int
    temperature: float = 1.0
    guidance: float = 1.0
    schedule: ScheduleName = "arccos"
    step_back: bool = False


SCHEMES = {
    "masked": Scheme(masks=1.0, timed=False, steps=12),
    "uniform": Scheme(masks=0.0, timed=True, steps=50),
    "mask-and-replace": Scheme(masks=0.9, timed=True, steps=50),  # the paper's end of the process, section 4
    # much noise teaches little here: most of the step back is noise again
    "simple": Scheme(
        masks=0.0, timed=False, steps=200, temperature=0.7, guidance=1.5, schedule="linear", step_back=True
    ),
}
# r(t): the share that is noised
SCHEDULES: dict[ScheduleName, Callable[[Tensor], Tensor]] = {
    "linear": lambda t: t,
    "sqrt": lambda t: t.sqrt(),
    "cosine": lambda t: (math.pi / 2 * t).sin(),
    "arccos": lambda t: 2 / math.pi * (1 - t).clamp(-1, 1).arccos(),
}


class DiscreteDiffusionOptions(ChoiceConfig, GuidanceConfig):
    """How to sample, in `steps` passes of the network. Steps, temperature, guidance: None takes what suits the scheme.

    `schedule`, of masked codes that are shown in an order: how many are left at each share of the way; None takes that
    of training. The slower the beginning, the surer the first codes; the more are left to be drawn at once at the end.
    `order`, of masked codes: by `confidence`, the surest first, with Gumbel noise of scale `order_noise` that fades
    out (MaskGIT); by `halton`, a fixed order that spreads over the grid (Besnier et al. 2025, arXiv 2503.17076); by
    `chance`, the exact reverse of the noising. Other schemes know only the last.
    The scheme `simple` stops where `rest` steps on end have changed nothing; `steps` is then the most it takes. The
    lower the temperature, the sooner it settles, and the less has changed by then: where most is noise the likeliest is
    that a code stays. So unless it is 0 the first `warm` steps, at most half of all, are drawn at 1, not to settle on
    the noise itself.
    """

    steps: int | None = Field(None, ge=1, le=10_000)
    temperature: float | None = Field(None, ge=0)  # type: ignore[assignment]
    guidance: float | None = Field(None, ge=0)  # type: ignore[assignment]
    schedule: ScheduleName | None = None
    order: Literal["confidence", "halton", "chance"] = "confidence"
    order_noise: float = Field(4.5, ge=0)
    warm: int = Field(12, ge=0, description="first steps of the scheme simple, drawn at temperature 1")
    rest: int = Field(4, ge=1, description="steps without a change after which a grid has settled")

    def for_codes(self, scheme: Scheme, codes: int) -> DiscreteDiffusionOptions:
        """These options with nothing left open, for a grid of so many codes. Raises UserError on too many steps."""
        update: dict[str, float | None] = {"steps": self.steps or scheme.steps}
        for name in ("temperature", "guidance"):
            asked = getattr(self, name)
            update[name] = getattr(scheme, name) if asked is None else asked
        if scheme.masks == 1 and self.order != "chance":
            if self.steps is not None and self.steps > codes:
                raise UserError(f"{self.steps} steps are more than the {codes} codes there are to unmask")
            update["steps"] = self.steps or min(scheme.steps, codes)
        return self.model_copy(update=update)


class DiscreteDiffusionConfig(ParadigmConfig):
    """`sampling` are the options used when none are given: the ones the recipe was measured with.

    `schedule` is r(t); None takes what suits the scheme. `further`, of the scheme `simple`: the share of codes that one
    step makes random. With `smoothing` the network learns to say every code a little too often, and so they are drawn.
    """

    kind: Literal["discrete-diffusion"] = "discrete-diffusion"
    trains: ClassVar[str] = "transformer"
    reads: ClassVar[Reads] = "codes"
    scheme: Literal["masked", "uniform", "mask-and-replace", "simple"] = "masked"
    schedule: ScheduleName | None = None
    further: float = Field(0.3, gt=0, le=1)
    label_dropout: float = Field(0.1, ge=0, le=1, description="share of examples that train without their class")
    smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all codes while training")
    sampling: DiscreteDiffusionOptions = DiscreteDiffusionOptions()

    def build(self, model: TransformerConfig, examples: Examples, steps: int) -> DiscreteDiffusion:
        if examples.codes is None:
            raise UserError(
                "discrete diffusion needs codes, and this tokenizer has none: choose one with a codebook, or paradigm"
                " diffusion"
            )
        self.sampling.for_codes(SCHEMES[self.scheme], examples.codes.length)  # too many steps are told before training
        return DiscreteDiffusion(self, model, examples.codes, len(examples.labels))


@dataclass(frozen=True)
class Noise:
    """How noised a code is: it is kept with probability `keep`, masked with `mask`, else random among `size` codes.

    All float64, broadcastable to (B, T).
    """

    keep: Tensor
    mask: Tensor
    size: int

    @property
    def random(self) -> Tensor:
        """The probability of each single code, beside that of being kept."""
        return (1 - self.keep - self.mask).clamp_min(0) / self.size


def posterior(clean: Tensor, noised: Tensor, now: Noise, then: Noise) -> Tensor:
    """q(x_s | x_t) for s < t: what the codes were a little earlier, (B, T, K + 1), the mask last.

    clean: p(x_0 | x_t) float64 (B, T, K). noised: x_t int64 (B, T), K is the mask. now, then: the noise at t and at s.
    The sum over x_0 of q(x_s | x_t, x_0) p(x_0 | x_t), exactly (Austin et al. 2021, equation 3; Gu et al. 2021,
    equations 6 and 11), in time K for each code: both transitions are a multiple of the identity plus a constant.
    """
    size = clean.shape[-1]
    masked = (noised == size).unsqueeze(-1)
    here = F.one_hot(noised.clamp_max(size - 1), size).to(clean)
    # one step from s to t: kept with `stay`, masked with `hide`, any one code with `jump`
    stay = now.keep / then.keep
    hide = 1 - (1 - now.mask) / (1 - then.mask)
    jump = ((1 - stay - hide).clamp_min(0) / size).unsqueeze(-1)
    stay, hide = stay.unsqueeze(-1), hide.unsqueeze(-1)
    keep, random, now_random, now_keep, now_mask, then_mask = (
        each.unsqueeze(-1) for each in (then.keep, then.random, now.random, now.keep, now.mask, then.mask)
    )
    # from a mask: which code it hid, or that it was hidden already
    revealed = hide / now_mask.clamp_min(1e-300) * (keep * clean + random)
    hidden = (then_mask / now_mask.clamp_min(1e-300)).expand_as(clean[..., :1])
    # from a code: how likely each clean code leads here. Where no code is ever random, it has been this one all along
    leads = now_keep * here + now_random
    weights = torch.where(leads > 0, clean / leads.clamp_min(1e-300), 0.0)
    certain = (now_random == 0) & (weights.sum(-1, keepdim=True) == 0)
    weights = torch.where(certain, here / now_keep.clamp_min(1e-300), weights)
    earlier = (stay * here + jump) * (keep * weights + random * weights.sum(-1, keepdim=True))
    codes = torch.where(masked, revealed, earlier)
    whole = torch.cat([codes, torch.where(masked, hidden, 0.0)], -1)
    return whole / whole.sum(-1, keepdim=True)


class DiscreteDiffusion(CodeModel):
    """A model that fills or mends all codes of a grid at once. The mask is the token K."""

    def __init__(
        self, config: DiscreteDiffusionConfig, network: TransformerConfig, codes: CodeSpec, classes: int = 0
    ) -> None:
        self.scheme = SCHEMES[config.scheme]
        super().__init__(network, codes, classes, specials=int(self.scheme.masks > 0), conditioned=True)
        self.config, self.mask = config, codes.size
        self.schedule = config.schedule or self.scheme.schedule
        if self.scheme.timed:
            self.time = TimeEmbedding(network.width)
        self.sweeps = Sweeps()

    def logits(self, labels: Tensor, noised: Tensor, t: Tensor, sweep: Sweep | None = None) -> Tensor:
        """Class ids (B,), noised codes (B, T) and times (B,) -> logits (B, T, K) of the clean codes.

        By the network, or by a sweep made of it.
        """
        condition = self.label(labels) + (self.time(t) if self.scheme.timed else 0)
        x = self.embed(noised) + self.place
        if sweep is not None:
            return sweep(x, sweep.modulated(condition))
        return self.head(self.network(x, self.positions, "full", condition=condition))

    # --- training -----------------------------------------------------------------------------------------------------

    def loss(self, player: str, batch: Batch, step: int) -> Loss:
        labels, clean = self.shown_labels(batch, self.config.label_dropout), self.sequence(batch.x)
        moment = Moment(batch.seed, batch.step, batch.rows, 0.0)
        t = moment.one(TIME).to(clean.device)
        noised = self.noised(clean, t, moment)
        target, counted = clean, torch.ones_like(clean, dtype=torch.float32)
        wanted: Tensor = clean
        if self.scheme.step_back:
            target = noised
            noised = self._replaced(noised, torch.full_like(t, self.config.further), moment, stream=10)
            wanted = self._step_back(clean, noised, t)
        elif self.scheme.masks == 1:  # what is not masked is known
            counted = (noised == self.mask).float()
        logits = self.logits(labels, noised, t.float())
        rows = len(clean)
        with full_precision(logits.device):
            smoothing = self.config.smoothing if self.training else 0.0
            nats = F.cross_entropy(logits.float().transpose(1, 2), wanted, reduction="none", label_smoothing=smoothing)
            hits = (logits.argmax(-1) == target) * counted
            shares = counted / counted.sum(1, keepdim=True)  # every example counts alike, however much it hides
            terms = [
                Term("nats", (nats * shares).sum(), rows),
                Term("accuracy", (hits * shares).sum(), rows, 0.0),
            ]
        if not self.training and not self.scheme.step_back:
            terms.append(Term("nats_a_code", self._bound(labels, clean, moment), clean.numel(), 0.0))
        return Loss(terms)

    def _step_back(self, clean: Tensor, noised: Tensor, t: Tensor) -> Tensor:
        """How likely each code was before the further share became random: (B, K, T).

        Given what was clean, that is known (but for the one code that always is noised); learnt from it instead of from
        the code that chance had it be, the step is the same and its gradient far less noisy.
        """
        before = self.noise(t)
        after = Noise(before.keep * (1 - self.config.further), before.mask, before.size)
        likely = posterior(F.one_hot(clean, self.codes.size).double(), noised, after, before)
        return likely[..., :-1].float().transpose(1, 2)

    def noise(self, t: Tensor) -> Noise:
        """How noised codes are at times t (B,): tensors (B, 1)."""
        share = SCHEDULES[self.schedule](t.double())[:, None]
        return Noise(1 - share, self.scheme.masks * share, self.codes.size)

    def noised(self, clean: Tensor, t: Tensor, moment: Moment, least: int = 1) -> Tensor:
        """Codes (B, T) at times t (B,), each row by its own numbers; at least `least` of a row are noised."""
        return self._replaced(clean, SCHEDULES[self.schedule](t.double()), moment, least=least)

    def _replaced(self, codes: Tensor, share: Tensor, moment: Moment, stream: int = 0, least: int = 1) -> Tensor:
        """Codes (B, T) of which each is noised with probability `share` (B,)."""
        shape, device = tuple(codes.shape[1:]), codes.device
        where = moment.uniform(WHERE + stream, shape, device)
        bound = share[:, None].to(where)
        if least:
            bound = torch.maximum(bound, where.kthvalue(least, 1, keepdim=True).values.nextafter(torch.tensor(2.0)))
        fresh = self._random(moment, stream, shape, device)
        if self.scheme.masks:
            masks = moment.uniform(WHAT + stream, shape, device) < self.scheme.masks
            fresh = torch.where(masks, self.mask, fresh)
        return torch.where(where < bound, fresh, codes)

    def _random(self, moment: Moment, stream: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
        drawn_from = moment.uniform(WHICH + stream, shape, device)
        return (drawn_from * self.codes.size).long().clamp_max(self.codes.size - 1)

    def _bound(self, labels: Tensor, clean: Tensor, moment: Moment) -> Tensor:
        """An upper bound of -log p of each grid, summed over the batch: nats.

        One term of the reverse process drawn for each example, times their number (Austin et al. 2021, equation 1).
        """
        steps = BOUND_STEPS
        which = (moment.one(TIME + 10) * steps).long().to(clean.device)
        t, s = (which + 1) / steps, which / steps
        noised = self.noised(clean, t, moment, least=0)
        logits = self.logits(labels, noised, t)
        with full_precision(clean.device):
            now, then = self.noise(t), self.noise(s)
            ours = posterior(logits.double().softmax(-1), noised, now, then)
            truth = posterior(F.one_hot(clean, self.codes.size).double(), noised, now, then)
            return steps * torch.xlogy(truth, truth / ours.clamp_min(1e-30)).sum()

    # --- sampling -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        n: int,
        condition: Tensor | None = None,
        known: Tensor | None = None,
        mask: Tensor | None = None,
        seed: int = 0,
        options: DiscreteDiffusionOptions | None = None,
        first: int = 0,
        trajectory: list[Tensor] | None = None,
        progress: Progress = untold,
    ) -> Tensor:
        """Draw codes (n, Q, *grid).

        condition: class ids (n,). known: codes (n, Q, *grid) of which those under `mask` (bool, same shape) are kept,
        wherever they stand. Row i draws its noise from (seed, first + i). `trajectory` is given the grid after every
        step, -1 where a code is still masked. Raises UserError on more steps than there are codes to unmask, and on
        shapes and class ids that do not fit.
        """
        options = options or self.config.sampling
        device = self.place.device
        labels = self.labels_of(condition, n, device)
        codes, keep = self.known_sequence(known, mask, n, device)
        if not n:
            return self.grid(codes)
        rows = torch.arange(first, first + n)
        way = _Way(self, options, labels, condition is not None, seed, rows, trajectory, progress)
        start = torch.where(keep, codes, way.nothing(n))
        return self.grid(way.from_here(start, keep))

    @torch.no_grad()
    def vary(
        self,
        x: Tensor,
        level: float,
        condition: Tensor | None = None,
        seed: int = 0,
        options: DiscreteDiffusionOptions | None = None,
        first: int = 0,
        trajectory: list[Tensor] | None = None,
        progress: Progress = untold,
    ) -> Tensor:
        """Other codes like x (n, Q, *grid): a share `level` in (0, 1] of them is noised, and the noise undone."""
        if not 0 < level <= 1:
            raise UserError(f"a level of noise lies above 0 and up to 1; got {level:g}")
        options = options or self.config.sampling
        device = self.place.device
        labels = self.labels_of(condition, len(x), device)
        clean, _ = self.known_sequence(x, torch.ones_like(x, dtype=torch.bool), len(x), device)
        rows = torch.arange(first, first + len(x))
        way = _Way(self, options, labels, condition is not None, seed, rows, trajectory, progress)
        start = self._replaced(clean, torch.full((len(x),), level, device=device), Moment(seed, -1, rows, 0.0))
        keep = (start != self.mask) if self.scheme.masks == 1 else torch.zeros_like(start, dtype=torch.bool)
        return self.grid(way.from_here(start, keep, level))


class _Way:
    """The way from noise to codes for some rows: where chance, guidance and the network come together."""

    def __init__(
        self,
        model: DiscreteDiffusion,
        options: DiscreteDiffusionOptions,
        labels: Tensor,
        labelled: bool,
        seed: int,
        rows: Tensor,
        trajectory: list[Tensor] | None,
        progress: Progress,
    ) -> None:
        self.model, self.seed, self.rows, self.trajectory, self.progress = model, seed, rows, trajectory, progress
        self.options = options.for_codes(model.scheme, model.codes.length)
        self.steps = self.options.steps or 1
        self.guided = options.guidance != 1 and labelled and model.classes > 0
        self.labels = torch.cat([labels, torch.full_like(labels, model.classes)]) if self.guided else labels
        self.device = labels.device

    def moment(self, step: int) -> Moment:
        return Moment(self.seed, step, self.rows, 0.0)

    def nothing(self, n: int) -> Tensor:
        """Codes (n, T) of which nothing is known, at time 1."""
        blank = torch.zeros(n, self.model.codes.length, dtype=torch.int64, device=self.device)
        everything = torch.ones(n, device=self.device)
        return self.model._replaced(blank, everything, self.moment(-1), least=0)

    def from_here(self, x: Tensor, keep: Tensor, level: float = 1.0) -> Tensor:
        """Codes (n, T) made clean, those under `keep` as they are. `level` is the share that is noised, 1 for all."""
        scheme = self.model.scheme
        model = self.model
        self.sweep = model.sweeps.of(model.network, model.positions, model.head)
        with autocast(self.device), nullcontext() if self.sweep else weights_ready(model.network.blocks):
            if scheme.step_back:
                return self._settled(x, keep, min(round(self.options.warm * level), self.steps // 2))
            if scheme.masks == 1 and self.options.order != "chance":
                return self._unmasked(x, keep)
            return self._reversed(x, keep, level)

    def _log_p(self, x: Tensor, t: float, along: float) -> Tensor:
        """log p (n, T, K) of the clean codes, guided."""
        scale = self.options.scale(along) if self.guided else 1.0
        rows = len(x) if scale == 1 else 2 * len(x)  # the class alone where nothing pulls
        both, times = x.repeat(rows // len(x), 1), torch.full((rows,), t, device=self.device)
        log_p = self.model.logits(self.labels[:rows], both, times, self.sweep).float().log_softmax(-1)
        check_finite(log_p)
        return log_p if scale == 1 else guide(*log_p.split(len(x)), scale)  # type: ignore[call-arg]

    def _unmasked(self, x: Tensor, keep: Tensor) -> Tensor:
        """Masks give way to codes, the ones that come first in the order at every step (MaskGIT, section 3.2)."""
        model = self.model
        to_do = (~keep).sum(1, keepdim=True)  # every row its own
        schedule = self.options.schedule or model.schedule
        for step in range(self.steps):
            along = (step + 1) / self.steps
            masked = x == model.mask
            moment = self.moment(step)
            log_p = self._log_p(x, 1 - step / self.steps, step / max(1, self.steps - 1))[masked]
            codes = choose(log_p, moment.uniform(WHICH, tuple(x.shape[1:]), self.device)[masked], self.options)
            found = x.masked_scatter(masked, codes)
            left = SCHEDULES[schedule](torch.tensor(1 - along, dtype=torch.float64))
            # at least one code a step, and none stays masked at the end
            count = torch.minimum((to_do * left + 1e-6).floor().long(), (masked.sum(1, keepdim=True) - 1).clamp_min(0))
            score = self._turn(x, masked, log_p, codes, moment, 1 - along)
            rank = score.masked_fill(~masked, torch.inf).argsort(1).argsort(1)
            x = torch.where(masked & (rank < count), model.mask, found)
            self._show(x, step)
        return x

    def _turn(self, x: Tensor, masked: Tensor, log_p: Tensor, codes: Tensor, moment: Moment, left: float) -> Tensor:
        """How soon each place (n, T) may show its code, higher is sooner."""
        if self.options.order == "halton":
            spread = halton_order(self.model.codes.grid).to(self.device).repeat_interleave(self.model.codes.codebooks)
            # every row begins elsewhere in the sequence, or all would be drawn alike
            begin = (Moment(self.seed, -2, self.rows, 0.0).one(ORDER) * len(spread)).long().to(self.device)
            turn = (spread + begin[:, None]) % len(spread) * self.model.codes.codebooks
            return -(turn + torch.arange(len(spread), device=self.device) % self.model.codes.codebooks).float()
        sure = torch.zeros(x.shape, device=self.device)
        sure = sure.masked_scatter(masked, log_p.gather(1, codes[:, None]).squeeze(1))
        chance = moment.exponential(ORDER, tuple(x.shape[1:]), self.device).log()
        return sure - self.options.order_noise * left * chance

    def _reversed(self, x: Tensor, keep: Tensor, level: float) -> Tensor:
        """The noising undone step by step, each drawn from its posterior."""
        model, known = self.model, x
        begin = self._time_of(level)
        for step in range(self.steps):
            t, s = (begin * (1 - (step + i) / self.steps) for i in range(2))
            log_p = self._log_p(x, t, step / max(1, self.steps - 1))
            clean = self._limited(log_p.flatten(0, 1)).view(log_p.shape)
            now, then = (model.noise(torch.full((len(x),), each, device=self.device)) for each in (t, s))
            probability = posterior(clean, x, now, then).flatten(0, 1)
            chance = self.moment(step).uniform(WHICH, tuple(x.shape[1:]), self.device)
            x = torch.where(keep, known, drawn(probability, chance.flatten()).view(x.shape))
            self._show(x, step)
        return x

    def _time_of(self, level: float) -> float:
        """The time at which so large a share is noised."""
        inverse = {
            "linear": lambda r: r,
            "sqrt": lambda r: r**2,
            "cosine": lambda r: 2 / math.pi * math.asin(r),
            "arccos": lambda r: 1 - math.cos(math.pi / 2 * r),
        }
        return inverse[self.model.schedule](level)

    def _settled(self, x: Tensor, keep: Tensor, warm: int) -> Tensor:
        """All codes drawn anew from what the network makes of them, until a row no longer changes."""
        known, unchanged = x, torch.zeros(len(x), 1, dtype=torch.int64, device=self.device)
        for step in range(self.steps):
            log_p = self._log_p(x, 0.0, step / max(1, self.steps - 1))
            chance = self.moment(step).uniform(WHICH, tuple(x.shape[1:]), self.device)
            temperature = 1.0 if step < warm and self.options.temperature else self.options.temperature
            options = self.options.model_copy(update={"temperature": temperature})
            codes = choose(log_p.flatten(0, 1), chance.flatten(), options).view(x.shape)
            # a row at rest stays: what others still do must not wake it
            codes = torch.where(keep, known, torch.where(unchanged >= self.options.rest, x, codes))
            still = (codes == x).all(1, keepdim=True) & (step >= warm)
            unchanged = torch.where(still, unchanged + 1, 0)
            x = codes
            self._show(x, step)
            if int(unchanged.min()) >= self.options.rest:
                break
        return x

    def _limited(self, log_p: Tensor) -> Tensor:
        """float64 probabilities (m, K) after temperature, top-k and top-p."""
        if self.options.temperature == 0:
            return F.one_hot(log_p.argmax(-1), log_p.shape[-1]).double()
        return limited(log_p.double(), self.options).softmax(-1)

    def _show(self, x: Tensor, step: int) -> None:
        self.progress(step + 1, self.steps)
        if self.trajectory is not None:
            self.trajectory.append(self.model.grid(torch.where(x == self.model.mask, -1, x)).cpu())


@lru_cache(maxsize=16)
def halton_order(grid: tuple[int, ...]) -> Tensor:
    """When each position of a grid, in reading order, is first met by the Halton sequence: a permutation (positions,).

    Halton 1960, bases 2, 3 and 5: any beginning of it covers the grid about evenly.
    """
    cells: dict[int, int] = {}
    number, positions = 1, math.prod(grid)
    while len(cells) < positions:
        place = 0
        for base, side in zip((2, 3, 5), grid, strict=False):
            place = place * side + int(_van_der_corput(number, base) * side)
        cells.setdefault(place, len(cells))
        number += 1
    return torch.tensor([cells[place] for place in range(positions)])


def _van_der_corput(number: int, base: int) -> float:
    """The digits of a number mirrored at the point: in [0, 1)."""
    value, scale = 0.0, 1.0 / base
    while number:
        number, digit = divmod(number, base)
        value += digit * scale
        scale /= base
    return value
