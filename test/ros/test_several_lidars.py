"""Several lidars in one process: each with its own node and settings, all with one model."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed (source one, or install the extra [ros])")
from diagnostic_msgs.msg import DiagnosticArray
from robot import room, run_node, spin_until
from sensor_msgs.msg import PointCloud2, PointField

from lidar_semseg_ros.cli.live import NodeProcess, running
from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.formats.pointcloud2 import cloud_content, cloud_from_frame, column, read_cloud
from lidar_semseg_ros.network.segmenter import Segmenter, SegmenterConfig
from lidar_semseg_ros.ros.messages import cloud_message
from lidar_semseg_ros.ros.worker import Worker, stop_together

PARAMETERS = """
/**:
  ros__parameters: {{device: cpu, model: {model}}}
/robot1/rear/segmenter:
  ros__parameters: {{min_score: 0.2, output: {{layout: autoware}}}}
"""


@pytest.fixture
def process(small_model: Path, tmp_path: Path) -> Iterator[NodeProcess]:
    """Front and rear lidar of robot1 in one process."""
    file = tmp_path / "parameters.yaml"
    file.write_text(PARAMETERS.format(model=small_model))
    remaps = {f"/robot1/{name}/segmenter/input/pointcloud": f"/{name}/points" for name in ("front", "rear")}
    arguments = ["-r", "__ns:=/robot1", "--params-file", str(file), "--", "--lidars", "front,rear"]
    with running("segmenter", {}, remaps, tmp_path / "segmenters.log", arguments) as process:
        process.wait_for("[robot1.rear.segmenter]: quick.safetensors on cpu: ready for clouds")
        yield process


class Lidar:
    """Publishes the clouds of one lidar and keeps what its segmenter answers."""

    def __init__(self, node: object, name: str) -> None:
        self._node, self._output = node, f"/robot1/{name}/segmenter/output/pointcloud/segmentation"
        self.labelled: dict[int, PointCloud2] = {}
        self.values: dict[str, str] = {}
        self._publisher = node.create_publisher(PointCloud2, f"/{name}/points", 5)
        node.create_subscription(PointCloud2, self._output, self._keep, 5)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._read, 10)
        self._name = f"/robot1/{name}/segmenter"

    def _keep(self, message: PointCloud2) -> None:
        self.labelled[cloud_content(message).stamp_ns] = message

    def _read(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == self._name:
                self.values = {entry.key: entry.value for entry in status.values}

    def meets(self) -> bool:
        return self._publisher.get_subscription_count() > 0 and self._node.count_publishers(self._output) > 0

    def send(self, message: PointCloud2) -> None:
        self._publisher.publish(message)


def organised(stamp_ns: int) -> PointCloud2:
    """A cloud of 16 × 150 with intensity and ring."""
    xyz = room(2400, seed=stamp_ns % 1000)
    ring, intensity = np.repeat(np.arange(16, dtype=np.uint16), 150), np.arange(2400, dtype=np.float32) % 256
    frame = LidarFrame(stamp_ns=stamp_ns, frame_id="front", xyz=xyz, intensity=intensity, ring=ring, shape=(16, 150))
    return cloud_message(cloud_from_frame(frame))


def plain(stamp_ns: int) -> PointCloud2:
    """A cloud of 1 × 900 with x, y, z only."""
    return cloud_message(cloud_from_frame(LidarFrame(stamp_ns=stamp_ns, frame_id="rear", xyz=room(900, stamp_ns))))


def met(node: object) -> tuple[Lidar, Lidar]:
    front, rear = Lidar(node, "front"), Lidar(node, "rear")
    spin_until(node, lambda: front.meets() and rear.meets())
    return front, rear


def test_two_lidars_of_different_layouts_are_labelled_as_each_is_offline(
    process: NodeProcess, node: object, small_model: Path
) -> None:
    front, rear = met(node)
    offline = Segmenter(SegmenterConfig(model=str(small_model), device="cpu"), small_model.parent)
    for stamp_ns in range(1, 6):
        sent = {front: organised(stamp_ns), rear: plain(stamp_ns)}
        for lidar, message in sent.items():
            lidar.send(message)
        spin_until(node, lambda at=stamp_ns: at in front.labelled and at in rear.labelled)
        for lidar, message in sent.items():
            question, answer = cloud_content(message), cloud_content(lidar.labelled[stamp_ns])
            assert (answer.frame_id, answer.height, answer.width) == (
                question.frame_id,
                question.height,
                question.width,
            )
            labels = offline.segment(read_cloud(question)).labels
            # The parameters of the rear one alone leave what is unsure unlabelled, and write another layout.
            sure = labels.probability >= (0.2 if lidar is rear else 0)
            assert np.array_equal(column(answer, "class_id"), np.where(sure, labels.class_id, 255))
            assert ("rgb" in [field.name for field in answer.fields]) == (lidar is front)


def test_a_faulty_cloud_of_one_lidar_is_counted_there_and_the_other_one_is_labelled(
    process: NodeProcess, node: object
) -> None:
    front, rear = met(node)
    faulty = plain(7)
    faulty.fields[1] = PointField(name="y", offset=4000, datatype=PointField.FLOAT32, count=1)
    rear.send(faulty)
    front.send(organised(7))
    spin_until(node, lambda: 7 in front.labelled and rear.values.get("invalid") == "1")
    rear.send(plain(8))
    spin_until(node, lambda: 8 in rear.labelled and front.values.get("labelled") == "1")
    assert front.values["invalid"] == "0" and 7 not in rear.labelled


def test_a_signal_in_the_midst_of_the_work_of_several_ends_it_quickly_and_cleanly(
    process: NodeProcess, node: object
) -> None:
    lidars = met(node)
    clouds = [cloud_message(cloud_from_frame(LidarFrame(stamp_ns=1, frame_id="x", xyz=room(20_000))))] * 2

    def both_work() -> bool:
        """While one is labelled the next one waits; so whoever has answered is at work on another."""
        for lidar in lidars:
            for cloud in clouds:
                lidar.send(cloud)
        return all(lidar.labelled for lidar in lidars)

    spin_until(node, both_work)
    start = time.monotonic()
    process.process.send_signal(signal.SIGINT)
    assert process.process.wait(10) == 0
    assert time.monotonic() - start < 2.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--lidars", "front,front"], "different names"),
        (["--lidars", "front,"], "different names"),
        (["--lidars", "a-b"], "letters, digits and _"),
        (["--lidar", "front"], "only --lidars"),
    ],
)
def test_a_wrong_list_of_lidars_is_an_error_in_one_line(arguments: list[str], said: str) -> None:
    ended = run_node("segmenter_node", "--", *arguments)
    assert ended.returncode == 2 and said in ended.stderr and "Traceback" not in ended.stderr


def test_lidars_that_want_different_models_cannot_share_a_process(small_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "parameters.yaml"
    file.write_text(
        PARAMETERS.format(model=small_model) + "/rear/segmenter:\n  ros__parameters: {precision: bfloat16}\n"
    )
    ended = run_node("segmenter_node", "--params-file", str(file), "--", "--lidars", "front,rear")
    assert ended.returncode == 2 and "'precision' is 'auto' for the first and 'bfloat16'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_workers_that_are_stopped_together_are_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    waited_s, closed = [], []

    class Busy:
        def close(self) -> None:
            closed.append(self)

        def stop(self, timeout_s: float) -> None:
            assert len(closed) == 3
            waited_s.append(timeout_s)
            now_s[0] += 0.6

    stop_together([Busy(), Busy(), Busy()])
    assert waited_s == pytest.approx([1.0, 0.4, 0.0])


def test_a_closed_worker_takes_nothing_more() -> None:
    done: list[int] = []
    worker: Worker[int] = Worker(done.append)
    worker.close()
    worker.put(1)
    worker.stop()
    assert done == []
