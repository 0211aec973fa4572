"""The teacher node on a simulated drive: the same labels as offline, and nothing piles up."""

from __future__ import annotations

import gc
import itertools
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed (source one, or install the extra [ros])")
pytest.importorskip("embreex", reason="the simulator needs embreex, the extra [sim]")
import rclpy
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from robot import good_cloud, spin_until
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Header, String

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED, CameraImage
from lidar_semseg_ros.core.geometry import invert_rigid, quaternion_from_rotation
from lidar_semseg_ros.formats.calibration import LidarCalibration
from lidar_semseg_ros.formats.dataset import taught_rig
from lidar_semseg_ros.formats.pointcloud2 import cloud_content, cloud_from_frame, column, read_cloud
from lidar_semseg_ros.formats.poses import pose_of_message
from lidar_semseg_ros.ros import camera_watch, teacher_node
from lidar_semseg_ros.ros.live_rig import ExtrinsicsConfig, LiveRig, Motion, NoCameraInfoError
from lidar_semseg_ros.ros.messages import cloud_message, image_message, time_message
from lidar_semseg_ros.ros.synchronizers import Clocks, SyncConfig, synchronizer
from lidar_semseg_ros.ros.teacher_node import TeacherNode
from lidar_semseg_ros.ros.transforms import NoTransformError
from lidar_semseg_ros.sim.drive import SimConfig, SimulatedFrame, drive
from lidar_semseg_ros.teacher.labeller import Labeller, TakenImage
from lidar_semseg_ros.teacher.lifting import LiftingConfig, Trajectory
from lidar_semseg_ros.teacher.scores import PixelScores, certain_scores
from lidar_semseg_ros.teacher.voting import VotingConfig
from lidar_semseg_ros.view.paint import overlay

CAMERAS = ("camera_0", "camera_1")
LAP_NS = 6 * 10**8
LABELLED = "/teacher/output/pointcloud/pseudo_labels"


class AllKnowing:
    """Sees the exact class of every pixel, by the image's frame and its stamp within a lap."""

    gives, never_labelled = ("labels",), ()

    def __init__(self, frames: Sequence[SimulatedFrame]) -> None:
        self.policy = -1
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        self._classes = {
            (camera.name, image.stamp_ns % LAP_NS): classes
            for frame in frames
            for camera, image, classes in frame.images
        }

    def label(self, images: Sequence[CameraImage]) -> list[PixelScores]:
        self.policy = os.sched_getscheduler(0)
        self.begun.set()
        self.go_on.wait(120)
        found = [self._classes[image.frame_id, image.stamp_ns % LAP_NS] for image in images]
        return [certain_scores(classes, classes.shape[1::-1]) for classes in found]


@pytest.fixture(scope="module")
def frames() -> list[SimulatedFrame]:
    return list(drive(SimConfig(lidar="VLP-16", cameras=2, frames=6, seed=5, speed_mps=1.0)))


