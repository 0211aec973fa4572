"""Parts of a step that the cores share; NumPy and compiled code let the interpreter's lock go while they work."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

T = TypeVar("T")

TURNS = itertools.count()
"""So that several callers do not wait for the same helper."""


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


def beside(work: Callable[[], T]) -> Callable[[], T]:
    """Let a helper do some work while the caller goes on; what is returned waits for the result."""
    helpers = helpers_of_all_cores()
    if not helpers:
        return work
    return helpers[next(TURNS) % len(helpers)].submit(work).result


def helpers_of_all_cores() -> list[ThreadPoolExecutor]:
    """Give a thread for each core that this process may use but one, on which the caller runs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _helpers(cores - 1)


@cache
def _helpers(count: int) -> list[ThreadPoolExecutor]:
    return [ThreadPoolExecutor(1, thread_name_prefix="search") for _ in range(count)]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_helpers.cache_clear)  # where these threads are not
