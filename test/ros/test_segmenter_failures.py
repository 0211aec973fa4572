"""When labelling itself fails: once more, then an error that stays until a cloud is labelled again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed (source one, or install the extra [ros])")
import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from robot import CLOUDS, Robot, good_cloud, spin_until
from stand_in_device import StandInDevice

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.geometry import rigid
from lidar_semseg_ros.formats.pointcloud2 import cloud_content, column
from lidar_semseg_ros.ros import segmenter_node
from lidar_semseg_ros.ros.diagnostics import Tally
from lidar_semseg_ros.ros.drops import Drops
from lidar_semseg_ros.ros.segmenter_node import SegmenterNode
from lidar_semseg_ros.ros.transforms import NoTransformError, Transforms


@pytest.fixture
def pair(small_model: Path) -> Iterator[tuple[SegmenterNode, Robot, rclpy.executors.Executor]]:
    """A segmenter and a robot in this process, so that parts of the segmenter can be made to fail."""
    settings = ["-p", f"segmenter:model:={small_model}", "-p", "segmenter:device:=cpu"]
    rclpy.init(args=["--ros-args", *settings, "-r", f"segmenter:~/input/pointcloud:={CLOUDS}"])
    segmenter, node = SegmenterNode(), rclpy.create_node("robot")
    executor = rclpy.executors.SingleThreadedExecutor()
    executor.add_node(segmenter)
    executor.add_node(node)
    robot = Robot(_Together(node, executor))
    spin_until(robot.node, robot.meets)
    yield segmenter, robot
    segmenter.destroy_node()
    node.destroy_node()
    rclpy.try_shutdown()


class _Together:
    """The robot's node, whose turning turns the segmenter too."""

    def __init__(self, node: object, executor: rclpy.executors.Executor) -> None:
        self._node, self.executor = node, executor

    def __getattr__(self, name: str) -> object:
        return getattr(self._node, name)


class _Failing:
    """Stands before `segment` and fails a number of times."""

    def __init__(self, segmenter: SegmenterNode, times: int) -> None:
        self.left, self._segment = times, segmenter._segmenter.segment
        segmenter._segmenter.segment = self

    def __call__(self, *arguments: object) -> object:
        if self.left > 0:
            self.left -= 1
            raise RuntimeError("CUDA error: out of memory")
        return self._segment(*arguments)


def test_a_call_that_fails_once_is_made_again_and_the_cloud_is_labelled(
    pair: tuple[SegmenterNode, Robot],
) -> None:
    segmenter, robot = pair
    _Failing(segmenter, times=1)
    robot.ask(good_cloud(1))
    robot.settle(received=1)
    assert (robot.values["labelled"], robot.values["failed"]) == ("1", "0")


def test_bytes_that_a_device_has_finished_are_published_also_if_it_fails_once(
    pair: tuple[SegmenterNode, Robot],
) -> None:
    segmenter, robot = pair
    device = segmenter._segmenter.backend.on_device = StandInDevice()
    device.failures = 1
    question = cloud_content(good_cloud(1))
    answer = cloud_content(robot.ask(good_cloud(1)))
    assert len(device.clouds) == 2 and (answer.height, answer.width) == (question.height, question.width)
    assert (column(answer, "class_id") == 3).all() and (column(answer, "probability") == 0.75).all()
    for axis in "xyz":
        assert np.array_equal(column(answer, axis), column(question, axis), equal_nan=True)
    robot.settle(received=1)
    assert (robot.values["labelled"], robot.values["failed"]) == ("1", "0")


