"""Steps that threads do together: every part once, no step before the one before it is done, nobody waits in vain."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lidar_semseg_ros.network import crew
from lidar_semseg_ros.network.crew import begin_part, come, end_part, progress_of, wait_for
from lidar_semseg_ros.network.machine_code import compiled
from lidar_semseg_ros.network.parts import UnfinishedPartError

STEPS, PARTS = 3000, 7


@compiled
def count_up(progress: np.ndarray, counts: np.ndarray) -> None:
    """Every part counts on from the lowest count of the step before, which is right only when all of that is done."""
    for step in range(1, len(progress)):
        part = begin_part(progress, step)
        while part < counts.shape[1]:
            counts[step, part] += 1 + counts[step - 1].min()
            end_part(progress, step)
            part = begin_part(progress, step)
        wait_for(progress, step, counts.shape[1])


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_each_part_is_done_once_and_after_all_of_the_step_before(threads: int) -> None:
    progress, counts = progress_of(STEPS), np.zeros((STEPS, PARTS), np.int64)
    with ThreadPoolExecutor(threads) as pool:
        for one in [pool.submit(count_up, progress, counts) for _ in range(threads)]:
            one.result(60)
    assert (counts == np.arange(STEPS)[:, None]).all()


def test_whoever_comes_late_finds_nothing_to_do() -> None:
    progress, counts = progress_of(5), np.zeros((5, PARTS), np.int64)
    count_up(progress, counts)
    before = counts.copy()
    count_up(progress, counts)
    assert np.array_equal(counts, before)


def test_one_waits_asleep_for_a_part_that_takes_long() -> None:
    progress = progress_of(1)
    begin_part(progress, 0)
    threading.Timer(0.3, lambda: end_part(progress, 0)).start()
    before_s = time.thread_time()
    wait_for(progress, 0, 1)
    assert progress[0, crew.DONE] == 1 and time.thread_time() - before_s < 0.15


def test_waiting_for_what_does_not_come_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = progress_of(1)
    assert not come(progress, 0, 1, 10)
    monkeypatch.setattr(crew, "MOST_NAPS", 10)
    with pytest.raises(UnfinishedPartError, match="begun a part of a step and not ended it"):
        wait_for.py_func(progress, 0, 1)
    end_part(progress, 0)
    assert come(progress, 0, 1, 10)
    wait_for(progress, 0, 1)
