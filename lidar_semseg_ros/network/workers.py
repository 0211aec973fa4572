"""Threads that share the parts of a step, and the arrays they write to."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from lidar_semseg_ros.network.parts import share

T = TypeVar("T")

ROOM_TO_GROW = 1.25
"""Arrays are made this much larger than a sweep needs, so that the next larger one finds room."""


class Workers:
    """Threads that share the parts of a step, PyTorch on one core in each of them; one leads from step to step.

    A forked process does not have them.
    """

    def __init__(self, count: int) -> None:
        self._leader = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._others = [ThreadPoolExecutor(1, thread_name_prefix="network") for _ in range(count - 1)]
        # The number of threads is each thread's own from its first operation on, but it is set for all later ones too.
        before, ready = torch.get_num_threads(), threading.Barrier(count)

        def on_one_core() -> None:
            torch.set_num_threads(1)
            torch.get_num_threads()
            torch.set_grad_enabled(False)  # each thread's own, too
            ready.wait()

        try:
            for begun in [thread.submit(on_one_core) for thread in (self._leader, *self._others)]:
                begun.result()
        except BaseException:  # no more threads can be started
            ready.abort()
            raise
        torch.set_num_threads(before)

    def lead(self, work: Callable[[], T]) -> T:
        """Do the work, which calls `share` but not `lead`, in the leading thread."""
        return self._leader.submit(work).result()

    def share(self, edges: Sequence[int], step: Callable[[int, int], object]) -> None:
        """Do step(begin, end) for each pair of successive edges, the next one by whoever is free; within `lead`."""
        share(self._others, edges, step)


class Room:
    """Arrays that are kept by name and made anew only when they must grow."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Give an array of arbitrary content."""
        kept = self._kept.get((name, dtype))
        if kept is None or kept.numel() < math.prod(shape):
            kept = self._kept[name, dtype] = torch.empty(int(math.prod(shape) * ROOM_TO_GROW), dtype=dtype)
        return kept[: math.prod(shape)].view(shape)


class RoomOfThread(Room, threading.local):
    """Arrays of which each thread has its own."""


def as_array(x: Tensor) -> np.ndarray:
    """View a tensor as an array; bfloat16, which NumPy does not know, as its bits."""
    return x.view(torch.int16).numpy() if x.dtype == torch.bfloat16 else x.numpy()


def edges(rows: int, step: int) -> list[int]:
    """Split rows into chunks: 0, step, 2 · step, … rows."""
    return [*range(0, rows, step), rows]
