"""One model for several lidars: whose result is whose, what goes together, and whose fault is whose."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from waiting_calls import PATIENCE_S, outcomes

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.core.sensor import SensorConfig
from lidar_semseg_ros.formats.config_files import package_share
from lidar_semseg_ros.network.batching import Batching
from lidar_semseg_ros.network.inputs import NetworkInput
from lidar_semseg_ros.network.segmenter import Segmenter, SegmenterConfig

MODELS = package_share() / "models"


def test_what_waits_while_it_is_busy_goes_into_one_call_and_everybody_gets_his_own() -> None:
    got, calls = outcomes(lambda items: [f"of {item}" for item in items], most=8, items=range(5))
    assert got == ["of 0", "of 1", "of 2", "of 3", "of 4"]
    assert calls == [[0], [1, 2, 3, 4]]


@pytest.mark.parametrize(("most", "expected"), [(1, [[0], [1], [2], [3]]), (2, [[0], [1, 2], [3]])])
def test_no_more_go_together_than_may_and_who_came_first_is_served_first(most: int, expected: list) -> None:
    got, calls = outcomes(lambda items: [-item for item in items], most, items=range(4))
    assert got == [0, -1, -2, -3] and calls == expected


def test_of_a_call_that_fails_only_the_item_at_fault_fails() -> None:
    def call(items: Sequence[int]) -> list[int]:
        if 2 in items:
            raise ValueError("the second is faulty")
        return [10 * item for item in items]

    got, calls = outcomes(call, most=8, items=range(4))
    assert (got[0], got[1], got[3]) == (0, 10, 30) and str(got[2]) == "the second is faulty"
    assert calls == [[0], [1, 2, 3], [1], [2], [3]]


def test_an_interrupt_ends_the_wait_of_all_that_went_together() -> None:
    def call(items: Sequence[int]) -> list[int]:
        if 2 in items:
            raise KeyboardInterrupt
        return [10 * item for item in items]

    got, calls = outcomes(call, most=3, items=range(5))
    assert got[0] == 0 and [type(one) for one in got[1:4]] == [KeyboardInterrupt] * 3
    # The last one is interrupted, too, if it was its thread that served the others.
    assert got[4] == 40 or isinstance(got[4], KeyboardInterrupt)
    assert calls == [[0], [1, 2, 3], [4]][: 3 if got[4] == 40 else 2]


def test_after_a_failure_it_is_free_again() -> None:
    batching: Batching[int, float] = Batching(lambda items: [1 / item for item in items], most=1)
    with pytest.raises(ZeroDivisionError):
        batching(0)
    assert batching(4) == 0.25


def test_never_two_calls_at_a_time_however_many_threads_there_are() -> None:
    inside, together = threading.Lock(), []

    def call(items: Sequence[int]) -> list[int]:
        if not inside.acquire(blocking=False):
            together.append(items)  # an error would only make Batching try again
            return [item + 1 for item in items]
        try:
            time.sleep(0)  # lets another thread come in, if it may
            return [item + 1 for item in items]
        finally:
            inside.release()

    batching: Batching[int, int] = Batching(call, most=3)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(batching, range(2000))) == list(range(1, 2001))
    assert together == []


# ---- segmenters that share a model


def room(points: int, seed: int) -> LidarFrame:
    xyz = np.random.default_rng(seed).uniform((-4, -3, -1), (4, 3, 1.5), (points, 3)).astype(np.float32)
    return LidarFrame(stamp_ns=0, frame_id="", xyz=xyz)


@pytest.mark.parametrize("suffix", [".safetensors", ".onnx"])
def test_lidars_that_share_a_model_get_the_labels_that_each_gets_alone(suffix: str) -> None:
    pytest.importorskip("torch" if suffix == ".safetensors" else "onnxruntime")
    config = SegmenterConfig(model=str(MODELS / f"indoor-small{suffix}"), device="cpu")
    alone = Segmenter(config, MODELS)
    sweeps = [[room(3000 + 700 * lidar, seed=10 * lidar + k) for k in range(4)] for lidar in range(2)]
    expected = [[alone.segment(frame).labels for frame in frames] for frames in sweeps]
    shared = [alone, Segmenter(config, MODELS, beside=alone)]
    assert shared[1].backend is alone.backend
    together = threading.Barrier(2)

    def label(lidar: int) -> list:
        together.wait(PATIENCE_S)
        return [shared[lidar].segment(frame).labels for frame in sweeps[lidar]]

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(label, range(2)))
    for ours, theirs in zip(found, expected):
        for labels, exact in zip(ours, theirs):
            assert np.array_equal(labels.class_id, exact.class_id)
            assert np.array_equal(labels.probability, exact.probability)


def test_a_sweep_without_points_and_one_that_fails_leave_the_other_lidar_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    first = Segmenter(SegmenterConfig(device="cpu"), MODELS)
    second = Segmenter(first.config, MODELS, beside=first)
    frame, faulty = room(2000, seed=1), room(50, seed=2)
    expected = first.segment(frame).labels
    empty = LidarFrame(stamp_ns=0, frame_id="", xyz=np.full((5, 3), np.nan, np.float32))
    assert second.segment(empty).labels.class_id.tolist() == [255] * 5
    network = first.backend._logits._call

    def sometimes_failing(clouds: Sequence[NetworkInput]) -> Sequence[object]:
        if any(len(one) < 100 for one in clouds):
            raise RuntimeError("out of memory")
        return network(clouds)

    monkeypatch.setattr(first.backend._logits, "_call", sometimes_failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        second.segment(faulty)
    assert np.array_equal(first.segment(frame).labels.class_id, expected.class_id)


@pytest.mark.parametrize(
    "other", [{"model": "indoor-tiny"}, {"device": "auto"}, {"precision": "bfloat16"}, {"threads": 2}]
)
def test_lidars_that_want_other_models_cannot_share_one(other: dict, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "indoor-tiny.safetensors").symlink_to(MODELS / "indoor-small.safetensors")
    first = Segmenter(SegmenterConfig(device="cpu", threads=1), MODELS)
    mine = {"device": "cpu", "threads": 1} | other
    with pytest.raises(UserError, match=f"'{next(iter(other))}' is .* for the first"):
        Segmenter(SegmenterConfig(**mine), tmp_path if "model" in other else MODELS, beside=first)


def test_what_is_not_the_models_may_differ_between_lidars_that_share_it() -> None:
    pytest.importorskip("torch")
    first = Segmenter(SegmenterConfig(device="cpu"), MODELS)
    upside_down = SegmenterConfig(device="cpu", min_score=0.99, input=SensorConfig(roll=np.pi))
    second = Segmenter(upside_down, MODELS, beside=first)
    frame = room(2000, seed=2)
    assert not np.array_equal(first.segment(frame).labels.class_id, second.segment(frame).labels.class_id)
