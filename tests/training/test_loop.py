"""The loop's own duties, seen on paradigms of a few numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from smalti.data.batch import Batch
from smalti.paradigms.base import Loss, Paradigm
from smalti.recipe import TrainingConfig
from smalti.term import Term
from smalti.tokenizers.bottlenecks import Statistic
from smalti.training.log import read_metrics
from smalti.training.loop import Progress, Run, fit
from smalti.training.optim import rate_share

CPU = torch.device("cpu")


class Line(Paradigm):
    """One weight vector, drawn to the batches' means."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(3, 1)
        self.seen: list[dict[str, float]] = []

    def players(self) -> dict[str, nn.Module]:
        return {"line": self.network}

    def loss(self, player: str, batch: Batch, step: int) -> Loss:
        error = (self.network(batch.x) - 1).square().sum()
        statistics = {"sum": Statistic(batch.x.sum(0)), "rows": Statistic(batch.rows, "gather")}
        return Loss([Term("error", error, len(batch.x))], statistics)

    def after_step(self, statistics: dict[str, Tensor]) -> dict[str, float]:
        self.seen.append(dict(statistics))
        return {"largest": float(statistics["sum"].max())}


class Duel(Paradigm):
    """Two players; the first one's loss goes through the second, as a critic's does."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3, bias=False), nn.Linear(3, 1, bias=False)

    def players(self) -> dict[str, nn.Module]:
        return {"one": self.one, "two": self.two}

    def loss(self, player: str, batch: Batch, step: int) -> Loss:
        made = self.one(batch.x)
        if player == "one":
            return Loss([Term("fool", self.two(made).square().sum(), len(batch.x))])
        return Loss([Term("tell", (self.two(made.detach()) - self.two(batch.x) - 1).square().sum(), len(batch.x))])


def batches(start: int) -> Iterator[Batch]:
    while True:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(start))
        yield Batch(start, torch.arange(8), torch.arange(8), x)
        start += 1


def run_of(folder: Path, config: TrainingConfig, kept: list[int] | None = None, held: float = 1.0) -> Run:
    def held_out() -> Iterator[Batch]:
        yield Batch(0, torch.arange(4), torch.arange(4), torch.full((4, 3), held))

    def keep(average: Paradigm, progress: Progress) -> None:
        if kept is not None:
            kept.append(progress.step)

    return Run("small", folder, config, batches, held_out, keep)


def config_of(**settings) -> TrainingConfig:
    return TrainingConfig(**{"steps": 5, "batch": 8, "lr": 0.05, "warmup": 2, "precision": "fp32", **settings})


def adamw(parameters: list[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=config.betas)


def test_the_loop_is_the_one_written_out(tmp_path):
    config = config_of(clip=0.5, log_every=1)
    torch.manual_seed(0)
    ours, theirs = Line(), nn.Linear(3, 1)
    theirs.load_state_dict(ours.network.state_dict())
    fit(ours, run_of(tmp_path, config), CPU)
    optimizer, stream, norms = adamw(list(theirs.parameters()), config), batches(0), []
    for step in range(5):
        optimizer.zero_grad()
        (theirs(next(stream).x) - 1).square().mean().backward()
        norms.append(float(nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)))
        for group in optimizer.param_groups:
            group["lr"] = config.lr * rate_share(step, config)
        optimizer.step()
    assert max(norms) > 0.5, "nothing was clipped, so nothing was shown"
    logged = [row["values"] for row in read_metrics(tmp_path / "metrics.jsonl") if row["split"] == "train"]
    assert [values["grad_norm"] for values in logged] == pytest.approx(norms, rel=1e-5)
    assert [values["lr"] for values in logged] == pytest.approx([0.05 * rate_share(step, config) for step in range(5)])
    torch.testing.assert_close(ours.network.state_dict(), theirs.state_dict())


def test_each_player_steps_on_its_own_loss_alone(tmp_path):
    """The first player's backward pass leaves gradients in the second, which must not add to its own."""
    config = config_of(clip=1e9)
    torch.manual_seed(0)
    ours, theirs = Duel(), Duel()
    theirs.load_state_dict(ours.state_dict())
    fit(ours, run_of(tmp_path, config), CPU)
    optimizers = {name: adamw(list(player.parameters()), config) for name, player in theirs.players().items()}
    stream = batches(0)
    for step in range(5):
        batch = next(stream)
        for name, optimizer in optimizers.items():
            theirs.zero_grad()
            (theirs.loss(name, batch, step).terms[0].sum / 8).backward()
            for group in optimizer.param_groups:
                group["lr"] = config.lr * rate_share(step, config)
            optimizer.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    values = read_metrics(tmp_path / "metrics.jsonl")[0]["values"]
    assert {"fool", "tell", "grad_norm_one", "grad_norm_two", "lr"} <= values.keys()


