"""Training a tokenizer against a critic: reconstructions should also look real.

Esser et al. 2021 (arXiv 2012.09841, VQGAN), section 3.1. A critic learns to tell reconstructions from real signals;
the tokenizer learns to be told apart less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from smalti.config import Examples
from smalti.data.batch import Batch
from smalti.device import full_precision
from smalti.errors import UserError
from smalti.paradigms.autoencode import Autoencode, AutoencodeConfig
from smalti.paradigms.base import Loss, Makes, ParadigmConfig
from smalti.term import Term
from smalti.tokenizers.autoencoder import Autoencoder, AutoencoderConfig
from smalti.tokenizers.bottlenecks import Statistic
from smalti.tokenizers.critic import Critic, CriticConfig
from smalti.tokenizers.perceptual import FrozenNetwork, feature_distance

OURS = frozenset({"errors", "verdicts", "slopes"})  # statistics; the others are the bottleneck's
MEMORY = 0.99  # how much of the running means of verdicts one step keeps
STEADY = 0.95  # how much of the running means of gradients one step keeps
MOST = 1e4  # largest ratio of gradients


class AdversarialConfig(ParadigmConfig):
    """Squared error and the bottleneck's terms as in `autoencode`, then also what a critic says.

    The critic trains from `start` on: a step, or `flat`, which is when the squared error over `flat_over` steps is less
    than `flat_below` below that of as many steps before, and after the share `latest` of the training in any case. The
    tokenizer hears it `critic_first` steps later, and fully after another `ramp`.

    What is heard is the verdict on patches, and with `perceptual` critic also how unlike the critic's activations are,
    times `perceptual_weight`. With `adaptive`, both together pull `weight` times as hard at the decoder's last layer as
    the error does (equation 7); otherwise `weight` is a plain coefficient. `perceptual` may be the path of one's own
    network instead (see `smalti.tokenizers.perceptual`; a .pt2 file is code), then counted beside the error from the
    first step.

    `penalty` keeps the critic gentle: `r1` on its slope at real signals (Mescheder et al. 2018, arXiv 1801.04406),
    every `penalty_every` steps and as many times as heavy (Karras et al. 2019, arXiv 1912.04958), or `lecam` on how far
    its verdicts part (Tseng et al. 2021, arXiv 2104.03310).
    """

    kind: Literal["adversarial"] = "adversarial"
    trains: ClassVar[str] = "autoencoder"
    makes: ClassVar[Makes] = "tokenizer"
    critic: CriticConfig = CriticConfig()
    loss: Literal["hinge", "non-saturating"] = "hinge"
    weight: float = Field(0.5, ge=0, description="of what the tokenizer hears from the critic")
    adaptive: bool = True
    start: NonNegativeInt | Literal["flat"] = "flat"
    flat_over: int = Field(100, ge=1, description="steps")
    flat_below: float = Field(0.05, ge=0, lt=1, description="improvement that counts as none, as a share")
    latest: float = Field(0.5, ge=0, le=1, description="share of the training after which flat or not does not matter")
    critic_first: int = Field(50, ge=0, description="steps that the critic trains before it is heard")
    ramp: int = Field(50, ge=0, description="steps until it is heard fully")
    perceptual: str = Field("critic", description="critic, none, or the path of a program of torch.export")
    perceptual_weight: float = Field(1.0, ge=0)
    penalty: Literal["r1", "lecam", "none"] = "r1"
    penalty_weight: float = Field(1.0, ge=0)
    penalty_every: int = Field(16, ge=1, description="steps from one r1 to the next")

    def build(self, model: AutoencoderConfig, examples: Examples, steps: int) -> Adversarial:
        """Raises UserError where there is nothing to halve."""
        if min(examples.signal.shape) < 2:
            raise UserError("paradigm adversarial looks at patches: every side of the signal must be at least 2")
        return Adversarial(self, Autoencoder(model, examples.signal), steps)


@dataclass(frozen=True)
class Game:
    """What logits cost: the critic for real signals and for made ones, and the tokenizer for its own."""

    real: Callable[[Tensor], Tensor]
    made: Callable[[Tensor], Tensor]
    fool: Callable[[Tensor], Tensor]


GAMES = {
    # Lim & Ye 2017, arXiv 1705.02894
    "hinge": Game(lambda v: F.relu(1 - v), lambda v: F.relu(1 + v), lambda v: -v),
    # Goodfellow et al. 2014, arXiv 1406.2661, section 3
    "non-saturating": Game(lambda v: F.softplus(-v), F.softplus, lambda v: F.softplus(-v)),
}


class Adversarial(Autoencode):
    """Autoencode with a second player. Every sum is over signals, each the mean of its patches or its layers."""

    done: Tensor
    began: Tensor
    errors: Tensor
    verdicts: Tensor
    slopes: Tensor
    balance: Tensor

    def __init__(self, config: AdversarialConfig, tokenizer: Autoencoder, steps: int) -> None:
        super().__init__(AutoencodeConfig(), tokenizer, steps)
        self.settings, self.game = config, GAMES[config.loss]
        signal = tokenizer.signal
        self.critic = Critic(len(signal.shape), signal.channels, config.critic)
        self.network = None if config.perceptual in ("critic", "none") else FrozenNetwork(config.perceptual)
        self._made: dict[tuple[Any, ...], Tensor] = {}
        start = -1 if config.start == "flat" else config.start
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))  # steps
        self.register_buffer("began", torch.tensor(start))  # the critic's first step, -1 while there is none
        self.register_buffer("errors", torch.zeros(2))  # summed over the steps of this stretch; mean of the one before
        self.register_buffer("verdicts", torch.zeros(2))  # running means of the logits of real and of made signals
        self.register_buffer("slopes", torch.zeros(2))  # running means of the lengths of both gradients
        self.register_buffer("balance", torch.tensor(0.0 if config.adaptive else 1.0))  # the ratio of gradients

    def players(self) -> dict[str, nn.Module]:
        return {"tokenizer": self.tokenizer, "critic": self.critic}

    def rates(self) -> dict[str, float]:
        """The learning rates of players that train by AdamW at a rate of their own.

        A critic by Muon learns all directions of its kernels alike fast, and soon nothing else than the noise in them.
        """
        return {"critic": self.settings.critic.lr}

    def loss(self, player: str, batch: Batch, step: int) -> Loss:
        if player == "critic":
            return self._critic_loss(batch, step)
        with _outputs(self.tokenizer) as seen:
            loss = super().loss(player, batch, step)
        made, rows = seen[0][0], len(batch.x)
        terms, statistics = [*loss.terms], {**loss.statistics}
        pulls = terms[:1]  # the reconstruction's
        if self.network is not None:
            distance = self._walked(lambda shown: self._network_distance(batch.x, shown), made)
            pulls.append(Term("perceptual", distance, rows, self.settings.perceptual_weight))
            terms.append(pulls[-1])
        if not self.training:
            return Loss([*terms, *self._held_out(batch.x, made, step)], statistics)
        if int(self.began) < 0:
            counted = terms[0].sum.new_tensor(terms[0].weight)
            statistics["errors"] = Statistic(torch.stack([terms[0].sum.detach(), counted]))
        if self._trains_critic(step):
            self._remember(batch, step, made)
        share = self._share_heard(step)
        if share > 0:
            told: dict[str, Tensor] = {}
            heard = self._walked(lambda shown: self._heard(batch.x, shown, told), made)
            terms.append(Term("heard", heard, rows, self.settings.weight * share * float(self.balance)))
            terms += [Term(name, value, rows, 0.0) for name, value in told.items()]
            if self.settings.adaptive:
                pull = sum((term.sum * (term.coefficient * rows / term.weight) for term in pulls), torch.tensor(0.0))
                statistics["slopes"] = Statistic(torch.stack([self._slope(pull), self._slope(heard)]))
        return Loss(terms, statistics)

    def score(self, means: Mapping[str, float], loss: float) -> float | None:  # type: ignore[override]
        """None once the critic is heard: the error then rises, and the model of least error is the one before."""
        if self._share_heard(int(self.done) - 1) > 0:
            return None
        perceptual = self.settings.perceptual_weight * means.get("perceptual", 0.0)
        return loss if self.tokenizer.continuous else means["reconstruction"] + perceptual

    def model_state(self) -> dict[str, Tensor]:
        """The tokenizer's weights, named as `autoencode` names them, so that either starts from the other."""
        return self.tokenizer.state_dict(prefix="tokenizer.")

    def load_model_state(self, state: Mapping[str, Tensor]) -> None:
        self.tokenizer.load_state_dict({name.removeprefix("tokenizer."): value for name, value in state.items()})

    @torch.no_grad()
    def after_step(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        figures = super().after_step({name: value for name, value in statistics.items() if name not in OURS})
        self.done += 1
        if "errors" in statistics:
            self._look_for_the_start(statistics["errors"])
        if "verdicts" in statistics:
            *sums, rows = statistics["verdicts"].unbind()
            means = torch.stack(sums) / rows
            before = int(self.done - self.began) - 1  # steps of the critic before this one
            self.verdicts.lerp_(means, 1 - min(MEMORY, before / (before + 1)))
            figures |= dict(zip(("verdict_real", "verdict_made"), means.tolist(), strict=True))
        if "slopes" in statistics:
            # the ratio is that of the step before the one that uses it: a step's own is known only once every
            # micro-batch and rank has added its gradient, and by then the loss has been differentiated. And it is of
            # running means, for that of single steps differs tenfold: the critic would be heard in shouts and whispers
            newest = statistics["slopes"].flatten(1).norm(dim=1)
            self.slopes.lerp_(newest, 1 - STEADY if bool(self.slopes.any()) else 1.0)
            pull, push = self.slopes
            self.balance.copy_((pull / push.clamp_min(1e-12)).clamp(max=MOST))
            figures["critic_balance"] = float(self.balance)
        return figures

    def _look_for_the_start(self, errors: Tensor) -> None:
        """Begin when the error of a stretch of steps is hardly below that of the stretch before, or it is late."""
        done, over = int(self.done), self.settings.flat_over
        self.errors[0] += errors[0] / errors[1]
        flat = False
        if done % over == 0:
            mean, before = self.errors[0] / over, self.errors[1].clone()
            flat = bool(before > 0) and bool(mean > (1 - self.settings.flat_below) * before)
            self.errors[0], self.errors[1] = 0.0, mean
        if flat or done >= self.settings.latest * self.steps:
            self.began.fill_(done)

    def _trains_critic(self, step: int) -> bool:
        return 0 <= int(self.began) <= step

    def _share_heard(self, step: int) -> float:
        """How much of the critic's weight the tokenizer hears, in [0, 1]."""
        if int(self.began) < 0:
            return 0.0
        steps = step + 1 - int(self.began) - self.settings.critic_first
        return min(1.0, max(0, steps) / max(1, self.settings.ramp))

    # --- what the tokenizer hears -------------------------------------------------------------------------------------

    def _walked(self, value_of: Callable[[Tensor], Tensor], made: Tensor) -> Tensor:
        """value_of(the signals as they are shown), summed over them, its graph walked back to `made` at once.

        The gradient there serves twice: for the balance at the last layer, and for the backward pass.
        """
        if not torch.is_grad_enabled():
            return value_of(made.float().clamp(-1, 1)).sum()
        start = made.detach().float().requires_grad_()
        value = value_of(start.clamp(-1, 1)).sum()
        (slope,) = torch.autograd.grad(value, start)
        return value.detach() + (slope * (made.float() - start.detach())).sum()

    def _judge(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The critic's verdicts fp32 (B, patches) and activations, without a gradient for the critic."""
        fixed = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
        verdicts, features = functional_call(self.critic, fixed, (x,))
        return verdicts.float().flatten(1), features

    def _heard(self, x: Tensor, shown: Tensor, told: dict[str, Tensor]) -> Tensor:
        """What the critic makes of each signal (B,); its parts, summed, are left in `told`."""
        verdicts, ours = self._judge(shown)
        heard = adversarial = self.game.fool(verdicts).mean(1)
        told["adversarial"] = adversarial.sum().detach()
        if self.settings.perceptual == "critic":
            features = feature_distance(ours, self._judge(x)[1])
            told["features"] = features.sum().detach()
            heard = heard + self.settings.perceptual_weight * features
        return heard

    def _network_distance(self, x: Tensor, shown: Tensor) -> Tensor:
        assert self.network is not None
        with torch.no_grad():
            theirs = self.network.features(x)
        return feature_distance(self.network.features(shown), theirs)

    def _slope(self, value: Tensor) -> Tensor:
        """The gradient at the weight of the decoder's last layer."""
        last = [weight for weight in self.tokenizer.decoder.parameters() if weight.ndim > 1][-1]
        return torch.autograd.grad(value, last, retain_graph=True)[0]

    def _held_out(self, x: Tensor, made: Tensor, step: int) -> list[Term]:
        """Figures of the critic on held-out signals, reported only."""
        if not self._trains_critic(step):
            return []
        told: dict[str, Tensor] = {}
        shown = made.float().clamp(-1, 1)
        self._heard(x, shown, told)
        told["verdict_real"], told["verdict_made"] = (self._judge(each)[0].mean(1).sum() for each in (x, shown))
        return [Term(name, value, len(x), 0.0) for name, value in told.items()]

    # --- the critic's own turn ----------------------------------------------------------------------------------------

    def _critic_loss(self, batch: Batch, step: int) -> Loss:
        if not (self.training and self._trains_critic(step)):
            return Loss([])
        rows, shown = len(batch.x), self._recalled(batch, step).to(batch.x.dtype).clamp(-1, 1)
        verdicts = self.critic(torch.cat([batch.x, shown]))[0]
        with full_precision(batch.x.device):
            real, made = verdicts.float().flatten(1).split(rows)
            terms = [
                Term("critic_real", self.game.real(real).mean(1).sum(), rows, 0.5),
                Term("critic_made", self.game.made(made).mean(1).sum(), rows, 0.5),
            ]
            weight, every = self.settings.penalty_weight, self.settings.penalty_every
            if self.settings.penalty == "lecam":
                terms.append(Term("lecam", lecam(real, made, self.verdicts).sum(), rows, weight))
            if self.settings.penalty == "r1" and step % every == 0:
                terms.append(Term("r1", r1(self.critic, batch.x).sum(), rows, weight * every / 2))
            sums = [each.detach().mean(1).sum() for each in (real, made)]
            seen = torch.stack([*sums, sums[0].new_tensor(rows)])
        return Loss(terms, {"verdicts": Statistic(seen)})

    def _remember(self, batch: Batch, step: int, made: Tensor) -> None:
        """Keep the reconstructions for the critic's turn on the same rows; those of other steps are forgotten."""
        kept = {key: value for key, value in self._made.items() if key[0] == step}
        self._made = {**kept, _key(batch, step): made.detach()}

    def _recalled(self, batch: Batch, step: int) -> Tensor:
        made = self._made.pop(_key(batch, step), None)
        if made is None:
            with torch.no_grad():
                made = self.tokenizer(batch.x, self.moment(batch, step))[0]
        return made


def lecam(real: Tensor, made: Tensor, means: Tensor) -> Tensor:
    """How far verdicts (B, patches) lie beyond the running means (2,) of the other side's, squared: (B,).

    Tseng et al. 2021 (arXiv 2104.03310), equation 3; rectified, as in the authors' program.
    """
    return (F.relu(real - means[1]).square() + F.relu(means[0] - made).square()).mean(1)


def r1(critic: nn.Module, x: Tensor) -> Tensor:
    """The squared slope of the summed verdicts at real signals, by patches: x (B, C, *space) -> (B,).

    Mescheder et al. 2018 (arXiv 1801.04406), equation 9, for every patch: where patches do not overlap it is the mean
    over them. To be taken in fp32, for it is differentiated twice.
    """
    x = x.detach().requires_grad_()
    verdicts = critic(x)[0]
    (slope,) = torch.autograd.grad(verdicts.sum(), x, create_graph=True)
    return slope.square().flatten(1).sum(1) / verdicts[0].numel()


def _key(batch: Batch, step: int) -> tuple[Any, ...]:
    return step, batch.seed, batch.step, tuple(batch.rows.tolist())


@contextmanager
def _outputs(network: nn.Module) -> Iterator[list[Any]]:
    """Whatever the network gives back within the block."""
    seen: list[Any] = []
    hook = network.register_forward_hook(lambda _network, _given, made: seen.append(made))
    try:
        yield seen
    finally:
        hook.remove()
