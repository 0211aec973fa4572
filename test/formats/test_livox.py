from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as Ros2Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.formats.bags import POINT_CLOUD, cloud_topics, open_bag
from lidar_semseg_ros.formats.livox import CUSTOM_MESSAGES, livox_cloud
from lidar_semseg_ros.formats.pointcloud2 import CloudError, column, read_cloud

DRIVER, DRIVER2 = "livox_ros_driver/msg/CustomMsg", "livox_ros_driver2/msg/CustomMsg"
STAMP_NS = 1_700_000_000_123_456_789
FRAME = "livox_frame"


def types_of(msgtype: str, store: Stores) -> Typestore:
    """The message as its driver defines it, known to rosbags alone."""
    package = msgtype.split("/")[0]
    point = "uint32 offset_time\nfloat32 x\nfloat32 y\nfloat32 z\nuint8 reflectivity\nuint8 tag\nuint8 line\n"
    cloud = (
        "std_msgs/Header header\nuint64 timebase\nuint32 point_num\nuint8 lidar_id\nuint8[3] rsvd\n"
        f"{package}/CustomPoint[] points\n"
    )
    types = get_typestore(store)
    types.register(get_types_from_msg(point, f"{package}/msg/CustomPoint") | get_types_from_msg(cloud, msgtype))
    return types


