"""Exact resume: however a training is cut, it ends as if it had never stopped, bit for bit."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.training.small_run import CPU, KINDS, RECIPES, small_run, start, train, with_batches

from smalti.data.batch import Batch
from smalti.errors import UserError
from smalti.training import state as states
from smalti.training.log import MetricsLog, read_metrics
from smalti.training.loop import fit

kinds = pytest.mark.parametrize("kind", KINDS)


def stopping_at(step: int, number: int = signal.SIGTERM):
    """What the person, or the machine, does while step `step` is under way."""

    def change(batch: Batch) -> Batch:
        if batch.step == step:
            signal.raise_signal(number)
        return batch

    return change


def saved(folder: Path) -> dict:
    state = states.load(folder / "state")
    assert state is not None
    return state


@kinds
@pytest.mark.parametrize(
    ("number", "settings"),
    [
        (signal.SIGTERM, {}),
        (signal.SIGINT, {}),
        (signal.SIGTERM, {"precision": "auto"}),
        (signal.SIGTERM, {"muon_lr": 0.01, "micro_batch": 8}),
    ],
)
def test_stopped_and_resumed_is_undisturbed(kind, number, settings, tmp_path, differences, capfd):
    assert train(tmp_path / "whole", kind, **settings).finished
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    paradigm, run = small_run(tmp_path / "cut", kind, **settings)
    progress = fit(paradigm, with_batches(run, stopping_at(9, number)), CPU)
    assert (progress.finished, progress.step) == (False, 10)  # the step under way was finished
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert saved(tmp_path / "cut")["progress"]["step"] == 10
    torch.manual_seed(12345)  # no randomness may come from anywhere but the run
    progress = train(tmp_path / "cut", kind, **settings)
    assert (progress.finished, progress.step) == (True, 20)
    assert "continues from step 10 of 20" in capfd.readouterr().err
    assert differences(tmp_path / "whole", tmp_path / "cut") == []


@pytest.mark.parametrize("kind", [kind for kind in RECIPES if kind not in KINDS])
def test_every_other_kind_goes_on_undisturbed(kind, tmp_path, differences):
    assert train(tmp_path / "whole", kind).finished
    paradigm, run = small_run(tmp_path / "cut", kind)
    assert fit(paradigm, with_batches(run, stopping_at(9)), CPU).step == 10
    assert train(tmp_path / "cut", kind).finished
    assert differences(tmp_path / "whole", tmp_path / "cut") == []


@kinds
def test_a_different_run_is_not_equal(kind, tmp_path, differences):
    """The comparison that everything here rests on can see."""
    train(tmp_path / "one", kind, steps=4)
    train(tmp_path / "other", kind, steps=4, seed=1)
    found = differences(tmp_path / "one", tmp_path / "other")
    for part in ("state/paradigm", "state/average", "state/optimizers", "train/", "validation/", "model.safetensors"):
        assert any(name.startswith(part) for name in found), part


@kinds
def test_work_after_the_last_state_is_done_again(kind, tmp_path, differences):
    train(tmp_path / "whole", kind)
    cut = tmp_path / "cut"
    paradigm, run = small_run(cut, kind)
    fit(paradigm, with_batches(run, stopping_at(7)), CPU)
    before = shutil.copytree(cut / "state", tmp_path / "state")
    paradigm, run = small_run(cut, kind)
    fit(paradigm, with_batches(run, stopping_at(12)), CPU)
    shutil.rmtree(cut / "state")
    shutil.copytree(before, cut / "state")  # as a kill would leave it: rows and a model from a lost future
    with open(cut / "metrics.jsonl", "a") as file:
        file.write('{"step": 14, "ti')
    train(cut, kind)
    assert differences(tmp_path / "whole", cut) == []


def test_a_finished_run_stays_as_it_is(tmp_path, differences):
    train(tmp_path / "run", "tokenizer", steps=3)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    paradigm, run = small_run(tmp_path / "run", "tokenizer", steps=3)
    assert fit(paradigm, with_batches(run, lambda batch: pytest.fail("trained on")), CPU).finished
    assert differences(tmp_path / "run", tmp_path / "copy") == []


def test_a_second_interrupt_does_not_wait(tmp_path):
    def twice(batch: Batch) -> Batch:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return batch

    paradigm, run = small_run(tmp_path, "generator")
    with pytest.raises(KeyboardInterrupt):
        fit(paradigm, with_batches(run, twice), CPU)


def test_killed_at_random_moments(tmp_path, differences):
    """SIGKILL, three times, in a training that saves at every step, so that most kills fall into saving."""
    steps, seed = 60, random.randrange(1000)
    print(f"seed of the moments: {seed}")
    moments = random.Random(seed)
    latest = tmp_path / "killed" / "state" / "latest"
    reached = -1
    for _ in range(3):
        process = start(tmp_path / "killed", "tokenizer", steps=steps)
        end = time.monotonic() + 60
        while not (latest.exists() and int(latest.read_text()) > max(0, reached)):  # it has begun
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        told = process.communicate()[1]
        assert reached < 0 or f"continues from step {reached} of {steps}" in told
        reached = int(latest.read_text())
        print(f"killed after step {reached}")
    assert 0 < reached < steps, "the kills came too late to mean anything"
    process = start(tmp_path / "killed", "tokenizer", steps=steps)
    told = process.communicate(timeout=240)[1]
    assert process.returncode == 0, told
    assert f"continues from step {reached} of {steps}" in told
    assert train(tmp_path / "whole", "tokenizer", steps=steps).finished
    assert differences(tmp_path / "whole", tmp_path / "killed") == []


# --- what goes wrong -------------------------------------------------------------------------------------------------


@kinds
def test_a_loss_that_is_not_finite_stops_before_the_step(kind, tmp_path, differences):
    def spoil(batch: Batch) -> Batch:
        if batch.step == 6:
            for parameter in paradigm.parameters():
                if parameter.requires_grad and parameter.ndim > 1:
                    parameter.register_hook(lambda gradient: gradient * torch.nan)
        return batch

    paradigm, run = small_run(tmp_path / "run", kind, save_seconds=1e9)
    with pytest.raises(UserError, match=r"not finite at step 7.*--training\.lr"):
        fit(paradigm, with_batches(run, spoil), CPU)
    good, run = small_run(tmp_path / "good", kind, save_seconds=1e9)
    fit(good, with_batches(run, stopping_at(5)), CPU)
    assert differences(tmp_path / "run", tmp_path / "good") == []
    train(tmp_path / "run", kind)  # the state is whole: without what spoiled it, the run goes to its end
    train(tmp_path / "whole", kind)
    assert differences(tmp_path / "run", tmp_path / "whole") == []


def test_a_loss_that_is_not_finite_is_named(tmp_path):
    paradigm, run = small_run(tmp_path, "tokenizer")
    with pytest.raises(UserError, match=r"reconstruction.* of tokenizer is not finite at step 7"):
        fit(paradigm, with_batches(run, lambda b: replace(b, x=b.x * torch.nan) if b.step == 6 else b), CPU)
    assert saved(tmp_path)["progress"]["step"] == 6


def test_a_loss_that_is_not_finite_at_the_first_step_leaves_nothing(tmp_path):
    paradigm, run = small_run(tmp_path, "generator")
    torch.nn.init.constant_(paradigm.head.weight, torch.nan)
    with pytest.raises(UserError, match="not finite at step 1"):
        fit(paradigm, run, CPU)
    assert states.load(tmp_path / "state") is None


def test_other_data_is_refused(tmp_path):
    train(tmp_path, "generator", steps=3)
    paradigm, run = small_run(tmp_path, "generator", steps=3)
    with pytest.raises(UserError, match=r"the data has changed.*--init"):
        fit(paradigm, replace(run, identity={"the data": "another"}), CPU)
    assert saved(tmp_path)["progress"]["finished"]


class FullDisk:
    """Takes so many bytes, then no more."""

    def __init__(self, file, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def full_disk(way: str, state: Path, patch: pytest.MonkeyPatch) -> None:
    """The disk is full while the state of step 3 is written, or the pointer to it."""
    real_save, real_sync = torch.save, os.fsync
    refusal = OSError(errno.ENOSPC, "No space left on device")

    def full() -> bool:
        if way == "pointer":
            return (state / "3").exists()
        return (state / "latest").exists() and (state / "latest").read_text() == "2\n"

    def save(tree, file) -> None:
        if full() and way == "save":
            raise refusal
        real_save(tree, FullDisk(file, 5000) if full() and way == "write" else file)

    def sync(number: int) -> None:
        if full() and way in ("sync", "pointer"):
            raise refusal
        real_sync(number)

    patch.setattr(torch, "save", save)
    patch.setattr(os, "fsync", sync)


@pytest.mark.parametrize("way", ["write", "save", "sync", "pointer"])
def test_a_full_disk_leaves_the_older_state(way, tmp_path, monkeypatch, differences):
    state = tmp_path / "run" / "state"
    paradigm, run = small_run(tmp_path / "run", "tokenizer", validate_every=100)
    with monkeypatch.context() as patch:
        full_disk(way, state, patch)
        with pytest.raises(UserError, match="untouched"):
            fit(paradigm, run, CPU)
    assert saved(tmp_path / "run")["progress"]["step"] == 2
    assert not list(state.glob(".*"))  # no half of one lies about
    train(tmp_path / "run", "tokenizer", validate_every=100)
    train(tmp_path / "whole", "tokenizer", validate_every=100)
    assert differences(tmp_path / "run", tmp_path / "whole") == []


def test_a_full_disk_while_logging_is_said_in_words(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write(1, 0.1, "train", {"loss": 2.0})

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(UserError, match=r"disk full.*metrics"):
        log.write(2, 0.2, "train", {"loss": 1.0})


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_damaged_state_is_said_to_be(size, tmp_path):
    train(tmp_path, "generator", steps=2)
    path = tmp_path / "state" / "2" / "training.pt"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"training\.pt is damaged"):
        train(tmp_path, "generator", steps=2)


def test_a_state_that_is_gone_is_said_to_be(tmp_path):
    train(tmp_path, "generator", steps=2)
    shutil.rmtree(tmp_path / "state" / "2")
    with pytest.raises(UserError, match=r"training\.pt is damaged"):
        train(tmp_path, "generator", steps=2)


def test_what_a_kill_left_half_written_is_passed_over_and_cleared_away(tmp_path, differences):
    train(tmp_path / "whole", "generator")
    paradigm, run = small_run(tmp_path / "cut", "generator")
    fit(paradigm, with_batches(run, stopping_at(4)), CPU)
    state = tmp_path / "cut" / "state"
    (state / ".6.new").mkdir()
    (state / ".6.new" / "training.pt").write_bytes(b"half of")
    (state / "6").mkdir()  # whole, but not pointed to: killed between the two
    (state / ".latest.1.new").write_text("6")
    train(tmp_path / "cut", "generator")
    assert differences(tmp_path / "whole", tmp_path / "cut") == []
    assert {path.name for path in state.iterdir() if path.is_dir()} == {"20"}


def test_a_state_is_never_a_pickle(tmp_path):
    class Rude:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was run",))

    train(tmp_path, "generator", steps=2)
    torch.save({"progress": Rude()}, tmp_path / "state" / "2" / "training.pt")
    with pytest.raises(UserError, match="damaged"):
        train(tmp_path, "generator", steps=2)


def test_saving_the_same_step_again_never_takes_the_state_away(tmp_path, monkeypatch):
    """A loss that is not finite right after a resume saves the step that was resumed from."""
    states.save(tmp_path, 5, {"a": 1})

    def killed(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        states.save(tmp_path, 5, {"a": 1})
    assert states.load(tmp_path) == {"a": 1}


def test_log_rows_of_an_earlier_attempt_that_never_saved_are_forgotten(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "time": 1.0, "split": "train", "values": {}}\n')
    train(tmp_path, "generator", steps=2)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 2]
