from __future__ import annotations

import contextlib
import logging
import sqlite3
import struct
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mcap.reader import make_reader
from mcap.writer import CompressionType, IndexType, Writer
from rosbags.highlevel import AnyReader
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as Ros2Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from lidar_semseg_ros.core.camera import PinholeCamera
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import CameraImage, LidarFrame
from lidar_semseg_ros.core.geometry import rigid, rotation_from_rpy
from lidar_semseg_ros.formats.bags import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    IMAGE,
    ODOMETRY,
    POINT_CLOUD,
    STRING,
    TF,
    Bag,
    BagWriter,
    cloud_topics,
    new_recording,
    normalized_type,
    open_bag,
    topics_of_type,
    why_no_clouds,
)
from lidar_semseg_ros.formats.images import jpeg_bytes, read_camera_info, read_image
from lidar_semseg_ros.formats.pointcloud2 import cloud_content, cloud_from_frame, read_cloud

ROS1 = get_typestore(Stores.ROS1_NOETIC)
ROS1.register(get_types_from_msg("geometry_msgs/TransformStamped[] transforms\n", TF))
ROS2 = get_typestore(Stores.ROS2_JAZZY)
SECOND = 10**9


def new1(msgtype: str, **values: Any) -> Any:
    return ROS1.types[msgtype](**values)


def new2(msgtype: str, **values: Any) -> Any:
    return ROS2.types[msgtype](**values)


def text2(text: str) -> Any:
    return new2(STRING, data=text)


def some_frame(stamp_ns: int, points: int = 50) -> LidarFrame:
    rng = np.random.default_rng(stamp_ns)
    return LidarFrame(
        stamp_ns=stamp_ns,
        frame_id="lidar",
        xyz=rng.normal(size=(points, 3)).astype(np.float32),
        intensity=rng.random(points, np.float32),
        ring=rng.integers(0, 16, points, dtype=np.uint16),
        time_s=rng.random(points, np.float32),
    )


def header1(stamp_ns: int, frame_id: str) -> Any:
    stamp = new1("builtin_interfaces/msg/Time", sec=stamp_ns // SECOND, nanosec=stamp_ns % SECOND)
    return new1("std_msgs/msg/Header", seq=77, stamp=stamp, frame_id=frame_id)


def ros1_bag(path: Path, messages: Sequence[tuple[str, str, int, Any]], latched: Sequence[str] = ()) -> Path:
    with Ros1Writer(path) as writer:
        connections: dict[str, Any] = {}
        for topic, msgtype, log_time_ns, message in messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(
                    topic, msgtype, typestore=ROS1, latching=int(topic in latched)
                )
            writer.write(connections[topic], log_time_ns, ROS1.serialize_ros1(message, msgtype))
    return path


def ros2_bag(
    path: Path,
    messages: Sequence[tuple[str, str, int, Any]],
    plugin: StoragePlugin = StoragePlugin.SQLITE3,
    compression: CompressionMode = CompressionMode.NONE,
) -> Path:
    writer = Ros2Writer(path, version=9, storage_plugin=plugin)
    writer.set_compression(compression, CompressionFormat.ZSTD)
    with writer:
        connections: dict[str, Any] = {}
        for topic, msgtype, log_time_ns, message in messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, msgtype, typestore=ROS2)
            writer.write(connections[topic], log_time_ns, ROS2.serialize_cdr(message, msgtype))
    return path


def texts(bag: Bag, topics: Sequence[str] | None = None) -> list[str]:
    return [message.message().data for message in bag.messages(topics)]


# ---- reading what others wrote


@pytest.mark.parametrize("plugin", list(StoragePlugin))
@pytest.mark.parametrize("compression", [CompressionMode.NONE, CompressionMode.FILE, CompressionMode.MESSAGE])
def test_ros2_folder_is_read_in_every_storage_and_compression(
    tmp_path: Path, plugin: StoragePlugin, compression: CompressionMode
) -> None:
    written = [("/b", STRING, 5, text2("first")), ("/a", STRING, 7, text2("second")), ("/b", STRING, 9, text2("third"))]
    with open_bag(ros2_bag(tmp_path / "bag", written, plugin, compression)) as bag:
        assert bag.topics == {"/b": STRING, "/a": STRING}
        assert (bag.start_ns, bag.end_ns, bag.duration_ns) == (5, 9, 4)
        assert (bag.message_count("/a"), bag.message_count("/b"), bag.message_count("/c")) == (1, 2, 0)
        assert texts(bag) == ["first", "second", "third"]
        assert texts(bag) == ["first", "second", "third"], "a second pass starts again"
        assert [message.log_time_ns for message in bag.messages()] == [5, 7, 9]


@pytest.mark.parametrize("plugin", list(StoragePlugin))
def test_storage_file_is_read_without_its_folder(tmp_path: Path, plugin: StoragePlugin) -> None:
    folder = ros2_bag(tmp_path / "bag", [("/a", STRING, 5, text2("x"))], plugin)
    (folder / "metadata.yaml").unlink()
    (file,) = folder.iterdir()
    for path in (file, folder):
        with open_bag(path) as bag:
            assert texts(bag) == ["x"]


def test_file_compressed_by_message_is_read_with_the_metadata_beside_it(tmp_path: Path) -> None:
    folder = ros2_bag(tmp_path / "bag", [("/a", STRING, 5, text2("x"))], StoragePlugin.MCAP, CompressionMode.MESSAGE)
    with open_bag(folder / "bag.mcap") as bag:
        assert texts(bag) == ["x"]


def test_file_compressed_as_a_whole_is_read_by_its_folder_and_says_so(tmp_path: Path) -> None:
    folder = ros2_bag(tmp_path / "bag", [("/a", STRING, 5, text2("x"))], StoragePlugin.MCAP, CompressionMode.FILE)
    (file,) = folder.glob("*.mcap.zstd")
    with pytest.raises(UserError, match=r"rosbag2 compressed as a whole; give its folder, .*bag$"):
        open_bag(file)


