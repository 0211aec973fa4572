from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed (source one, or install the extra [ros])")
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from robot import Robot, good_cloud, run_node, spin_until
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Float64, String

from lidar_semseg_ros.cli.live import NodeProcess
from lidar_semseg_ros.formats.pointcloud2 import cloud_content, column, read_cloud
from lidar_semseg_ros.network.segmenter import DROP_CAUSES, Segmenter, SegmenterConfig


def malformed_cloud(stamp_ns: int) -> PointCloud2:
    message = good_cloud(stamp_ns)
    message.fields[1] = PointField(name="y", offset=4000, datatype=PointField.FLOAT32, count=1)
    return message


def test_a_cloud_comes_back_with_all_its_points_labelled_as_offline(
    segmenter: NodeProcess, node: object, small_model: Path
) -> None:
    robot = Robot(node)
    spin_until(node, robot.meets)
    sent = good_cloud(1_700_000_000_123_456_789)
    answer = cloud_content(robot.ask(sent))
    question = cloud_content(sent)
    assert (answer.stamp_ns, answer.frame_id, answer.height, answer.width) == (
        1_700_000_000_123_456_789,
        "velodyne",
        question.height,
        question.width,
    )
    for axis in "xyz":
        assert np.array_equal(column(answer, axis), column(question, axis), equal_nan=True)
    offline = Segmenter(SegmenterConfig(model=str(small_model), device="cpu"), small_model.parent)
    expected = offline.segment(read_cloud(question)).labels
    assert np.array_equal(column(answer, "class_id"), expected.class_id)
    assert np.array_equal(column(answer, "probability"), expected.probability)
    assert (column(answer, "class_id")[::11] == 255).all()


def test_one_malformed_cloud_is_counted_and_named_and_the_next_good_one_is_labelled(
    segmenter: NodeProcess, node: object
) -> None:
    robot = Robot(node)
    spin_until(node, robot.meets)
    robot.ask(good_cloud(1_000_000_001))
    robot.publisher.publish(malformed_cloud(1_000_000_002))
    robot.settle(received=2)
    robot.ask(good_cloud(1_000_000_003))
    robot.settle(received=3)
    assert (robot.values["labelled"], robot.values["invalid"]) == ("2", "1")
    segmenter.wait_for("cloud dropped (invalid): ")
    assert any("'y'" in line or "field y" in line for line in segmenter._lines if "cloud dropped" in line)
    assert 1_000_000_002 not in robot.labelled


def test_stage_times_are_published_for_each_cloud(segmenter: NodeProcess, node: object) -> None:
    robot = Robot(node)
    spin_until(node, robot.meets)
    robot.ask(good_cloud(5))
    spin_until(node, lambda: len(robot.stages) == 3)
    assert all(0 < found[0] < 60_000 for found in robot.stages.values())
    assert robot.stages["total"][0] > robot.stages["convert"][0] + robot.stages["publish"][0]


def test_the_latency_of_a_cloud_is_that_of_its_stamp_and_no_number_for_one_of_another_time(
    segmenter: NodeProcess, node: object
) -> None:
    robot = Robot(node)
    heard: list[float] = []
    topic = "/segmenter/debug/pipeline_latency_ms"
    node.create_subscription(Float64, topic, lambda message: heard.append(message.data), 10)
    spin_until(node, lambda: robot.meets() and node.count_publishers(topic) > 0)
    start_ns = time.time_ns()
    for number, stamp_ns in enumerate((start_ns, start_ns - 60 * 10**9, start_ns + 60 * 10**9), 1):
        robot.ask(good_cloud(stamp_ns, points=200))
        spin_until(node, lambda number=number: len(heard) == number)
    assert 0 < heard[0] < 10_000 and np.isnan(heard[1:]).all()


def test_best_effort_peers_are_served(segmenter: NodeProcess, node: object) -> None:
    robot = Robot(node, ReliabilityPolicy.BEST_EFFORT)
    spin_until(node, robot.meets)
    # Best effort may lose one, so more are sent until one is answered.
    stamps = iter(range(10, 1000))

    def answered() -> bool:
        robot.publisher.publish(good_cloud(next(stamps), points=200))
        return bool(robot.labelled)

    spin_until(node, answered)


