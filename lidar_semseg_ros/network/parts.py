"""Work that the cores share; NumPy and compiled code let the interpreter's lock go while they work."""

from __future__ import annotations

import itertools
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

TURNS = itertools.count()
"""So that several callers do not call for the same helper."""
MOST_AWAKE = 15
"""More helpers than this are in each other's way for the interpreter's lock, and find no parts left."""
_here = threading.local()
"""watch: the _Watch of a thread, where it has one. most: see `at_most`."""


class UnfinishedPartError(RuntimeError):
    """A thread waited in vain for one that had begun a part of a step (network/crew.py): that one failed in it."""


def share(helpers: Sequence[ThreadPoolExecutor], edges: Sequence[int], step: Callable[[int, int], object]) -> None:
    """Do step(begin, end) for each pair of successive edges, the next one by whoever is free: the caller or a helper.

    The caller works too, for to wake a thread takes as long as a part.
    """
    parts = itertools.count()

    def work() -> None:
        while (part := next(parts)) < len(edges) - 1:
            step(edges[part], edges[part + 1])

    _in_caller_and(helpers[: max(len(edges) - 2, 0)], work)


def together(work: Callable[[], object], threads: int | None = None) -> None:
    """Do the same work in the caller and in helpers: compiled code that shares its parts itself (network/crew.py).

    All parts are done when the caller's own run of it returns; helpers that come later find nothing to do. threads: at
    most so many, None for all cores.
    """
    most = None if threads is None else threads - 1
    watch: _Watch | None = getattr(_here, "watch", None)
    if watch is None:
        _in_caller_and(_helpers_here()[:most], work)
    else:
        watch.post(work, most)
        work()


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

    watch, helpers = getattr(_here, "watch", None), _helpers_here()
    if watch is not None:
        watch.post(by_the_first)
    elif helpers:
        helpers[next(TURNS) % len(helpers)].submit(by_the_first)
    return result


@contextmanager
def at_most(threads: int) -> Iterator[None]:
    """Let what this thread shares meanwhile be done by at most so many threads, itself among them; 0: all cores."""
    before, _here.most = getattr(_here, "most", 0), threads
    try:
        yield
    finally:
        _here.most = before


@contextmanager
def awake() -> Iterator[None]:
    """Keep the helpers awake for what this thread shares by `together` and `beside` meanwhile, if it does so soon.

    After a pause, a core that slept comes late by a millisecond and more: half of a step is done by then.
    """
    _here.watch = watch = _Watch()
    try:
        watch.call(_helpers_here()[:MOST_AWAKE])
        yield
    except BaseException as fault:
        _raise_one(fault, watch.end())
    else:
        _raise_one(None, watch.end())
    finally:
        _here.watch = None


class _Watch:
    """Helpers that look out for one work after the other."""

    def __init__(self) -> None:
        from lidar_semseg_ros.network.crew import progress_of

        self._work: list[tuple[Callable[[], object] | None, int | None]] = []
        self._posted = progress_of(1)
        self._futures: list[Future[object]] = []

    def call(self, helpers: Sequence[ThreadPoolExecutor]) -> None:
        """Let helpers come."""
        for place, helper in enumerate(helpers):
            self._futures.append(helper.submit(self._keep, place))

    def post(self, work: Callable[[], object] | None, most: int | None = None) -> None:
        """Let helpers do some work, at most so many of them."""
        from lidar_semseg_ros.network.crew import end_part

        self._work.append((work, most))
        end_part(self._posted, 0)

    def end(self) -> list[BaseException]:
        """Let the helpers go, and wait for those that came; tells what failed in them."""
        self.post(None)
        return _faults_of(self._futures)

    def _keep(self, place: int) -> None:
        from lidar_semseg_ros.network.crew import MOST_NAPS, come

        for number in itertools.count():
            if not come(self._posted, 0, number + 1, MOST_NAPS):
                return  # whoever called has been stopped before it could say so
            work, most = self._work[number]
            if work is None:
                return
            if most is None or place < most:
                work()


def _in_caller_and(helpers: Sequence[ThreadPoolExecutor], work: Callable[[], object]) -> None:
    futures: list[Future[object]] = []
    own: BaseException | None = None
    try:
        for helper in helpers:
            futures.append(helper.submit(work))
        work()
    except BaseException as fault:
        own = fault
    # All of them, for none may go on while the next step begins; those that are not awake yet need not come.
    _raise_one(own, _faults_of(futures))


def _faults_of(futures: Sequence[Future[object]]) -> list[BaseException]:
    faults = [future.exception() for future in futures if not future.cancel()]
    return [fault for fault in faults if fault is not None]


def _raise_one(own: BaseException | None, faults: Sequence[BaseException]) -> None:
    """Raise the caller's own fault, else the first of the helpers', for which the caller may have waited in vain."""
    if faults and (own is None or isinstance(own, UnfinishedPartError)):
        raise faults[0] from own
    if own is not None:
        raise own


def _helpers_here() -> list[ThreadPoolExecutor]:
    """Give the helpers that the calling thread may have."""
    helpers, most = helpers_of_all_cores(), getattr(_here, "most", 0)
    return helpers[: most - 1] if most else helpers


def helpers_of_all_cores() -> list[ThreadPoolExecutor]:
    """Give a thread for each core that this process may use but one, on which the caller runs."""
    return _helpers(available_cores() - 1)


def available_cores() -> int:
    """Tell how many cores this process may keep busy: by its affinity, its container's quota and OMP_NUM_THREADS.

    In a process that loads data for PyTorch it is one, as it is for PyTorch there.
    """
    data = sys.modules.get("torch.utils.data")
    if data is not None and data.get_worker_info() is not None:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return max(min(cores, quota_cores(Path("/")), int(asked) if asked.isdecimal() else cores), 1)


@cache
def quota_cores(root: Path) -> int:
    """Tell for how many cores the control groups of this process have time, rounded up; a large number without limit.

    root: of the file system.
    """
    group, folder = "", root / "sys/fs/cgroup"
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::/"):
                group = line.removeprefix("0::/")
    # In a container that has no namespace of its own the first is not there; the last is of version 1.
    limits = [[folder / group / "cpu.max"], [folder / "cpu.max"]]
    limits.append([folder / "cpu" / f"cpu.cfs_{name}_us" for name in ("quota", "period")])
    cores = []
    for files in limits:
        with suppress(OSError, ValueError):
            quota, period = (int(number) for file in files for number in file.read_text().split())
            if quota > 0:
                cores.append(math.ceil(quota / period))
    return min(cores, default=sys.maxsize)


@cache
def _helpers(count: int) -> list[ThreadPoolExecutor]:
    return [ThreadPoolExecutor(1, thread_name_prefix="helper") for _ in range(count)]


def _forget_threads() -> None:
    _helpers.cache_clear()
    _here.watch = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)  # where these threads are not
