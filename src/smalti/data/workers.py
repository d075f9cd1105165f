"""Processes that read a source's examples, started by spawn so that they work alike on Linux, macOS and Windows.

They end with the process that started them, even when that one is killed. What is sent to its whole group, as Ctrl-C is
and what `timeout` sends, they leave to it: one that ended in the middle of an answer would be waited for without end.
They never import the caller's main module, so a script without `if __name__ == "__main__"` can use them too.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import ModuleType

import numpy as np

from smalti.data.example import Source
from smalti.data.raster import BrokenFile

Read = list[tuple[np.ndarray | None, str]]  # for each example: its pixels, or None and why it is broken


class Workers:
    """`count` processes reading from `source`; with count 0 the calling process reads, when a result is asked for."""

    def __init__(self, source: Source, count: int) -> None:
        self.source = source
        self._pool: ProcessPoolExecutor | None = None
        if count:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(count, context, initializer=_begin, initargs=(source,))

    def submit(self, indices: Sequence[int]) -> Job:
        """Begin to read these examples."""
        future = None
        if self._pool is not None:
            try:
                with _starting():
                    future = self._pool.submit(_read_here, list(indices))
            except BrokenProcessPool:
                self._go_on_alone()
        return Job(self, list(indices), future)

    def close(self) -> None:
        """End the processes; what they have not begun is dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _go_on_alone(self) -> None:
        if self._pool is not None:
            print("the processes that read files ended unexpectedly: reading goes on in this one", file=sys.stderr)
            self.close()


class Job:
    """Examples being read."""

    def __init__(self, workers: Workers, indices: list[int], future: Future[Read] | None) -> None:
        self._workers, self._indices, self._future = workers, indices, future

    def result(self) -> Read:
        """Wait for the examples. Where the processes are gone, the calling process reads them itself."""
        if self._future is not None:
            try:
                return self._future.result()
            except BrokenProcessPool:
                self._workers._go_on_alone()
        return read_each(self._workers.source, self._indices)


def read_each(source: Source, indices: Sequence[int]) -> Read:
    """The examples' pixels; for a broken one None and the reason."""
    results: Read = []
    for i in indices:
        try:
            results.append((source.raster(i), ""))
        except BrokenFile as broken:
            results.append((None, broken.reason))
    return results


_source: Source | None = None  # in a worker process: what it reads from


def _begin(source: Source) -> None:
    global _source
    _source = source
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it could not be masked
    if hasattr(os, "setpgid"):  # not on Windows
        os.setpgid(0, 0)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _read_here(indices: list[int]) -> Read:
    assert _source is not None
    return read_each(_source, indices)


@contextmanager
def _starting() -> Iterator[None]:
    """Processes started inside are deaf to Ctrl-C and do not import the caller's main module: nothing that is sent
    to them needs it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    masks = hasattr(signal, "pthread_sigmask")  # not on Windows
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if masks else set()
    try:
        yield
    finally:
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        sys.modules["__main__"] = main
