"""Where sensors sit and robots move, told by a real /tf and /tf_static."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed (source one, or install the extra [ros])")
tf2_ros = pytest.importorskip("tf2_ros", reason="tf2_ros comes with a ROS 2 installation")
import rclpy
from robot import CLOUDS, Robot, good_cloud, spin_until, transform_message
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from lidar_semseg_ros.cli.live import running
from lidar_semseg_ros.core.geometry import invert_rigid, rigid, transform_points
from lidar_semseg_ros.formats.pointcloud2 import cloud_content, column, read_cloud
from lidar_semseg_ros.network.segmenter import Segmenter, SegmenterConfig
from lidar_semseg_ros.ros.messages import image_message, time_message
from lidar_semseg_ros.ros.transforms import SETTLING_S, TIMEOUT_S, NoTransformError, Transforms
from lidar_semseg_ros.view.paint import IMAGE_DIMMED_TO

SECOND_NS = 1_000_000_000
UPSIDE_DOWN = rigid(np.diag([1.0, -1.0, -1.0]), np.array([0.0, 0.0, 2.0]))
AHEAD = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
"""The axes of a camera (x right, y down, z ahead) in those of a robot (x ahead, y left, z up)."""


def moved(x: float) -> np.ndarray:
    return rigid(np.eye(3), np.array([x, 0.0, 0.0]))


class Tree:
    """A node that tells transforms, and one that hears them while its executor turns in a thread."""

    def __init__(self) -> None:
        self.teller, self.hearer = rclpy.create_node("teller"), rclpy.create_node("hearer")
        self.fixed = tf2_ros.StaticTransformBroadcaster(self.teller)
        self.moving = tf2_ros.TransformBroadcaster(self.teller)
        self.transforms = Transforms(self.hearer, "a test")
        self._executor = rclpy.executors.SingleThreadedExecutor()
        self._executor.add_node(self.hearer)
        self._turning = threading.Thread(target=self._executor.spin)
        self._turning.start()

    def knows(self, target: str, source: str, stamp_ns: int) -> np.ndarray:
        """Look up until it is known; each look waits a little by itself."""
        deadline = time.monotonic() + 30
        while True:
            try:
                return self.transforms.lookup(target, source, stamp_ns)
            except NoTransformError:
                assert time.monotonic() < deadline, "it never came"

    def destroy(self) -> None:
        self._executor.shutdown()
        self._turning.join()
        self.teller.destroy_node()
        self.hearer.destroy_node()


@pytest.fixture
def tree(context: None) -> Iterator[Tree]:
    made = Tree()
    yield made
    made.destroy()


def test_a_chain_of_fixed_and_moving_frames_is_followed_at_the_stamp(tree: Tree) -> None:
    tree.fixed.sendTransform(transform_message("base_link", "lidar", UPSIDE_DOWN))
    for second, x in ((1, 0.0), (2, 4.0)):
        tree.moving.sendTransform(transform_message("odom", "base_link", moved(x), second * SECOND_NS))
    assert np.allclose(tree.knows("base_link", "lidar", 7), UPSIDE_DOWN), "a fixed one is known at every stamp"
    quarter = tree.knows("odom", "lidar", SECOND_NS + SECOND_NS // 4)
    assert np.allclose(quarter, moved(1.0) @ UPSIDE_DOWN), "between two stamps it is interpolated"
    assert np.allclose(tree.knows("lidar", "odom", 2 * SECOND_NS), invert_rigid(moved(4.0) @ UPSIDE_DOWN))


def test_what_is_not_known_is_said_within_the_wait(tree: Tree) -> None:
    made = time.monotonic()
    with pytest.raises(NoTransformError, match="no transform from 'lidar' to 'base_link' at the cloud's stamp"):
        tree.transforms.lookup("base_link", "lidar", SECOND_NS)
    settled = time.monotonic()
    with pytest.raises(NoTransformError):
        tree.transforms.lookup("base_link", "lidar", SECOND_NS)
    assert settled - made >= 0.9 * SETTLING_S and TIMEOUT_S <= time.monotonic() - settled < 0.5 * SETTLING_S
    tree.moving.sendTransform(transform_message("base_link", "lidar", UPSIDE_DOWN, 5 * SECOND_NS))
    tree.moving.sendTransform(transform_message("base_link", "lidar", UPSIDE_DOWN, 6 * SECOND_NS))
    tree.knows("base_link", "lidar", 5 * SECOND_NS)
    with pytest.raises(NoTransformError, match="extrapolation"):
        tree.transforms.lookup("base_link", "lidar", 9 * SECOND_NS)


def test_what_was_told_before_anybody_listened_is_known_at_the_first_lookup(tree: Tree) -> None:
    tree.fixed.sendTransform(transform_message("base_link", "lidar", UPSIDE_DOWN))
    tree.knows("base_link", "lidar", SECOND_NS)
    assert np.allclose(Transforms(tree.hearer, "another").lookup("base_link", "lidar", SECOND_NS), UPSIDE_DOWN)


def test_after_a_jump_back_in_stamps_the_new_pass_is_heard_and_the_fixed_frames_are_kept(tree: Tree) -> None:
    tree.fixed.sendTransform(transform_message("base_link", "lidar", UPSIDE_DOWN))
    for second in (100, 101):
        tree.moving.sendTransform(transform_message("odom", "base_link", moved(9.0), second * SECOND_NS))
    tree.knows("odom", "lidar", 101 * SECOND_NS)
    with pytest.raises(NoTransformError):
        tree.transforms.lookup("odom", "lidar", SECOND_NS)
    for second in (1, 2):
        tree.moving.sendTransform(transform_message("odom", "base_link", moved(1.0), second * SECOND_NS))
    assert np.allclose(tree.knows("odom", "lidar", SECOND_NS), moved(1.0) @ UPSIDE_DOWN)


def test_a_sensor_is_levelled_by_the_tree_once_the_tree_is_known(
    small_model: Path, node: object, tmp_path: Path
) -> None:
    settings = {"model": str(small_model), "device": "cpu", "input.level_frame": "base_footprint"}
    with running("segmenter", settings, {"~/input/pointcloud": CLOUDS}, tmp_path / "log") as process:
        process.wait_for("ready for clouds")
        robot = Robot(node)
        spin_until(node, robot.meets)
        robot.publisher.publish(good_cloud(1))
        spin_until(node, lambda: robot.values.get("no_transform") == "1")
        process.wait_for("no transform from 'velodyne' to 'base_footprint'")
        tf2_ros.StaticTransformBroadcaster(node).sendTransform(
            transform_message("base_footprint", "velodyne", UPSIDE_DOWN)
        )
        spin_until(node, lambda: _labelled(robot, 2))
        answer = cloud_content(robot.labelled[2])
    segmenter = Segmenter(SegmenterConfig(model=str(small_model), device="cpu"), small_model.parent)
    frame = read_cloud(cloud_content(good_cloud(2)))
    levelled, tilted = (segmenter.segment(frame, level).labels.class_id for level in (UPSIDE_DOWN, None))
    assert np.array_equal(column(answer, "class_id"), levelled)
    assert not np.array_equal(levelled, tilted)


def _labelled(robot: Robot, stamp_ns: int) -> bool:
    """Publish a cloud until its labels are there: the tree may be on its way."""
    robot.publisher.publish(good_cloud(stamp_ns))
    return stamp_ns in robot.labelled


def test_the_overlay_asks_the_tree_where_the_camera_sits(small_model: Path, node: object, tmp_path: Path) -> None:
    settings = {"model": str(small_model), "device": "cpu"}
    remaps = {"~/input/pointcloud": CLOUDS, "~/input/image": "/camera/image", "~/input/camera_info": "/camera/info"}
    camera_from_lidar = rigid(AHEAD, np.array([0.1, -0.2, 0.3]))
    tf2_ros.StaticTransformBroadcaster(node).sendTransform(
        [
            transform_message("base", "velodyne", UPSIDE_DOWN),
            transform_message("base", "camera", UPSIDE_DOWN @ invert_rigid(camera_from_lidar)),
        ]
    )
    info = CameraInfo(width=160, height=120, distortion_model="plumb_bob", d=[0.0] * 5)
    info.k = [80.0, 0.0, 79.5, 0.0, 80.0, 59.5, 0.0, 0.0, 1.0]
    grey = image_message(np.full((120, 160, 3), 100, np.uint8), Header(stamp=time_message(7), frame_id="camera"))
    pictures: list[Image] = []
    with running("segmenter", settings, remaps, tmp_path / "log") as process:
        process.wait_for("ready for clouds")
        robot = Robot(node)
        node.create_subscription(Image, "/segmenter/output/overlay", pictures.append, 1)
        images, infos = (
            node.create_publisher(Image, "/camera/image", 5),
            node.create_publisher(CameraInfo, "/camera/info", 5),
        )
        spin_until(node, lambda: robot.meets() and images.get_subscription_count() and infos.get_subscription_count())

        def shown() -> bool:
            infos.publish(info)
            images.publish(grey)
            return _labelled(robot, 7) and bool(pictures)

        spin_until(node, shown)
    picture = np.frombuffer(pictures[-1].data, np.uint8).reshape(120, 160, 3)
    x, y, z = transform_points(camera_from_lidar, read_cloud(cloud_content(good_cloud(7))).xyz).T
    ahead = z > 0
    u, v = (80 * x[ahead] / z[ahead] + 79.5), (80 * y[ahead] / z[ahead] + 59.5)
    inside = (u > 0) & (u < 159) & (v > 0) & (v < 119)
    assert inside.sum() > 50
    drawn = (picture != int(100 * IMAGE_DIMMED_TO)).any(axis=2)
    row, across = np.rint(v[inside]).astype(int), np.rint(u[inside]).astype(int)
    assert drawn[row, across].mean() > 0.99
    near = np.zeros_like(drawn)
    for down in range(-3, 4):
        for right in range(-3, 4):
            near[np.clip(row + down, 0, 119), np.clip(across + right, 0, 159)] = True
    assert not (drawn & ~near)[4:-4, 4:-4].any(), "nothing is drawn where no point lies"