@pytest.fixture(scope="module")
def calibration(frames: list[SimulatedFrame], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that says what the simulator knows of its sensors."""
    cameras = {}
    for camera, _, _ in frames[0].images:
        camera_from_lidar = invert_rigid(camera.base_from_camera) @ frames[0].base_from_lidar
        cameras[camera.name] = {
            "width": 640, "height": 480, "model": "plumb_bob", "K": camera.model.matrix.ravel().tolist(),
            "distortion": camera.model.distortion.tolist(), "direction": "camera_from_lidar",
            "matrix": camera_from_lidar.tolist(),
        }  # fmt: skip
    path = tmp_path_factory.mktemp("rig") / "rig.yaml"
    path.write_text(yaml.safe_dump({"lidars": {"lidar": {"stamp": "start"}}, "cameras": cameras}))
    return path


class Drive:
    """The robot: publishes what was simulated and hears the teacher."""

    def __init__(self, teacher: TeacherNode) -> None:
        self.teacher, self.node = teacher, rclpy.create_node("robot")
        self.executor = rclpy.executors.SingleThreadedExecutor()
        for node in (teacher, self.node):
            self.executor.add_node(node)
        self.clouds = self.node.create_publisher(PointCloud2, "/teacher/input/pointcloud", 5)
        self.images = {n: self.node.create_publisher(Image, f"/teacher/input/{n}/image", 5) for n in CAMERAS}
        self.odometry = self.node.create_publisher(Odometry, "/teacher/input/odometry", 5)
        self.labelled: dict[int, PointCloud2] = {}
        self.values: dict[str, str] = {}
        self.message = ""
        self.settings: dict[str, Any] = {}
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._read, 10)
        self.node.create_subscription(String, "/teacher/output/settings", self._keep_settings, latched)

    def listen(self) -> None:
        self.node.create_subscription(PointCloud2, LABELLED, self._keep, 5)
        self.until(lambda: self.clouds.get_subscription_count() > 0)
        self.until(lambda: all(p.get_subscription_count() > 0 for p in (*self.images.values(), self.odometry)))

    def until(self, done: Any, timeout_s: float = 30.0) -> None:
        spin_until(self, done, timeout_s)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.node, name)

    def _keep(self, message: PointCloud2) -> None:
        self.labelled[cloud_content(message).stamp_ns] = message

    def _keep_settings(self, message: String) -> None:
        self.settings = json.loads(message.data)

    def _read(self, message: DiagnosticArray) -> None:
        self.values = {entry.key: entry.value for status in message.status for entry in status.values}
        self.message = message.status[0].message

    def publish(self, simulated: SimulatedFrame, cameras: Sequence[str] = CAMERAS) -> None:
        frame = simulated.frame
        heard = self.teacher._tally.counts()["received"]
        self.clouds.publish(cloud_message(cloud_from_frame(frame)))
        # Two clouds at once would be one: the subscription keeps the newest.
        self.until(lambda: self.teacher._tally.counts()["received"] == heard + 1)
        for camera, image, _ in simulated.images:
            if camera.name in cameras:
                message = image_message(image.pixels, header_of(frame, image))
                self.images[camera.name].publish(message)

    def go_through(self, frames: Sequence[SimulatedFrame]) -> None:
        """Have all but the last labelled.

        A cloud is labelled when no nearer image can come: with the images of the next one. Only of the first it is not
        known how long it takes, so that it need not wait.
        """
        self.publish(frames[0])
        self.until(lambda: frames[0].frame.stamp_ns in self.labelled)
        for before, simulated in itertools.pairwise(frames):
            self.publish(simulated)
            if before is not frames[0]:
                self.until(lambda s=before: s.frame.stamp_ns in self.labelled)


def header_of(frame: Any, image: CameraImage) -> Any:
    return Header(stamp=time_message(image.stamp_ns), frame_id=image.frame_id)


@pytest.fixture
def knowing(frames: list[SimulatedFrame]) -> AllKnowing:
    return AllKnowing(frames)


@pytest.fixture
def robot(
    knowing: AllKnowing, calibration: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Drive]:
    """The robot with its teacher; parametrize it indirectly for other parameters."""
    monkeypatch.setattr(teacher_node, "chosen_teacher", lambda *_: knowing)
    monkeypatch.setattr(teacher_node, "teacher_identity", lambda *_: {"model": "all-knowing", "sha256": "0" * 64})
    chosen = ["cameras:=camera_0,camera_1", "extrinsics.source:=file", f"extrinsics.file:={calibration}"]
    chosen += getattr(request, "param", [])
    rclpy.init(args=["--ros-args", *(word for one in chosen for word in ("-p", f"teacher:{one}"))])
    made = Drive(TeacherNode())
    yield made
    made.teacher.destroy_node()
    made.node.destroy_node()
    rclpy.try_shutdown()


def offline(frames: Sequence[SimulatedFrame]) -> dict[int, np.ndarray]:
    labeller = Labeller(AllKnowing(frames), LiftingConfig(), VotingConfig())
    found = {}
    for simulated in frames:
        images = {
            camera.name: TakenImage(
                time_ns=image.stamp_ns,
                image=image,
                camera=camera.model,
                camera_from_lidar=invert_rigid(camera.base_from_camera) @ simulated.base_from_lidar,
            )
            for camera, image, _ in simulated.images
        }
        taught = labeller.label(simulated.frame, images, np.eye(4), None)
        found[simulated.frame.stamp_ns] = taught.labels.class_id
    return found


def test_every_cloud_keeps_its_points_and_gets_the_labels_that_it_gets_offline(
    robot: Drive, frames: list[SimulatedFrame]
) -> None:
    robot.listen()
    expected = offline(frames)
    robot.go_through(frames)
    for simulated in frames[:-1]:
        cloud = cloud_content(robot.labelled[simulated.frame.stamp_ns])
        class_id = column(cloud, "class_id")
        assert np.array_equal(class_id, expected[simulated.frame.stamp_ns])
        assert np.array_equal(read_cloud(cloud).xyz, simulated.frame.xyz, equal_nan=True)
        assert ((column(cloud, "probability") > 0) == (class_id != UNLABELLED)).all()
        given = (class_id != UNLABELLED) & (simulated.labels != UNLABELLED)
        assert (
            given.sum() > 1000 and (class_id == simulated.labels)[given].mean() > 0.85
        )  # the robot turns, and nobody tells
    robot.until(lambda: robot.values.get("labelled") == str(len(frames) - 1))
    assert robot.values["camera_0 hit rate"] == robot.values["camera_1 hit rate"] == "1.000"
    assert float(robot.values["coverage"]) > 0.1
    robot.until(lambda: bool(robot.settings))
    assert robot.settings["teacher"]["model"] == "all-knowing"
    said = taught_rig(robot.settings)
    assert said is not None and (said.lidar.topic, said.lidar.stamp) == ("/teacher/input/pointcloud", "start")
    assert {camera.name: camera.topic for camera in said.cameras} == {
        name: f"/teacher/input/{name}/image" for name in CAMERAS
    }


def test_a_teacher_slower_than_the_sensor_counts_what_gave_way_labels_the_newest_and_keeps_nothing_else(
    robot: Drive, knowing: AllKnowing, frames: list[SimulatedFrame]
) -> None:
    robot.listen()
    knowing.go_on.clear()
    first, *others = (later(frames[n % 6], n // 6 * LAP_NS) for n in range(31))
    robot.publish(first)
    robot.until(knowing.begun.is_set)
    kept = []
    for simulated in others:
        robot.publish(simulated)
        kept.append(sum(isinstance(one, PointCloud2) for one in gc.get_objects()))
    # The last one still waits for nearer images; one of the others waits for the teacher, so 28 of them gave way.
    counts = robot.teacher._tally.counts
    robot.until(lambda: counts()["busy"] == 28)
    assert max(kept[20:]) <= max(kept[:10])
    knowing.go_on.set()
    robot.until(lambda: len(robot.labelled) == 2)
    assert set(robot.labelled) == {first.frame.stamp_ns, others[28].frame.stamp_ns}
    robot.until(lambda: counts()["labelled"] == 2)
    assert {cause: count for cause, count in counts().items() if count} == {"received": 31, "labelled": 2, "busy": 28}


OTHER = ["scheduling_policy:=other"]


@pytest.mark.parametrize(("robot", "policy"), [([], "SCHED_IDLE"), (OTHER, "SCHED_OTHER")], indirect=["robot"])
def test_the_thread_that_labels_has_the_policy_that_is_set_and_the_one_that_hears_keeps_its_own(
    robot: Drive, knowing: AllKnowing, frames: list[SimulatedFrame], policy: str
) -> None:
    robot.listen()
    robot.publish(frames[0])
    robot.until(lambda: frames[0].frame.stamp_ns in robot.labelled)
    assert (knowing.policy, os.sched_getscheduler(0)) == (getattr(os, policy), os.SCHED_OTHER)


@pytest.fixture
def no_policies(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A system, such as a container, that lets nobody set a policy, and says so once the event is set."""
    asked = threading.Event()

    def refuse(*_: object) -> None:
        asked.wait(120)
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    return asked


def test_where_the_policy_cannot_be_set_that_is_said_and_clouds_are_labelled_all_the_same(
    no_policies: threading.Event, capfd: pytest.CaptureFixture[str], robot: Drive, frames: list[SimulatedFrame]
) -> None:
    # Not before the test has begun: capfd hears nothing of what a thread says between the fixtures and the test.
    no_policies.set()
    robot.listen()
    robot.publish(frames[0])
    robot.until(lambda: frames[0].frame.stamp_ns in robot.labelled)
    said = "scheduling_policy idle cannot be set: [Errno 1] Operation not permitted"
    assert capfd.readouterr().err.count(said) == 1


def test_nobody_subscribed_means_no_work(robot: Drive, frames: list[SimulatedFrame]) -> None:
    robot.until(lambda: robot.values.get("received") == "0")
    assert robot.clouds.get_subscription_count() == 0


def test_a_camera_that_is_silent_is_waited_for_no_longer_than_set_and_then_goes_without(
    robot: Drive, frames: list[SimulatedFrame]
) -> None:
    robot.listen()
    for simulated in frames:
        robot.publish(simulated, cameras=("camera_1",))
    # Several clouds are given up waiting at nearly the same time, of which the newest is labelled.
    robot.until(lambda: len(robot.labelled) > 0)
    assert float(robot.values.get("camera_0 hit rate", 0)) == 0


def test_a_cloud_without_any_image_is_counted(robot: Drive, frames: list[SimulatedFrame]) -> None:
    robot.listen()
    for simulated in frames:
        robot.publish(simulated, cameras=())
    robot.until(lambda: int(robot.values.get("no_image", 0)) >= 1)
    assert not robot.labelled


def test_an_image_of_another_size_than_its_calibration_is_refused_and_the_next_cloud_is_labelled(
    robot: Drive, frames: list[SimulatedFrame]
) -> None:
    robot.listen()
    frame = frames[0].frame
    robot.clouds.publish(cloud_message(cloud_from_frame(frame)))
    for camera, image, _ in frames[0].images:
        robot.images[camera.name].publish(image_message(image.pixels[::2, ::2], header_of(frame, image)))
    robot.until(lambda: robot.values.get("invalid") == "1")
    robot.publish(frames[1])
    robot.publish(frames[2])
    robot.until(lambda: frames[1].frame.stamp_ns in robot.labelled)


def test_of_two_cameras_one_whose_image_cannot_be_read_is_left_out_and_counted_and_the_other_labels_the_cloud(
    robot: Drive, frames: list[SimulatedFrame], capfd: pytest.CaptureFixture[str]
) -> None:
    robot.listen()
    (camera, image, classes), kept = frames[0].images
    robot.publish(replace(frames[0], images=[(camera, replace(image, pixels=image.pixels[::2]), classes), kept]))
    robot.until(lambda: robot.values.get("image_invalid") == "1")
    stamp_ns = frames[0].frame.stamp_ns
    robot.until(lambda: stamp_ns in robot.labelled)
    expected = offline([replace(frames[0], images=[kept])])[stamp_ns]
    assert np.array_equal(column(cloud_content(robot.labelled[stamp_ns]), "class_id"), expected)
    assert (expected != UNLABELLED).sum() > 300
    assert robot.values["invalid"] == "0"
    assert "image of camera_0 left out (image_invalid): the image has 640×240 pixels" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("fault", "left_out", "dropped"),
    [(NoCameraInfoError, "image_no_camera_info", "invalid"), (NoTransformError, "image_no_transform", "no_transform")],
)
def test_a_camera_of_which_something_is_missing_is_left_out_and_without_the_other_one_the_cloud_is_dropped(
    fault: type[UserError],
    left_out: str,
    dropped: str,
    robot: Drive,
    frames: list[SimulatedFrame],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = robot.teacher._rig.taken

    def taken(name: str, *more: Any) -> TakenImage:
        if name == "camera_0":
            raise fault("it is missing")
        return whole(name, *more)

    monkeypatch.setattr(robot.teacher._rig, "taken", taken)
    robot.listen()
    robot.publish(frames[0])
    robot.until(lambda: robot.values.get("labelled") == "1")
    assert (robot.values[left_out], robot.values[dropped]) == ("1", "0")
    robot.publish(frames[1], cameras=("camera_0",))
    images = robot.teacher._input._pairing._images["camera_0"]
    robot.until(lambda: len(images) == 2)
    robot.publish(frames[5], cameras=())  # 0.4 s later, when camera_1 is no longer waited for
    robot.until(lambda: robot.values.get(dropped) == "1")
    assert (robot.values[left_out], robot.values["labelled"]) == ("1", "1")


def test_what_poses_tell_live_is_what_they_tell_offline(robot: Drive, frames: list[SimulatedFrame]) -> None:
    motion, poses = robot.teacher._motion, [pose_of(later(frames[0], ns)) for ns in (0, 10**8, 2 * 10**9, 21 * 10**8)]
    recorded = [pose_of_message(pose) for pose in poses]
    offline = Trajectory(
        stamps_ns=np.array([ns for ns, _ in recorded]), map_from_base=np.stack([p for _, p in recorded])
    )
    for pose in poses:
        motion._keep(pose)
    for shift_ns, known in ((0, True), (6 * 10**8, True), (7 * 10**8, False), (16 * 10**8, True), (-6 * 10**8, False)):
        frame = replace(frames[0].frame, stamp_ns=frames[0].frame.stamp_ns + shift_ns)
        live, expected = motion.around(frame)[0], offline.around(frame.stamp_ns)
        assert (live is not None) == (expected is not None) == known
        if live is not None and expected is not None:
            assert np.array_equal(live.stamps_ns, expected.stamps_ns)
            assert np.array_equal(live.map_from_base, expected.map_from_base)


def test_a_pose_that_turns_by_no_rotation_is_counted_and_left_out_and_the_next_one_is_kept(
    robot: Drive, frames: list[SimulatedFrame], capfd: pytest.CaptureFixture[str]
) -> None:
    robot.listen()
    bad = pose_of(frames[0])
    bad.pose.pose.orientation.w = bad.pose.pose.orientation.z = 0.0
    robot.odometry.publish(bad)
    robot.until(lambda: robot.values.get("pose_invalid") == "1")
    robot.odometry.publish(pose_of(frames[1]))
    robot.until(lambda: len(robot.teacher._motion._poses) == 1)
    said = capfd.readouterr().err
    assert "a pose on /teacher/input/odometry is left out" in said and "which is no rotation" in said


def test_a_pose_that_comes_twice_or_late_is_ignored_and_only_a_jump_back_forgets_those_before(
    robot: Drive, frames: list[SimulatedFrame]
) -> None:
    motion = robot.teacher._motion

    def hear(*tenths: int) -> list[int]:
        """Hear poses at such tenths of a second, and tell those that are kept."""
        for tenth in tenths:
            motion._keep(pose_of(later(frames[0], 10**10 + tenth * 10**8)))
        start_ns = frames[0].frame.stamp_ns + 10**10
        return [(stamp_ns - start_ns) // 10**8 for stamp_ns, _ in motion._poses]

    assert hear(0, 1, 2, 2, 1, 3) == [0, 1, 2, 3]
    assert hear(-8) == [-8], "1.1 s back"


def test_a_fixed_frame_that_the_tree_does_not_know_is_named_counted_and_asked_for_once_by_cloud(
    robot: Drive, frames: list[SimulatedFrame], capfd: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []

    class Tree:
        def lookup(self, target: str, source: str, stamp_ns: int) -> np.ndarray:
            asked.append(stamp_ns)
            raise NoTransformError(f"no transform from '{source}' to '{target}'")

    motion = Motion(robot.teacher, "odmo", Tree, robot.teacher._tally)
    for simulated in frames[:3]:
        assert motion.around(simulated.frame)[0] is None
    assert len(asked) == 3
    assert robot.teacher._tally.counts()["motion_no_transform"] == 3
    said = capfd.readouterr().err
    assert said.count("motion is not undone") == 1 and "fixed_frame 'odmo' is not known" in said


@pytest.mark.parametrize(
    ("first_ms", "last_ms", "found_ms"), [(0.0, 200.0, [25.0, 62.5, 100.0]), (-200.0, 30.0, [-50.0, -12.5, 25.0])]
)
def test_where_the_tree_knows_a_part_of_a_sweep_that_much_tells_the_motion_and_it_is_asked_once_in_vain(
    robot: Drive, frames: list[SimulatedFrame], first_ms: float, last_ms: float, found_ms: list[float]
) -> None:
    frame, in_vain = frames[0].frame, []

    class Tree:
        def lookup(self, target: str, source: str, stamp_ns: int) -> np.ndarray:
            if first_ms <= (stamp_ns - frame.stamp_ns) / 1e6 <= last_ms:
                return np.eye(4)
            in_vain.append(stamp_ns)
            raise NoTransformError("it does not reach so far")

    known = Motion(robot.teacher, "odom", Tree, robot.teacher._tally).around(frame)[0]
    assert known is not None and ((known.stamps_ns - frame.stamp_ns) / 1e6).tolist() == found_ms
    assert len(in_vain) == 1
    assert robot.teacher._tally.counts()["motion_no_transform"] == 0


def test_poses_that_come_as_odometry_let_past_sweeps_vote(robot: Drive, frames: list[SimulatedFrame]) -> None:
    robot.listen()
    drive_with_poses(robot, frames)
    views = [int(column(cloud_content(robot.labelled[s.frame.stamp_ns]), "views").max()) for s in frames[:-1]]
    # A point has at most one vote of each of the two cameras by sweep.
    assert views[0] <= 2 and views[-1] > 2


def drive_with_poses(robot: Drive, frames: Sequence[SimulatedFrame]) -> None:
    for number, simulated in enumerate(frames):
        robot.odometry.publish(pose_of(simulated))
        robot.until(lambda n=number: len(robot.teacher._motion._poses) == n + 1)
    robot.go_through(frames)


def later(simulated: SimulatedFrame, by_ns: int) -> SimulatedFrame:
    """The same again at another time."""
    frame = replace(simulated.frame, stamp_ns=simulated.frame.stamp_ns + by_ns)
    images = [(camera, replace(image, stamp_ns=image.stamp_ns + by_ns), c) for camera, image, c in simulated.images]
    return replace(simulated, frame=frame, images=images)


def test_a_bag_that_begins_anew_is_said_and_its_first_cloud_has_no_votes_of_the_lap_before(
    robot: Drive, frames: list[SimulatedFrame], capfd: pytest.CaptureFixture[str]
) -> None:
    robot.listen()
    drive_with_poses(robot, [later(simulated, 17 * LAP_NS) for simulated in frames])
    for number, simulated in enumerate(frames):
        robot.odometry.publish(pose_of(simulated))
        robot.publish(simulated)
        if number:
            robot.until(lambda s=frames[number - 1]: s.frame.stamp_ns in robot.labelled)
    views = [int(column(cloud_content(robot.labelled[s.frame.stamp_ns]), "views").max()) for s in frames[:-1]]
    assert views[0] <= 2 and views[-1] > 2
    assert "the clouds' stamps went back by 10." in capfd.readouterr().err


def test_a_camera_that_stops_and_returns_is_said_both_times_and_nothing_piles_up(
    robot: Drive, frames: list[SimulatedFrame], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camera_watch, "SILENT_AFTER_S", 1.0)
    robot.listen()
    clouds = (later(frames[n % 6], n // 6 * LAP_NS) for n in itertools.count())
    pairing = robot.teacher._input._pairing

    def drive(cameras: Sequence[str], done: Any) -> None:
        """Publish a cloud every tenth of a second until something has come of it."""
        deadline = time.monotonic() + 30
        while not done():
            assert time.monotonic() < deadline, (robot.values, len(robot.labelled))
            began = time.monotonic()
            robot.publish(next(clouds), cameras)
            while time.monotonic() < began + 0.1:
                rclpy.spin_once(robot.node, executor=robot.executor, timeout_sec=0.01)
            assert len(pairing._clouds) <= 6 and all(len(images) <= 25 for images in pairing._images.values())

    def rate(camera: str) -> float:
        return float(robot.values.get(f"{camera} hit rate", "nan"))

    def counts(name: str) -> int:
        return robot.teacher._tally.counts()[name]

    drive(CAMERAS, lambda: rate("camera_0") == rate("camera_1") == 1.0 and counts("labelled") > 5)
    drive(["camera_1"], lambda: "camera_0" in robot.message)
    topic = robot.teacher.resolve_topic_name("~/input/camera_0/image")
    silence = r"no image of camera_0 has come for \d+\.\d s on " + re.escape(topic)
    assert re.search(silence + "$", robot.message), robot.message
    before = counts("labelled")
    drive(["camera_1"], lambda: counts("labelled") > before + 5 and rate("camera_0") < 0.9)
    assert rate("camera_1") == 1.0
    lowest = rate("camera_0")
    drive(CAMERAS, lambda: "camera_0" not in robot.message and rate("camera_0") > lowest)
    said = capfd.readouterr().err
    assert said.count("no image of camera_0") == said.count("images of camera_0 come again, after ") == 1
    assert re.search(silence + "; until it returns clouds go without it", said), said
    assert "of camera_1" not in said and "Traceback" not in said


def pose_of(simulated: SimulatedFrame) -> Odometry:
    message = Odometry(child_frame_id="base_link")
    message.header.frame_id = "odom"
    message.header.stamp = time_message(simulated.frame.stamp_ns)
    pose = message.pose.pose
    pose.position.x, pose.position.y, pose.position.z = (float(v) for v in simulated.map_from_base[:3, 3])
    x, y, z, w = (float(v) for v in quaternion_from_rotation(simulated.map_from_base[:3, :3]))
    pose.orientation.x, pose.orientation.y, pose.orientation.z, pose.orientation.w = x, y, z, w
    return message


def test_label_images_and_overlays_are_made_for_whoever_looks(robot: Drive, frames: list[SimulatedFrame]) -> None:
    seen: dict[str, np.ndarray] = {}
    for name in ("label_image", "overlay"):
        robot.node.create_subscription(
            Image,
            f"/teacher/output/camera_1/{name}",
            lambda m, n=name: seen.setdefault(n, np.frombuffer(bytes(m.data), np.uint8).reshape(m.height, m.width, -1)),
            qos_profile_sensor_data,
        )
    robot.listen()
    robot.publish(frames[0])
    robot.until(lambda: len(seen) == 2)
    _, image, classes = frames[0].images[1]
    assert np.array_equal(seen["label_image"][..., 0], classes)
    nothing = np.empty(0)
    drawn = (
        (seen["overlay"] != overlay(image.pixels, nothing.reshape(0, 2), nothing, nothing.reshape(0, 3)))
        .any(axis=2)
        .mean()
    )
    assert 0.02 < drawn < 0.9


def test_message_filters_pair_by_the_stamps_of_the_headers(robot: Drive) -> None:
    pytest.importorskip("message_filters", reason="message_filters comes with a ROS 2 installation")
    pairs = []
    config = SyncConfig(policy="approximate", max_dt_s=0.05)
    clocks = Clocks(of_cloud=lambda m: cloud_content(m).stamp_ns, of_image=lambda _, m: m.header.stamp.nanosec)
    made = synchronizer(robot.teacher, ("camera_0",), False, config, clocks, robot.teacher._watch, pairs.append)
    robot.until(lambda: robot.clouds.get_subscription_count() > 0)
    robot.until(lambda: robot.images["camera_0"].get_subscription_count() > 0)
    for number in range(3):
        robot.clouds.publish(good_cloud(number * 10**8, points=20))
        robot.images["camera_0"].publish(
            image_message(np.zeros((4, 4, 3), np.uint8), Header(stamp=time_message(number * 10**8 + 10**7)))
        )
        robot.until(lambda n=number: len(pairs) == n + 1)  # two clouds at once would be one
    made.destroy()
    assert [(pair.time_ns, pair.images["camera_0"][0]) for pair in pairs[:2]] == [(0, 10**7), (10**8, 10**8 + 10**7)]


@pytest.mark.parametrize("policy", ["nearest", "approximate", "exact"])
def test_every_policy_counts_the_clouds_that_find_no_image_and_hears_best_effort_and_reliable_ones(
    robot: Drive, policy: str
) -> None:
    if policy != "nearest":
        pytest.importorskip("message_filters", reason="message_filters comes with a ROS 2 installation")
    robot.teacher._config = replace(robot.teacher._config, sync=SyncConfig(policy=policy))
    robot.listen()
    offered = robot.clouds.qos_profile.reliability
    (heard,) = robot.get_subscriptions_info_by_topic("/teacher/input/pointcloud")
    assert heard.qos_profile.reliability == offered == ReliabilityPolicy.RELIABLE
    for number in range(3):
        robot.clouds.publish(good_cloud(number * 10**8, points=20))
        robot.until(lambda n=number: robot.teacher._tally.counts()["received"] == n + 1)
    best_effort = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
    robot.destroy_publisher(robot.clouds)
    robot.clouds = robot.create_publisher(PointCloud2, "/teacher/input/pointcloud", best_effort)
    robot.until(lambda: robot.clouds.get_subscription_count() > 0)
    robot.clouds.publish(good_cloud(3 * 10**8, points=20))
    robot.until(lambda: robot.teacher._tally.counts()["received"] == 4)


def test_what_a_calibration_file_says_of_stamps_is_told_of_the_sensors_that_are_known(
    frames: list[SimulatedFrame], tmp_path: Path
) -> None:
    camera, image, _ = frames[0].images[0]
    place = np.diag([-1.0, -1.0, 1.0, 1.0])
    one = {
        "width": camera.model.width, "height": camera.model.height, "K": camera.model.matrix.ravel().tolist(),
        "rectified": True, "direction": "camera_from_lidar", "matrix": place.tolist(), "stamp_offset_s": -0.033,
    }  # fmt: skip
    lidar = {"stamp": "end", "stamp_offset_s": 0.125}
    path = tmp_path / "rig.yaml"
    path.write_text(yaml.safe_dump({"lidars": {"os": lidar}, "cameras": {"left": one, "right": one}}))
    rclpy.init()
    node = rclpy.create_node("teacher")
    try:
        rig = LiveRig(node, ("left", "right"), ExtrinsicsConfig(source="file", file=str(path)), lambda: None)
        rig.taken("right", 7, image_message(image.pixels, Header()), frames[0].frame)
        said = rig.as_recorded({"left": "/left/image", "right": "/robot1/right/image"})
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    assert said.lidar == LidarCalibration(**lidar)
    (right,) = said.cameras
    assert (right.name, right.topic, right.stamp_offset_s) == ("right", "/robot1/right/image", -0.033)
    assert np.array_equal(right.camera.matrix, camera.model.matrix) and np.array_equal(right.camera_from_lidar, place)
