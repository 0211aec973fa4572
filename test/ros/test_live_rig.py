"""The teacher's cameras where /tf says they sit, on a robot that moves as /tf says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed (source one, or install the extra [ros])")
pytest.importorskip("embreex", reason="the simulator needs embreex, the extra [sim]")
tf2_ros = pytest.importorskip("tf2_ros", reason="tf2_ros comes with a ROS 2 installation")
import rclpy
from rclpy.time import Time
from robot import spin_until, transform_message
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header

from lidar_semseg_ros.core.frame import CameraImage
from lidar_semseg_ros.core.geometry import invert_rigid
from lidar_semseg_ros.formats.pointcloud2 import cloud_content, cloud_from_frame, column
from lidar_semseg_ros.ros import teacher_node
from lidar_semseg_ros.ros.messages import cloud_message, image_message, time_message
from lidar_semseg_ros.ros.teacher_node import TeacherNode
from lidar_semseg_ros.sim.drive import SimConfig, SimulatedFrame, drive
from lidar_semseg_ros.teacher.labeller import Labeller, TakenImage
from lidar_semseg_ros.teacher.lifting import LiftingConfig, Trajectory
from lidar_semseg_ros.teacher.scores import PixelScores, certain_scores
from lidar_semseg_ros.teacher.voting import VotingConfig


class AllKnowing:
    """Sees the exact class of every pixel, by the image's stamp."""

    gives, never_labelled = ("labels",), ()

    def __init__(self, frames: Sequence[SimulatedFrame]) -> None:
        self._classes = {image.stamp_ns: classes for frame in frames for _, image, classes in frame.images}

    def label(self, images: Sequence[CameraImage]) -> list[PixelScores]:
        found = [self._classes[image.stamp_ns] for image in images]
        return [certain_scores(classes, classes.shape[1::-1]) for classes in found]


class Robot:
    """Publishes what was simulated, with the tree that its sensors sit in, and hears the teacher."""

    def __init__(self, teacher: TeacherNode) -> None:
        self.teacher, self.node = teacher, rclpy.create_node("robot")
        self.executor = rclpy.executors.SingleThreadedExecutor()
        for node in (teacher, self.node):
            self.executor.add_node(node)
        self.clouds = self.node.create_publisher(PointCloud2, "/teacher/input/pointcloud", 5)
        self.images = self.node.create_publisher(Image, "/teacher/input/camera_0/image", 5)
        self.infos = self.node.create_publisher(CameraInfo, "/teacher/input/camera_0/camera_info", 5)
        self.fixed = tf2_ros.StaticTransformBroadcaster(self.node)
        self.moving = tf2_ros.TransformBroadcaster(self.node)
        self.labelled: dict[int, np.ndarray] = {}
        self.views: list[int] = []
        self.node.create_subscription(PointCloud2, "/teacher/output/pointcloud/pseudo_labels", self._keep, 5)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.node, name)

    def _keep(self, message: PointCloud2) -> None:
        cloud = cloud_content(message)
        self.labelled[cloud.stamp_ns] = column(cloud, "class_id")
        self.views.append(int(column(cloud, "views").max()))

    def go_through(self, frames: Sequence[SimulatedFrame]) -> None:
        """Have all but the last labelled, for which a nearer image could yet come."""
        camera = frames[0].images[0][0]
        self.fixed.sendTransform(
            [
                transform_message("base_link", "lidar", frames[0].base_from_lidar),
                transform_message("base_link", "camera_0", camera.base_from_camera),
            ]
        )
        publishers = (self.clouds, self.images, self.infos, self.moving.pub_tf, self.fixed.pub_tf)
        spin_until(self, lambda: all(publisher.get_subscription_count() for publisher in publishers))
        info = CameraInfo(width=camera.model.width, height=camera.model.height, distortion_model="plumb_bob")
        info.k, info.d = camera.model.matrix.ravel().tolist(), camera.model.distortion.tolist()
        self.infos.publish(info)
        for simulated in frames:
            pose = transform_message("odom", "base_link", simulated.map_from_base, simulated.frame.stamp_ns)
            self.moving.sendTransform(pose)
        last = Time(nanoseconds=frames[-1].frame.stamp_ns)
        spin_until(self, lambda: self.teacher._transforms._buffer.can_transform("odom", "camera_0", last))
        for number, simulated in enumerate(frames):
            heard = self.teacher._tally.counts()["received"]
            self.clouds.publish(cloud_message(cloud_from_frame(simulated.frame)))
            spin_until(self, lambda h=heard: self.teacher._tally.counts()["received"] == h + 1)
            (_, image, _), *_ = simulated.images
            header = Header(stamp=time_message(image.stamp_ns), frame_id=image.frame_id)
            self.images.publish(image_message(image.pixels, header))
            # Of the first it is not known how long it takes, so that it waits for no nearer image; of the others it is.
            due = frames[max(0, number - 1)].frame.stamp_ns
            spin_until(self, lambda stamp_ns=due: stamp_ns in self.labelled)


