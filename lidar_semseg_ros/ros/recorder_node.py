"""The recorder node: topics into an MCAP file, byte for byte as they arrive."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import deserialize_message
from std_srvs.srv import SetBool, Trigger

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.memory import keep_freed_memory
from lidar_semseg_ros.core.options import setting
from lidar_semseg_ros.core.pairing import JUMP_S
from lidar_semseg_ros.formats.bags import CAMERA_INFO, COMPRESSED_IMAGE, IMAGE, ODOMETRY, POINT_CLOUD, BagWriter
from lidar_semseg_ros.ros.drops import LOG_PERIOD_S
from lidar_semseg_ros.ros.messages import installed_message
from lidar_semseg_ros.ros.parameters import declared
from lidar_semseg_ros.ros.process import leave, run_node
from lidar_semseg_ros.ros.timers import steady_timer

DISCOVERY_PERIOD_S = 0.2
FLUSH_PERIOD_S = 0.5
SENSOR_TYPES = (POINT_CLOUD, IMAGE, COMPRESSED_IMAGE, CAMERA_INFO)
"""What `max_rate_hz` and `min_motion_m` thin out; everything else is small and recorded whole."""
KEPT_LATCHED, KEPT_LATCHED_BYTES = 100, 16 * 2**20
"""So many messages of a latched topic, and so many bytes, but always the newest one, are kept for the files that begin
later: all frames and the description of a robot are far smaller, and of a map that is told again the newest counts."""


@dataclass(frozen=True, kw_only=True)
class RecorderConfig:
    """Settings of the recorder."""

    file: str = setting("", "the .mcap file to write; it must not exist yet")
    topics: str = setting("", "topics to record, comma-separated; each is recorded from when it appears")
    paused: bool = setting(False, "wait for ~/pause with false, or for ~/snapshot")
    max_size_gb: float = setting(
        0.0,
        "recording stops before the file, with its parts before jumps of the clock, grows larger; 0: never",
        minimum=0.0,
    )
    max_rate_hz: float = setting(
        0.0, "at most so many clouds and images a second are recorded of each topic; 0: all", minimum=0.0
    )
    min_motion_m: float = setting(
        0.0,
        "clouds and images are recorded only after the robot has moved so far, by the Odometry among the topics; "
        "0: always",
        minimum=0.0,
    )
    snapshot_s: float = setting(
        0.0, "seconds that are kept in memory for ~/snapshot, which writes them to a file of their own", minimum=0.0
    )


@dataclass(frozen=True, kw_only=True)
class _Topic:
    name: str
    kind: str
    is_latched: bool

    @property
    def is_told_once(self) -> bool:
        """Whether every file needs it whole; a latched cloud or image is as large as any and followed by the next."""
        return self.is_latched and self.kind not in (POINT_CLOUD, IMAGE, COMPRESSED_IMAGE)


@dataclass(frozen=True, kw_only=True)
class _Heard:
    """A message as it came. log_time_ns: on the ROS clock; arrived_s: on the monotonic one."""

    topic: _Topic
    log_time_ns: int
    arrived_s: float
    data: bytes


class RecorderNode(Node):
    """Subscribes to each wanted topic once it is published, with the publisher's type and quality of service."""

    def __init__(self) -> None:
        super().__init__("recorder")
        self._config = config = declared(self, RecorderConfig)
        self._wanted = [self._resolved(name.strip()) for name in config.topics.split(",") if name.strip()]
        if not config.file or not self._wanted:
            raise UserError("nothing to record; set the parameters 'file' and 'topics'")
        self._file = Path(config.file).expanduser()
        self._writer: BagWriter | None = BagWriter(self._file)
        self._parts_size = 0
        self._paused = config.paused
        self._written_ns = 0
        self._before_clock: dict[str, deque[_Heard]] = {}
        self._latched: dict[str, deque[_Heard]] = {}
        self._recent: deque[_Heard] = deque()
        self._gate = _Gate(config.max_rate_hz, config.min_motion_m)
        self._discovering = steady_timer(self, DISCOVERY_PERIOD_S, self._discover)
        self._flushing = steady_timer(self, FLUSH_PERIOD_S, self._flush)
        self.create_service(Trigger, "~/start", self._start)
        self.create_service(Trigger, "~/stop", self._stop)
        self.create_service(Trigger, "~/snapshot", self._snapshot)
        self.create_service(SetBool, "~/pause", self._pause)

    def _resolved(self, topic: str) -> str:
        """Give the full name of a topic, under which it is recorded; UserError if it cannot be one."""
        try:
            full: str = self.resolve_topic_name(topic)
        except RuntimeError as error:
            raise UserError(f"setting 'topics' names '{topic}', which is no topic: {error}") from None
        return full

    def _discover(self) -> None:
        for topic in list(self._wanted):
            publishers = self.get_publishers_info_by_topic(topic)
            if publishers:
                self._wanted.remove(topic)
                self._subscribe(topic, publishers[0].topic_type, publishers[0].qos_profile)
        if not self._wanted:
            self._discovering.cancel()

    def _subscribe(self, name: str, kind: str, offered: QoSProfile) -> None:
        message_class = installed_message(kind)
        if message_class is None:
            self.get_logger().warning(f"{name} is not recorded: message type {kind} is not installed")
            return
        qos = QoSProfile(depth=100, reliability=offered.reliability, durability=offered.durability)
        topic = _Topic(name=name, kind=kind, is_latched=offered.durability == DurabilityPolicy.TRANSIENT_LOCAL)
        self.create_subscription(message_class, name, partial(self._hear, topic), qos, raw=True)
        self.get_logger().info(f"recording {name}")

    def _hear(self, topic: _Topic, data: bytes) -> None:
        now_ns = self.get_clock().now().nanoseconds
        if now_ns == 0:
            self._wait_for_clock(topic, data)
            return
        waiting, self._before_clock = self._before_clock, {}
        for kept in waiting.values():
            for heard in kept:
                self._take(replace(heard, log_time_ns=now_ns))
        self._take(_Heard(topic=topic, log_time_ns=now_ns, arrived_s=time.monotonic(), data=data))

    def _wait_for_clock(self, topic: _Topic, data: bytes) -> None:
        """Keep what is latched: logged at time 0, a message would make a recording of half a century."""
        if topic.is_latched:
            _keep(self._before_clock, _Heard(topic=topic, log_time_ns=0, arrived_s=time.monotonic(), data=data))
        self.get_logger().warning(
            "nothing is recorded, for use_sim_time is set and no /clock has come; publish one or set use_sim_time to "
            "false",
            throttle_duration_sec=LOG_PERIOD_S,
        )

    def _begin_anew(self, now_ns: int) -> None:
        """Go on in another file after a jump back in time: in one, what was and what comes would be read mixed."""
        assert self._writer is not None
        complete, went_back_s = self._file, (self._written_ns - now_ns) / 1e9
        said = f"the clock went back by {went_back_s:.1f} s, as when a bag begins anew; {complete} is complete"
        self._parts_size += self._writer.size()
        self._close()
        try:
            self._open_next_part(now_ns)
        except (UserError, OSError) as error:
            self.get_logger().error(f"{said}, and nothing more is recorded: {error}")
            self._close()
        else:
            self.get_logger().warning(f"{said}, and the recording goes on in {self._file}")

    def _take(self, heard: _Heard) -> None:
        topic = heard.topic
        if self._config.snapshot_s:
            if self._recent and heard.log_time_ns < self._recent[-1].log_time_ns - JUMP_S * 1e9:
                self._recent.clear()
            self._recent.append(heard)
            while self._recent[0].arrived_s < heard.arrived_s - self._config.snapshot_s:
                self._recent.popleft()
        if topic.kind == ODOMETRY and self._config.min_motion_m:
            self._gate.move_to(deserialize_message(heard.data, Odometry))
        if self._writer is not None and (topic.is_told_once or (not self._paused and self._gate.lets_through(heard))):
            self._write(heard)
        if topic.is_latched:
            _keep(self._latched, heard)

    def _write(self, heard: _Heard) -> None:
        assert self._writer is not None
        if heard.log_time_ns < self._written_ns - JUMP_S * 1e9:
            self._begin_anew(heard.log_time_ns)
            if self._writer is None:
                return
        limit = self._config.max_size_gb * 1e9
        if limit and self._parts_size + self._writer.size() + len(heard.data) > limit:
            self.get_logger().error(f"{self._file} has reached max_size_gb; nothing more is recorded")
            self._close()
            return
        self._written_ns = max(heard.log_time_ns, self._written_ns)
        try:
            _put([heard], self._writer)
        except OSError as error:
            self._fail(error)

    def _flush(self) -> None:
        """Hand over what waits, so that a process that is killed loses less than a second."""
        if self._writer is not None:
            try:
                self._writer.flush()
            except OSError as error:
                self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.get_logger().error(
            f"{self._file} cannot be written any more ({error}); what it holds can be read. Make room and call ~/start"
        )
        self._close()

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
            except OSError as error:
                self.get_logger().error(f"{self._file} has no index ({error}), but can be read without")

    # Services.

    def _start(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._writer is not None:
            response.success, response.message = False, f"recording to {self._file} already"
            return response
        self._parts_size = 0
        try:
            self._open_next_part(self.get_clock().now().nanoseconds)
        except (UserError, OSError) as error:
            self._close()
            response.success, response.message = False, str(error)
            return response
        response.success, response.message = True, f"recording to {self._file}"
        return response

    def _open_next_part(self, begin_ns: int) -> None:
        self._file = _next_to(Path(self._config.file).expanduser(), "part")
        self._writer = BagWriter(self._file)
        self._written_ns = begin_ns
        _put(self._latched_at(begin_ns), self._writer)

    def _latched_at(self, begin_ns: int) -> list[_Heard]:
        """Give what is latched as messages of a file that begins now: it was heard at any time before."""
        return [replace(heard, log_time_ns=begin_ns) for kept in self._latched.values() for heard in kept]

    def _stop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._writer is not None
        response.message = f"{self._file} is complete" if response.success else "nothing is being recorded"
        self._close()
        return response

    def _pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._paused = request.data
        response.success, response.message = True, "paused" if request.data else "recording"
        return response

    def _snapshot(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if not self._config.snapshot_s:
            response.success, response.message = False, "nothing is kept in memory; set the parameter snapshot_s"
            return response
        path = _next_to(Path(self._config.file).expanduser(), "snapshot")
        recent = [heard for heard in self._recent if not heard.topic.is_told_once]
        begin_ns = recent[0].log_time_ns if recent else self.get_clock().now().nanoseconds
        topics = {heard.topic for heard in recent}
        try:
            with BagWriter(path) as writer:
                _put([heard for heard in self._latched_at(begin_ns) if heard.topic not in topics], writer)
                _put(recent, writer)
        except (UserError, OSError) as error:
            response.success, response.message = False, str(error)
            return response
        response.success, response.message = True, f"{len(self._recent)} messages in {path}"
        return response

    def destroy_node(self) -> None:
        """Close the file, then go."""
        if hasattr(self, "_writer"):
            self._close()
        super().destroy_node()


class _Gate:
    """Lets clouds and images through by rate and motion."""

    def __init__(self, max_rate_hz: float, min_motion_m: float) -> None:
        self._period_s = 1 / max_rate_hz if max_rate_hz else 0.0
        self._min_motion_m = min_motion_m
        self._due_s: dict[str, float] = {}
        self._here: np.ndarray | None = None
        self._there: dict[str, np.ndarray] = {}

    def move_to(self, odometry: Odometry) -> None:
        """Note where the robot is."""
        position = odometry.pose.pose.position
        self._here = np.array([position.x, position.y, position.z])

    def lets_through(self, heard: _Heard) -> bool:
        """Decide on a message."""
        if heard.topic.kind not in SENSOR_TYPES:
            return True
        name = heard.topic.name
        due_s = self._due_s.get(name, heard.arrived_s)
        if heard.arrived_s < due_s:
            return False
        if self._min_motion_m and self._here is not None:
            there = self._there.get(name)
            if there is not None and np.linalg.norm(self._here - there) < self._min_motion_m:
                return False
            self._there[name] = self._here
        # Counted from when it was due, lest jitter lower the mean rate; of a longer delay half a period is made up for.
        self._due_s[name] = max(due_s, heard.arrived_s - self._period_s / 2) + self._period_s
        return True


def _keep(latched: dict[str, deque[_Heard]], heard: _Heard) -> None:
    """Add to what is kept by topic, and let go of the oldest beyond a number and a size."""
    kept = latched.setdefault(heard.topic.name, deque())
    kept.append(heard)
    most = KEPT_LATCHED if heard.topic.is_told_once else 1
    while len(kept) > most or (len(kept) > 1 and sum(len(one.data) for one in kept) > KEPT_LATCHED_BYTES):
        kept.popleft()


def _put(messages: Iterable[_Heard], writer: BagWriter) -> None:
    for heard in messages:
        writer.write(heard.topic.name, heard.topic.kind, heard.log_time_ns, heard.data, heard.topic.is_latched)


def _next_to(path: Path, word: str) -> Path:
    """Name the first of file_word_2.mcap, file_word_3.mcap, … that does not exist."""
    number = 2 if word == "part" else 1
    while (candidate := path.with_name(f"{path.stem}_{word}_{number}{path.suffix}")).exists():
        number += 1
    return candidate


def main() -> None:
    """Run the node."""
    keep_freed_memory()
    leave(run_node(RecorderNode))


if __name__ == "__main__":
    main()
