from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from lidar_semseg_ros.ros.worker import Mailbox, Worker


def test_a_mailbox_keeps_the_newest_and_tells_of_what_it_displaced() -> None:
    mailbox: Mailbox[int] = Mailbox()
    assert [mailbox.put(item) for item in (1, 2, 3)] == [False, True, True]
    assert mailbox.take() == 3


def test_a_closed_mailbox_releases_whoever_waits() -> None:
    mailbox: Mailbox[int] = Mailbox()
    taken: list[int | None] = []
    taker = threading.Thread(target=lambda: taken.append(mailbox.take()))
    taker.start()
    mailbox.close()
    taker.join(5)
    assert taken == [None]


def test_every_item_is_worked_on_or_displaced_and_work_happens_in_one_thread() -> None:
    started, go_on = threading.Event(), threading.Event()
    done: list[int] = []
    threads = set()

    def work(item: int) -> None:
        started.set()
        go_on.wait(5)
        threads.add(threading.get_ident())
        done.append(item)
        if item == 9:
            finished.set()

    finished = threading.Event()
    worker = Worker(work)
    worker.put(0)
    assert started.wait(5)
    displaced = sum(worker.put(item) for item in range(1, 10))
    go_on.set()
    assert finished.wait(5)
    worker.stop()
    assert done == [0, 9] and displaced == 8
    assert len(threads) == 1 and threading.get_ident() not in threads


COMPUTING = """
import sys, threading
import torch
from lidar_semseg_ros.ros.process import leave
from lidar_semseg_ros.ros.worker import Worker

started, matrix = threading.Event(), torch.zeros(1500, 1500)

def work(item):
    started.set()
    while True:
        matrix @ matrix

worker = Worker(work)
worker.put(0)
started.wait()
worker.stop(timeout_s=0.1)
print("said before", end="")
leave(int(sys.argv[1]))
"""
"""A process that ends while its worker is in the middle of PyTorch: by sys.exit, it would be aborted."""


@pytest.mark.parametrize("status", [0, 2])
def test_a_process_whose_worker_still_computes_ends_with_its_status(status: int) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("rclpy", reason="ROS 2 is not installed")
    ended = subprocess.run(
        [sys.executable, "-c", COMPUTING, str(status)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, "said before", "")
