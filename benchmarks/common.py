"""What every benchmark says and does alike: the machine, a median, a table, a JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from smalti.device import multiplies_bf16, processor_name

RESULTS = Path(__file__).resolve().parent / "results"


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
