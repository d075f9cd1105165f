"""Two processes on half a batch each are one process on the whole batch, within the rounding of fp32."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
from tests.training.small_run import KINDS, RECIPES, start, train
from torch import nn

from smalti.training import state as states
from smalti.training.log import read_metrics
from smalti.training.ranks import Ranks

SETTINGS = {"steps": 6, "batch": 64, "dropout": 0.0, "validate_every": 3}


def tensors(folder: Path, part: str) -> dict[str, torch.Tensor]:
    state = states.load(folder / "state")
    assert state is not None
    return state[part]


def assert_alike(one: Path, other: Path) -> None:
    """Weights, their average, the codebook with its counts, and every logged figure."""
    for part in ("paradigm", "average"):
        ours, theirs = tensors(one, part), tensors(other, part)
        for name in theirs:
            torch.testing.assert_close(
                ours[name], theirs[name], atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )
    mine, yours = read_metrics(one / "metrics.jsonl"), read_metrics(other / "metrics.jsonl")
    assert [(row["step"], row["split"]) for row in mine] == [(row["step"], row["split"]) for row in yours]
    for ours, theirs in zip(mine, yours, strict=True):
        assert ours["values"] == pytest.approx(theirs["values"], rel=1e-4, abs=1e-6)


def revived(folder: Path) -> float:
    return sum(row["values"].get("codes_dead", 0) for row in read_metrics(folder / "metrics.jsonl"))


def two_ranks(folder: Path, kind: str, **settings) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    processes = [start(folder, kind, place | {"RANK": str(rank), "LOCAL_RANK": "0"}, **settings) for rank in range(2)]
    told = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(told)


@pytest.mark.parametrize("kind", [*KINDS, "rvq", "lfq"])
def test_two_ranks_are_one(kind, tmp_path):
    train(tmp_path / "one", kind, **SETTINGS)
    two_ranks(tmp_path / "two", kind, **SETTINGS, micro_batch=16)
    assert_alike(tmp_path / "two", tmp_path / "one")
    if kind == "tokenizer":
        assert revived(tmp_path / "one") > 0, "nothing was revived, so nothing was shown"


@pytest.mark.parametrize("kind", RECIPES)
def test_micro_batches_are_one_batch(kind, tmp_path):
    train(tmp_path / "whole", kind, **SETTINGS)
    train(tmp_path / "parts", kind, **SETTINGS, micro_batch=16)
    assert_alike(tmp_path / "parts", tmp_path / "whole")


def test_alone_every_operation_is_nothing(generator):
    ranks, value, network = Ranks.join(), torch.randn(3, generator=generator), nn.Linear(2, 2)
    assert (ranks.rank, ranks.count, ranks.writes) == (0, 1, True)
    assert torch.equal(ranks.sum(value.clone()), value)
    assert torch.equal(ranks.gather(value), value)
    network(torch.ones(1, 2)).sum().backward()
    before = network.weight.grad.clone()
    ranks.sum_gradients(network.parameters())
    ranks.copy_from_first(network)
    ranks.wait()
    ranks.leave()
    assert torch.equal(network.weight.grad, before)
    assert "MASTER_PORT" not in os.environ
