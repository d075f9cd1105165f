"""A whole training by the command line, killed at ten random moments, against one that was left in peace."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

KILLS = 10
SETTINGS = "--training.steps 150 --training.save_seconds 0.3 --tokenizer.training.steps 150 --model.layers 2"


def pictures(folder: Path) -> Path:
    """Two classes of small pictures: stripes lying and standing, of random colour and width."""
    random_numbers = np.random.default_rng(0)
    for label in ("lying", "standing"):
        (folder / label).mkdir(parents=True)
        for i in range(150):
            wave = np.sin(np.arange(32) * random_numbers.uniform(0.2, 1.5) + random_numbers.uniform(0, 6))
            plane = np.repeat(wave[:, None] if label == "lying" else wave[None], 32, 1 if label == "lying" else 0)
            colour = random_numbers.uniform(60, 127, 3)
            Image.fromarray((128 + plane[..., None] * colour).astype(np.uint8)).save(folder / label / f"{i}.png")
    return folder


def smalti(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "smalti.cli", *arguments, "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> str:
    _, told = process.communicate(timeout=600)
    assert process.returncode == 0, told
    return told


def begin(run: Path, data: Path) -> subprocess.Popen[str]:
    if (run / "recipe.json").exists():
        return smalti("train", "--resume", str(run))
    return smalti("train", "folder", "--data", str(data), "--out", str(run), *SETTINGS.split())


@pytest.mark.slow
def test_ten_kills_change_nothing(tmp_path):
    data = pictures(tmp_path / "data")
    began = time.monotonic()
    finish(begin(tmp_path / "whole", data))
    whole = time.monotonic() - began

    moments = random.Random(7)
    continued = 0
    for kill in range(KILLS):
        process = begin(tmp_path / "killed", data)
        # a start takes seconds, so shorter spells would never train; longer ones would be done before the tenth kill
        time.sleep(moments.uniform(0.3, 0.6) * min(whole, 20))
        process.kill()
        _, told = process.communicate()
        lines = [line for line in told.splitlines() if "continues from step" in line]
        continued += bool(lines)
        print(f"kill {kill + 1}: {lines or 'from the start'}")
    finish(begin(tmp_path / "killed", data))
    assert continued >= 3, "the kills came too early or too late to mean anything"
    for path in ("model/model.safetensors", "tokenizer/model/model.safetensors", "model/config.json"):
        assert (tmp_path / "killed" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes(), path
