"""Recordings damaged in every way give the messages that can be read, or one sentence that names the file."""

from __future__ import annotations

import logging
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mcap.reader import make_reader
from mcap.writer import CompressionType, IndexType, Writer
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as Ros2Writer
from rosbags.typesys import Stores, get_typestore

from lidar_semseg_ros.core.camera import PinholeCamera
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.formats.bags import CAMERA_INFO, POINT_CLOUD, STRING, BagWriter, open_bag
from lidar_semseg_ros.formats.images import read_camera_info
from lidar_semseg_ros.formats.pointcloud2 import cloud_from_frame, read_cloud

ROS1 = get_typestore(Stores.ROS1_NOETIC)
ROS2 = get_typestore(Stores.ROS2_JAZZY)
COUNT = 40
PERIOD_NS = 10**8

MCAPS = {
    "plain.mcap": {"compression": CompressionType.NONE},
    "lz4.mcap": {"compression": CompressionType.LZ4},
    "zstd.mcap": {"compression": CompressionType.ZSTD},
    "unindexed.mcap": {
        "compression": CompressionType.ZSTD,
        "index_types": IndexType.NONE,
        "use_statistics": False,
        "use_summary_offsets": False,
    },
    "unchunked.mcap": {"use_chunking": False},
}
FILES = [*MCAPS, "ros1.bag", "ros2.db3"]


def text(number: int) -> str:
    return f"{number:03d} " + "".join(chr(97 + (number * k) % 26) for k in range(60))


def cdr(number: int) -> bytes:
    return bytes(ROS2.serialize_cdr(ROS2.types[STRING](data=text(number)), STRING))


EXPECTED = [cdr(number) for number in range(COUNT)]