def test_only_the_wanted_topics_are_read(tmp_path: Path) -> None:
    written = [("/a", STRING, 1, text2("a")), ("/b", STRING, 2, text2("b")), ("/c", STRING, 3, text2("c"))]
    with open_bag(ros2_bag(tmp_path / "bag", written)) as bag:
        assert texts(bag, ["/c", "/a"]) == ["a", "c"]
        assert texts(bag, []) == []
        assert texts(bag, ["/nowhere"]) == []


def test_several_files_are_one_recording_in_order_of_time(tmp_path: Path) -> None:
    first = ros2_bag(tmp_path / "one", [("/a", STRING, 1, text2("a")), ("/a", STRING, 4, text2("d"))])
    second = ros1_bag(
        tmp_path / "two.bag",
        [("/a", STRING, 2, new1(STRING, data="b")), ("/c", STRING, 3, new1(STRING, data="c"))],
    )
    with open_bag([first, second]) as bag:
        assert texts(bag) == ["a", "b", "c", "d"]
        assert bag.message_count("/a") == 3
        assert (bag.start_ns, bag.end_ns) == (1, 4)


def test_bag_without_messages_spans_no_time(tmp_path: Path) -> None:
    with open_bag(ros2_bag(tmp_path / "bag", [])) as bag:
        assert (bag.topics, bag.start_ns, bag.duration_ns, texts(bag)) == ({}, 0, 0, [])


@pytest.mark.parametrize("name", ["sensor_msgs/Image", "sensor_msgs/msg/Image"])
def test_type_names_get_three_parts(name: str) -> None:
    assert normalized_type(name) == IMAGE


def test_unknown_type_does_not_keep_the_others_from_being_read(tmp_path: Path) -> None:
    path = tmp_path / "bag.mcap"
    with BagWriter(path) as writer:
        writer.write("/odd", "odd_msgs/msg/Odd", 1, b"\x00\x01\x00\x00\x2a")
        writer.write("/a", STRING, 2, text2("known"))
    with open_bag(path) as bag:
        assert bag.topics == {"/odd": "odd_msgs/msg/Odd", "/a": STRING}
        odd, known = bag.messages()
        assert known.message().data == "known"
        assert odd.cdr() == b"\x00\x01\x00\x00\x2a", "its bytes can still be played"
        with pytest.raises(UserError, match="/odd: nothing in the bag says what a odd_msgs/msg/Odd looks like"):
            odd.message()


@pytest.mark.parametrize("compression", [CompressionMode.NONE, CompressionMode.MESSAGE])
def test_type_of_which_rosbag2_found_no_definition_does_not_keep_the_others_from_being_read(
    tmp_path: Path, compression: CompressionMode
) -> None:
    path = tmp_path / "bag"
    writer = Ros2Writer(path, version=9, storage_plugin=StoragePlugin.SQLITE3)
    writer.set_compression(compression, CompressionFormat.ZSTD)
    with writer:
        odd = writer.add_connection("/odd", "odd_msgs/msg/Odd", msgdef="uint8 x", rihs01="RIHS01_0")
        known = writer.add_connection("/a", STRING, typestore=ROS2)
        writer.write(odd, 1, b"\x00\x01\x00\x00\x2a")
        writer.write(known, 2, ROS2.serialize_cdr(text2("known"), STRING))
    # As Jazzy's rosbag2 writes it, which knows the type by name alone.
    with closing(sqlite3.connect(path / "bag.db3")) as database, database:
        database.execute(
            "UPDATE message_definitions SET encoding = '', encoded_message_definition = '' WHERE topic_type LIKE 'odd%'"
        )
    with open_bag(path) as bag:
        assert bag.topics == {"/odd": "odd_msgs/msg/Odd", "/a": STRING}
        assert texts(bag, ["/a"]) == ["known"]
        (odd_message,) = bag.messages(["/odd"])
        assert odd_message.cdr() == b"\x00\x01\x00\x00\x2a", "its bytes can still be played"