def test_labels_are_looked_at_for_doubts_now_and_then_and_not_with_every_cloud(
    pair: tuple[SegmenterNode, Robot], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, robot = pair
    seen: list[int] = []
    monkeypatch.setattr(segmenter_node, "doubt", lambda frame, *others: seen.append(frame.stamp_ns) or "")
    monkeypatch.setattr(segmenter_node, "LOG_PERIOD_S", 3600.0)
    for stamp_ns in (1, 2, 3):
        robot.ask(good_cloud(stamp_ns))
    robot.settle(received=3)
    assert seen == [1]


def test_a_call_that_fails_twice_is_an_error_until_a_cloud_is_labelled_again(
    pair: tuple[SegmenterNode, Robot],
) -> None:
    segmenter, robot = pair
    _Failing(segmenter, times=2)
    robot.publisher.publish(good_cloud(1))
    spin_until(robot.node, lambda: robot.values.get("failed") == "1")
    assert robot.level == DiagnosticStatus.ERROR
    robot.values.clear()
    spin_until(robot.node, lambda: bool(robot.values))
    assert robot.level == DiagnosticStatus.ERROR, "it stays one while nothing is labelled"
    robot.ask(good_cloud(2))
    spin_until(robot.node, lambda: robot.values.get("labelled") == "1")
    assert robot.level != DiagnosticStatus.ERROR


def test_a_missing_transform_is_counted_and_once_it_is_there_the_sensor_is_levelled(
    pair: tuple[SegmenterNode, Robot], monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter, robot = pair

    class Tree:
        known: np.ndarray | None = None

        def lookup(self, target: str, source: str, stamp_ns: int) -> np.ndarray:
            assert (target, source) == ("base_footprint", "velodyne")
            if self.known is None:
                raise NoTransformError(f"no transform from '{source}' to '{target}'")
            return self.known

    tree = Tree()
    monkeypatch.setitem(segmenter.__dict__, "_transforms", tree)
    upright = cloud_content(robot.ask(good_cloud(1)))
    flipped = rigid(np.diag([1.0, -1.0, -1.0]), np.array([0.0, 0.0, 2.0]))
    level = segmenter._config.input.__class__(level_frame="base_footprint")
    monkeypatch.setattr(segmenter, "_config", segmenter._config.__class__(input=level))
    robot.publisher.publish(good_cloud(2))
    spin_until(robot.node, lambda: robot.values.get("no_transform") == "1")
    tree.known = flipped
    answer = cloud_content(robot.ask(good_cloud(1_001)))
    # Two stamps of one seed: the same points, labelled as they lie and turned over.
    assert np.array_equal(column(answer, "z"), column(upright, "z"), equal_nan=True), (
        "points are published as they came"
    )
    assert not np.array_equal(column(answer, "class_id"), column(upright, "class_id"))


def test_a_reset_is_not_taken_for_a_second_without_clouds(pair: tuple[SegmenterNode, Robot]) -> None:
    segmenter, _ = pair

    def judged() -> tuple[bytes, str]:
        return segmenter._diagnostics._judge(segmenter._tally.counts())

    segmenter._tally.count("received", 100)
    assert judged() == (DiagnosticStatus.OK, "100 clouds in the last second")
    segmenter._tally.count("received", 4)
    segmenter._tally.clear()
    segmenter._tally.count("received", 6)
    assert judged() == (DiagnosticStatus.OK, "10 clouds in the last second")
    assert judged() == (DiagnosticStatus.WARN, "no clouds in the last second")
    assert segmenter._tally.counts()["received"] == 6


def test_a_steady_cause_of_drops_hides_no_rare_one_and_each_is_said_every_five_seconds(
    pair: tuple[SegmenterNode, Robot], capfd: pytest.CaptureFixture[str]
) -> None:
    segmenter, _ = pair
    tally, now_s = Tally(), 0.0
    drops = Drops(segmenter, tally, now_s=lambda: now_s)
    for tenth in range(100):
        now_s = tenth / 10
        drops.drop("no_image", "no image lies near it")
        if tenth == 20:
            drops.drop("invalid", "it has no x")
            drops.leave_out("left", "image_invalid", "it is no image")
            drops.leave_out("right", "image_invalid", "it is none either")
    said = capfd.readouterr().err
    assert said.count("cloud dropped (no_image): no image lies near it") == 2
    assert "cloud dropped (invalid): it has no x" in said
    assert "image of left left out (image_invalid): it is no image" in said
    assert "image of right left out (image_invalid): it is none either" in said
    assert tally.counts() == {"no_image": 100, "invalid": 1, "image_invalid": 2}


def test_receiving_a_large_cloud_does_not_hold_up_the_executor(pair: tuple[SegmenterNode, Robot]) -> None:
    segmenter, _ = pair
    cloud = good_cloud(1, points=200_000)
    durations_s = []
    for stamp in range(2, 40):
        cloud.header.stamp.sec = stamp
        start = time.perf_counter()
        segmenter._receive(cloud)
        durations_s.append(time.perf_counter() - start)
    # The median, for the worker's thread may hold the interpreter for a moment.
    assert np.median(durations_s) < 2e-3


def test_where_tf2_is_missing_the_setting_that_needs_it_says_so(pair: tuple[SegmenterNode, Robot]) -> None:
    segmenter, _ = pair
    try:
        import tf2_ros  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"input\.level_frame needs tf2_ros"):
            Transforms(segmenter, "input.level_frame")
    else:
        pytest.skip("tf2_ros is installed")
