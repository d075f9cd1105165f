"""What every benchmark says and does alike: the machine, a median, a table, a JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from smalti.device import multiplies_bf16, processor_name
from smalti.recipe import Recipe
from smalti.runs import train
from smalti.training.log import read_metrics

RESULTS = Path(__file__).resolve().parent / "results"
PACE = range(10, 30)  # the steps whose pace is taken


def arguments(question: str) -> argparse.ArgumentParser:
    """The options all benchmarks share. Figures are taken without --quick."""
    parser = argparse.ArgumentParser(description=question, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a trial of the code with tiny settings: no figures")
    return parser


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    asks = {"amx": "_is_amx_tile_supported", "avx512_bf16": "_is_avx512_bf16_supported"}
    return {
        "processor": processor_name(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "bf16": multiplies_bf16("cpu"),  # multiplied natively
        **{name: bool(getattr(torch.cpu, ask, lambda: False)()) for name, ask in asks.items()},
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median_seconds(work: Callable[[], object], repeats: int, warm_up: int = 1) -> float:
    """Median wall time of `repeats` calls after `warm_up` calls that do not count."""
    for _ in range(warm_up):
        work()
    return statistics.median(seconds(work) for _ in range(repeats))


def pace(recipe: Recipe, folder: Path) -> float:
    """Seconds a training step of a recipe takes, the first ones left out; the median."""
    longer = {"steps": PACE.stop, "log_every": 1, "save_seconds": 1e6, "validate_every": PACE.stop}
    train(recipe.changed(**{f"training.{name}": value for name, value in longer.items()}), out=folder)
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if row["split"] == "train"]
    shutil.rmtree(folder)
    return pace_of([row["time"] for row in rows])


def pace_of(at: Sequence[float]) -> float:
    """Seconds a step takes, from when each of the first `PACE.stop` steps ended; the median."""
    return statistics.median(after - before for before, after in pairwise(at[PACE.start :]))


def steps_in(seconds: float, a_step: float) -> int:
    """How many steps fit, to two figures or so: settled beforehand, so that a learning rate comes to its end."""
    return max(1, int(round(seconds / a_step, -2 if seconds > 60 else 0)))


def kept(path: Path, made: Callable[[], Any]) -> Any:
    """What an earlier, perhaps interrupted, run of a benchmark found and left in a file, or else is found now."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made(), default=str))
    return json.loads(path.read_text())


def show(value: object) -> str:
    """A figure as a table prints it; what was not measured is a dash."""
    if value is None:
        return "—"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def table(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print rows of equal keys; the keys are the header."""
    grid = Table(title=title, title_justify="left")
    for name in rows[0]:
        grid.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        grid.add_row(*(show(value) for value in row.values()))
    # a file or a pipe has no width of its own; a table cut to 80 columns loses figures
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(grid)


def write(name: str, question: str, quick: bool, **figures: Any) -> None:
    """benchmarks/results/NAME.json; a quick trial goes to NAME-quick.json and never replaces figures."""
    path = RESULTS / f"{name}{'-quick' if quick else ''}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    taken = time.strftime("%Y-%m-%d", time.gmtime())
    result = {"question": question, "taken": taken, "quick": quick, "machine": machine(), **figures}
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {path.relative_to(RESULTS.parents[1])}")
