"""The house rules that a machine can keep: a room imports only from rooms to its left, and nothing is a utils.py."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[1] / "src" / "smalti"

# Left to right. Rooms side by side on one line do not see each other; the ground floor is one room of several files.
GROUND = ("errors", "config", "device", "checkpoint", "term")
ARROW = (
    GROUND,
    ("layers", "data"),
    ("tokenizers",),
    ("paradigms",),
    ("recipe",),
    ("training",),
    ("model",),
    ("sampling",),
    ("evaluation",),
    ("recipes",),
    ("runs", "doctor"),
)
RANK = {room: rank for rank, rooms in enumerate(ARROW) for room in rooms}
DOORS = {"__init__", "__main__", "cli"}  # where everything comes together: they may import anything
NO_IDEA = {"utils", "util", "helpers", "misc", "common"}  # names that say nothing about what lives there


def room_of(path: Path, house: Path) -> str:
    return path.relative_to(house).with_suffix("").parts[0]


def imports(path: Path, house: Path) -> Iterator[tuple[int, str | None]]:
    """Every import in a file, wherever it stands: (line, full dotted name), None when the name is computed."""
    module = [house.name, *path.relative_to(house).with_suffix("").parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            start = module[: len(module) - node.level] if node.level else []
            for alias in node.names:
                yield node.lineno, ".".join([*start, *filter(None, [node.module]), alias.name])
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__"):
                first = node.args[0] if node.args else None
                plain = isinstance(first, ast.Constant) and not str(first.value).startswith(".")
                yield node.lineno, str(first.value) if plain else None


def may_import(room: str, other: str) -> bool:
    return room == other or RANK[other] < RANK[room] or (room in GROUND and other in GROUND)


def offences(house: Path) -> list[str]:
    """What breaks the arrow, one line each."""
    found = []
    for path in sorted(house.rglob("*.py")):
        room, where = room_of(path, house), path.relative_to(house)
        if room in DOORS:
            continue
        if room not in RANK:
            found.append(f"{where}: {room} is a room the arrow does not know")
            continue
        for line, name in imports(path, house):
            if name is None:
                found.append(f"{where}:{line}: imports by a computed name")
                continue
            top, _, rest = name.partition(".")
            if top != house.name:
                continue
            other = rest.partition(".")[0]
            if other not in RANK:
                found.append(f"{where}:{line}: {room} imports {name}, which is no room to its left")
            elif not may_import(room, other):
                found.append(f"{where}:{line}: {room} imports {other}, which is not to its left")
    return found


def test_a_room_imports_only_from_rooms_to_its_left() -> None:
    assert len(list(HOUSE.rglob("*.py"))) > 5, f"no house at {HOUSE}"
    assert offences(HOUSE) == []


def test_no_file_is_a_drawer_for_everything() -> None:
    names = [path for path in HOUSE.rglob("*") if path.stem in NO_IDEA]
    assert names == []


@pytest.mark.parametrize("module", ["smalti", "smalti.cli"])
def test_the_doors_open_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=HOUSE.parent, timeout=60)
    assert done.returncode == 0, done.stderr


BROKEN = {
    "at the top": ("layers/net.py", "import smalti.tokenizers.autoencoder"),
    "from": ("layers/net.py", "from smalti.training.loop import run"),
    "a whole room": ("tokenizers/net.py", "from smalti import sampling"),
    "in a function": ("training/loop.py", "def f():\n    from smalti.evaluation import plots"),
    "for types only": (
        "data/image.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from smalti.recipe import Recipe",
    ),
    "relative": ("tokenizers/bottlenecks/vq.py", "from ...paradigms import table"),
    "relative from a package": ("tokenizers/bottlenecks/__init__.py", "from ...paradigms.x import table"),
    "relative, a whole room": ("layers/net.py", "from .. import training"),
    "by string": ("model.py", "import importlib\nimportlib.import_module('smalti.recipes.fashion')"),
    "by computed name": ("model.py", "from importlib import import_module\nimport_module(f'smalti.{1}')"),
    "the front door": ("recipes/fashion.py", "import smalti"),
    "from the front door": ("recipes/fashion.py", "from smalti import load"),
    "the command line": ("recipes/fashion.py", "from smalti.cli import main"),
    "a neighbour": ("data/image.py", "from smalti.layers import convnet"),
    "up from the ground": ("config.py", "from smalti.layers import convnet"),
    "an unknown room": ("attic/box.py", "import json"),
}
SOUND = {
    "to the left": ("training/loop.py", "from smalti.paradigms import table\nfrom smalti.errors import UserError"),
    "its own room": ("data/loader.py", "from smalti.data.order import indices\nfrom . import sources"),
    "along the ground": ("checkpoint.py", "from smalti.errors import UserError"),
    "a library": ("layers/net.py", "import torch\nfrom importlib import import_module\nimport_module('torch.nn')"),
    "the doors": ("cli.py", "def f():\n    from smalti.recipes import table\n    import smalti"),
}


def build(house: Path, file: str, text: str) -> Path:
    (house / file).parent.mkdir(parents=True, exist_ok=True)
    (house / file).write_text(text, encoding="utf-8")
    return house


@pytest.mark.parametrize("case", BROKEN)
def test_the_reader_sees_an_import_that_breaks_the_arrow(case: str, tmp_path: Path) -> None:
    assert len(offences(build(tmp_path / "smalti", *BROKEN[case]))) == 1


@pytest.mark.parametrize("case", SOUND)
def test_the_reader_lets_sound_imports_pass(case: str, tmp_path: Path) -> None:
    assert offences(build(tmp_path / "smalti", *SOUND[case])) == []
