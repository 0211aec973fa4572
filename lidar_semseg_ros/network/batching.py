"""One network for several threads: what comes while it is busy goes together into the next call."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")


class Batching(Generic[A, B]):
    """Makes the calls of several threads one at a time, in the order they come, up to `most` items in one call.

    There is no thread of its own: whoever finds the network free serves all that waits, and wakes the others.
    call: the results of items, in their order. A call of several that fails is made again item by item, so that each
    thread gets its own result or its own error.
    """

    def __init__(self, call: Callable[[Sequence[A]], Sequence[B]], most: int) -> None:
        self._call, self._most = call, most
        self._changed = threading.Condition()
        self._waiting: deque[tuple[A, Future[B]]] = deque()
        self._is_busy = False

    def __call__(self, item: A) -> B:
        """Give the result of an item; raises what the call of it raised."""
        answer: Future[B] = Future()
        with self._changed:
            self._waiting.append((item, answer))
        while batch := self._turn(answer):
            try:
                self._serve(batch)
            except BaseException as error:  # an interrupt, which those of other threads that wait must not miss
                for _, one in batch:
                    if not one.done():
                        one.set_exception(error)
                self._withdraw(answer)
                raise
            finally:
                with self._changed:
                    self._is_busy = False
                    self._changed.notify_all()
        return answer.result()

    def _turn(self, answer: Future[B]) -> list[tuple[A, Future[B]]]:
        """Wait for an answer, which gives nothing to do, or for the turn to serve those that wait."""
        with self._changed:
            self._changed.wait_for(lambda: answer.done() or not self._is_busy)
            if answer.done():
                return []
            self._is_busy = True
            return [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]

    def _withdraw(self, answer: Future[B]) -> None:
        """Take what is waited for no more out of the queue, if it is still there."""
        with self._changed:
            for place, (_, one) in enumerate(self._waiting):
                if one is answer:
                    del self._waiting[place]
                    return

    def _serve(self, batch: list[tuple[A, Future[B]]]) -> None:
        try:
            results = self._call([item for item, _ in batch])
        except Exception as error:
            if len(batch) > 1:
                for one in batch:
                    self._serve([one])
            else:
                batch[0][1].set_exception(error)
            return
        for (_, answer), result in zip(batch, results):
            answer.set_result(result)