def write_mcap(path: Path, numbers: list[int], **options: Any) -> None:
    with path.open("wb") as file:
        writer = Writer(file, chunk_size=512, **options)
        writer.start("ros2")
        schema = writer.register_schema(STRING, "ros2msg", b"string data")
        channels = [writer.register_channel(topic, "cdr", schema) for topic in ("/a", "/b")]
        for number in numbers:
            time_ns = number * PERIOD_NS
            writer.add_message(channels[number % 2], time_ns, cdr(number), time_ns)
        writer.finish()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Undamaged files of the same 40 messages, by name."""
    folder = tmp_path_factory.mktemp("whole")
    for name, options in MCAPS.items():
        write_mcap(folder / name, list(range(COUNT)), **options)
    ros1 = Ros1Writer(folder / "ros1.bag")
    ros1.set_compression(Ros1Writer.CompressionFormat.LZ4)
    ros1.chunk_threshold = 512
    with ros1:
        places = [ros1.add_connection(topic, STRING, typestore=ROS1) for topic in ("/a", "/b")]
        for number in range(COUNT):
            raw = ROS1.serialize_ros1(ROS1.types[STRING](data=text(number)), STRING)
            ros1.write(places[number % 2], number * PERIOD_NS, raw)
    with Ros2Writer(folder / "ros2", version=9, storage_plugin=StoragePlugin.SQLITE3) as ros2:
        places = [ros2.add_connection(topic, STRING, typestore=ROS2) for topic in ("/a", "/b")]
        for number in range(COUNT):
            ros2.write(places[number % 2], number * PERIOD_NS, cdr(number))
    shutil.move(folder / "ros2" / "ros2.db3", folder / "ros2.db3")
    return {name: (folder / name).read_bytes() for name in FILES}


def readable(path: Path) -> tuple[list[bytes], str]:
    """Read what can be read, and what was said about the rest; anything but a UserError is a failure."""
    found: list[bytes] = []
    said = ""
    try:
        with open_bag(path) as bag:
            for topic in bag.topics:
                assert bag.message_count(topic) >= 0
            for message in bag.messages():
                try:
                    assert message.message() is not None
                    found.append(message.cdr())
                except UserError as error:
                    assert message.topic in str(error)
    except UserError as error:
        said = str(error)
        assert path.stem in said
        assert "\n" not in said.strip()
    return found, said


@pytest.mark.parametrize("name", FILES)
def test_whole_file_gives_every_message_in_order(tmp_path: Path, whole: dict[str, bytes], name: str) -> None:
    (tmp_path / name).write_bytes(whole[name])
    assert readable(tmp_path / name) == (EXPECTED, "")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("twentieth", range(20))
def test_file_cut_anywhere_gives_its_first_messages_or_says_why_not(
    tmp_path: Path, whole: dict[str, bytes], name: str, twentieth: int
) -> None:
    data = whole[name]
    path = tmp_path / name
    path.write_bytes(data[: len(data) * twentieth // 20])
    found, said = readable(path)
    assert found == EXPECTED[: len(found)]
    assert found or said
    if name.endswith(".mcap") and twentieth >= 10:
        assert len(found) >= 5, "MCAP is read up to its damage"


def test_file_that_grows_stays_readable_as_far_as_it_was_written(tmp_path: Path, whole: dict[str, bytes]) -> None:
    counts = []
    for length in range(0, len(whole["plain.mcap"]), 97):
        (tmp_path / "plain.mcap").write_bytes(whole["plain.mcap"][:length])
        counts.append(len(readable(tmp_path / "plain.mcap")[0]))
    assert counts == sorted(counts) and counts[-1] == COUNT


LIES = {"nought": 0, "one": 1, "just too long": 10_000, "2^31": 2**31, "all ones": 2**64 - 1, "largest": 2**63 - 1}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("lie", LIES)
def test_lying_sizes_anywhere_give_messages_or_an_error(
    tmp_path: Path, whole: dict[str, bytes], name: str, lie: str
) -> None:
    data = whole[name]
    path = tmp_path / name
    rng = np.random.default_rng(3)
    width = 8 if name.endswith(".mcap") else 4
    for place in [*range(0, 64, 7), *rng.integers(0, len(data) - 8, 25)]:
        lying = bytearray(data)
        lying[place : place + width] = struct.pack("<Q", LIES[lie])[:width]
        path.write_bytes(lying)
        assert len(readable(path)[0]) <= COUNT


@pytest.mark.parametrize("name", FILES)
def test_stretch_of_zeros_gives_messages_or_an_error(tmp_path: Path, whole: dict[str, bytes], name: str) -> None:
    data = whole[name]
    path = tmp_path / name
    for start in range(0, len(data), len(data) // 20):
        path.write_bytes(data[:start] + bytes(min(200, len(data) - start)) + data[start + 200 :])
        assert len(readable(path)[0]) <= COUNT


def chunks(data: bytes) -> Iterator[int]:
    """Find the records of kind 6 (chunk) of an MCAP file by walking its records."""
    place = 8
    while place < len(data) - 8:
        kind, size = struct.unpack_from("<BQ", data, place)
        if kind == 0x06:
            yield place
        place += 9 + size


@pytest.mark.parametrize("name", ["plain.mcap", "lz4.mcap", "zstd.mcap", "unindexed.mcap"])
def test_chunk_with_a_wrong_checksum_ends_the_reading_there(tmp_path: Path, whole: dict[str, bytes], name: str) -> None:
    damaged = bytearray(whole[name])
    places = list(chunks(whole[name]))
    assert len(places) > 3
    crc_at = places[2] + 9 + 24  # behind kind, size, start time, end time and uncompressed size
    damaged[crc_at] ^= 0xFF
    path = tmp_path / name
    path.write_bytes(damaged)
    found, said = readable(path)
    assert found == EXPECTED[: len(found)]
    assert 0 < len(found) < COUNT
    assert ("is damaged" in said) == (name != "unindexed.mcap"), "the other is known to be damaged when it is opened"


@pytest.mark.parametrize("name", ["a.bag", "a.mcap", "a.db3"])
def test_empty_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert readable(tmp_path / name)[1].startswith(f"{tmp_path / name} cannot be read")


# ---- folders


def split_folder(path: Path, names: tuple[str, ...] = ("bag_0.mcap", "bag_1.mcap", "bag_2.mcap")) -> Path:
    """A split bag as rosbag2 writes it: thirds of the messages in files, and one metadata.yaml."""
    path.mkdir()
    third = COUNT // 3 + 1
    for index, name in enumerate(names):
        write_mcap(path / name, list(range(COUNT))[index * third : (index + 1) * third])
    topics = [
        {
            "topic_metadata": {
                "name": topic,
                "type": STRING,
                "serialization_format": "cdr",
                "offered_qos_profiles": [],
                "type_description_hash": "",
            },
            "message_count": COUNT // 2,
        }
        for topic in ("/a", "/b")
    ]
    information = {
        "version": 9,
        "storage_identifier": "mcap",
        "duration": {"nanoseconds": (COUNT - 1) * PERIOD_NS},
        "starting_time": {"nanoseconds_since_epoch": 0},
        "message_count": COUNT,
        "topics_with_message_count": topics,
        "compression_format": "",
        "compression_mode": "",
        "relative_file_paths": list(names),
        "files": [],
        "custom_data": None,
        "ros_distro": "jazzy",
    }
    (path / "metadata.yaml").write_text(yaml.safe_dump({"rosbag2_bagfile_information": information}))
    return path


def cut_last(folder: Path) -> None:
    file = folder / "bag_2.mcap"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def lose_middle(folder: Path) -> None:
    (folder / "bag_1.mcap").unlink()


def empty_middle(folder: Path) -> None:
    (folder / "bag_1.mcap").write_bytes(b"")


def lose_metadata(folder: Path) -> None:
    (folder / "metadata.yaml").unlink()


def empty_metadata(folder: Path) -> None:
    (folder / "metadata.yaml").write_text("")


def cut_metadata(folder: Path) -> None:
    file = folder / "metadata.yaml"
    file.write_text(file.read_text()[:300])


def list_as_metadata(folder: Path) -> None:
    (folder / "metadata.yaml").write_text("- a\n- b\n")


def binary_metadata(folder: Path) -> None:
    (folder / "metadata.yaml").write_bytes(b"\xff\xfe\x00")


def lying_counts(folder: Path) -> None:
    file = folder / "metadata.yaml"
    file.write_text(file.read_text().replace(f"message_count: {COUNT // 2}", "message_count: 9000000000"))


def no_damage(folder: Path) -> None:
    """Leave everything as it is."""


@pytest.mark.parametrize(
    ("damage", "least"),
    [
        (no_damage, 40),
        (lose_metadata, 40),
        (empty_metadata, 40),
        (cut_metadata, 40),
        (list_as_metadata, 40),
        (binary_metadata, 40),
        (lying_counts, 40),
        (cut_last, 28),
        (lose_middle, 26),
        (empty_middle, 26),
    ],
)
def test_split_recording_gives_what_is_readable_of_its_files(
    tmp_path: Path, damage: Callable[[Path], None], least: int
) -> None:
    folder = split_folder(tmp_path / "bag")
    damage(folder)
    found, said = readable(folder)
    assert said == ""
    assert len(found) >= least
    order = [EXPECTED.index(raw) for raw in found]
    assert order == sorted(order)


def test_split_recording_says_which_file_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = split_folder(tmp_path / "bag")
    empty_middle(folder)
    with caplog.at_level(logging.WARNING), open_bag(folder):
        pass
    assert "bag_1.mcap" in caplog.text


def test_split_sqlite_recording_is_one_recording(tmp_path: Path, whole: dict[str, bytes]) -> None:
    folder = tmp_path / "bag"
    folder.mkdir()
    for index in range(3):
        part = tmp_path / f"part{index}"
        with Ros2Writer(part, version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
            connection = writer.add_connection("/a", STRING, typestore=ROS2)
            for number in range(index * 5, index * 5 + 5):
                writer.write(connection, number * PERIOD_NS, cdr(number))
        shutil.move(part / f"part{index}.db3", folder / f"bag_{index}.db3")
        metadata = yaml.safe_load((part / "metadata.yaml").read_text())
    information = metadata["rosbag2_bagfile_information"]
    information["relative_file_paths"] = [f"bag_{index}.db3" for index in range(3)]
    information["topics_with_message_count"][0]["message_count"] = information["message_count"] = 15
    information["starting_time"]["nanoseconds_since_epoch"] = 0
    information["duration"]["nanoseconds"] = 14 * PERIOD_NS
    (folder / "metadata.yaml").write_text(yaml.safe_dump(metadata))
    assert readable(folder) == (EXPECTED[:15], "")
    (folder / "bag_2.db3").write_bytes(b"SQLite format 3\0" + bytes(200))
    assert readable(folder) == (EXPECTED[:10], "")


@pytest.mark.parametrize("mode", [CompressionMode.FILE, CompressionMode.MESSAGE])
def test_compressed_recording_cut_in_its_file_is_an_error(tmp_path: Path, mode: CompressionMode) -> None:
    writer = Ros2Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        connection = writer.add_connection("/a", STRING, typestore=ROS2)
        for number in range(COUNT):
            writer.write(connection, number * PERIOD_NS, cdr(number))
    (file,) = (path for path in (tmp_path / "bag").iterdir() if path.suffix != ".yaml")
    data = file.read_bytes()
    for twentieth in range(20):
        file.write_bytes(data[: len(data) * twentieth // 20])
        found, said = readable(tmp_path / "bag")
        assert found == EXPECTED[: len(found)]
        assert found or said


@pytest.mark.parametrize("name", ["folder.bag", "folder.mcap", "folder.db3"])
def test_folder_named_like_a_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert "no ROS 2 bag" in readable(tmp_path / name)[1]


# ---- files in another order


def shuffled() -> list[int]:
    """Every message at most 6 places from where its time belongs, as several writers leave it."""
    rng = np.random.default_rng(5)
    return sorted(range(COUNT), key=lambda number: number + rng.uniform(0, 6))


@pytest.mark.parametrize("cut", [0, 30])
@pytest.mark.parametrize("name", MCAPS)
def test_messages_come_in_order_of_time_whatever_their_order_in_the_file(tmp_path: Path, name: str, cut: int) -> None:
    assert shuffled() != list(range(COUNT))
    path = tmp_path / name
    write_mcap(path, shuffled(), **MCAPS[name])
    path.write_bytes(path.read_bytes()[: path.stat().st_size - cut])
    assert readable(path) == (EXPECTED, "")


@pytest.mark.parametrize(
    ("topic_type", "field", "damaged"),
    [
        (POINT_CLOUD, b"uint32 point_step", b"uint32 point_stex"),
        (CAMERA_INFO, b"uint32 binning_x", b"uint32 binning_q"),
    ],
)
def test_a_type_of_ros_that_a_recording_defines_in_its_own_way_is_named(
    tmp_path: Path, topic_type: str, field: bytes, damaged: bytes
) -> None:
    source, changed = tmp_path / "source.mcap", tmp_path / "changed.mcap"
    xyz = np.ones((4, 3), np.float32)
    camera = PinholeCamera(width=4, height=4, matrix=np.eye(3), distortion=np.zeros(5))
    with BagWriter(source) as writer:
        frame = LidarFrame(stamp_ns=1, frame_id="lidar", xyz=xyz)
        writer.write_cloud("/points", cloud_from_frame(frame), log_time_ns=1)
        writer.write_camera_info("/info", camera, 1, "camera")
    with source.open("rb") as opened, changed.open("wb") as file:
        copy = Writer(file, compression=CompressionType.NONE)
        copy.start("ros2")
        for schema, channel, message in make_reader(opened).iter_messages():
            definition = schema.data.replace(field, damaged)
            schema_id = copy.register_schema(schema.name, schema.encoding, definition)
            channel_id = copy.register_channel(channel.topic, channel.message_encoding, schema_id)
            copy.add_message(channel_id, message.log_time, message.data, message.publish_time)
        copy.finish()
    read = read_cloud if topic_type == POINT_CLOUD else read_camera_info
    with open_bag(changed) as bag:
        message = next(m for m in bag.messages() if m.msgtype == topic_type)
        with pytest.raises(UserError, match="as ROS defines it"):
            read(message.message())
