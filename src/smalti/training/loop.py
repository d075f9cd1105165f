"""The one training loop: any paradigm, any number of players, one process or many."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from smalti.data.batch import Batch
from smalti.device import autocast, peak_memory, synchronize
from smalti.errors import UserError
from smalti.paradigms.base import Paradigm
from smalti.recipe import TrainingConfig
from smalti.tokenizers.bottlenecks import Statistic
from smalti.training import state as states
from smalti.training.ema import WeightAverage
from smalti.training.log import MetricsLog, ProgressLine, say
from smalti.training.optim import Optimizer, rate_share
from smalti.training.ranks import Ranks
from smalti.training.totals import Totals

FIRST_BATCHES = 4  # looked at before the first step, for state that starts from real data


@dataclass
class Progress:
    """Where a training stands: all that is saved beside weights and optimizers."""

    step: int = 0
    seconds: float = 0.0  # spent training and validating
    best: float = math.inf
    best_step: int = 0
    finished: bool = False


@dataclass(frozen=True)
class Run:
    """What `fit` works with. `batches(step)` yields this rank's batches from that step on; `held_out` its share of the
    validation examples; `keep` writes the averaged model as the run's model folder."""

    title: str
    folder: Path
    config: TrainingConfig
    batches: Callable[[int], Iterator[Batch]]
    held_out: Callable[[], Iterator[Batch]]
    keep: Callable[[Paradigm, Progress], None]
    identity: Mapping[str, str] = field(default_factory=dict)  # of the data; a resume with another is refused
    watch: Callable[[Paradigm, Progress], None] | None = None  # shown the averaged model at every validation
    fresh: bool = True  # whether state that starts from real data has still to be set


def fit(paradigm: Paradigm, run: Run, device: torch.device, ranks: Ranks | None = None) -> Progress:
    """Train to the last step, resuming from the folder's state when there is one.

    Ends early, saved, on SIGINT or SIGTERM (then `finished` is false). Raises UserError on a loss that is not finite,
    with the last good state kept, and on a resume with other data.
    """
    return _Fit(paradigm, run, device, ranks or Ranks()).run_to_end()