def test_definition_that_cannot_be_parsed_costs_only_its_own_topic(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "bag"
    with Ros2Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        bad = writer.add_connection("/odd", "odd_msgs/msg/Odd", msgdef="float32 2 ]x[", rihs01="RIHS01_0")
        good = writer.add_connection("/a", STRING, typestore=ROS2)
        writer.write(bad, 1, b"\x00\x01\x00\x00")
        writer.write(good, 2, ROS2.serialize_cdr(text2("fine"), STRING))
    with open_bag(path) as bag:
        assert texts(bag, ["/a"]) == ["fine"]
    assert "odd_msgs/msg/Odd" in caplog.text


def test_type_of_ones_own_is_read_by_the_definition_in_the_bag(tmp_path: Path) -> None:
    types = get_typestore(Stores.ROS2_JAZZY)
    types.register(get_types_from_msg("std_msgs/Header header\nfloat32[] values\n", "my_msgs/msg/Mine"))
    stamp = types.types["builtin_interfaces/msg/Time"](sec=1, nanosec=2)
    mine = types.types["my_msgs/msg/Mine"](
        header=types.types["std_msgs/msg/Header"](stamp=stamp, frame_id="f"), values=np.array([1, 2], np.float32)
    )
    with Ros2Writer(tmp_path / "bag", version=9) as writer:
        connection = writer.add_connection("/mine", "my_msgs/msg/Mine", typestore=types)
        writer.write(connection, 1, types.serialize_cdr(mine, "my_msgs/msg/Mine"))
    with open_bag(tmp_path / "bag") as bag:
        (message,) = bag.messages()
        assert message.message().values.tolist() == [1, 2]


def test_types_defined_in_idl_are_read(tmp_path: Path) -> None:
    structs = {"Outer": "my_msgs::msg::Inner inner;", "Inner": "int32 number;"}
    idl = "".join(
        f"{'=' * 80}\nIDL: my_msgs/msg/{name}\nmodule my_msgs {{ module msg {{ struct {name} {{ {body} }}; }}; }};\n"
        for name, body in structs.items()
    )
    with Ros2Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection("/a", "my_msgs/msg/Outer", msgdef=idl, rihs01="RIHS01_0")
        writer.write(connection, 1, b"\x00\x01\x00\x00" + struct.pack("<i", -5))
    with open_bag(tmp_path / "bag") as bag:
        (message,) = bag.messages()
        assert message.message().inner.number == -5


def test_big_endian_message_is_published_little_endian(tmp_path: Path) -> None:
    path = tmp_path / "bag.mcap"
    with BagWriter(path) as writer:
        writer.write("/a", STRING, 1, bytes(ROS2.serialize_cdr(text2("x"), STRING, little_endian=False)))
    with open_bag(path) as bag:
        (message,) = bag.messages()
        assert message.message().data == "x"
        assert message.cdr() == b"\x00\x01\x00\x00\x02\x00\x00\x00x\x00"


def test_bytes_that_are_not_their_type_are_an_error_naming_the_topic(tmp_path: Path) -> None:
    path = tmp_path / "bag.mcap"
    with BagWriter(path) as writer:
        writer.write("/a", STRING, 1, b"\x00\x01\x00\x00\xff\xff\xff\x00x")
    with open_bag(path) as bag:
        (message,) = bag.messages()
        with pytest.raises(UserError, match="/a: 9 bytes are no std_msgs/msg/String"):
            message.message()


# ---- ROS 1


def cloud1(frame: LidarFrame) -> Any:
    content = cloud_from_frame(frame)
    return new1(
        POINT_CLOUD,
        header=header1(content.stamp_ns, content.frame_id),
        height=content.height,
        width=content.width,
        fields=[
            new1("sensor_msgs/msg/PointField", name=f.name, offset=f.offset, datatype=f.datatype, count=f.count)
            for f in content.fields
        ],
        is_bigendian=False,
        point_step=content.point_step,
        row_step=content.row_step,
        data=content.data,
        is_dense=True,
    )


def test_ros1_cloud_is_published_as_ros2_without_its_sequence_number(tmp_path: Path) -> None:
    frame = some_frame(3 * SECOND + 5)
    path = ros1_bag(tmp_path / "a.bag", [("/points", POINT_CLOUD, 9, cloud1(frame))])
    with open_bag(path) as bag:
        (message,) = bag.messages()
        assert (message.topic, message.msgtype, message.log_time_ns) == ("/points", POINT_CLOUD, 9)
        ours = read_cloud(message.message())
        published: Any = ROS2.deserialize_cdr(message.cdr(), POINT_CLOUD)
    assert message.cdr()[:4] == b"\x00\x01\x00\x00"
    assert not hasattr(published.header, "seq")
    for name in ("xyz", "intensity", "ring", "time_s"):
        np.testing.assert_array_equal(getattr(read_cloud(published), name), getattr(frame, name))
        np.testing.assert_array_equal(getattr(ours, name), getattr(frame, name))
    assert (read_cloud(published).stamp_ns, ours.frame_id) == (frame.stamp_ns, "lidar")


def test_ros1_camera_info_becomes_the_one_of_ros2(tmp_path: Path) -> None:
    region = new1("sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    matrix = np.array([500.0, 0, 320, 0, 500, 240, 0, 0, 1])
    info = new1(
        CAMERA_INFO,
        header=header1(1, "camera"),
        height=480,
        width=640,
        distortion_model="plumb_bob",
        D=np.arange(5.0) / 100,
        K=matrix,
        R=np.eye(3).ravel(),
        P=np.zeros(12),
        binning_x=0,
        binning_y=0,
        roi=region,
    )
    with open_bag(ros1_bag(tmp_path / "a.bag", [("/info", CAMERA_INFO, 1, info)])) as bag:
        (message,) = bag.messages()
        for camera in (message.message(), ROS2.deserialize_cdr(message.cdr(), CAMERA_INFO)):
            np.testing.assert_array_equal(read_camera_info(camera).matrix.ravel(), matrix)
            assert read_camera_info(camera).distortion.tolist() == [0, 0.01, 0.02, 0.03, 0.04]


def test_ros1_compressed_image_and_fixed_transforms_are_published_as_ros2_has_them(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    jpeg = np.frombuffer(jpeg_bytes(pixels), np.uint8)
    image = new1(COMPRESSED_IMAGE, header=header1(5, "camera"), format="rgb8; jpeg compressed bgr8", data=jpeg)
    transforms = [
        new1(
            "geometry_msgs/msg/TransformStamped",
            header=header1(5, "base"),
            child_frame_id=child,
            transform=new1(
                "geometry_msgs/msg/Transform",
                translation=new1("geometry_msgs/msg/Vector3", x=1.0, y=2.0, z=3.0),
                rotation=new1("geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=0.0, w=1.0),
            ),
        )
        for child in ("lidar", "camera")
    ]
    messages = [
        ("/tf_static", TF, 1, new1(TF, transforms=transforms[:1])),
        ("/tf_static", TF, 2, new1(TF, transforms=transforms[1:])),
        ("/camera/compressed", COMPRESSED_IMAGE, 3, image),
    ]
    with open_bag(ros1_bag(tmp_path / "a.bag", messages, latched=["/tf_static"])) as bag:
        assert bag.latched == {"/tf_static"}
        lidar, camera, compressed = (ROS2.deserialize_cdr(m.cdr(), m.msgtype) for m in bag.messages())
    children = [each.child_frame_id for message in (lidar, camera) for each in message.transforms]
    assert children == ["lidar", "camera"]
    np.testing.assert_array_equal(compressed.data, jpeg)
    assert compressed.header.frame_id == "camera" and read_image(compressed).pixels.shape == (6, 8, 3)


def test_ros1_transforms_of_the_old_package_have_their_new_type(tmp_path: Path) -> None:
    types = get_typestore(Stores.ROS1_NOETIC)
    types.register(get_types_from_msg("geometry_msgs/TransformStamped[] transforms\n", "tf/msg/tfMessage"))
    transform = new1(
        "geometry_msgs/msg/TransformStamped",
        header=header1(5, "map"),
        child_frame_id="base",
        transform=new1(
            "geometry_msgs/msg/Transform",
            translation=new1("geometry_msgs/msg/Vector3", x=1.0, y=2.0, z=3.0),
            rotation=new1("geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=0.0, w=1.0),
        ),
    )
    with Ros1Writer(tmp_path / "a.bag") as writer:
        connection = writer.add_connection("/tf", "tf/msg/tfMessage", typestore=types)
        raw = types.serialize_ros1(types.types["tf/msg/tfMessage"](transforms=[transform]), "tf/msg/tfMessage")
        writer.write(connection, 5, raw)
    with open_bag(tmp_path / "a.bag") as bag:
        assert bag.topics == {"/tf": TF}
        (message,) = bag.messages()
        assert message.message().transforms[0].child_frame_id == "base"
        published: Any = ROS2.deserialize_cdr(message.cdr(), TF)
        assert published.transforms[0].transform.translation.z == 3.0


def test_ros1_type_that_gained_fields_is_published_with_them_empty(tmp_path: Path) -> None:
    def vector(kind: str) -> Any:
        return new1(f"geometry_msgs/msg/{kind}", x=1.0, y=2.0, z=3.0)

    quaternion = new1("geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=0.0, w=1.0)
    marker = new1(
        "visualization_msgs/msg/Marker",
        header=header1(5, "map"),
        ns="n",
        id=4,
        type=1,
        action=0,
        pose=new1("geometry_msgs/msg/Pose", position=vector("Point"), orientation=quaternion),
        scale=vector("Vector3"),
        color=new1("std_msgs/msg/ColorRGBA", r=1.0, g=0.5, b=0.0, a=1.0),
        lifetime=new1("builtin_interfaces/msg/Duration", sec=1, nanosec=0),
        frame_locked=False,
        points=[vector("Point")],
        colors=[],
        text="hello",
        mesh_resource="",
        mesh_use_embedded_materials=False,
    )
    path = ros1_bag(tmp_path / "a.bag", [("/m", "visualization_msgs/msg/Marker", 5, marker)])
    with open_bag(path) as bag:
        (message,) = bag.messages()
        published: Any = ROS2.deserialize_cdr(message.cdr(), "visualization_msgs/msg/Marker")
    assert (published.text, published.points[0].y, published.uv_coordinates) == ("hello", 2.0, [])


def test_ros1_type_of_ones_own_is_published_by_its_definition(tmp_path: Path) -> None:
    types = get_typestore(Stores.ROS1_NOETIC)
    types.register(get_types_from_msg("Header header\nuint16[3] numbers\n", "my_msgs/msg/Mine"))
    mine = types.types["my_msgs/msg/Mine"](header=header1(5, "f"), numbers=np.array([1, 2, 3], np.uint16))
    with Ros1Writer(tmp_path / "a.bag") as writer:
        connection = writer.add_connection("/mine", "my_msgs/msg/Mine", typestore=types)
        writer.write(connection, 5, types.serialize_ros1(mine, "my_msgs/msg/Mine"))
    with open_bag(tmp_path / "a.bag") as bag:
        (message,) = bag.messages()
    # Header of CDR, sec, nanosec, length and text of the frame, three numbers.
    assert message.cdr() == b"\0\1\0\0" + struct.pack("<iII2s3H", 0, 5, 2, b"f\0", 1, 2, 3)


def test_latched_topics_are_known_in_both_kinds_of_bag(tmp_path: Path) -> None:
    messages = [("/map", STRING, 1, new1(STRING, data="m")), ("/a", STRING, 2, new1(STRING, data="a"))]
    with open_bag(ros1_bag(tmp_path / "a.bag", messages, latched=["/map"])) as bag:
        assert bag.latched == {"/map"}
    with BagWriter(tmp_path / "b.mcap") as writer:
        writer.write("/map", STRING, 1, text2("m"), latched=True)
        writer.write("/a", STRING, 1, text2("a"))
    with open_bag(tmp_path / "b.mcap") as bag:
        assert bag.latched == {"/map"}


# ---- writing


def write_everything(path: Path) -> None:
    camera = PinholeCamera(
        width=8, height=6, matrix=np.array([[5.0, 0, 4], [0, 5, 3], [0, 0, 1]]), distortion=np.arange(5) / 10
    )
    image = CameraImage(stamp_ns=2 * SECOND, frame_id="camera", pixels=np.arange(144, dtype=np.uint8).reshape(6, 8, 3))
    base_from_lidar = rigid(rotation_from_rpy(0.1, -0.2, 2.5), np.array([1.0, 2.0, 3.0]))
    with BagWriter(path) as writer:
        writer.write_tf_static({("base", "lidar"): base_from_lidar, ("base", "camera"): np.eye(4)}, SECOND)
        writer.write_json("/classes", '{"a": 1}', SECOND)
        writer.write_cloud("/points", cloud_from_frame(some_frame(2 * SECOND)))
        writer.write_image("/image", image)
        writer.write_image("/image/compressed", image, jpeg=True)
        writer.write_camera_info("/camera_info", camera, 2 * SECOND, "camera")
        writer.write_pose(base_from_lidar, 2 * SECOND + 7, odom_frame="odom", base_frame="base")


WRITTEN = {
    "/tf_static": TF,
    "/classes": STRING,
    "/points": POINT_CLOUD,
    "/image": IMAGE,
    "/image/compressed": COMPRESSED_IMAGE,
    "/camera_info": CAMERA_INFO,
    "/tf": TF,
    "/odom": ODOMETRY,
}


def test_written_file_is_read_by_rosbags_with_every_value(tmp_path: Path) -> None:
    write_everything(tmp_path / "a.mcap")
    found: dict[str, Any] = {}
    times_ns: dict[str, int] = {}
    with AnyReader([tmp_path / "a.mcap"]) as reader:
        for connection, time_ns, raw in reader.messages():
            found[connection.topic] = reader.deserialize(raw, connection.msgtype)
            times_ns[connection.topic] = time_ns
        assert {connection.topic: connection.msgtype for connection in reader.connections} == WRITTEN
    for name in ("xyz", "intensity", "ring", "time_s"):
        np.testing.assert_array_equal(
            getattr(read_cloud(found["/points"]), name), getattr(some_frame(2 * SECOND), name)
        )
    pixels = np.arange(144, dtype=np.uint8).reshape(6, 8, 3)
    np.testing.assert_array_equal(read_image(found["/image"]).pixels, pixels)
    assert read_image(found["/image/compressed"]).pixels.shape == (6, 8, 3)
    camera = read_camera_info(found["/camera_info"])
    assert camera.matrix.tolist() == [[5, 0, 4], [0, 5, 3], [0, 0, 1]]
    assert camera.distortion.tolist() == [0, 0.1, 0.2, 0.3, 0.4]
    assert found["/camera_info"].p.tolist() == [5, 0, 4, 0, 0, 5, 3, 0, 0, 0, 1, 0]
    assert found["/classes"].data == '{"a": 1}'
    assert times_ns["/points"] == 2 * SECOND and times_ns["/odom"] == 2 * SECOND + 7


def test_written_poses_are_those_of_the_matrices(tmp_path: Path) -> None:
    write_everything(tmp_path / "a.mcap")
    with open_bag(tmp_path / "a.mcap") as bag:
        found = {message.topic: message.message() for message in bag.messages()}
    lidar, camera = found["/tf_static"].transforms
    (base,) = found["/tf"].transforms
    odometry = found["/odom"]
    assert (lidar.header.frame_id, lidar.child_frame_id, camera.child_frame_id) == ("base", "lidar", "camera")
    assert (base.header.frame_id, base.child_frame_id, odometry.child_frame_id) == ("odom", "base", "base")
    assert base.header.stamp.nanosec == 7
    # The quaternion of roll 0.1, pitch -0.2, yaw 2.5 by half angles (Diebel 2006, equation 290).
    cr, sr, cp, sp, cy, sy = (f(a / 2) for a in (0.1, -0.2, 2.5) for f in (np.cos, np.sin))
    expected = [
        sr * cp * cy - cr * sp * sy,
        cr * sp * cy + sr * cp * sy,
        cr * cp * sy - sr * sp * cy,
        cr * cp * cy + sr * sp * sy,
    ]
    for rotation in (lidar.transform.rotation, base.transform.rotation, odometry.pose.pose.orientation):
        np.testing.assert_allclose([rotation.x, rotation.y, rotation.z, rotation.w], expected, atol=1e-12)
    for place in (lidar.transform.translation, base.transform.translation, odometry.pose.pose.position):
        assert [place.x, place.y, place.z] == [1, 2, 3]


def test_written_file_is_an_indexed_mcap_that_describes_itself(tmp_path: Path) -> None:
    write_everything(tmp_path / "a.mcap")
    with (tmp_path / "a.mcap").open("rb") as file:
        reader = make_reader(file, validate_crcs=True)
        summary = reader.get_summary()
        assert reader.get_header().profile == "ros2"
        assert len(list(reader.iter_messages())) == 8
    assert summary is not None and summary.statistics is not None and summary.statistics.message_count == 8
    assert summary.chunk_indexes
    for schema in summary.schemas.values():
        assert schema.encoding == "ros2msg" and b"\n" in schema.data
    latched = {channel.topic for channel in summary.channels.values() if "durability: 1" in str(channel.metadata)}
    assert latched == {"/tf_static", "/classes"}


def test_messages_are_published_with_the_bytes_that_were_written(tmp_path: Path) -> None:
    raw = bytes(ROS2.serialize_cdr(text2("bytes"), STRING))
    with BagWriter(tmp_path / "a.mcap") as writer:
        writer.write("/a", STRING, 1, raw)
        writer.write("/a", STRING, 2, memoryview(raw))
    with open_bag(tmp_path / "a.mcap") as bag:
        assert [message.cdr() for message in bag.messages()] == [raw, raw]


def test_class_ids_are_written_as_a_grey_image_of_their_shape(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 255], [7, 8, 9]], np.uint8)
    with BagWriter(tmp_path / "a.mcap") as writer:
        writer.write_class_ids("/ids", ids, 5, "lidar")
    with open_bag(tmp_path / "a.mcap") as bag:
        (message,) = bag.messages()
    image = message.message()
    assert (image.encoding, image.height, image.width, image.step) == ("mono8", 2, 3, 3)
    assert (image.data.tolist(), image.header.frame_id) == ([0, 1, 255, 7, 8, 9], "lidar")


def test_cloud_can_be_logged_at_another_time_than_its_stamp(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "a.mcap") as writer:
        writer.write_cloud("/points", cloud_from_frame(some_frame(3)), log_time_ns=11)
    with open_bag(tmp_path / "a.mcap") as bag:
        (message,) = bag.messages()
    assert (message.log_time_ns, cloud_content(message.message()).stamp_ns) == (11, 3)


def test_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.mcap").write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        BagWriter(tmp_path / "a.mcap")
    assert (tmp_path / "a.mcap").read_text() == "precious"


@pytest.mark.parametrize("name", ["a.bag", "a", "no/such/folder/a.mcap"])
def test_place_that_cannot_be_written_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=name):
        BagWriter(tmp_path / name)


def test_closing_twice_is_closing_once(tmp_path: Path) -> None:
    writer = BagWriter(tmp_path / "a.mcap")
    writer.write("/a", STRING, 1, text2("x"))
    writer.close()
    size = (tmp_path / "a.mcap").stat().st_size
    writer.close()
    assert (tmp_path / "a.mcap").stat().st_size == size


# ---- damage


def test_killed_writer_loses_at_most_half_a_second(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = BagWriter(tmp_path / "a.mcap")
    for tenth in range(30):
        writer.write("/a", STRING, tenth * SECOND // 10, text2(str(tenth)))
    (tmp_path / "killed.mcap").write_bytes((tmp_path / "a.mcap").read_bytes())
    with caplog.at_level(logging.WARNING), open_bag(tmp_path / "killed.mcap") as bag:
        assert texts(bag) == [str(tenth) for tenth in range(26)]
        assert bag.message_count("/a") == 26
        assert (bag.start_ns, bag.end_ns) == (0, 2_500_000_000)
    assert "killed.mcap" in caplog.text and "26 messages" in caplog.text
    writer.close()


def test_time_that_jumps_back_is_flushed_too(tmp_path: Path) -> None:
    writer = BagWriter(tmp_path / "a.mcap")
    for second in (100, 101, 1, 1):
        writer.write("/a", STRING, second * SECOND, text2(str(second)))
    (tmp_path / "killed.mcap").write_bytes((tmp_path / "a.mcap").read_bytes())
    with open_bag(tmp_path / "killed.mcap") as bag:
        assert sorted(texts(bag)) == ["1", "100", "101"]
    writer.close()


def damaged_messages(path: Path) -> list[bytes]:
    """Read what can be read; anything but UserError is a failure."""
    found: list[bytes] = []
    try:
        with open_bag(path) as bag:
            for message in bag.messages():
                found.append(message.cdr())
    except UserError as error:
        assert path.name in str(error) or "/a" in str(error) or "/b" in str(error)
    return found


def lively_messages() -> list[tuple[str, str, int, Any]]:
    return [(("/a", "/b")[k % 2], STRING, k * SECOND // 4, text2(f"{k}-" + "x" * 40)) for k in range(20)]


def undamaged(kind: str, folder: Path) -> bytes:
    if kind == ".bag":
        messages = [
            (topic, kind1, time, new1(STRING, data=text.data)) for topic, kind1, time, text in lively_messages()
        ]
        return ros1_bag(folder / "a.bag", messages).read_bytes()
    if kind == ".db3":
        return (ros2_bag(folder / "a", lively_messages()) / "a.db3").read_bytes()
    with BagWriter(folder / "a.mcap") as writer:
        for message in lively_messages():
            writer.write(*message)
    return (folder / "a.mcap").read_bytes()


@pytest.mark.parametrize("kind", [".mcap", ".bag", ".db3"])
def test_truncated_file_gives_a_beginning_of_its_messages_or_an_error(tmp_path: Path, kind: str) -> None:
    whole = undamaged(kind, tmp_path)
    expected = [bytes(ROS2.serialize_cdr(message, STRING)) for _, _, _, message in lively_messages()]
    rng = np.random.default_rng(0)
    path = tmp_path / f"cut{kind}"
    for length in [0, 1, 7, 8, 9, 40, *rng.integers(0, len(whole), 40), len(whole) - 1]:
        path.write_bytes(whole[:length])
        found = damaged_messages(path)
        assert found == expected[: len(found)], length
    path.write_bytes(whole)
    assert damaged_messages(path) == expected


def test_mcap_cut_in_its_index_loses_no_message(tmp_path: Path) -> None:
    whole = undamaged(".mcap", tmp_path)
    path = tmp_path / "cut.mcap"
    path.write_bytes(whole[:-30])
    assert len(damaged_messages(path)) == 20


@pytest.mark.parametrize("kind", [".mcap", ".bag", ".db3"])
def test_file_with_flipped_bytes_gives_messages_or_an_error(tmp_path: Path, kind: str) -> None:
    whole = undamaged(kind, tmp_path)
    rng = np.random.default_rng(1)
    path = tmp_path / f"flipped{kind}"
    for _ in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        assert len(damaged_messages(path)) <= 20


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("chunked", [True, False])
def test_mcap_of_another_writer_is_read_whatever_it_leaves_out(tmp_path: Path, indexed: bool, chunked: bool) -> None:
    path = tmp_path / "a.mcap"
    writer = Writer(
        str(path),
        compression=CompressionType.ZSTD,
        index_types=IndexType.ALL if indexed else IndexType.NONE,
        use_chunking=chunked,
        use_statistics=indexed,
        use_summary_offsets=indexed,
        repeat_schemas=indexed,
        repeat_channels=indexed,
    )
    writer.start()
    foreign = writer.register_schema("Foreign", "jsonschema", b"{}")
    text = writer.register_schema(STRING, "ros2msg", b"string data")
    log = writer.register_channel("/json", "json", foreign)
    data = writer.register_channel("/a", "cdr", text)
    for number in range(3):
        writer.add_message(log, number, b"{}", number)
        writer.add_message(data, number, bytes(ROS2.serialize_cdr(text2(str(number)), STRING)), number)
    writer.finish()
    with open_bag(path) as bag:
        assert texts(bag, ["/a"]) == ["0", "1", "2"]
        assert bag.message_count("/a") == 3


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_unchunked_mcap_cut_inside_a_message_loses_just_that_one(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.mcap"
    with path.open("wb") as file:
        writer = Writer(file, use_chunking=False)
        writer.start("ros2")
        channel = writer.register_channel("/a", "cdr", writer.register_schema(STRING, "ros2msg", b"string data"))
        for number in range(3):
            message = bytes(ROS2.serialize_cdr(text2(f"{number}" * 8), STRING))
            writer.add_message(channel, number, message, number)
        length = file.tell()
        writer.finish()
    path.write_bytes(path.read_bytes()[: length - cut])
    with open_bag(path) as bag:
        assert texts(bag) == ["00000000", "11111111"]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.mcap", b"", r"a\.mcap cannot be read"),
        ("a.mcap", b"#!/bin/sh\n" * 20, r"a\.mcap cannot be read"),
        ("a.db3", b"SQLite format 3\0" + b"\xff" * 200, r"a\.db3 cannot be read"),
        ("a.bag", b"#ROSBAG V2.0\n" + b"\0" * 50, r"a\.bag cannot be read.*reindex"),
        ("a.bag", b"", r"a\.bag cannot be read"),
        ("a.txt", b"", r"a\.txt is no recording"),
    ],
)
def test_file_that_is_no_recording_is_named(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=words):
        open_bag(tmp_path / name)


def test_missing_recording_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no recording .*nowhere\.bag"):
        open_bag(tmp_path / "nowhere.bag")


def test_folder_without_recordings_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no ROS 2 bag"):
        open_bag(tmp_path)


def test_folder_that_misses_one_of_its_files_is_named(tmp_path: Path) -> None:
    folder = ros2_bag(tmp_path / "bag", [("/a", STRING, 5, text2("x"))])
    (folder / "bag.db3").unlink()
    with pytest.raises(UserError, match=r"bag cannot be read: .*missing.*bag\.db3"):
        open_bag(folder)


# ---- real recordings


RECORDINGS = [
    ("07_*/pointcloud2_bag_derived", {"/velodyne_points": (POINT_CLOUD, 4)}),
    ("07_*/pointcloud2_bag_derived/*.db3", {"/velodyne_points": (POINT_CLOUD, 4)}),
    ("07_*/packets_bag_original", {"/velodyne_packets": ("velodyne_msgs/msg/VelodyneScan", 4)}),
    ("08_*/packets_bag_original", {"/pandar_packets": ("pandar_msgs/msg/PandarScan", 4)}),
    (
        "09_*/test.bag",
        {
            "/luminar_pointcloud": (POINT_CLOUD, 5),
            "/base_pose_ground_truth": (ODOMETRY, 5),
            "/base_scan": ("sensor_msgs/msg/LaserScan", 5),
        },
    ),
    ("10_*/PointCloud2.bag", {"/pointcloud2": (POINT_CLOUD, 1)}),
    ("11_*/", {"/camera/image_raw": (IMAGE, 2)}),
    ("11_*/soccer_goal_12.mcap", {"/camera/image_raw": (IMAGE, 2)}),
]


def recording(shared_data: Path, pattern: str) -> Path:
    (path,) = shared_data.glob(pattern)
    return path


@pytest.mark.parametrize(("pattern", "content"), RECORDINGS)
def test_recording_has_the_topics_and_counts_its_source_states(
    shared_data: Path, pattern: str, content: dict[str, tuple[str, int]]
) -> None:
    with open_bag(recording(shared_data, pattern)) as bag:
        assert bag.topics == {topic: kind for topic, (kind, _) in content.items()}
        read: dict[str, int] = {}
        for message in bag.messages():
            assert bag.start_ns <= message.log_time_ns <= bag.end_ns
            assert message.cdr()[:2] == b"\x00\x01"
            read[message.topic] = read.get(message.topic, 0) + 1
        for topic, (_, count) in content.items():
            assert read[topic] == bag.message_count(topic) == count


def clouds(shared_data: Path, pattern: str) -> list[LidarFrame]:
    with open_bag(recording(shared_data, pattern)) as bag:
        return [read_cloud(message.message()) for message in bag.messages(cloud_topics(bag))]


def test_recorded_velodyne_clouds_have_the_rings_and_times_of_their_sensor(shared_data: Path) -> None:
    for frame in clouds(shared_data, "07_*/pointcloud2_bag_derived"):
        assert frame.ring is not None and frame.time_s is not None
        assert np.unique(frame.ring).tolist() == list(range(1, 16))
        # A sweep of 0.1 s that ends at the stamp, up to the firing in work.
        assert -0.101 < frame.time_s.min() < -0.09 and -0.001 < frame.time_s.max() < 0.001
        assert 8 < np.ptp(frame.xyz[:, 0]) < 12 and 18 < np.ptp(frame.xyz[:, 1]) < 22


def test_recorded_luminar_clouds_have_times_in_two_integers(shared_data: Path) -> None:
    frames = clouds(shared_data, "09_*/test.bag")
    assert [frame.frame_id for frame in frames] == ["luminar_lidar"] * 5
    for frame in frames:
        assert 35_000 < len(frame) < 37_000
        assert frame.time_s is not None and frame.time_s.min() > -0.1 and frame.time_s.max() <= 0


def test_recorded_padded_cloud_lies_where_its_source_says(shared_data: Path) -> None:
    (frame,) = clouds(shared_data, "10_*/PointCloud2.bag")
    assert (len(frame), frame.frame_id) == (124914, "near_field")
    np.testing.assert_allclose(frame.xyz[:, :2].min(axis=0), (373, -1336), atol=0.6)
    np.testing.assert_allclose(frame.xyz[:, :2].max(axis=0), (533, -1121), atol=0.6)
    assert frame.ring is not None and frame.ring.max() == 63


def test_recorded_video_is_read_through_its_compression(shared_data: Path) -> None:
    with open_bag(recording(shared_data, "11_*/")) as bag:
        images = [read_image(message.message()) for message in bag.messages()]
    assert [image.pixels.shape for image in images] == [(480, 640, 3)] * 2
    assert images[0].frame_id == "camera"
    assert 30 < images[0].pixels.mean() < 220


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("07_*/packets_bag_original", ("/velodyne_packets", "velodyne_msgs/msg/VelodyneScan", "velodyne_pointcloud")),
        ("08_*/packets_bag_original", ("/pandar_packets", "pandar_msgs/msg/PandarScan", "hesai_ros_driver", "nebula")),
        ("11_*/", ("no topic of type sensor_msgs/msg/PointCloud2", "/camera/image_raw (sensor_msgs/msg/Image)")),
    ],
)
def test_recording_without_clouds_says_what_it_has_and_what_helps(
    shared_data: Path, pattern: str, words: tuple[str, ...]
) -> None:
    with open_bag(recording(shared_data, pattern)) as bag:
        assert cloud_topics(bag) == []
        reason = why_no_clouds(bag)
    for word in words:
        assert word in reason


def test_topics_are_found_by_their_type(shared_data: Path) -> None:
    with open_bag(recording(shared_data, "09_*/test.bag")) as bag:
        assert topics_of_type(bag, ODOMETRY) == ["/base_pose_ground_truth"]


@pytest.mark.parametrize("pattern", ["07_*/pointcloud2_bag_derived", "09_*/test.bag", "10_*/PointCloud2.bag"])
def test_ros2_itself_reads_the_published_bytes_of_every_recorded_cloud(shared_data: Path, pattern: str) -> None:
    serialization = pytest.importorskip("rclpy.serialization")
    messages = pytest.importorskip("sensor_msgs.msg")
    with open_bag(recording(shared_data, pattern)) as bag:
        for message in bag.messages(cloud_topics(bag)):
            theirs = cloud_content(serialization.deserialize_message(message.cdr(), messages.PointCloud2))
            ours = cloud_content(message.message())
            assert (theirs.stamp_ns, theirs.frame_id, theirs.fields) == (ours.stamp_ns, ours.frame_id, ours.fields)
            np.testing.assert_array_equal(theirs.data, ours.data)


def test_ros2_itself_reads_every_written_message(tmp_path: Path) -> None:
    serialization = pytest.importorskip("rclpy.serialization")
    sensor_msgs = pytest.importorskip("sensor_msgs.msg")
    nav_msgs = pytest.importorskip("nav_msgs.msg")
    std_msgs = pytest.importorskip("std_msgs.msg")
    write_everything(tmp_path / "a.mcap")
    classes = {
        POINT_CLOUD: sensor_msgs.PointCloud2,
        IMAGE: sensor_msgs.Image,
        COMPRESSED_IMAGE: sensor_msgs.CompressedImage,
        CAMERA_INFO: sensor_msgs.CameraInfo,
        ODOMETRY: nav_msgs.Odometry,
        STRING: std_msgs.String,
    }
    with open_bag(tmp_path / "a.mcap") as bag:
        found = {
            message.topic: serialization.deserialize_message(message.cdr(), classes[message.msgtype])
            for message in bag.messages()
            if message.msgtype in classes
        }
    assert len(found) == 6
    np.testing.assert_array_equal(read_cloud(found["/points"]).xyz, some_frame(2 * SECOND).xyz)
    np.testing.assert_array_equal(read_image(found["/image"]).pixels.ravel(), np.arange(144))
    assert read_image(found["/image/compressed"]).pixels.shape == (6, 8, 3)
    assert read_camera_info(found["/camera_info"]).distortion.tolist() == [0, 0.1, 0.2, 0.3, 0.4]
    assert found["/odom"].pose.pose.position.z == 3.0
    assert found["/classes"].data == '{"a": 1}'


def test_a_new_recording_has_its_name_only_when_it_is_complete(tmp_path: Path) -> None:
    path, part = tmp_path / "new.mcap", tmp_path / "new.part.mcap"
    with contextlib.suppress(KeyboardInterrupt), new_recording(path) as writer:
        writer.write_json("/said", "{}", 1)
        raise KeyboardInterrupt
    assert part.is_file() and not path.exists()
    with new_recording(path) as writer:
        writer.write_json("/said", "{}", 2)
        assert not path.exists()
    assert not part.exists()
    with open_bag(path) as bag:
        assert bag.start_ns == 2
    with (
        pytest.raises(UserError, match=r"other.mcap is not finished: .*No space left"),
        new_recording(tmp_path / "other.mcap"),
    ):
        raise OSError(28, "No space left on device")
    for refused, said in (
        (path, "exists already"),
        (tmp_path / "a.bag", "are written as .mcap"),
        (tmp_path / "b" / "a.mcap", "cannot write"),
        (path / "a.mcap", "cannot write"),
    ):
        with pytest.raises(UserError, match=said), new_recording(refused):
            pass


def test_what_a_killed_recording_says_of_its_channels_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "killed.mcap"
    with BagWriter(path) as writer:
        for second in range(1, 200):
            writer.write_json("/said", "{}", second * SECOND)
            writer.write_json("/heard", "{}", second * SECOND)
    path.write_bytes(path.read_bytes()[:-200])  # without the end of its index
    read: list[str] = []
    safe_load = yaml.safe_load
    monkeypatch.setattr(yaml, "safe_load", lambda text: read.append(text) or safe_load(text))
    with open_bag(path) as bag:
        assert bag.message_count("/said") == bag.message_count("/heard") == 199
        assert "/said" in bag.latched
    assert len(read) == 2
