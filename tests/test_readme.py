"""README.md's sessions, run as they stand: every block of console or python that a line `<!-- test -->` announces.

What the machine has no time or no network for is stood in for: Fashion-MNIST by a few generated pictures under its
name, and recipes by themselves with two steps and a small network. What is printed must be what README shows, except
for numbers.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.tiny import smalti as smalti

from smalti import recipes
from smalti.data import sources
from smalti.data.named import NAMED_SETS, Split
from smalti.recipe import Recipe

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCK = re.compile(r"<!-- test\b[^>]*-->\s*```(console|python)\n(.*?)```", re.DOTALL)
NUMBER = re.compile(r"\d[\d,.]*")
SHORT = {"training.steps": 2, "training.batch": 16, "training.warmup": 0}
SMALL = {"model.layers": 1, "model.width": 32, "model.heads": 2}


def waves(contents: Mapping[str, bytes]) -> dict[str, Split]:
    """Pictures in the shape of Fashion-MNIST: waves, the narrower the higher the label."""

    def split(count: int, seed: int) -> Split:
        random, labels = np.random.default_rng(seed), np.arange(count) % 10
        along = np.arange(28)[None, :, None] * (labels[:, None, None] + 1) / 20 + random.uniform(0, 6, (count, 1, 1))
        pixels = 128 + 90 * np.sin(along) + random.normal(0, 20, (count, 28, 28))
        return pixels.clip(0, 255).astype(np.uint8)[:, None], labels

    return {"train": split(300, 0), "test": split(60, 1)}


def short(function: Callable[[], Recipe]) -> Callable[[], Recipe]:
    """The same recipe, done in a moment."""

    @functools.wraps(function)
    def made() -> Recipe:
        recipe = function()
        inner = {f"tokenizer.{name}": value for name, value in SHORT.items()} | SMALL if recipe.generates else {}
        return recipe.changed(**SHORT, **inner)

    return made


@pytest.fixture(autouse=True)
def _stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "set").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    few = replace(NAMED_SETS["fashion-mnist"], files={}, ways=(), read=waves, places=(tmp_path / "set",))
    monkeypatch.setitem(NAMED_SETS, "fashion-mnist", few)
    for name in ("quickstart", "fashion", "fashion-tokenizer", "fashion-tokenizer-512"):
        monkeypatch.setitem(recipes.RECIPES, name, short(recipes.RECIPES[name]))
    sources._read_named.cache_clear()
    yield
    sources._read_named.cache_clear()


def blocks(kind: str) -> list[str]:
    """The marked blocks of README.md, where there is one."""
    if not README.exists():
        return []
    return [text for found, text in BLOCK.findall(README.read_text(encoding="utf-8")) if found == kind]


def steps(session: str) -> list[tuple[str, list[str]]]:
    """(command, the lines that README shows below it)."""
    told: list[tuple[str, list[str]]] = []
    for line in session.splitlines():
        if line.startswith("$ "):
            told.append((line.removeprefix("$ "), []))
        elif line.strip():
            assert told, f"README shows {line!r} before any command"
            told[-1][1].append(line)
    return told


def shape(lines: list[str]) -> list[str]:
    """Lines without what differs from run to run: numbers, and the room they take."""
    return [" ".join(NUMBER.sub("#", line).split()) for line in lines if line.strip()]


@pytest.mark.skipif(not blocks("console"), reason="README has no session to test")
def test_the_session(smalti):
    for session in blocks("console"):
        for command, shown in steps(session):
            program, *arguments = shlex.split(command)
            assert program == "smalti"
            told = smalti(*arguments)
            assert told.status == 0, f"{command}: {told.err}"
            if shown:
                assert shape(told.out.splitlines()) == shape(shown), command


@pytest.mark.skipif(not blocks("python"), reason="README has no Python to test")
def test_the_python():
    for block in blocks("python"):
        names: dict[str, object] = {}
        exec(block, names)
        promised = re.findall(r"^(\w+) = .*# (float|int64) (\([\d, ]+\))", block, re.MULTILINE)
        for name, kind, size in promised:
            assert str(tuple(names[name].shape)) == size, name
            assert kind in str(names[name].dtype), name


def test_blocks_and_steps_are_found():
    session = "$ a\nsaid 1,234\n\n$ b\n"
    text = f"<!-- test: a -->\n```console\n{session}```\n```console\n$ c\n```\n<!-- test -->\n```python\nx\n```\n"
    assert BLOCK.findall(text) == [("console", session), ("python", "x\n")]
    assert steps(session) == [("a", ["said 1,234"]), ("b", [])]
    assert shape(["said 1,234", "9.5 s  of 10"]) == ["said #", "# s of #"]
