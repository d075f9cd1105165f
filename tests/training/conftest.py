"""What two runs left behind, compared bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from smalti.training import state as states
from smalti.training.log import read_metrics


def leaves(tree: Any, name: str = "") -> dict[str, Any]:
    """Every value of a nested state under its full name."""
    if isinstance(tree, dict | list | tuple):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {key: value for k, each in items for key, value in leaves(each, f"{name}/{k}").items()}
    return {name: tree}


def left_behind(folder: Path) -> dict[str, Any]:
    """All that a run left, by name, without how long it took."""
    state = states.load(folder / "state")
    assert state is not None
    left = leaves(state, "state")
    del left["state/progress/seconds"]
    rows = read_metrics(folder / "metrics.jsonl")
    left["rows"] = [(row["step"], row["split"]) for row in rows]
    for row in rows:
        left |= leaves(row["values"], f"{row['split']}/{row['step']}")
    for path in sorted((folder / "model").rglob("*")):
        if path.is_file() and path.name != "README.md":
            left[path.name] = path.read_bytes()
    return left


@pytest.fixture
def differences() -> Callable[[Path, Path], list[str]]:
    """differences(run, run): the names of all values in which two runs differ by any bit."""

    def compare(one: Path, other: Path) -> list[str]:
        a, b = left_behind(one), left_behind(other)
        missing = sorted(a.keys() ^ b.keys())
        equal = {
            key: torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key]
            for key in a.keys() & b.keys()
        }
        return missing + sorted(key for key, same in equal.items() if not same)

    return compare