def points(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    xyz = rng.normal(0, 10, (3, count)).astype(np.float32)
    return {
        "offset_time": np.sort(rng.integers(0, 10**8, count, dtype=np.uint32)),
        **dict(zip("xyz", xyz)),
        "reflectivity": rng.integers(0, 256, count, dtype=np.uint8),
        "tag": rng.integers(0, 256, count, dtype=np.uint8),
        "line": rng.integers(0, 6, count, dtype=np.uint8),
    }


def message(types: Typestore, msgtype: str, values: dict[str, np.ndarray], **changed: Any) -> Any:
    new = types.types
    point = new[msgtype.replace("CustomMsg", "CustomPoint")]
    rows = zip(*(column.tolist() for column in values.values()))
    stamp = new["builtin_interfaces/msg/Time"](sec=STAMP_NS // 10**9, nanosec=STAMP_NS % 10**9)
    number = {"seq": 7} if "seq" in types.fielddefs["std_msgs/msg/Header"][1][0] else {}
    fields: dict[str, Any] = {
        "header": new["std_msgs/msg/Header"](stamp=stamp, frame_id=FRAME, **number),
        "timebase": 2**63 + 5,
        "point_num": len(values["x"]),
        "lidar_id": 192,
        "rsvd": np.zeros(3, np.uint8),
        "points": [point(**dict(zip(values, row))) for row in rows],
    }
    return new[msgtype](**fields | changed)


def raw_ros1(values: dict[str, np.ndarray], **changed: Any) -> bytes:
    types = types_of(DRIVER, Stores.ROS1_NOETIC)
    return bytes(types.serialize_ros1(message(types, DRIVER, values, **changed), DRIVER))


def raw_ros2(values: dict[str, np.ndarray], little_endian: bool = True, **changed: Any) -> bytes:
    types = types_of(DRIVER2, Stores.ROS2_JAZZY)
    return bytes(types.serialize_cdr(message(types, DRIVER2, values, **changed), DRIVER2, little_endian=little_endian))


@pytest.mark.parametrize("count", [0, 1, 2, 5, 1000])
@pytest.mark.parametrize("kind", ["ros 1", "ros 2", "ros 2 big-endian"])
def test_every_value_of_every_point_is_kept(kind: str, count: int) -> None:
    values = points(count)
    raw = raw_ros1(values) if kind == "ros 1" else raw_ros2(values, little_endian=kind == "ros 2")
    content = livox_cloud(raw, is_ros1=kind == "ros 1")
    assert (content.stamp_ns, content.frame_id) == (STAMP_NS, FRAME)
    assert (content.height, content.width, content.is_dense) == (1, count, True)
    for name in ("x", "y", "z", "tag", "line", "offset_time"):
        np.testing.assert_array_equal(column(content, name), values[name])
        assert column(content, name).dtype == values[name].dtype
    np.testing.assert_array_equal(column(content, "intensity"), values["reflectivity"])


@pytest.mark.parametrize("length", range(9))
def test_frame_of_any_length_leaves_the_points_where_they_are(length: int) -> None:
    values = points(3)
    for is_ros1, store, kind in ((True, Stores.ROS1_NOETIC, DRIVER), (False, Stores.ROS2_JAZZY, DRIVER2)):
        types = types_of(kind, store)
        written = message(types, kind, values)
        written.header.frame_id = "f" * length
        raw = types.serialize_ros1(written, kind) if is_ros1 else types.serialize_cdr(written, kind)
        content = livox_cloud(bytes(raw), is_ros1)
        assert content.frame_id == "f" * length
        np.testing.assert_array_equal(column(content, "z"), values["z"])


def test_a_sweep_has_the_times_after_its_stamp_the_lines_as_rings_and_the_reflectivity_as_intensity() -> None:
    values = points(50)
    frame = read_cloud(livox_cloud(raw_ros2(values), is_ros1=False))
    assert frame.stamp_ns == STAMP_NS
    assert frame.time_s is not None and frame.ring is not None and frame.intensity is not None
    np.testing.assert_allclose(frame.time_s, values["offset_time"] / 1e9, rtol=1e-6)
    np.testing.assert_array_equal(frame.ring, values["line"])
    np.testing.assert_array_equal(frame.intensity, values["reflectivity"])


def test_point_that_is_not_finite_makes_the_cloud_not_dense_and_keeps_its_row() -> None:
    values = points(4)
    values["y"][2] = np.nan
    content = livox_cloud(raw_ros1(values), is_ros1=True)
    assert not content.is_dense
    assert np.flatnonzero(np.isnan(column(content, "y"))).tolist() == [2]


@pytest.mark.parametrize("padding", [1, 2, 3])
def test_cdr_filled_up_behind_its_last_point_is_read(padding: int) -> None:
    assert len(livox_cloud(raw_ros2(points(2)) + bytes(padding), is_ros1=False)) == 2


@pytest.mark.parametrize("is_ros1", [True, False])
def test_number_of_points_that_is_not_the_announced_one_is_an_error(is_ros1: bool) -> None:
    raw = (raw_ros1 if is_ros1 else raw_ros2)(points(4), point_num=5)
    with pytest.raises(UserError, match=r"announces 5 points \(point_num\), but holds 4"):
        livox_cloud(raw, is_ros1)


@pytest.mark.parametrize("is_ros1", [True, False])
def test_message_cut_or_extended_anywhere_is_an_error(is_ros1: bool) -> None:
    raw = (raw_ros1 if is_ros1 else raw_ros2)(points(4))
    for length in range(len(raw)):
        with pytest.raises(CloudError, match="Livox message"):
            livox_cloud(raw[:length], is_ros1)
    with pytest.raises(CloudError, match="4 points end at byte"):
        livox_cloud(raw + bytes(4), is_ros1)


@pytest.mark.parametrize("is_ros1", [True, False])
def test_message_with_a_lying_length_is_an_error_and_takes_no_memory(is_ros1: bool) -> None:
    raw = bytearray((raw_ros1 if is_ros1 else raw_ros2)(points(4)))
    for place in range(len(raw) - 4):
        lying = bytearray(raw)
        lying[place : place + 4] = struct.pack("<I", 0xFFFFFFF0)
        try:
            assert len(livox_cloud(bytes(lying), is_ros1)) == 4  # the lie was about a value
        except CloudError as error:
            assert str(error)


@pytest.mark.parametrize("is_ros1", [True, False])
def test_sweep_of_20000_points_is_converted_in_a_few_milliseconds(is_ros1: bool) -> None:
    raw = (raw_ros1 if is_ros1 else raw_ros2)(points(20_000))

    def duration_s() -> float:
        start = time.perf_counter()
        livox_cloud(raw, is_ros1)
        return time.perf_counter() - start

    assert min(duration_s() for _ in range(5)) < 0.005


# ---- in recordings


def recording(path: Path, msgtype: str, values: dict[str, np.ndarray]) -> Path:
    """A bag with one cloud, kind by the name of the path."""
    is_ros1 = path.suffix == ".bag"
    types = types_of(msgtype, Stores.ROS1_NOETIC if is_ros1 else Stores.ROS2_JAZZY)
    cloud = message(types, msgtype, values)
    if is_ros1:
        with Ros1Writer(path) as writer:
            connection = writer.add_connection("/livox/lidar", msgtype, typestore=types)
            writer.write(connection, 5, types.serialize_ros1(cloud, msgtype))
        return path
    plugin = StoragePlugin.MCAP if path.name.startswith("mcap") else StoragePlugin.SQLITE3
    bag = Ros2Writer(path, version=9, storage_plugin=plugin)
    if "zstd" in path.name:
        bag.set_compression(CompressionMode.MESSAGE, CompressionFormat.ZSTD)
    with bag:
        connection = bag.add_connection("/livox/lidar", msgtype, typestore=types)
        bag.write(connection, 5, types.serialize_cdr(cloud, msgtype))
    return path


@pytest.mark.parametrize("msgtype", sorted(CUSTOM_MESSAGES))
@pytest.mark.parametrize("name", ["a.bag", "db3", "mcap", "mcap-zstd"])
def test_recorded_livox_topic_is_a_topic_of_clouds(tmp_path: Path, name: str, msgtype: str) -> None:
    values = points(30)
    ros2 = get_typestore(Stores.ROS2_JAZZY)
    with open_bag(recording(tmp_path / name, msgtype, values)) as bag:
        assert bag.topics == {"/livox/lidar": POINT_CLOUD}
        assert cloud_topics(bag) == ["/livox/lidar"] and bag.message_count("/livox/lidar") == 1
        (recorded,) = bag.messages(["/livox/lidar"])
        assert (recorded.msgtype, recorded.log_time_ns) == (POINT_CLOUD, 5)
        published = ros2.deserialize_cdr(recorded.cdr(), POINT_CLOUD)
        for cloud in (recorded.message(), published):
            frame = read_cloud(cloud)
            assert (frame.stamp_ns, frame.frame_id) == (STAMP_NS, FRAME)
            np.testing.assert_array_equal(frame.xyz, np.stack([values[axis] for axis in "xyz"], axis=1))


def test_scanned_mcap_without_its_end_gives_its_livox_clouds(tmp_path: Path) -> None:
    folder = recording(tmp_path / "mcap", DRIVER2, points(30))
    cut = tmp_path / "cut.mcap"
    cut.write_bytes((folder / "mcap.mcap").read_bytes()[:-30])
    with open_bag(cut) as bag:
        assert bag.topics == {"/livox/lidar": POINT_CLOUD}
        (recorded,) = bag.messages()
        assert len(read_cloud(recorded.message())) == 30


def test_damaged_livox_message_is_an_error_naming_its_topic(tmp_path: Path) -> None:
    types = types_of(DRIVER, Stores.ROS1_NOETIC)
    lying = message(types, DRIVER, points(3), point_num=4)
    with Ros1Writer(tmp_path / "a.bag") as writer:
        connection = writer.add_connection("/livox/lidar", DRIVER, typestore=types)
        writer.write(connection, 5, types.serialize_ros1(lying, DRIVER))
    with open_bag(tmp_path / "a.bag") as bag:
        (recorded,) = bag.messages()
        for read in (recorded.message, recorded.cdr):
            with pytest.raises(UserError, match="/livox/lidar: the Livox message announces 4 points"):
                read()