@pytest.mark.parametrize("micro", [None, 2, 3])
def test_statistics_are_merged_once_a_step(micro, tmp_path):
    paradigm = Line()
    fit(paradigm, run_of(tmp_path, config_of(micro_batch=micro) if micro != 3 else config_of()), CPU)
    assert len(paradigm.seen) == 5
    stream = batches(0)
    for statistics in paradigm.seen:
        torch.testing.assert_close(statistics["sum"], next(stream).x.sum(0))
        assert statistics["rows"].tolist() == list(range(8))


def test_what_is_logged_and_when(tmp_path):
    paradigm = Line()
    fit(paradigm, run_of(tmp_path, config_of(steps=7, log_every=3, validate_every=4)), CPU)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["split"]) for row in rows] == [
        (3, "train"),
        (4, "validation"),
        (6, "train"),
        (7, "train"),
        (7, "validation"),
    ]
    assert rows[0]["values"].keys() == {"error", "grad_norm", "largest", "lr"}
    assert rows[1]["values"].keys() == {"error"}
    times = [row["time"] for row in rows]
    assert times == sorted(times)


def test_the_best_average_is_kept_and_a_rise_is_told(tmp_path, capfd):
    """Held out is what training drives the line away from."""
    kept: list[int] = []
    config = config_of(steps=60, validate_every=5, lr=0.1, warmup=0, ema=0.0)
    paradigm = Line()
    with torch.no_grad():
        paradigm.network.weight.fill_(3.0)
        paradigm.network.bias.fill_(-8.0 + 1e-3)  # 1 on what is held out, so that every step makes it worse
    progress = fit(paradigm, run_of(tmp_path, config, kept), CPU)
    held = {
        row["step"]: row["values"]["error"]
        for row in read_metrics(tmp_path / "metrics.jsonl")
        if row["split"] != "train"
    }
    best = min(held, key=held.get)
    assert kept[-1] == best == progress.best_step < 60
    assert progress.best == held[best]
    assert kept == [step for step in held if held[step] == min(held[s] for s in held if s <= step)]
    assert capfd.readouterr().err.count("has not improved since step") == 1
    kept.clear()
    fit(paradigm, run_of(tmp_path / "last", config.model_copy(update={"keep": "last"}), kept), CPU)
    assert kept == sorted(held)
    assert "has not improved" not in capfd.readouterr().err


def test_validation_measures_the_average_and_in_eval_mode(tmp_path):
    class Watching(Line):
        def loss(self, player: str, batch: Batch, step: int) -> Loss:
            if len(batch.x) == 4:
                assert not self.training
                assert not torch.is_grad_enabled()
            else:
                assert self.training
            return super().loss(player, batch, step)

    paradigm = Watching()
    fit(paradigm, run_of(tmp_path, config_of(steps=10, validate_every=10, ema=0.999)), CPU)
    with torch.no_grad():
        newest = float((paradigm.network(torch.ones(4, 3)) - 1).square().mean())
    held = read_metrics(tmp_path / "metrics.jsonl")[-1]["values"]["error"]
    assert not math.isclose(held, newest, rel_tol=1e-3)


def test_a_start_from_an_earlier_model_is_not_set_anew(tmp_path):
    class Starting(Line):
        def first_latents(self, batch: Batch) -> Tensor:
            return batch.x

        def initialise(self, latents: Tensor) -> None:
            self.latents = latents

    fresh, earlier = Starting(), Starting()
    fit(fresh, run_of(tmp_path / "fresh", config_of(steps=1)), CPU)
    stream = batches(0)
    assert torch.equal(fresh.latents, torch.cat([next(stream).x for _ in range(4)]))
    run = run_of(tmp_path / "earlier", config_of(steps=1))
    fit(earlier, replace(run, fresh=False), CPU)
    assert not hasattr(earlier, "latents")


def test_streams_are_closed(tmp_path):
    closed = []

    def closing(start: int) -> Iterator[Batch]:
        try:
            yield from batches(start)
        finally:
            closed.append(start)

    run = run_of(tmp_path, config_of())
    fit(Line(), replace(run, batches=closing), CPU)
    assert closed == [0, 0]  # one for the start from real data, one for training


def test_training_in_a_thread_leaves_signals_alone(tmp_path):
    import threading

    done: list[Progress] = []
    thread = threading.Thread(target=lambda: done.append(fit(Line(), run_of(tmp_path, config_of()), CPU)))
    thread.start()
    thread.join()
    assert done[0].finished
