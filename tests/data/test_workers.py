from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from smalti.data.sources import DataConfig, open_source
from smalti.data.workers import Workers, read_each

SRC = Path(__file__).resolve().parents[2] / "src"


@pytest.fixture
def source(tmp_path, paint, cut_short):
    for i in range(24):
        paint(tmp_path / "pictures" / f"{i:02}.png", i, (40, 40))
    cut_short(tmp_path / "pictures" / "07.png")
    return open_source(DataConfig(source=str(tmp_path / "pictures"), validation=0))


@pytest.mark.parametrize("count", [0, 2])
def test_pictures_and_reasons_come_back_in_order(source, count):
    workers = Workers(source, count)
    try:
        jobs = [workers.submit(range(at, at + 6)) for at in range(0, 24, 6)]
        read = [each for job in jobs for each in job.result()]
    finally:
        workers.close()
    for i, (pixels, reason) in enumerate(read):
        if i == 7:
            assert pixels is None
            assert reason
        else:
            assert torch.equal(torch.from_numpy(pixels), source.item(i).pixels)
            assert reason == ""


def children() -> list[int]:
    task = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    return [int(pid) for pid in task.read_text().split()] if task.exists() else []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


on_linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks processes up in /proc")


@on_linux
def test_a_worker_that_dies_is_made_good_for_and_none_are_left(source, capfd):
    before = set(children())
    workers = Workers(source, 1)
    try:
        workers.submit([0]).result()
        pool = workers._pool
        assert pool is not None
        for pid in list(pool._processes):
            os.kill(pid, signal.SIGKILL)
        for i in (1, 2):
            ((pixels, _),) = workers.submit([i]).result()
            assert torch.equal(torch.from_numpy(pixels), source.item(i).pixels)
    finally:
        workers.close()
    assert "reading goes on in this one" in capfd.readouterr().err
    left = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in set(children()) - before]
    assert all(b"resource_tracker" in command for command in left)  # Python's own, one for the whole process


SCRIPT = """
import sys, time
from smalti.data.sources import DataConfig, open_source
from smalti.data.workers import Workers
print("script runs", flush=True)
workers = Workers(open_source(DataConfig(source=sys.argv[1], validation=0)), 1)
assert workers.submit([0]).result()[0][0] is not None
print("workers", *workers._pool._processes, flush=True)
if sys.argv[2] == "wait":
    time.sleep(60)
workers.close()
"""


def start(source, tmp_path, then: str, **options) -> subprocess.Popen[str]:
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    command = [sys.executable, str(tmp_path / "script.py"), str(source.root), then]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_a_script_needs_no_guard_and_runs_once(source, tmp_path):
    out, err = start(source, tmp_path, "end").communicate(timeout=240)
    assert out.count("script runs") == 1
    assert "workers" in out
    assert err == ""


@on_linux
def test_workers_end_when_their_process_is_killed(source, tmp_path):
    process = start(source, tmp_path, "wait")
    assert process.stdout is not None
    line = ""
    while not line.startswith("workers"):
        line = process.stdout.readline()
    pids = [int(pid) for pid in line.split()[1:]]
    assert all(alive(pid) for pid in pids)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [pid for pid in pids if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert left == []


@on_linux
def test_ctrl_c_is_left_to_the_process_that_started_them(source, tmp_path):
    process = start(source, tmp_path, "wait", start_new_session=True)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("workers"):
        pass
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to the whole group
    _, err = process.communicate(timeout=120)
    assert err.count("Traceback") == 1
    assert err.strip().endswith("KeyboardInterrupt")


@on_linux
def test_what_ends_a_group_leaves_them_be(source, tmp_path):
    process = start(source, tmp_path, "wait", start_new_session=True)
    assert process.stdout is not None
    line = ""
    while not line.startswith("workers"):
        line = process.stdout.readline()
    pids = [int(pid) for pid in line.split()[1:]]
    assert process.pid not in [os.getpgid(pid) for pid in pids]
    os.killpg(process.pid, signal.SIGTERM)  # as `timeout` does it
    process.communicate(timeout=120)
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)  # by themselves, after their process


def test_only_broken_files_are_forgiven(source, monkeypatch):
    def bug(self, i):
        raise ZeroDivisionError

    monkeypatch.setattr(type(source), "raster", bug)
    with pytest.raises(ZeroDivisionError):
        read_each(source, [0])


def test_what_a_worker_imports_is_light():
    code = "import smalti.data.folder, smalti.data.scenes, smalti.data.workers, sys; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(SRC)}, check=False).returncode
        == 0
    )
