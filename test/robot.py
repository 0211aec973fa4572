"""The rest of a robot, for tests of nodes: it publishes clouds and hears the answers."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TransformStamped
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Float64, Header

from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.core.geometry import quaternion_from_rotation
from lidar_semseg_ros.formats.pointcloud2 import cloud_from_frame
from lidar_semseg_ros.ros.messages import cloud_message, time_message

CLOUDS = "/robot/points"
LABELLED = "/segmenter/output/pointcloud/segmentation"


def spin_until(robot: object, done: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Turn a node's callbacks until a condition holds; fail if it never does."""
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, "the awaited never came"
        rclpy.spin_once(robot, executor=getattr(robot, "executor", None), timeout_sec=0.05)


def run_node(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a node to its end."""
    command = [sys.executable, "-m", f"lidar_semseg_ros.ros.{module}", "--ros-args", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def room(points: int = 2000, seed: int = 0) -> np.ndarray:
    """Random points of a room, (N, 3) float32."""
    rng = np.random.default_rng(seed)
    return rng.uniform((-4, -3, -1), (4, 3, 1.5), (points, 3)).astype(np.float32)


def good_cloud(stamp_ns: int, points: int = 2000) -> PointCloud2:
    """A cloud of which every eleventh point has no return."""
    xyz = room(points, seed=stamp_ns % 1000)
    xyz[::11] = np.nan
    return cloud_message(cloud_from_frame(LidarFrame(stamp_ns=stamp_ns, frame_id="velodyne", xyz=xyz)))


def transform_message(parent: str, child: str, parent_from_child: np.ndarray, stamp_ns: int = 0) -> TransformStamped:
    """Say a transform (4, 4) as /tf does."""
    made = TransformStamped(header=Header(stamp=time_message(stamp_ns), frame_id=parent), child_frame_id=child)
    moved, turned = made.transform.translation, made.transform.rotation
    moved.x, moved.y, moved.z = (float(v) for v in parent_from_child[:3, 3])
    turned.x, turned.y, turned.z, turned.w = (float(v) for v in quaternion_from_rotation(parent_from_child[:3, :3]))
    return made


def call(robot: object, kind: object, name: str, request: object) -> object:
    """Call a service and give its answer."""
    client = robot.create_client(kind, name)
    spin_until(robot, client.service_is_ready)
    future = client.call_async(request)
    spin_until(robot, future.done)
    robot.destroy_client(client)
    return future.result()


class Robot:
    """Publishes clouds and keeps what the segmenter answers."""

    def __init__(
        self, node: object, reliability: ReliabilityPolicy = ReliabilityPolicy.RELIABLE, depth: int = 5
    ) -> None:
        self.node = node
        self.labelled: dict[int, PointCloud2] = {}
        self.values: dict[str, str] = {}
        self.level = b""
        self.stages: dict[str, list[float]] = {}
        qos = QoSProfile(depth=depth, reliability=reliability)
        self.publisher = node.create_publisher(PointCloud2, CLOUDS, qos)
        node.create_subscription(PointCloud2, LABELLED, self._keep, qos)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._read, 10)
        for stage in ("convert", "publish", "total"):
            topic = f"/segmenter/debug/processing_time/{stage}_ms"
            node.create_subscription(
                Float64, topic, lambda m, s=stage: self.stages.setdefault(s, []).append(m.data), 10
            )

    def _keep(self, message: PointCloud2) -> None:
        self.labelled[message.header.stamp.sec * 10**9 + message.header.stamp.nanosec] = message

    def _read(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self.level = status.level
            self.values = {entry.key: entry.value for entry in status.values}

    def meets(self) -> bool:
        """Whether both sides have found each other."""
        return self.publisher.get_subscription_count() > 0 and self.node.count_publishers(LABELLED) > 0

    def ask(self, message: PointCloud2) -> PointCloud2:
        """Publish a cloud and wait for its labels."""
        stamp_ns = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        self.publisher.publish(message)
        spin_until(self.node, lambda: stamp_ns in self.labelled)
        return self.labelled[stamp_ns]

    def settle(self, received: int) -> None:
        """Wait for diagnostics that count so many clouds."""
        spin_until(self.node, lambda: self.values.get("received") == str(received))
