"""The recorder: steered by its services, killed, out of space; what was written before stays readable."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed (source one, or install the extra [ros])")
import rclpy
from nav_msgs.msg import Odometry
from rclpy.qos import DurabilityPolicy, QoSProfile
from robot import call, good_cloud, spin_until
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from lidar_semseg_ros.cli.live import live_environment
from lidar_semseg_ros.formats.bags import open_bag
from lidar_semseg_ros.formats.pointcloud2 import cloud_content
from lidar_semseg_ros.ros.recorder_node import RecorderNode

CLOUDS, POSES, LATCHED = "/recorded/points", "/recorded/odom", "/recorded/class_map"


class Source:
    """Publishes what is recorded, in one process with the recorder."""

    def __init__(self, *settings: str) -> None:
        chosen = [f"topics:={CLOUDS},{POSES},{LATCHED}", *settings]
        rclpy.init(args=["--ros-args", *(word for one in chosen for word in ("-p", f"recorder:{one}"))])
        self.recorder, self.node = RecorderNode(), rclpy.create_node("source")
        self.executor = rclpy.executors.SingleThreadedExecutor()
        for node in (self.recorder, self.node):
            self.executor.add_node(node)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.class_map = self.node.create_publisher(String, LATCHED, latched)
        self.class_map.publish(String(data="{}"))
        self.clouds = self.node.create_publisher(PointCloud2, CLOUDS, 10)
        self.poses = self.node.create_publisher(Odometry, POSES, 10)
        self.sent = 0
        spin_until(self, lambda: all(p.get_subscription_count() for p in (self.clouds, self.poses)))
        spin_until(self, lambda: LATCHED in self.recorder._latched)

    def __getattr__(self, name: str) -> object:
        return getattr(self.node, name)

    def publish(self, count: int = 1) -> None:
        """Publish clouds stamped 1, 2, …, each heard before the next."""
        heard: list[object] = []
        hear, self.recorder._gate.lets_through = self.recorder._gate.lets_through, None
        self.recorder._gate.lets_through = lambda message: (heard.append(message), hear(message))[1]
        recent = self.recorder._recent
        for number in range(count):
            self.sent += 1
            before = len(recent)
            self.clouds.publish(good_cloud(self.sent, points=50))
            spin_until(self, lambda n=number, b=before: len(heard) > n or len(recent) > b)
        self.recorder._gate.lets_through = hear

    def drive_to(self, x_m: float) -> None:
        pose = Odometry()
        pose.pose.pose.position.x = x_m
        self.poses.publish(pose)
        spin_until(self, lambda: self.recorder._gate._here is not None and self.recorder._gate._here[0] == x_m)

    def ask(self, service: str, value: bool | None = None) -> object:
        kind = Trigger if value is None else SetBool
        request = Trigger.Request() if value is None else SetBool.Request(data=value)
        return call(self, kind, f"/recorder/{service}", request)

    def end(self) -> None:
        self.recorder.destroy_node()
        self.node.destroy_node()
        rclpy.try_shutdown()


@pytest.fixture
def ended() -> Iterator[list[Source]]:
    made: list[Source] = []
    yield made
    for source in made:
        source.end()


def recorded(path: Path) -> list[int]:
    """Stamps of the recorded clouds; each file also has the class map."""
    with open_bag(path) as bag:
        assert bag.message_count(LATCHED) >= 1
        return [cloud_content(one.message()).stamp_ns for one in bag.messages([CLOUDS])]


def test_pause_holds_the_recording_and_stop_and_start_make_files_of_their_own(
    tmp_path: Path, ended: list[Source]
) -> None:
    # What is kept for snapshots shows that a cloud has come while paused.
    source = Source(f"file:={tmp_path / 'a.mcap'}", "snapshot_s:=60.0")
    ended.append(source)
    source.publish(2)
    assert source.ask("pause", True).message == "paused"
    source.publish(1)
    assert source.ask("pause", False).success
    source.publish(1)
    assert source.ask("stop").success and not source.ask("stop").success
    assert recorded(tmp_path / "a.mcap") == [1, 2, 4]
    answer = source.ask("start")
    assert answer.success and "a_part_2.mcap" in answer.message
    assert not source.ask("start").success
    source.publish(2)
    source.ask("stop")
    assert recorded(tmp_path / "a_part_2.mcap") == [5, 6]


def test_a_snapshot_holds_the_last_seconds_even_while_paused(tmp_path: Path, ended: list[Source]) -> None:
    source = Source(f"file:={tmp_path / 'a.mcap'}", "snapshot_s:=60.0", "paused:=true")
    ended.append(source)
    source.publish(3)
    answer = source.ask("snapshot")
    assert answer.success, answer.message
    assert recorded(tmp_path / "a_snapshot_1.mcap") == [1, 2, 3]
    source.ask("stop")
    assert recorded(tmp_path / "a.mcap") == []


def test_a_snapshot_of_nothing_says_what_to_set(tmp_path: Path, ended: list[Source]) -> None:
    source = Source(f"file:={tmp_path / 'a.mcap'}")
    ended.append(source)
    answer = source.ask("snapshot")
    assert not answer.success and "snapshot_s" in answer.message


def test_a_robot_that_stands_still_is_recorded_once(tmp_path: Path, ended: list[Source]) -> None:
    source = Source(f"file:={tmp_path / 'a.mcap'}", "min_motion_m:=0.5")
    ended.append(source)
    for x_m in (0.0, 0.1, 0.3, 0.6, 0.9, 1.2):
        source.drive_to(x_m)
        source.publish(1)
    source.ask("stop")
    assert recorded(tmp_path / "a.mcap") == [1, 4, 6]
    with open_bag(tmp_path / "a.mcap") as bag:
        assert bag.message_count(POSES) == 6


def test_the_recording_stops_at_its_size(tmp_path: Path, ended: list[Source]) -> None:
    source = Source(f"file:={tmp_path / 'a.mcap'}", "max_size_gb:=0.00005")
    ended.append(source)
    number = 0
    while source.recorder._writer is not None and number < 500:
        source.publish(1)
        source.recorder._flush()
        number += 1
    assert number < 500
    assert recorded(tmp_path / "a.mcap") and (tmp_path / "a.mcap").stat().st_size < 60_000


def recorder_process(path: Path, largest_file: int | None = None) -> subprocess.Popen[str]:
    def limit() -> None:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    command = [sys.executable, "-m", "lidar_semseg_ros.ros.recorder_node", "--ros-args"]
    command += ["-p", f"file:={path}", "-p", f"topics:={CLOUDS},{LATCHED}"]
    return subprocess.Popen(command, env=live_environment(), stderr=subprocess.PIPE, text=True, preexec_fn=limit)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    for name, value in live_environment().items():
        monkeypatch.setenv(name, value)
    rclpy.init()
    made = rclpy.create_node("source")
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    made.class_map = made.create_publisher(String, LATCHED, latched)
    made.class_map.publish(String(data="{}"))
    made.clouds = made.create_publisher(PointCloud2, CLOUDS, 10)
    yield made
    made.destroy_node()
    rclpy.try_shutdown()


def stream(node: object, seconds: float) -> list[tuple[int, float]]:
    """Publish 20 clouds a second; their stamps, and when each was sent on the monotonic clock."""
    sent = []
    start = time.monotonic()
    while time.monotonic() < start + seconds:
        stamp_ns = 1 + len(sent)
        node.clouds.publish(good_cloud(stamp_ns, points=500))
        sent.append((stamp_ns, time.monotonic()))
        rclpy.spin_once(node, timeout_sec=0.05)
    return sent


def test_a_recorder_that_is_killed_loses_less_than_a_second(tmp_path: Path, node: object) -> None:
    path = tmp_path / "killed.mcap"
    with recorder_process(path) as process:
        spin_until(node, lambda: node.clouds.get_subscription_count() > 0)
        sent = stream(node, 2.5)
        process.send_signal(signal.SIGKILL)
        killed_s = time.monotonic()
    stamps = recorded(path)
    assert stamps == list(range(stamps[0], stamps[0] + len(stamps))), "a gap"
    old = [stamp_ns for stamp_ns, sent_s in sent if sent_s < killed_s - 1.0]
    assert stamps[0] <= 3 and stamps[-1] >= old[-1]


def test_a_full_disk_ends_the_recording_with_a_message_and_keeps_what_was_written(tmp_path: Path, node: object) -> None:
    path = tmp_path / "full.mcap"
    process = recorder_process(path, largest_file=200_000)
    spin_until(node, lambda: node.clouds.get_subscription_count() > 0)
    stream(node, 3.0)
    assert process.poll() is None, "the recorder must live on, to be started again"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "cannot be written any more" in said and "File too large" in said
    assert len(recorded(path)) > 5


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to_is_an_error_in_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with recorder_process(tmp_path / "a.mcap") as process:
        _, said = process.communicate(timeout=30)
    assert process.returncode == 2 and said.startswith("error: cannot write ")


def test_no_more_clouds_a_second_are_recorded_than_set(tmp_path: Path, ended: list[Source]) -> None:
    source = Source(f"file:={tmp_path / 'a.mcap'}", "max_rate_hz:=0.01")
    ended.append(source)
    source.publish(4)
    source.ask("stop")
    assert recorded(tmp_path / "a.mcap") == [1]
