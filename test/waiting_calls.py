"""Threads that call a batching one after the other while it is busy, for tests."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lidar_semseg_ros.network.batching import Batching

PATIENCE_S = 60.0


class _Arrivals(deque):
    """A queue that tells of everything that is put into it."""

    def __init__(self) -> None:
        super().__init__()
        self._put = threading.Semaphore(0)

    def append(self, item: object) -> None:
        super().append(item)
        self._put.release()

    def wait(self) -> None:
        assert self._put.acquire(timeout=PATIENCE_S)


def outcomes(
    call: Callable[[Sequence[Any]], Sequence[Any]], most: int, items: Sequence[Any]
) -> tuple[list[Any], list[list[Any]]]:
    """The first item keeps it busy until all others wait, in their order: what each got, and what went together."""
    calls: list[list[Any]] = []
    arrivals, is_busy, all_wait = _Arrivals(), threading.Event(), threading.Event()

    def noted(together: Sequence[Any]) -> Sequence[Any]:
        calls.append(list(together))
        if len(calls) == 1:
            is_busy.set()
            assert all_wait.wait(PATIENCE_S)
        return call(together)

    batching: Batching[Any, Any] = Batching(noted, most)
    batching._waiting = arrivals
    with ThreadPoolExecutor(len(items)) as threads:
        futures = []
        for item in items:
            futures.append(threads.submit(batching, item))
            arrivals.wait()
            assert is_busy.wait(PATIENCE_S)
        all_wait.set()
        got = [future.exception(PATIENCE_S) or future.result() for future in futures]
    assert not arrivals
    return got, calls