def test_the_class_map_waits_for_late_subscribers(segmenter: NodeProcess, node: object) -> None:
    heard: list[dict] = []
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    node.create_subscription(
        String, "/segmenter/output/class_map", lambda message: heard.append(json.loads(message.data)), latched
    )
    spin_until(node, lambda: bool(heard))
    assert heard[0]["model"] == "quick"
    assert heard[0]["classes"][16] == {"id": 16, "name": "person", "color": [255, 0, 110]}


def test_the_visualization_cloud_is_made_for_whoever_looks(segmenter: NodeProcess, node: object) -> None:
    robot, seen = Robot(node), []
    topic = "/segmenter/output/pointcloud/visualization"
    node.create_subscription(PointCloud2, topic, seen.append, 1)
    spin_until(node, lambda: robot.meets() and node.count_publishers(topic) > 0)
    stamps = iter(range(20, 1000))

    def arrived() -> bool:
        robot.ask(good_cloud(next(stamps), points=300))
        return bool(seen)

    spin_until(node, arrived)
    assert [field.name for field in seen[0].fields] == ["x", "y", "z", "rgb"]
    assert (seen[0].point_step, seen[0].width) == (16, 300)


@pytest.mark.parametrize(
    ("segmenter", "names", "step"),
    [
        ({"output.layout": "autoware"}, ["x", "y", "z", "class_id", "probability", "entropy"], 21),
        ({"output.layout": "append"}, ["x", "y", "z", "class_id", "probability", "entropy", "rgb"], 25),
    ],
    indirect=["segmenter"],
)
def test_output_layouts_are_chosen_by_parameter(
    segmenter: NodeProcess, node: object, names: list[str], step: int
) -> None:
    robot = Robot(node)
    spin_until(node, robot.meets)
    answer = robot.ask(good_cloud(7))
    assert ([field.name for field in answer.fields], answer.point_step) == (names, step)


def test_more_clouds_than_it_can_label_are_counted_as_busy_and_the_newest_is_labelled(
    segmenter: NodeProcess, node: object
) -> None:
    robot = Robot(node)
    spin_until(node, robot.meets)
    for stamp in range(100, 140):
        robot.publisher.publish(good_cloud(stamp, points=20_000))
    spin_until(node, lambda: 139 in robot.labelled)
    spin_until(node, lambda: int(robot.values.get("labelled", 0)) >= len(robot.labelled))
    spin_until(node, lambda: _balanced(robot.values))
    assert int(robot.values["busy"]) > 0


def _balanced(values: dict[str, str]) -> bool:
    counts = {key: int(values.get(key, 0)) for key in ("received", "labelled", *DROP_CAUSES)}
    return counts["received"] == sum(counts.values()) - counts["received"]


@pytest.mark.parametrize("said", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_midst_of_work_ends_it_quickly_and_cleanly(
    segmenter: NodeProcess, node: object, said: signal.Signals
) -> None:
    robot = Robot(node)
    spin_until(node, robot.meets)
    robot.publisher.publish(good_cloud(1, points=50_000))
    start = time.monotonic()
    segmenter.process.send_signal(said)
    assert segmenter.process.wait(10) == 0
    assert time.monotonic() - start < 2.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-p", "model:=nowhere.onnx"], "no model file"),
        (["-p", "min_scores:=0.5"], "did you mean 'min_score'?"),
        (["-p", "min_score:=high"], "'min_score' takes float, but got 'high'"),
        (["-p", "output.layout:=fancy"], "one of aligned, autoware, append"),
        (["-p", "device:=gpu"], "'device' takes auto, cpu, cuda"),
        (["-p", "device:=cuda:99"], "CUDA GPU"),
        (["-p", "filter.classes:=floor,persons"], "no class 'persons'; it has wall, floor"),
        (["-p", "overlay.calibration:=my_rig"], "my_rig"),
        (["-p", "input.range.min:=5.0", "-p", "input.range.max:=1.0"], "must be less than"),
    ],
)
def test_a_wrong_start_ends_with_one_line_and_status_2(arguments: list[str], said: str) -> None:
    ended = run_node("segmenter_node", *arguments)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
