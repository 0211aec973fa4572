"""The recorder: steered by its services, killed, out of space; what was written before stays readable."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed (source one, or install the extra [ros])")
import rclpy
from foreign_reader import decoded_by_others, found_by_others_until_the_damage
from nav_msgs.msg import Odometry
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import serialize_message
from robot import call, good_cloud, spin_until
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from lidar_semseg_ros.cli.live import live_environment
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.formats.bags import POINT_CLOUD, open_bag
from lidar_semseg_ros.formats.pointcloud2 import cloud_content
from lidar_semseg_ros.ros import recorder_node
from lidar_semseg_ros.ros.messages import time_message
from lidar_semseg_ros.ros.recorder_node import RecorderNode, _Gate, _Heard, _Topic

S = 10**9
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
        self.clock = self.node.create_publisher(Clock, "/clock", 1)
        self.sent = 0
        spin_until(self, lambda: all(p.get_subscription_count() for p in (self.clouds, self.poses)))
        spin_until(self, lambda: LATCHED in self.recorder._latched or bool(self.recorder._before_clock))

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

    def tick(self, time_ns: int) -> None:
        spin_until(self, lambda: self.clock.get_subscription_count() > 0)
        self.clock.publish(Clock(clock=time_message(time_ns)))
        spin_until(self, lambda: self.recorder.get_clock().now().nanoseconds == time_ns)

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


def test_a_clock_that_goes_back_begins_another_file_and_both_are_whole(
    tmp_path: Path, ended: list[Source], capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.mcap"
    source = Source(f"file:={path}", "use_sim_time:=true", "snapshot_s:=60.0")
    ended.append(source)
    for second in (10, 11, 12, 5, 6):
        source.tick(second * S)
        source.publish(1)
    assert source.ask("snapshot").success and source.ask("stop").success
    assert "the clock went back by 7.0 s" in (said := capfd.readouterr().err)
    assert f"{path} is complete, and the recording goes on in {tmp_path / 'a_part_2.mcap'}" in said
    assert recorded(path) == [1, 2, 3] and recorded(tmp_path / "a_part_2.mcap") == [4, 5]
    assert recorded(tmp_path / "a_snapshot_1.mcap") == [4, 5]
    for name, span in (("a", (10, 12)), ("a_part_2", (5, 6)), ("a_snapshot_1", (5, 6))):
        with open_bag(tmp_path / f"{name}.mcap") as bag:
            assert (bag.start_ns, bag.end_ns) == (span[0] * S, span[1] * S), name


def test_a_clock_that_trembles_or_jumps_ahead_goes_into_one_file(tmp_path: Path, ended: list[Source]) -> None:
    source = Source(f"file:={tmp_path / 'a.mcap'}", "use_sim_time:=true")
    ended.append(source)
    for time_ns in (10 * S, 10 * S - S // 2, 1000 * S):
        source.tick(time_ns)
        source.publish(1)
    source.ask("stop")
    assert recorded(tmp_path / "a.mcap") == [2, 1, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["a.mcap"]


def test_before_the_first_clock_nothing_is_recorded_but_what_is_latched_is_not_lost(
    tmp_path: Path, ended: list[Source], capfd: pytest.CaptureFixture[str]
) -> None:
    source = Source(f"file:={tmp_path / 'a.mcap'}", "use_sim_time:=true")
    ended.append(source)
    assert "no /clock has come" in capfd.readouterr().err
    source.tick(10 * S)
    source.publish(1)
    source.ask("stop")
    assert recorded(tmp_path / "a.mcap") == [1]
    with open_bag(tmp_path / "a.mcap") as bag:
        assert bag.start_ns == bag.end_ns == 10 * S


def test_all_files_of_a_clock_that_goes_back_stop_at_the_size_together(tmp_path: Path, ended: list[Source]) -> None:
    source = Source(f"file:={tmp_path / 'a.mcap'}", "use_sim_time:=true", "max_size_gb:=0.00003")
    ended.append(source)
    while source.recorder._writer is not None and source.sent < 200:
        source.tick((2 if source.sent % 2 == 0 else 4) * S)
        source.publish(1)
    assert source.sent < 200
    files = sorted(tmp_path.iterdir())
    assert len(files) > 2 and sum(path.stat().st_size for path in files) < 100_000
    assert sorted(stamp for path in files for stamp in recorded(path))[:3] == [1, 2, 3]


@contextmanager
def recorder_process(
    path: Path, said: Path, largest_file: int | None = None, inside: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    """The node as a process that logs to a file; inside: a command that runs it in surroundings of its own."""

    def limit() -> None:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    command = [*inside, sys.executable, "-m", "lidar_semseg_ros.ros.recorder_node", "--ros-args"]
    command += ["-p", f"file:={path}", "-p", f"topics:={CLOUDS},{LATCHED}"]
    with (
        said.open("w") as log,
        subprocess.Popen(command, env=live_environment(), stderr=log, text=True, preexec_fn=limit) as process,
    ):
        try:
            yield process
        except BaseException:
            process.kill()  # a test that fails would wait for its end for ever
            raise


def on_a_disk(folder: Path, options: str) -> list[str]:
    """Put what follows into a mount namespace in which a folder is a small disk of its own, which vanishes with it."""
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    script = f'mount -t tmpfs -o {options} none "$0" && exec "$@"'
    inside = ["unshare", *as_root, "--mount", "sh", "-c", script, str(folder)]
    if shutil.which("unshare") is None or subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here, not even in a namespace")
    return inside


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
    with recorder_process(path, tmp_path / "said.txt") as process:
        spin_until(node, lambda: node.clouds.get_subscription_count() > 0)
        sent = stream(node, 2.5)
        process.send_signal(signal.SIGKILL)
        killed_s = time.monotonic()
    stamps = recorded(path)
    assert stamps == list(range(stamps[0], stamps[0] + len(stamps))), "a gap"
    assert [topic for topic, _ in found_by_others_until_the_damage(path)].count(CLOUDS) == len(stamps)
    old = [stamp_ns for stamp_ns, sent_s in sent if sent_s < killed_s - 1.0]
    assert stamps[0] <= 3 and stamps[-1] >= old[-1]


def stream_until(node: object, done: object, first_ns: int = 1, points: int = 500) -> None:
    """Publish 20 clouds a second, stamped from the first on, until a condition holds."""
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline, "the awaited never came"
        node.clouds.publish(good_cloud(first_ns, points))
        first_ns += 1
        rclpy.spin_once(node, timeout_sec=0.05)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library cannot be told to keep memory")
def test_no_page_is_cleared_anew_for_the_clouds_that_are_recorded(tmp_path: Path, node: object) -> None:
    path = tmp_path / "a.mcap"

    def pages_cleared(process: subprocess.Popen[str]) -> int:
        after_the_name = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(after_the_name[7])

    with recorder_process(path, tmp_path / "said.txt") as process:
        spin_until(node, lambda: node.clouds.get_subscription_count() > 0)
        stream_until(node, lambda: path.stat().st_size > 15e6, points=100_000)
        cleared, written = -pages_cleared(process), -path.stat().st_size
        stream_until(node, lambda: path.stat().st_size > 30e6, points=100_000)
        cleared, written = cleared + pages_cleared(process), written + path.stat().st_size
        process.terminate()
    # Without keeping it, more memory is mapped anew for each cloud than its bytes.
    assert cleared * resource.getpagesize() < 0.2 * written


def test_a_file_that_may_grow_no_more_ends_the_recording_with_a_message_and_keeps_what_was_written(
    tmp_path: Path, node: object
) -> None:
    path, said = tmp_path / "full.mcap", tmp_path / "said.txt"
    with recorder_process(path, said, largest_file=200_000) as process:
        spin_until(node, lambda: node.clouds.get_subscription_count() > 0)
        stream_until(node, lambda: "cannot be written any more" in said.read_text())
        assert process.poll() is None, "the recorder must live on, to be started again"
        process.send_signal(signal.SIGINT)
    assert process.returncode == 0 and "File too large" in said.read_text()
    stamps = recorded(path)
    assert len(stamps) > 5 and stamps == list(range(stamps[0], stamps[0] + len(stamps)))


def test_a_full_disk_ends_the_recording_with_a_message_and_with_room_it_goes_on(tmp_path: Path, node: object) -> None:
    disk, said = tmp_path / "disk", tmp_path / "said.txt"
    disk.mkdir()
    path = disk / "full.mcap"
    with recorder_process(path, said, inside=on_a_disk(disk, "size=320k")) as process:
        spin_until(node, lambda: node.clouds.get_subscription_count() > 0)
        there = Path(f"/proc/{process.pid}/root{disk}")
        ballast = there / "ballast"
        ballast.write_bytes(bytes(120_000))
        stream_until(node, lambda: (there / path.name).stat().st_size > 60_000)
        before = (there / path.name).read_bytes()
        stream_until(node, lambda: "cannot be written any more" in said.read_text(), first_ns=1001)
        shutil.copy(there / path.name, tmp_path)
        ballast.unlink()
        assert call(node, Trigger, "/recorder/start", Trigger.Request()).success
        stream_until(node, lambda: (there / "full_part_2.mcap").stat().st_size > 50_000, first_ns=2001)
        assert call(node, Trigger, "/recorder/stop", Trigger.Request()).success
        shutil.copy(there / "full_part_2.mcap", tmp_path)
        process.send_signal(signal.SIGINT)
    assert process.returncode == 0 and "No space left on device" in said.read_text()
    assert "Traceback" not in said.read_text()
    full = (tmp_path / path.name).read_bytes()
    assert full.startswith(before) and len(full) > 120_000
    (tmp_path / "before.mcap").write_bytes(before)
    earlier, stamps = recorded(tmp_path / "before.mcap"), recorded(tmp_path / path.name)
    assert len(earlier) > 3 and stamps[: len(earlier)] == earlier and 1001 in stamps
    assert stamps == sorted(stamps) and stamps[-1] - 1001 == len(stamps) - stamps.index(1001) - 1, "a gap"
    assert recorded(tmp_path / "full_part_2.mcap")[0] > 2000


def test_a_disk_that_may_only_be_read_is_an_error_in_one_line(tmp_path: Path) -> None:
    disk, said = tmp_path / "disk", tmp_path / "said.txt"
    disk.mkdir()
    with recorder_process(disk / "a.mcap", said, inside=on_a_disk(disk, "ro")) as process:
        process.wait(30)
    assert process.returncode == 2
    assert said.read_text().startswith("error: cannot write ") and "Read-only file system" in said.read_text()
    assert said.read_text().count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to_is_an_error_in_one_line(tmp_path: Path) -> None:
    folder, said = tmp_path / "locked", tmp_path / "said.txt"
    folder.mkdir(mode=0o500)
    with recorder_process(folder / "a.mcap", said) as process:
        process.wait(30)
    assert process.returncode == 2 and said.read_text().startswith("error: cannot write ")


def test_no_more_clouds_a_second_are_recorded_than_set(tmp_path: Path, ended: list[Source]) -> None:
    source = Source(f"file:={tmp_path / 'a.mcap'}", "max_rate_hz:=0.01")
    ended.append(source)
    source.publish(4)
    source.ask("stop")
    assert recorded(tmp_path / "a.mcap") == [1]


@pytest.mark.parametrize("sensor_hz", [10.0, 20.0, 30.0])
def test_a_sensor_that_trembles_is_recorded_at_the_rate_that_is_set_and_no_faster(sensor_hz: float) -> None:
    gate, rng = _Gate(max_rate_hz=10.0, min_motion_m=0.0), np.random.default_rng(4)
    seconds = 60
    due_s = np.arange(round(seconds * sensor_hz)) / sensor_hz
    passed = arrivals_let_through(gate, CLOUDS, due_s + rng.uniform(-0.02, 0.02, len(due_s)))
    assert 0.98 * 10 * seconds <= len(passed) <= 10 * seconds + 1
    # In no second more than the limit, but for the one that a delay of half a period brings.
    assert (np.searchsorted(passed, passed + 1.0) - np.arange(len(passed))).max() <= 11


def test_a_pause_of_the_sensor_is_not_made_up_for_and_each_topic_has_its_own_rate() -> None:
    gate = _Gate(max_rate_hz=2.0, min_motion_m=0.0)
    assert arrivals_let_through(gate, CLOUDS, [0.0, 0.1, 0.5, 60.0, 60.1, 60.2, 60.3]).tolist() == [
        0.0,
        0.5,
        60.0,
        60.3,
    ]
    assert arrivals_let_through(gate, "/other", [60.2, 60.3]).tolist() == [60.2]


def arrivals_let_through(gate: _Gate, name: str, arrivals_s: Sequence[float]) -> np.ndarray:
    """Show clouds to a gate; the times of those that pass."""
    topic = _Topic(name=name, kind=POINT_CLOUD, is_latched=False)
    heard = [_Heard(topic=topic, log_time_ns=0, arrived_s=arrived_s, data=b"") for arrived_s in arrivals_s]
    return np.array([one.arrived_s for one in heard if gate.lets_through(one)])


def latched_by_others(source: Source, kind: type, topic: str) -> object:
    """Publish on a latched topic that the recorder is told to record."""
    publisher = source.create_publisher(kind, topic, QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
    spin_until(source, lambda: publisher.get_subscription_count() > 0)
    return publisher


@pytest.mark.parametrize("before_clock", [False, True])
def test_of_what_is_latched_so_many_bytes_are_kept_and_always_the_newest(
    tmp_path: Path, ended: list[Source], monkeypatch: pytest.MonkeyPatch, before_clock: bool
) -> None:
    monkeypatch.setattr(recorder_node, "KEPT_LATCHED_BYTES", 1000)
    source = Source(f"file:={tmp_path / 'a.mcap'}", f"topics:={CLOUDS},{POSES},{LATCHED},/map",
                    f"use_sim_time:={str(before_clock).lower()}")  # fmt: skip
    ended.append(source)
    maps = latched_by_others(source, String, "/map")
    kept = source.recorder._before_clock if before_clock else source.recorder._latched

    def lengths(last: int) -> list[int]:
        """Publish a map of so many characters; what is then kept of it, without 9 bytes that each has more."""
        maps.publish(String(data="x" * last))
        spin_until(source, lambda: "/map" in kept and len(kept["/map"][-1].data) == last + 9)
        return [len(heard.data) - 9 for heard in kept["/map"]]

    assert lengths(301) == [301] and lengths(302) == [301, 302] and lengths(303) == [301, 302, 303]
    assert lengths(304) == [302, 303, 304]
    assert lengths(5000) == [5000]
    assert lengths(305) == [305]
    assert len(kept[LATCHED]) == 1, "each topic has room of its own"


def test_a_latched_cloud_obeys_the_pause_and_later_files_begin_with_the_newest(
    tmp_path: Path, ended: list[Source]
) -> None:
    source = Source(f"file:={tmp_path / 'a.mcap'}", f"topics:={CLOUDS},{POSES},{LATCHED},/cloud_map")
    ended.append(source)
    maps = latched_by_others(source, PointCloud2, "/cloud_map")
    latched = source.recorder._latched

    def publish(stamp_ns: int) -> None:
        maps.publish(good_cloud(stamp_ns, points=50))
        heard = lambda: latched["/cloud_map"][-1].data  # noqa: E731
        spin_until(source, lambda: "/cloud_map" in latched and heard()[4:12] == bytes([0] * 4 + [stamp_ns, 0, 0, 0]))

    def recorded_maps(name: str) -> list[int]:
        with open_bag(tmp_path / name) as bag:
            return [cloud_content(one.message()).stamp_ns for one in bag.messages(["/cloud_map"])]

    publish(1)
    source.ask("pause", True)
    publish(2)
    source.ask("pause", False)
    publish(3)
    source.ask("stop")
    assert recorded_maps("a.mcap") == [1, 3]
    source.ask("start")
    source.ask("stop")
    assert recorded_maps("a_part_2.mcap") == [3]


def test_a_latched_cloud_obeys_the_rate_and_a_snapshot_has_each_once(tmp_path: Path, ended: list[Source]) -> None:
    source = Source(
        f"file:={tmp_path / 'a.mcap'}", f"topics:={POSES},{LATCHED},{CLOUDS}", "max_rate_hz:=0.01", "snapshot_s:=60.0"
    )
    ended.append(source)
    (topic,) = {heard.topic for heard in source.recorder._latched[LATCHED]}
    latched = replace(topic, name="/cloud_map", kind=POINT_CLOUD)
    for number in range(3):
        data = serialize_message(good_cloud(number + 1, points=50))
        source.recorder._hear(latched, data)
    answer = source.ask("snapshot")
    assert answer.success, answer.message
    source.ask("stop")
    for name, stamps in (("a", [1]), ("a_snapshot_1", [1, 2, 3])):
        with open_bag(tmp_path / f"{name}.mcap") as bag:
            assert [cloud_content(one.message()).stamp_ns for one in bag.messages(["/cloud_map"])] == stamps, name
            assert bag.message_count(LATCHED) == 1 and "/cloud_map" in bag.latched


def test_readers_of_others_decode_all_that_the_recorder_wrote(tmp_path: Path, ended: list[Source]) -> None:
    source = Source(f"file:={tmp_path / 'a.mcap'}")
    ended.append(source)
    pose = Odometry()
    pose.pose.pose.position.x = 1.5
    source.poses.publish(pose)
    spin_until(source, lambda: POSES in [topic for topic, _ in source.recorder._writer._channels])
    source.publish(3)
    source.ask("stop")
    found = decoded_by_others(tmp_path / "a.mcap")
    assert {topic: len(messages) for topic, messages in found.items()} == {CLOUDS: 3, POSES: 1, LATCHED: 1}
    sent = good_cloud(2, points=50)
    assert bytes(found[CLOUDS][1].data) == bytes(sent.data) and found[CLOUDS][1].header.stamp.nanosec == 2
    assert [field.name for field in found[CLOUDS][1].fields] == [field.name for field in sent.fields]
    assert found[POSES][0].pose.pose.position.x == 1.5 and found[LATCHED][0].data == "{}"


def test_topics_are_recorded_under_their_full_names_and_what_is_none_is_refused(tmp_path: Path) -> None:
    inside = ["--ros-args", "-r", "__ns:=/robot1", "-r", "raw:=cooked", "-p", f"file:={tmp_path / 'r.mcap'}"]
    rclpy.init(args=[*inside, "-p", "topics:=left/image, raw,/tf_static"])
    try:
        recorder = RecorderNode()
        assert recorder._wanted == ["/robot1/left/image", "/robot1/cooked", "/tf_static"]
        recorder.destroy_node()
    finally:
        rclpy.shutdown()
    rclpy.init(args=[*inside, "-p", "topics:=/left image"])
    try:
        with pytest.raises(UserError, match="'topics' names '/left image', which is no topic"):
            RecorderNode()
    finally:
        rclpy.shutdown()