class _Fit:
    def __init__(self, paradigm: Paradigm, run: Run, device: torch.device, ranks: Ranks) -> None:
        self.run, self.config, self.device, self.ranks = run, run.config, device, ranks
        self.paradigm = paradigm.to(device)
        self.players = paradigm.players()
        self.optimizers = {name: Optimizer(player, self._paced(name)) for name, player in self.players.items()}
        self.average = WeightAverage(paradigm, self.config.ema, self.config.init_share)
        self.progress = Progress()
        self.log = MetricsLog(run.folder / "metrics.jsonl")
        self.stop = threading.Event()
        self.saved_at = time.monotonic()
        self.rising = 0

    def _paced(self, player: str) -> TrainingConfig:
        """The settings of one player's optimizer: a paradigm may give it AdamW at a learning rate of its own."""
        rates = self.paradigm.rates()
        own = {"lr": rates[player], "muon_lr": None} if player in rates else {}
        return self.config.model_copy(update=own)

    def run_to_end(self) -> Progress:
        resumed = self._restore()
        if resumed and self.progress.finished:
            return self.progress
        with _stop_on_signal(self.stop):
            self._train(resumed)
        return self.progress

    def _train(self, resumed: bool) -> None:
        config, progress, ranks = self.config, self.progress, self.ranks
        if not resumed:
            self._initialise()
        began, before, first = time.monotonic(), progress.seconds, progress.step
        shown = ProgressLine(self.run.title, config.steps, first, ranks.writes)
        with shown as line, _closed(self.run.batches(first)) as batches:
            while progress.step < config.steps:
                values = self._step(next(batches))
                progress.step += 1
                progress.seconds = before + time.monotonic() - began
                last = progress.step == config.steps
                if ranks.writes:
                    if progress.step % config.log_every == 0 or last:
                        self.log.write(progress.step, progress.seconds, "train", values)
                    line.update(progress.step, " ".join(f"{k} {v:.4g}" for k, v in list(values.items())[:2]))
                    if progress.step == first + 10:
                        self._estimate((time.monotonic() - began) / 10)
                if progress.step % config.validate_every == 0 or last:
                    self._validate()
                    progress.seconds = before + time.monotonic() - began
                stopping = bool(ranks.sum(torch.tensor(float(self.stop.is_set()), device=self.device)))
                progress.finished = last
                if ranks.writes and (last or stopping or self._save_due()):
                    self._save()
                if stopping and not last:
                    break

    def _step(self, batch: Batch) -> dict[str, float]:
        """Every player's turn on one batch, then the state that moves once a step."""
        config, step = self.config, self.progress.step
        share = rate_share(step, config)
        values: dict[str, float] = {}
        statistics: dict[str, Tensor] = {}
        # what chance a layer takes (dropout) depends on the step alone, so a resume repeats it
        torch.manual_seed((config.seed * 1_000_003 + step) * 1009 + self.ranks.rank)
        self.paradigm.train()
        batch = batch.to(self.device)
        for name, player in self.players.items():
            totals, seen = Totals(), defaultdict[str, list[Statistic]](list)
            for part in batch.split(config.micro_batch or len(batch.rows)):
                with autocast(self.device, config.precision):
                    loss = self.paradigm.loss(name, part, step)
                if loss.terms:
                    totals.add(loss.terms).backward()
                for key, statistic in loss.statistics.items():
                    seen[key].append(statistic)
            statistics.update({key: self._merged(parts) for key, parts in seen.items()})
            if not totals.sums:
                continue
            values.update(totals.over(self.ranks).means())
            values["grad_norm" if len(self.players) == 1 else f"grad_norm_{name}"] = self._descend(
                name, player, totals, share
            )
        values.update(self.paradigm.after_step(statistics))
        values["lr"] = config.lr * share
        self.average.update(self.paradigm)
        return values

    def _descend(self, name: str, player: nn.Module, totals: Totals, share: float) -> float:
        """Divide the summed gradient by what was counted, clip it, check it, and step."""
        parameters = [p for p in player.parameters() if p.grad is not None]
        self.ranks.sum_gradients(parameters)
        torch._foreach_div_([p.grad for p in parameters if p.grad is not None], totals.counted)
        norm = float(nn.utils.clip_grad_norm_(parameters, self.config.clip))
        broken = [key for key, mean in totals.means().items() if not math.isfinite(mean)]
        if broken or not math.isfinite(norm):
            self._stop_on_nan(name, broken)
        self.optimizers[name].step(share)
        self.paradigm.zero_grad(set_to_none=True)  # also what this player's loss left in the others
        return norm

    def _stop_on_nan(self, player: str, broken: list[str]) -> None:
        if self.ranks.writes and self.progress.step and player == next(iter(self.players)):
            self._save()  # nothing has moved in this step yet; later in it the last saved state stands
        what = ", ".join(broken) or "the gradient"
        raise UserError(
            f"{what} of {player} is not finite at step {self.progress.step + 1}; the state before that step is kept in"
            f" {self.run.folder}. Start anew with a smaller --training.lr, or with --training.precision fp32"
        )

    def _merged(self, parts: list[Statistic]) -> Tensor:
        if parts[0].merge == "gather":
            return self.ranks.gather(torch.cat([part.value for part in parts]))
        return self.ranks.sum(torch.stack([part.value for part in parts]).sum(0) if len(parts) > 1 else parts[0].value)

    @torch.no_grad()
    def _initialise(self) -> None:
        """State that starts from real data, then the same start on every rank."""
        self.ranks.copy_from_first(self.paradigm)
        latents: list[Tensor] = []
        self.paradigm.eval()
        with _closed(self.run.batches(0)) as batches:
            for _ in range(FIRST_BATCHES if self.run.fresh else 0):
                with autocast(self.device, self.config.precision):
                    found = self.paradigm.first_latents(next(batches).to(self.device))
                if found is None:
                    break
                latents.append(self.ranks.gather(found))
        if latents:
            self.paradigm.initialise(torch.cat(latents))
            self.ranks.copy_from_first(self.paradigm)
        self.average = WeightAverage(self.paradigm, self.config.ema, self.config.init_share)

    @torch.no_grad()
    def _validate(self) -> None:
        """Measure the averaged weights on held-out examples; keep them as the run's model when they are the best, or as
        the recipe says."""
        totals, paradigm, progress = Totals(), self.average.module, self.progress
        for batch in self.run.held_out():
            batch = batch.to(self.device)
            with autocast(self.device, self.config.precision):
                for player in self.players:
                    if terms := paradigm.loss(player, batch, progress.step).terms:
                        totals.add(terms)
        totals.over(self.ranks)
        score = paradigm.score(totals.means(), totals.loss()) if self.config.keep == "best" else None
        if self.ranks.writes:
            self.log.write(progress.step, progress.seconds, "validation", totals.means())
            if self.run.watch is not None:
                self.run.watch(paradigm, progress)
        if score is None or score < progress.best:
            progress.best = totals.loss() if score is None else score
            progress.best_step, self.rising = progress.step, 0
            if self.ranks.writes:
                self.run.keep(paradigm, progress)
            return
        self.rising += 1
        if self.rising == 3 and self.ranks.writes:
            say(
                f"warning: held-out loss has not improved since step {progress.best_step} (best {progress.best:.4g},"
                f" now {score:.4g}); the model of step {progress.best_step} is kept. More data, a smaller model or more"
                " dropout would help; more steps will not"
            )

    def _save_due(self) -> bool:
        return time.monotonic() - self.saved_at >= self.config.save_seconds

    def _save(self) -> None:
        synchronize(self.device)
        states.save(self.run.folder / "state", self.progress.step, self._state())
        self.saved_at = time.monotonic()

    def _state(self) -> dict[str, Any]:
        return {
            "paradigm": self.paradigm.state_dict(),
            "average": self.average.module.state_dict(),
            "average_updates": self.average.updates,
            "average_start": self.average.start,
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "progress": dict(vars(self.progress)),
            "rising": self.rising,
            "identity": dict(self.run.identity),
        }

    def _restore(self) -> bool:
        state = states.load(self.run.folder / "state")
        if state is None:
            if self.ranks.writes:
                self.log.cut(0)
            return False
        for key, now in self.run.identity.items():
            if state["identity"].get(key) != now:
                raise UserError(
                    f"{key} has changed since {self.run.folder} was trained on it: exact resume is impossible. Put it"
                    " back as it was, or start a new run with --init"
                )
        self.paradigm.load_state_dict(state["paradigm"])
        self.average.module.load_state_dict(state["average"])
        self.average.updates = state["average_updates"]
        if state.get("average_start") is not None:
            self.average.start = [each.to(self.device) for each in state["average_start"]]
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.progress = Progress(**state["progress"])
        self.rising = state["rising"]
        if self.ranks.writes:
            self.log.cut(self.progress.step)
            if not self.progress.finished:
                say(f"{self.run.title}: continues from step {self.progress.step} of {self.config.steps}")
        return True

    def _estimate(self, seconds_a_step: float) -> None:
        """What is to come, from the first steps, when it is long enough to ask."""
        left = seconds_a_step * (self.config.steps - self.progress.step)
        weights = sum(p.numel() * p.element_size() for p in self.paradigm.parameters())
        if left > 60:
            copies = 5 if self.average.start is None else 6
            memory = f", {peak_memory(self.device):.1f} GiB of memory"
            say(f"{self.run.title}: about {left / 60:.0f} min{memory}, {copies * weights / 2**20:.0f} MiB on disk")


@contextmanager
def _closed(batches: Iterator[Batch]) -> Iterator[Iterator[Batch]]:
    """End a loader's processes also when training ends by an error."""
    try:
        yield batches
    finally:
        if isinstance(batches, Generator):
            batches.close()


@contextmanager
def _stop_on_signal(stop: threading.Event) -> Iterator[None]:
    """SIGINT and SIGTERM ask for a stop after the step in progress; a second SIGINT interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    earlier = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
