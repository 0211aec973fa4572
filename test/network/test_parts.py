"""Parts of a step that the cores share: each is done once, and nothing is lost, whoever does it."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from lidar_semseg_ros.network import parts
from lidar_semseg_ros.network.crew import begin_part, progress_of, telling, wait_for
from lidar_semseg_ros.network.parts import UnfinishedPartError


@pytest.mark.parametrize("edges", [[0], [0, 5], [0, 3, 3, 9], list(range(40))])
@pytest.mark.parametrize("helpers", [0, 1, 3])
def test_every_part_is_done_once_before_the_step_ends(edges: list[int], helpers: int) -> None:
    pools, done = [ThreadPoolExecutor(1) for _ in range(helpers)], []
    parts.share(pools, edges, lambda begin, end: done.append((begin, end)))
    assert sorted(done) == sorted(pairwise(edges))


@pytest.mark.parametrize("cores", [1, 2])
def test_work_beside_the_caller_gives_its_result_and_its_fault(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    monkeypatch.setattr(parts, "available_cores", lambda: cores)
    result, fault = parts.beside(lambda: 7), parts.beside(lambda: {}["nothing"])
    assert result() == 7
    with pytest.raises(KeyError, match="nothing"):
        fault()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_has_helpers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "available_cores", lambda: 2)
    assert parts.beside(lambda: 7)() == 7
    child = os.fork()
    if not child:
        status = 1
        try:
            signal.alarm(10)  # else it would wait for a thread that it does not have
            status = parts.beside(lambda: 5)()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5


def with_two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "available_cores", lambda: 2)


@pytest.mark.parametrize("is_awake", [True, False])
def test_all_cores_do_the_same_work_together(monkeypatch: pytest.MonkeyPatch, is_awake: bool) -> None:
    with_two_cores(monkeypatch)
    both, threads = threading.Barrier(2), set()

    def meet() -> None:
        both.wait(10)
        threads.add(threading.get_ident())

    with parts.awake() if is_awake else contextlib.nullcontext():
        parts.together(meet)
        parts.together(meet)
    assert len(threads) == 2


@pytest.mark.parametrize("is_awake", [True, False])
def test_one_thread_works_alone(monkeypatch: pytest.MonkeyPatch, is_awake: bool) -> None:
    with_two_cores(monkeypatch)
    threads = []
    with parts.awake() if is_awake else contextlib.nullcontext():
        for _ in range(20):
            parts.together(lambda: threads.append(threading.get_ident()), threads=1)
    assert threads == [threading.get_ident()] * 20


def test_what_no_helper_has_begun_the_caller_does(monkeypatch: pytest.MonkeyPatch) -> None:
    with_two_cores(monkeypatch)
    busy, free = threading.Event(), threading.Event()
    parts.helpers_of_all_cores()[0].submit(lambda: (busy.set(), free.wait(10)))
    assert busy.wait(10)
    with parts.awake():
        threads = [parts.beside(threading.get_ident)()]
        parts.together(lambda: threads.append(threading.get_ident()))
    threads.append(parts.beside(threading.get_ident)())
    free.set()
    assert threads == [threading.get_ident()] * 3


def test_a_fault_of_a_helper_is_raised_when_the_work_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with_two_cores(monkeypatch)
    both, caller = threading.Barrier(2), threading.get_ident()

    def fail() -> None:
        both.wait(10)
        if threading.get_ident() != caller:
            raise MemoryError

    with pytest.raises(MemoryError), parts.awake():
        parts.together(fail)
    assert parts.beside(lambda: 7)() == 7


def test_the_callers_fault_comes_before_those_of_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    with_two_cores(monkeypatch)
    both, caller = threading.Barrier(2), threading.get_ident()

    def fail() -> None:
        both.wait(10)
        raise KeyError if threading.get_ident() == caller else MemoryError

    with pytest.raises(KeyError), parts.awake():
        parts.together(fail)


@pytest.mark.parametrize("is_awake", [True, False])
def test_what_a_caller_waited_for_in_vain_is_told(monkeypatch: pytest.MonkeyPatch, is_awake: bool) -> None:
    with_two_cores(monkeypatch)
    both, caller = threading.Barrier(2), threading.get_ident()

    def fail() -> None:
        both.wait(10)
        raise UnfinishedPartError if threading.get_ident() == caller else MemoryError

    with pytest.raises(MemoryError), parts.awake() if is_awake else contextlib.nullcontext():
        parts.together(fail)
    with pytest.raises(UnfinishedPartError), parts.awake() if is_awake else contextlib.nullcontext():
        parts.together(functools.partial(_raise, UnfinishedPartError), threads=1)


def test_nobody_waits_for_a_part_in_which_another_one_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    with_two_cores(monkeypatch)
    progress, has_begun, caller = progress_of(1), threading.Event(), threading.get_ident()

    def fail() -> None:
        if threading.get_ident() == caller:
            has_begun.wait(10)
            wait_for(progress, 0, 1)
        begin_part(progress, 0)
        has_begun.set()
        raise MemoryError

    before_s = time.monotonic()
    with pytest.raises(MemoryError), parts.awake():
        parts.together(telling(progress, fail))
    assert time.monotonic() - before_s < 5  # 10 to 20 s if nobody told it


def _raise(kind: type[BaseException]) -> None:
    raise kind


@pytest.mark.parametrize("is_awake", [True, False])
def test_a_caller_may_limit_the_threads(monkeypatch: pytest.MonkeyPatch, is_awake: bool) -> None:
    with_two_cores(monkeypatch)
    threads = []
    with parts.at_most(1):
        with parts.awake() if is_awake else contextlib.nullcontext():
            for _ in range(20):
                parts.together(lambda: threads.append(threading.get_ident()))
                threads.append(parts.beside(threading.get_ident)())
        with parts.at_most(0):
            assert len(parts._helpers_here()) == 1
    assert threads == [threading.get_ident()] * 40 and len(parts._helpers_here()) == 1


@pytest.mark.parametrize(("threads", "expected"), [("", 4), ("3", 3), ("2,1", 2), ("9", 4), ("0", 1), ("many", 4)])
def test_the_cores_are_those_that_openmp_takes(threads: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 5, 7}, raising=False)
    monkeypatch.setattr(parts, "quota_cores", lambda root: 64)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert parts.available_cores() == expected
    monkeypatch.setattr(parts, "quota_cores", lambda root: 2)
    assert parts.available_cores() == min(expected, 2)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, sys.maxsize),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, sys.maxsize),
        ({"sys/fs/cgroup/cpu.max": "250000 100000"}, 3),
        ({"sys/fs/cgroup/cpu.max": "max 100000", "sys/fs/cgroup/robot.slice/cpu.max": "100000 100000"}, 1),
        ({"sys/fs/cgroup/cpu.max": "200000 100000", "sys/fs/cgroup/robot.slice/cpu.max": "max 100000"}, 2),
        ({"sys/fs/cgroup/cpu.max": ""}, sys.maxsize),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, sys.maxsize),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 1),
    ],
)
def test_a_containers_quota_is_kept(files: dict[str, str], expected: int, tmp_path: Path) -> None:
    for name, text in {"proc/self/cgroup": "0::/robot.slice\n", **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert parts.quota_cores(tmp_path) == expected


def test_a_process_that_loads_data_computes_on_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pytest.importorskip("torch.utils.data", reason="PyTorch is not installed")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    loader = data.DataLoader(_Cores(), None, num_workers=1)
    assert list(loader) == [1]


class _Cores:
    """A data set of the number of cores that whoever reads it may use."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        return parts.available_cores()


def test_two_threads_may_keep_helpers_awake_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with_two_cores(monkeypatch)
    both = threading.Barrier(2)

    def work(name: str) -> list[str]:
        done = []
        with parts.awake():
            both.wait(10)  # one of them has the only helper now
            for _ in range(50):
                done.append(parts.beside(lambda: name)())
                parts.together(lambda: None)
            both.wait(10)
        return done

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(work, name) for name in "ab"]
        assert [future.result(20) for future in futures] == [["a"] * 50, ["b"] * 50]


def test_work_that_fails_lets_the_helpers_go(monkeypatch: pytest.MonkeyPatch) -> None:
    with_two_cores(monkeypatch)
    with pytest.raises(KeyError), parts.awake():
        raise KeyError
    assert parts.helpers_of_all_cores()[0].submit(lambda: 7).result(10) == 7
