from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from smalti.training import log as log_room
from smalti.training.log import MetricsLog, ProgressLine, read_metrics, say


def test_rows_come_back_as_written(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write(1, 0.25, "train", {"loss": 2.5})
    log.write(2, 0.5, "validation", {"loss": 1.5, "mse": 0.1})
    assert read_metrics(log.path) == [
        {"step": 1, "time": 0.25, "split": "train", "values": {"loss": 2.5}},
        {"step": 2, "time": 0.5, "split": "validation", "values": {"loss": 1.5, "mse": 0.1}},
    ]
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [1, 2]


def test_cut_forgets_what_came_after_and_half_a_line(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(1, 6):
        log.write(step, step, "train", {})
    with open(log.path, "a") as file:
        file.write('{"step": 6, "tim')
    assert len(read_metrics(log.path)) == 5
    log.cut(3)
    log.write(4, 9, "train", {})
    assert [(row["step"], row["time"]) for row in read_metrics(log.path)] == [(1, 1), (2, 2), (3, 3), (4, 9)]


def test_no_file_is_no_rows(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_the_last_step_is_told_where_there_is_no_terminal(capfd):
    with ProgressLine("small", 3, 1) as line:
        line.update(2, "loss 3")
        line.update(3, "loss 2")
    assert capfd.readouterr().err.startswith("small 3/3 loss 2")
    with ProgressLine("hidden", 3, shown=False) as line:
        line.update(3)
    assert capfd.readouterr().err == ""


def test_what_is_said_is_not_read_as_markup(capfd):
    say("a folder named [bold]x[/bold]")
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err == "a folder named [bold]x[/bold]\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_is_shown_of_what_is_soon_done(terminal, monkeypatch):
    for after, shown in ((60.0, False), (1e-9, True)):
        seen = io.StringIO()
        monkeypatch.setattr(log_room, "console", Console(file=seen, force_terminal=terminal, width=80))
        with ProgressLine("steps", 1, after=after) as line:
            for done in (10, 20):
                line.told(done, 20)
        assert ("steps" in seen.getvalue()) == ("20/20" in seen.getvalue()) == shown
