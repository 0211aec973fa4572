from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from lidar_semseg_ros.ros.scheduling import schedule
from lidar_semseg_ros.ros.worker import Worker


def in_a_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_a_thread_and_those_that_it_starts_get_the_policy_and_no_others() -> None:
    policies: list[int] = []

    def look() -> None:
        policies.append(os.sched_getscheduler(0))

    def work() -> None:
        schedule("idle")
        look()
        in_a_thread(look)

    in_a_thread(work)
    in_a_thread(look)
    look()
    assert policies == [os.SCHED_IDLE, os.SCHED_IDLE, os.SCHED_OTHER, os.SCHED_OTHER]


def test_a_system_without_the_policy_is_told_apart_from_one_that_sets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "SCHED_IDLE")
    with pytest.raises(OSError, match="this system does not have it"):
        schedule("idle")


def test_a_worker_begins_in_the_thread_in_which_it_works() -> None:
    threads: list[int] = []
    done = threading.Event()

    def note() -> None:
        threads.append(threading.get_ident())

    worker: Worker[int] = Worker(lambda _: (note(), done.set()), begin=note)
    worker.put(1)
    assert done.wait(5)
    worker.stop()
    assert len(threads) == 2 and threads[0] == threads[1] != threading.get_ident()
