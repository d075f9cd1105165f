"""What resume needs, written so that a kill at any moment leaves the last whole state.

state/STEP/training.pt     weights, average, optimizers, counters
state/latest               the name of the newest whole state; replaced atomically, the one commit point
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from smalti.checkpoint import saving, write_text
from smalti.errors import UserError


def save(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write a state, point to it, and drop the older ones. A full disk leaves the older one in force.

    A step has one state: where it is in force already it is left alone, for replacing it would risk the only one.
    """
    if _latest(folder) == str(step):
        return
    target = folder / str(step)
    fresh = folder / f".{step}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        with saving(target):
            fresh.mkdir(parents=True)
            with open(fresh / "training.pt", "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            shutil.rmtree(target, ignore_errors=True)
            os.replace(fresh, target)
    except RuntimeError as error:  # torch's writer reports a full disk in its own words
        raise UserError(f"could not write {target}: {error}; the state before it is untouched") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    write_text(folder / "latest", f"{step}\n")
    for old in folder.iterdir():
        if old.is_dir() and old.name != str(step):
            shutil.rmtree(old, ignore_errors=True)


def load(folder: Path) -> dict[str, Any] | None:
    """The newest whole state, or None when training has not saved any. Raises UserError when it is damaged."""
    step = _latest(folder)
    if step is None:
        return None
    path = folder / step / "training.pt"
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}); copy the run folder again") from error


def _latest(folder: Path) -> str | None:
    try:
        return (folder / "latest").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
