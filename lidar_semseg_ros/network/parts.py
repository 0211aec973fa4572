"""Parts of a step that the cores share; NumPy and compiled code let the interpreter's lock go while they work."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

T = TypeVar("T")

TURNS = itertools.count()
"""So that several callers do not wait for the same helper."""
NAPS = 100
"""So often a helper naps before it looks whether the program ends."""
_here = threading.local()


def share(helpers: Sequence[ThreadPoolExecutor], edges: Sequence[int], step: Callable[[int, int], object]) -> None:
    """Do step(begin, end) for each pair of successive edges, the next one by whoever is free: the caller or a helper.

    The caller works too, for to wake a thread takes as long as a part.
    """
    parts = itertools.count()

    def work() -> None:
        while (part := next(parts)) < len(edges) - 1:
            step(edges[part], edges[part + 1])

    futures: list[Future[None]] = []
    try:
        for helper in helpers[: max(len(edges) - 2, 0)]:
            futures.append(helper.submit(work))
        work()
    finally:
        # All of them, for none may go on while the next step begins; those that are not awake yet need not come.
        faults = [future.exception() for future in futures if not future.cancel()]
    for fault in faults:
        if fault is not None:
            raise fault


def together(work: Callable[[], object], threads: int | None = None) -> None:
    """Do the same work in the caller and in helpers: compiled code that shares its parts itself (network/crew.py).

    It must be done when the caller is done with it, who waits for none that has not come by then. threads: at most so
    many, None for all cores.
    """
    most = None if threads is None else threads - 1
    watch: _Watch | None = getattr(_here, "watch", None)
    if watch is not None:
        watch.post(work, most)
        work()
    else:
        helpers = helpers_of_all_cores()[:most]
        share(helpers, range(len(helpers) + 2), lambda begin, end: work())


def beside(work: Callable[[], T]) -> Callable[[], T]:
    """Let a helper do some work while the caller goes on; what is returned gives the result.

    If no helper has begun by then, the caller does it.
    """
    turns, outcome = itertools.count(), Future[T]()

    def by_the_first() -> None:
        if next(turns) == 0:
            try:
                outcome.set_result(work())
            except BaseException as fault:
                outcome.set_exception(fault)

    def result() -> T:
        by_the_first()
        return outcome.result()

    watch, helpers = getattr(_here, "watch", None), helpers_of_all_cores()
    if watch is not None:
        watch.post(by_the_first)
    elif helpers:
        helpers[next(TURNS) % len(helpers)].submit(by_the_first)
    return result


@contextmanager
def awake() -> Iterator[None]:
    """Keep the helpers awake for what this thread shares by `together` and `beside` meanwhile.

    After a pause, a core that slept comes late by a millisecond and more: half of a step is done by then.
    """
    _here.watch = watch = _Watch(helpers_of_all_cores())
    try:
        yield
    finally:
        _here.watch = None
        watch.end()


class _Watch:
    """Helpers that look out for one work after the other."""

    def __init__(self, helpers: Sequence[ThreadPoolExecutor]) -> None:
        from lidar_semseg_ros.network.crew import progress_of

        self._work: list[tuple[Callable[[], object] | None, int | None]] = []
        self._posted = progress_of(1)
        self._futures = [helper.submit(self._keep, place) for place, helper in enumerate(helpers)]

    def post(self, work: Callable[[], object] | None, most: int | None = None) -> None:
        """Let helpers do some work, at most so many of them."""
        from lidar_semseg_ros.network.crew import end_part

        self._work.append((work, most))
        end_part(self._posted, 0)

    def end(self) -> None:
        """Let the helpers go, and wait for those that came; raises what failed in one."""
        self.post(None)
        faults = [future.exception() for future in self._futures if not future.cancel()]
        for fault in faults:
            if fault is not None:
                raise fault

    def _keep(self, place: int) -> None:
        from lidar_semseg_ros.network.crew import come

        for number in itertools.count():
            while not come(self._posted, 0, number + 1, NAPS):
                pass
            work, most = self._work[number]
            if work is None:
                return
            if most is None or place < most:
                work()


def helpers_of_all_cores() -> list[ThreadPoolExecutor]:
    """Give a thread for each core that this process may use but one, on which the caller runs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _helpers(cores - 1)


@cache
def _helpers(count: int) -> list[ThreadPoolExecutor]:
    return [ThreadPoolExecutor(1, thread_name_prefix="search") for _ in range(count)]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_helpers.cache_clear)  # where these threads are not
