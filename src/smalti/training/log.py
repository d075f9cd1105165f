"""metrics.jsonl, and what a person sees while waiting."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from smalti.checkpoint import saving, write_text

console = Console(stderr=True, highlight=False, soft_wrap=True)


class MetricsLog:
    """One JSON object a line: step, time (training seconds so far), split, values."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def cut(self, step: int) -> None:
        """Forget rows after `step`: those of work that a kill has undone."""
        rows = [row for row in read_metrics(self.path) if row["step"] <= step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def write(self, step: int, seconds: float, split: str, values: Mapping[str, float]) -> None:
        row = {"step": step, "time": round(seconds, 3), "split": split, "values": dict(values)}
        with saving(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


class ProgressLine:
    """A bar with figures, rate and time left in a terminal; a line every ten seconds elsewhere.

    Of what is done within the first `after` seconds nothing is shown.
    """

    def __init__(self, title: str, total: int, start: int = 0, shown: bool = True, after: float = 0.0) -> None:
        self.title, self.total, self.start, self.shown, self.after = title, total, start, shown, after
        self.began = self.printed = time.monotonic()
        self.bar: Progress | None = None
        if not after:
            self._open()

    def update(self, done: int, figures: str = "") -> None:
        now = time.monotonic()
        if now - self.began < self.after:
            return
        self._open()
        if self.bar is not None:
            self.bar.update(
                self.task, completed=done, total=self.total, figures=f"{figures} {self._rate(done, now):.1f}/s"
            )
        elif self.shown and (now - self.printed >= 10 or done == self.total):
            self.printed = now
            rate = self._rate(done, now)
            left = (self.total - done) / rate if rate else 0
            console.print(f"{self.title} {done}/{self.total} {figures} {rate:.1f}/s {left:.0f} s left", markup=False)

    def told(self, done: int, total: int) -> None:
        """`update`, by work that knows itself how much of it there is."""
        self.total = total
        self.update(done)

    def _open(self) -> None:
        if self.bar is not None or not self.shown or not console.is_terminal:
            return
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} {task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            transient=False,
        )
        self.bar.start()
        self.task = self.bar.add_task(self.title, total=self.total, completed=self.start, figures="")

    def _rate(self, done: int, now: float) -> float:
        return (done - self.start) / max(1e-9, now - self.began)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def say(text: str) -> None:
    """A line for the person, on the error stream, so that results on the output stream stay clean."""
    console.print(text, markup=False)
    sys.stderr.flush()
