"""A one-slot mailbox and the single thread that empties it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")

THREAD = "inference"
"""Name of every worker's thread."""
STOP_S = 1.0
"""How long at most what is in work is waited for at the end."""


class Mailbox(Generic[T]):
    """Holds the newest item only; putting and taking are safe between threads."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._item: T | None = None
        self._closed = False

    def put(self, item: T) -> bool:
        """Leave an item; True if it displaced one that nobody had taken."""
        with self._condition:
            displaced = self._item is not None
            self._item = item
            self._condition.notify()
            return displaced

    def take(self) -> T | None:
        """Wait for an item and take it; None once the mailbox is closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._closed or self._item is not None)
            item, self._item = self._item, None
            return None if self._closed else item

    def clear(self) -> bool:
        """Drop the item that waits; True if there was one."""
        with self._condition:
            waiting, self._item = self._item is not None, None
            return waiting

    def close(self) -> None:
        """Release the taker; what still lies in the box is dropped."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()


class Worker(Generic[T]):
    """Runs `work` on the newest item of a mailbox, one at a time, in one thread of its own that does `begin` first."""

    def __init__(self, work: Callable[[T], None], begin: Callable[[], None] = lambda: None) -> None:
        self._work, self._begin = work, begin
        self._mailbox: Mailbox[T] = Mailbox()
        self._thread = threading.Thread(target=self._run, name=THREAD, daemon=True)
        self._thread.start()

    def put(self, item: T) -> bool:
        """Leave an item; True if it displaced one that was waiting."""
        return self._mailbox.put(item)

    def clear(self) -> bool:
        """Drop the item that waits; True if there was one."""
        return self._mailbox.clear()

    def close(self) -> None:
        """Take no further item and drop the one that waits."""
        self._mailbox.close()

    def stop(self, timeout_s: float = STOP_S) -> None:
        """Let the item in work be finished, drop the one that waits."""
        self.close()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        self._begin()
        while (item := self._mailbox.take()) is not None:
            self._work(item)


def stop_together(workers: Sequence[Worker[Any]]) -> None:
    """Let the items in work be finished, within STOP_S in all, and drop those that wait."""
    deadline = time.monotonic() + STOP_S
    for worker in workers:
        worker.close()
    for worker in workers:
        worker.stop(max(deadline - time.monotonic(), 0.0))
