"""Parts of a step that the cores share: each is done once, and nothing is lost, whoever does it."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from lidar_semseg_ros.network import parts


@pytest.mark.parametrize("edges", [[0], [0, 5], [0, 3, 3, 9], list(range(40))])
@pytest.mark.parametrize("helpers", [0, 1, 3])
def test_every_part_is_done_once_before_the_step_ends(edges: list[int], helpers: int) -> None:
    pools, done = [ThreadPoolExecutor(1) for _ in range(helpers)], []
    parts.share(pools, edges, lambda begin, end: done.append((begin, end)))
    assert sorted(done) == sorted(pairwise(edges))


@pytest.mark.parametrize("cores", [1, 2])
def test_work_beside_the_caller_gives_its_result_and_its_fault(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    result, fault = parts.beside(lambda: 7), parts.beside(lambda: {}["nothing"])
    assert result() == 7
    with pytest.raises(KeyError, match="nothing"):
        fault()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_has_helpers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
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