@pytest.fixture(scope="module")
def frames() -> list[SimulatedFrame]:
    return list(drive(SimConfig(lidar="VLP-16", cameras=1, frames=5, seed=5, speed_mps=1.0)))


@pytest.fixture
def robot(
    frames: list[SimulatedFrame], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Robot]:
    monkeypatch.setattr(teacher_node, "chosen_teacher", lambda *_: AllKnowing(frames))
    monkeypatch.setattr(teacher_node, "teacher_identity", lambda *_: {"model": "all-knowing", "sha256": "0" * 64})
    chosen = ["cameras:=camera_0", "extrinsics.source:=tf", *request.param]
    rclpy.init(args=["--ros-args", *(word for one in chosen for word in ("-p", f"teacher:{one}"))])
    made = Robot(TeacherNode())
    yield made
    made.teacher.destroy_node()
    made.node.destroy_node()
    rclpy.try_shutdown()


def offline(frames: Sequence[SimulatedFrame], trajectory: Trajectory | None) -> dict[int, np.ndarray]:
    """Label with what the simulator knows of its sensors and its way."""
    labeller = Labeller(AllKnowing(frames), LiftingConfig(), VotingConfig())
    found = {}
    for simulated in frames:
        (camera, image, _), *_ = simulated.images
        taken = TakenImage(
            time_ns=image.stamp_ns,
            image=image,
            camera=camera.model,
            camera_from_lidar=invert_rigid(camera.base_from_camera) @ simulated.base_from_lidar,
        )
        taught = labeller.label(simulated.frame, {"camera_0": taken}, np.eye(4), trajectory)
        found[simulated.frame.stamp_ns] = taught.labels.class_id
    return found


@pytest.mark.parametrize("robot", [[]], indirect=True)
def test_a_camera_sits_where_the_tree_says(robot: Robot, frames: list[SimulatedFrame]) -> None:
    robot.go_through(frames)
    expected = offline(frames, None)
    assert len(robot.labelled) == len(frames) - 1
    for stamp_ns, class_id in robot.labelled.items():
        assert np.array_equal(class_id, expected[stamp_ns])


@pytest.mark.parametrize("robot", [[]], indirect=True)
def test_where_the_lidar_sits_on_the_base_is_asked_until_the_tree_tells(
    robot: Robot, frames: list[SimulatedFrame], capfd: pytest.CaptureFixture[str]
) -> None:
    motion, frame = robot.teacher._motion, frames[0].frame
    motion._base_frame = "base_link"
    assert np.array_equal(motion._where_the_lidar_sits(frame), np.eye(4))
    assert "the poses of 'base_link' on ~/input/odometry are taken for those of the lidar" in capfd.readouterr().err
    robot.fixed.sendTransform(transform_message("base_link", "lidar", frames[0].base_from_lidar))
    spin_until(robot, lambda: np.allclose(motion._where_the_lidar_sits(frame), frames[0].base_from_lidar))


@pytest.mark.parametrize("robot", [["fixed_frame:=odom"]], indirect=True)
def test_past_sweeps_vote_where_the_tree_says_how_the_robot_moves(robot: Robot, frames: list[SimulatedFrame]) -> None:
    robot.go_through(frames)
    way = Trajectory(
        stamps_ns=np.array([simulated.frame.stamp_ns for simulated in frames]),
        map_from_base=np.stack([simulated.map_from_base @ simulated.base_from_lidar for simulated in frames]),
    )
    expected = offline(frames, way)
    # The tree is asked at other instants than those of the poses, so that the way is not to the last bit the same.
    for stamp_ns, class_id in robot.labelled.items():
        assert (class_id == expected[stamp_ns]).mean() > 0.99
    # A point has at most one vote of the camera by sweep.
    assert robot.views[0] == 1 and robot.views[-1] > 1
