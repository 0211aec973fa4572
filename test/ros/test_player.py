"""The player as a process, steered through its services, its parameter and its keys, and heard by another process."""

from __future__ import annotations

import fcntl
import itertools
import os
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcap.reader import make_reader
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

rclpy = pytest.importorskip("rclpy", reason="ROS 2 is not installed (source one, or install the extra [ros])")
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.qos import DurabilityPolicy, QoSProfile
from robot import call, run_node, spin_until
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from lidar_semseg_ros.cli.live import NodeProcess, live_environment, running
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.formats.bags import STRING, BagWriter
from lidar_semseg_ros.formats.pointcloud2 import cloud_from_frame, column, read_cloud
from lidar_semseg_ros.ros.playback import Playback

CLOUDS, WORDS, LATCHED = "/lidar/points", "/words", "/latched"
STEERED = "/steered"
"""Name of the player that tests steer, and the beginning of its topics: it goes on beside those of other tests."""
START_NS = 1_000 * 10**9
TENTH_NS = 10**8
COUNT = 40
QUIET_TICKS = 20
"""So many ticks of /clock, 0.2 s at 100 Hz, in which two more clouds would come if the player went on."""


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds: clouds at 10 Hz logged at their stamps, a word between two clouds, latched words at the start."""
    types = get_typestore(Stores.ROS2_JAZZY)
    path = tmp_path_factory.mktemp("played") / "a.mcap"
    with BagWriter(path) as writer:
        for number in range(12):
            writer.write_json(LATCHED, f"latched {number}", START_NS)
        for number in range(COUNT):
            stamp_ns = START_NS + number * TENTH_NS
            frame = LidarFrame(stamp_ns=stamp_ns, frame_id="lidar", xyz=np.full((5, 3), number, np.float32))
            writer.write_cloud(CLOUDS, cloud_from_frame(frame), log_time_ns=stamp_ns)
            word: Any = types.types[STRING](data=str(number))
            writer.write(WORDS, STRING, stamp_ns + TENTH_NS // 2, word)
    return path


def nanoseconds(stamp: Any) -> int:
    return int(stamp.sec) * 10**9 + int(stamp.nanosec)


class Listener:
    """Hears a player, whose topics all begin with the prefix, and steers one by its name."""

    def __init__(self, node: Any, prefix: str = "") -> None:
        self.node = node
        self.numbers: list[int] = []
        self.times_ns: list[int] = []
        self.sent: list[tuple[int, str]] = []
        node.create_subscription(PointCloud2, prefix + CLOUDS, self._hear_cloud, 50)
        node.create_subscription(String, prefix + WORDS, self._hear_word, 50)
        node.create_subscription(Clock, prefix + "/clock", self._hear_clock, 1000)

    def _hear_cloud(self, cloud: PointCloud2, info: dict[str, int]) -> None:
        self.numbers.append(round((nanoseconds(cloud.header.stamp) - START_NS) / TENTH_NS))
        self.sent.append((info["source_timestamp"], f"cloud {self.numbers[-1]}"))

    def _hear_clock(self, clock: Clock) -> None:
        self.times_ns.append(nanoseconds(clock.clock))

    def _hear_word(self, word: String, info: dict[str, int]) -> None:
        self.sent.append((info["source_timestamp"], f"word {word.data}"))

    def until(self, done: Callable[[], bool]) -> None:
        spin_until(self.node, done)

    def hear_ticks(self, count: int = QUIET_TICKS) -> list[int]:
        """Wait for so many more ticks of the clock and give their times."""
        before = len(self.times_ns)
        self.until(lambda: len(self.times_ns) >= before + count)
        return self.times_ns[before:]

    def pause(self, data: bool) -> Any:
        return call(self.node, SetBool, f"{STEERED}/pause", SetBool.Request(data=data))

    def step(self) -> Any:
        return call(self.node, Trigger, f"{STEERED}/step", Trigger.Request())

    def seek(self, seconds: float) -> Any:
        value = ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=seconds)
        request = SetParameters.Request(parameters=[Parameter(name="seek_s", value=value)])
        return call(self.node, SetParameters, f"{STEERED}/set_parameters", request).results[0]


@pytest.fixture
def listener(node: Any) -> Listener:
    return Listener(node)


@pytest.fixture(scope="module")
def player(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    log = tmp_path_factory.mktemp("player") / "log"
    remaps = {topic: STEERED + topic for topic in (CLOUDS, WORDS, LATCHED, "/clock")} | {"__node": STEERED[1:]}
    with running("player", {"bag": str(recording), "paused": True, "loop": True}, remaps, log) as player:
        yield player


@pytest.fixture
def steered(player: NodeProcess, node: Any) -> Listener:
    """Steers a player that stands still before the first message, and has met it."""
    listener = Listener(node, STEERED)
    listener.pause(True)
    listener.seek(0.0)
    listener.until(lambda: listener.times_ns[-1:] == [START_NS])
    listener.until(lambda: listener.node.count_publishers(STEERED + CLOUDS) > 0)
    listener.hear_ticks()  # what the test before left under way
    listener.numbers.clear()
    listener.sent.clear()
    return listener


def test_paused_player_sends_no_clouds_and_its_clock_stands_still(steered: Listener) -> None:
    assert set(steered.hear_ticks()) == {START_NS}
    assert steered.numbers == []
    answer = steered.pause(False)
    assert (answer.success, answer.message) == (True, "playing")
    steered.until(lambda: len(steered.numbers) >= 3)
    assert steered.pause(True).message == "paused"
    steered.hear_ticks(5)  # what was under way
    sent = len(steered.numbers)
    assert len(set(steered.hear_ticks())) == 1
    assert len(steered.numbers) == sent
    assert steered.numbers == list(range(sent))


def test_step_sends_one_cloud_and_the_clock_goes_to_it(steered: Listener) -> None:
    for _ in range(3):
        sent = len(steered.numbers)
        assert steered.step().success
        steered.until(lambda sent=sent: len(steered.numbers) > sent)
        ticks = steered.hear_ticks()
        assert steered.numbers == list(range(sent + 1))
        assert set(ticks[5:]) == {START_NS + sent * TENTH_NS}


def test_step_while_playing_is_refused(steered: Listener) -> None:
    steered.pause(False)
    answer = steered.step()
    assert not answer.success and "~/pause" in answer.message


def test_player_that_was_paused_goes_on_without_a_gap_to_its_end_and_starts_again(steered: Listener) -> None:
    steered.seek(3.5)
    steered.until(lambda: steered.times_ns[-1] == START_NS + 35 * TENTH_NS)
    steered.pause(False)
    steered.until(lambda: len(steered.numbers) >= 7)
    assert steered.numbers[:7] == [35, 36, 37, 38, 39, 0, 1]


def test_seek_jumps_forth_and_back_with_the_clock(steered: Listener) -> None:
    for second in (2.0, 0.5):
        target_ns = START_NS + round(second * 1e9)
        assert steered.seek(second).successful
        steered.until(lambda target_ns=target_ns: steered.times_ns[-1] == target_ns)
        assert set(steered.hear_ticks()) == {target_ns}
        steered.step()
        steered.until(lambda second=second: steered.numbers[-1:] == [round(second * 10)])


def test_seek_between_two_clouds_goes_there_and_steps_to_the_later(steered: Listener) -> None:
    steered.seek(1.03125)
    steered.until(lambda: steered.times_ns[-1] == START_NS + 1_031_250_000)
    steered.step()
    steered.until(lambda: steered.numbers == [11] and ("word 10" in [what for _, what in steered.sent]))


@pytest.mark.parametrize("seconds", [-1.0, 4.0])
def test_seek_beyond_the_recording_is_refused(steered: Listener, seconds: float) -> None:
    answer = steered.seek(seconds)
    assert not answer.successful and answer.reason
    assert set(steered.hear_ticks()) == {START_NS}


def test_messages_of_all_topics_are_sent_in_the_order_of_their_log_times(
    recording: Path, listener: Listener, tmp_path: Path
) -> None:
    playing = {"bag": str(recording), "rate": 4.0, "start_s": 1.0, "end_s": 3.0, "wait_for_subscribers": 1}
    with running("player", playing, {}, tmp_path / "player.log") as player:
        assert player.process.wait(30) == 0
        listener.until(lambda: len(listener.sent) >= 40)
        listener.until(lambda: listener.times_ns[-1] >= START_NS + 29 * TENTH_NS + TENTH_NS // 2)
    expected = [f"{kind} {number}" for number in range(10, 30) for kind in ("cloud", "word")]
    assert [what for _, what in sorted(listener.sent)] == expected
    assert listener.times_ns == sorted(listener.times_ns)
    assert listener.times_ns[0] >= START_NS + 10 * TENTH_NS
    assert listener.times_ns[-1] == START_NS + 29 * TENTH_NS + TENTH_NS // 2


def test_start_in_the_middle_still_brings_all_that_was_latched(
    recording: Path, listener: Listener, tmp_path: Path
) -> None:
    playing = {"bag": str(recording), "start_s": 2.0, "paused": True}
    with running("player", playing, {}, tmp_path / "player.log"):
        assert set(listener.hear_ticks()) == {START_NS + 20 * TENTH_NS}
        heard: list[str] = []
        qos = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        listener.node.create_subscription(String, LATCHED, lambda word: heard.append(word.data), qos)
        listener.until(lambda: len(heard) >= 12)
    assert heard == [f"latched {number}" for number in range(12)], "also those that a depth of 10 would lose"


def test_recorded_clock_is_played_alone(listener: Listener, tmp_path: Path) -> None:
    types = get_typestore(Stores.ROS2_JAZZY).types
    simulated_ns = [5 * 10**9 + number for number in range(10)]
    with BagWriter(tmp_path / "a.mcap") as writer:
        for number, time_ns in enumerate(simulated_ns):
            stamp = types["builtin_interfaces/msg/Time"](sec=time_ns // 10**9, nanosec=time_ns % 10**9)
            clock = types["rosgraph_msgs/msg/Clock"](clock=stamp)
            writer.write("/clock", "rosgraph_msgs/msg/Clock", START_NS + number * TENTH_NS // 2, clock)
    playing = {"bag": str(tmp_path / "a.mcap"), "loop": True}
    with running("player", playing, {}, tmp_path / "player.log"):
        listener.hear_ticks(30)
    assert set(listener.times_ns) == set(simulated_ns)


# ---- playing in time, without a node


class Recorded:
    """A message of a made-up recording."""

    def __init__(self, number: int, topic: str = CLOUDS) -> None:
        self.topic, self.log_time_ns = topic, START_NS + number * TENTH_NS

    def cdr(self) -> bytes:
        return str(self.log_time_ns).encode()


def playback(messages: Iterable[Recorded], **heard: Callable[..., None]) -> Playback:
    callbacks: dict[str, Any] = {"publish": lambda topic, data: None, "tick": lambda time_ns: None} | heard
    return Playback(
        lambda start_ns: iter(messages),  # type: ignore[arg-type]
        is_step=lambda topic: topic == CLOUDS,
        complain=pytest.fail,
        rate=1.0,
        paused=False,
        **callbacks,
    )


def test_time_waits_for_a_reader_that_is_behind() -> None:
    released, enough = threading.Event(), threading.Event()
    ticks: list[int] = []
    sent: list[tuple[int, int]] = []

    def messages() -> Iterator[Recorded]:
        yield from (Recorded(number) for number in range(3))
        assert released.wait(30)
        yield from (Recorded(number) for number in range(3, 6))

    def tick(time_ns: int) -> None:
        ticks.append(time_ns)
        if len(sent) == 3 and len(set(ticks[-QUIET_TICKS:])) == 1:
            enough.set()

    playing = playback(messages(), tick=tick, publish=lambda topic, data: sent.append((ticks[-1], int(data))))
    thread = threading.Thread(target=playing.play, args=(START_NS,))
    thread.start()
    assert enough.wait(30)
    assert max(ticks) < Recorded(3).log_time_ns
    released.set()
    thread.join(30)
    assert [data for _, data in sent] == [Recorded(number).log_time_ns for number in range(6)]
    assert all(told == logged for told, logged in sent), "the clock shows the log time when a message comes"
    assert ticks == sorted(ticks)


def test_damage_is_told_after_what_lies_before_it() -> None:
    sent: list[int] = []

    def messages() -> Iterator[Recorded]:
        yield from (Recorded(number) for number in range(4))
        raise UserError("a.bag is damaged")

    playing = playback(messages(), publish=lambda topic, data: sent.append(int(data)))
    with pytest.raises(UserError, match=r"a\.bag is damaged"):
        playing.play(START_NS)
    assert len(sent) == 4


def test_a_player_that_meets_damage_names_it_and_ends_with_status_1(recording: Path, tmp_path: Path) -> None:
    with recording.open("rb") as file:
        chunk = make_reader(file).get_summary().chunk_indexes[3]
    data = bytearray(recording.read_bytes())
    data[chunk.chunk_start_offset + 9 + 24] ^= 0xFF  # of its checksum, behind kind, length, two times and a size
    (tmp_path / "damaged.mcap").write_bytes(data)
    ended = run_node("player_node", "-p", f"bag:={tmp_path / 'damaged.mcap'}", "-r", "__ns:=/damaged")
    assert ended.returncode == 1
    assert f"{tmp_path / 'damaged.mcap'} is damaged" in ended.stderr


def test_stopped_playback_returns_at_once_though_the_recording_goes_on_for_ever() -> None:
    def messages() -> Iterator[Recorded]:
        return (Recorded(number) for number in itertools.count())

    sent: list[int] = []

    def publish(topic: str, data: bytes) -> None:
        sent.append(int(data))
        if len(sent) == 3:
            playing.stop()

    playing = playback(messages(), publish=publish)
    assert playing.play(START_NS) is False
    assert len(sent) == 3


# ---- Livox


def livox_bag(path: Path, announced: list[int]) -> dict[str, np.ndarray]:
    """Clouds of 100 points in a ROS 1 bag that announce such numbers of points, and what the points hold."""
    kind = "livox_ros_driver2/msg/CustomMsg"
    point = "uint32 offset_time\nfloat32 x\nfloat32 y\nfloat32 z\nuint8 reflectivity\nuint8 tag\nuint8 line\n"
    cloud = (
        "std_msgs/Header header\nuint64 timebase\nuint32 point_num\nuint8 lidar_id\nuint8[3] rsvd\n"
        "livox_ros_driver2/CustomPoint[] points\n"
    )
    types = get_typestore(Stores.ROS1_NOETIC)
    types.register(get_types_from_msg(point, "livox_ros_driver2/msg/CustomPoint") | get_types_from_msg(cloud, kind))
    new = types.types
    rng = np.random.default_rng(0)
    values = {
        "offset_time": np.arange(100, dtype=np.uint32) * 1_000_000,
        **dict(zip("xyz", rng.normal(size=(3, 100)).astype(np.float32))),
        **{name: rng.integers(0, 255, 100, dtype=np.uint8) for name in ("reflectivity", "tag", "line")},
    }
    rows = zip(*(column.tolist() for column in values.values()))
    points = [new["livox_ros_driver2/msg/CustomPoint"](**dict(zip(values, row))) for row in rows]
    with Ros1Writer(path) as writer:
        connection = writer.add_connection(CLOUDS, kind, typestore=types)
        for number, count in enumerate(announced):
            stamp = new["builtin_interfaces/msg/Time"](sec=1000, nanosec=number * TENTH_NS)
            header = new["std_msgs/msg/Header"](seq=number, stamp=stamp, frame_id="livox_frame")
            message = new[kind](
                header=header, timebase=7, point_num=count, lidar_id=0, rsvd=np.zeros(3, np.uint8), points=points
            )
            writer.write(connection, START_NS + number * TENTH_NS, types.serialize_ros1(message, kind))
    return values


def test_livox_messages_arrive_as_clouds_with_every_value_and_damaged_ones_are_left_out(
    node: Any, tmp_path: Path
) -> None:
    values = livox_bag(tmp_path / "livox.bag", [100, 101, 100])
    heard: list[PointCloud2] = []
    node.create_subscription(PointCloud2, CLOUDS, heard.append, 10)
    playing = {"bag": str(tmp_path / "livox.bag"), "wait_for_subscribers": 1}
    with running("player", playing, {}, tmp_path / "player.log") as player:
        player.wait_for("a message is left out: /lidar/points: the Livox message announces 101 points")
        spin_until(node, lambda: len(heard) == 2)
    for cloud, number in zip(heard, (0, 2)):
        frame = read_cloud(cloud)
        assert (frame.frame_id, frame.stamp_ns) == ("livox_frame", START_NS + number * TENTH_NS)
        np.testing.assert_array_equal(frame.xyz, np.stack([values[axis] for axis in "xyz"], axis=1))
        np.testing.assert_array_equal(frame.intensity, values["reflectivity"])
        np.testing.assert_array_equal(frame.ring, values["line"])
        np.testing.assert_allclose(frame.time_s, np.arange(100) / 1000, rtol=1e-6)


def test_offline_segmentation_takes_livox_topics_for_clouds(small_model: Path, tmp_path: Path) -> None:
    from lidar_semseg_ros.cli.main import main
    from lidar_semseg_ros.formats.bags import open_bag
    from lidar_semseg_ros.formats.pointcloud2 import cloud_content

    livox_bag(tmp_path / "livox.bag", [100, 99, 100])
    main(["segment", str(tmp_path / "livox.bag"), "-o", str(tmp_path / "out.mcap"), "--model", str(small_model)])
    with open_bag(tmp_path / "out.mcap") as bag:
        labelled = [cloud_content(m.message()) for m in bag.messages(["/segmenter/output/pointcloud/segmentation"])]
    assert [content.stamp_ns - START_NS for content in labelled] == [0, 2 * TENTH_NS]
    assert len(column(labelled[0], "class_id")) == 100


# ---- keys


def test_keys_of_the_terminal_step_pause_and_seek_and_the_terminal_is_given_back(
    recording: Path, listener: Listener
) -> None:
    ours, theirs = os.openpty()
    before = termios.tcgetattr(theirs)
    command = [sys.executable, "-m", "lidar_semseg_ros.cli.main", "play", str(recording), "--paused", "true"]
    player = subprocess.Popen(
        [*command, "--wait-for-subscribers", "1", "--rate", "10"],
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=live_environment(),
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    try:
        listener.hear_ticks()
        os.write(ours, b"s")
        listener.until(lambda: listener.numbers == [0])
        os.write(ours, b"\x1b[C")
        listener.until(lambda: listener.times_ns[-1] == START_NS + (COUNT - 1) * TENTH_NS + TENTH_NS // 2)
        os.write(ours, b"\x1b[D")
        listener.until(lambda: listener.times_ns[-1] == START_NS)
        os.write(ours, b" ")
        assert player.wait(30) == 0
        listener.until(lambda: listener.numbers[-1] == COUNT - 1)
        assert termios.tcgetattr(theirs) == before
    finally:
        player.kill()
        player.wait()
        os.close(ours)
        os.close(theirs)


def test_player_that_waits_for_subscribers_says_whom_it_waits_for(recording: Path, tmp_path: Path) -> None:
    settings = {"bag": str(recording), "wait_for_subscribers": 1}
    remaps = {topic: f"/unheard{topic}" for topic in (CLOUDS, WORDS, LATCHED, "/clock")}
    with running("player", settings, remaps, tmp_path / "player.log") as player:
        player.wait_for("waiting for 1 subscribers of")
