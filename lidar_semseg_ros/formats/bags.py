"""Recordings: ROS 1 and ROS 2 bags are read, MCAP files are written; needs no ROS installation."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
import yaml

from lidar_semseg_ros.core.camera import PinholeCamera
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import CameraImage
from lidar_semseg_ros.core.geometry import quaternion_from_rotation
from lidar_semseg_ros.formats.config_files import read_yaml
from lidar_semseg_ros.formats.images import jpeg_bytes
from lidar_semseg_ros.formats.pointcloud2 import CloudContent

if TYPE_CHECKING:
    import mcap.records
    from rosbags.interfaces import Connection, MessageDefinition
    from rosbags.typesys.store import Typestore

logger = logging.getLogger(__name__)

POINT_CLOUD = "sensor_msgs/msg/PointCloud2"
IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
TF = "tf2_msgs/msg/TFMessage"
ODOMETRY = "nav_msgs/msg/Odometry"
STRING = "std_msgs/msg/String"

RENAMED_TYPES = {"tf/msg/tfMessage": TF}
"""Types of ROS 1 that ROS 2 has under another name, with the same fields."""

PACKET_DRIVERS = {
    "velodyne_msgs/msg/VelodyneScan": "velodyne_pointcloud",
    "pandar_msgs/msg/PandarScan": "hesai_ros_driver or nebula",
    "hesai_ros_driver/msg/UdpFrame": "hesai_ros_driver",
    "nebula_msgs/msg/NebulaPackets": "nebula",
    "ouster_ros/msg/PacketMsg": "ouster_ros",
    "ouster_sensor_msgs/msg/PacketMsg": "ouster_ros",
    "rslidar_msg/msg/RslidarPacket": "rslidar_sdk",
}
"""Types that hold a lidar's packets as they came over the network, and the drivers that make clouds of them."""

FLUSH_PERIOD_NS = 500_000_000
"""How much recorded time a process that is killed may lose."""

LATCHED_QOS = """\
- history: 1
  depth: 100
  reliability: 1
  durability: 1
  deadline: {sec: 9223372036, nsec: 854775807}
  lifespan: {sec: 9223372036, nsec: 854775807}
  liveliness: 1
  liveliness_lease_duration: {sec: 9223372036, nsec: 854775807}
  avoid_ros_namespace_conventions: false
"""
"""Keep last, reliable, transient local, as rosbag2 writes it: in numbers, for Humble knows no names."""


def normalized_type(name: str) -> str:
    """Write a type as ROS 2 does since Eloquent: 'sensor_msgs/Image' becomes 'sensor_msgs/msg/Image'."""
    package, _, rest = name.partition("/")
    return name if "/" in rest else f"{package}/msg/{rest}"


class _Codec(Protocol):
    """How the bytes of one file become messages."""

    def decoded(self, raw: bytes, msgtype: str) -> Any:
        """Make a message object."""

    def cdr(self, raw: bytes, msgtype: str) -> bytes:
        """Make what a ROS 2 publisher sends."""


@dataclass(frozen=True)
class BagMessage:
    """One recorded message, still in the bytes of its bag."""

    topic: str
    msgtype: str
    log_time_ns: int
    _raw: bytes = field(repr=False)
    _codec: _Codec = field(repr=False)

    def message(self) -> Any:
        """Decode into an object with the fields of the message; UserError if the bytes or the type are unknown."""
        return self._converted(self._codec.decoded)

    def cdr(self) -> bytes:
        """Give the message as ROS 2 sends it: little-endian CDR behind its 4 bytes of header.

        What a type gained from ROS 1 to ROS 2 is zero, what it lost is dropped. UserError as in `message`.
        """
        return self._converted(self._codec.cdr)

    def _converted(self, convert: Any) -> Any:
        try:
            return convert(self._raw, self.msgtype)
        except KeyError as error:
            raise UserError(f"{self.topic}: nothing in the bag says what a {error.args[0]} looks like") from error
        except Exception as error:  # the decoders stumble in many ways over bytes that are not what they claim to be
            raise UserError(f"{self.topic}: {len(self._raw)} bytes are no {self.msgtype}: {error}") from error


class _Ros2Codec:
    def __init__(self, definitions: Mapping[str, MessageDefinition]) -> None:
        self._definitions = definitions

    @cached_property
    def _types(self) -> Typestore:
        return _typestore(self._definitions, is_ros1=False)

    def decoded(self, raw: bytes, msgtype: str) -> Any:
        return self._types.deserialize_cdr(raw, msgtype)

    def cdr(self, raw: bytes, msgtype: str) -> bytes:
        if raw[:2] == b"\x00\x01":
            return bytes(raw)
        return bytes(self._types.serialize_cdr(self.decoded(raw, msgtype), msgtype, little_endian=True))


class _Ros1Codec:
    def __init__(self, definitions: Mapping[str, MessageDefinition]) -> None:
        self._definitions = definitions
        self._same_fields: dict[str, bool] = {}
        self._plans: dict[str, object] = {}

    @cached_property
    def _types(self) -> Typestore:
        return _typestore(self._definitions, is_ros1=True)

    @cached_property
    def _ros2_types(self) -> Typestore:
        from rosbags.typesys import Stores, get_typestore

        types = get_typestore(Stores.ROS2_JAZZY)
        types.register({name: kind for name, kind in self._types.fielddefs.items() if name not in types.fielddefs})
        return types

    def decoded(self, raw: bytes, msgtype: str) -> Any:
        return self._types.deserialize_ros1(raw, msgtype)

    def cdr(self, raw: bytes, msgtype: str) -> bytes:
        from rosbags.convert.converter import is_same_wireformat, migrate_bytes

        ours, theirs = self._types, self._ros2_types
        if msgtype not in self._same_fields:
            self._same_fields[msgtype] = is_same_wireformat(ours, theirs, msgtype, msgtype)
        if self._same_fields[msgtype]:
            return bytes(theirs.ros1_to_cdr(raw, msgtype))
        return bytes(migrate_bytes(ours, theirs, msgtype, msgtype, self._plans, raw, src_is2=False, dst_is2=True))


def _typestore(definitions: Mapping[str, MessageDefinition], is_ros1: bool) -> Typestore:
    """Know the types that a file defines, {type: definition}, and for the rest those of ROS itself."""
    from rosbags.typesys import Stores, TypesysError, get_typestore

    own = get_typestore(Stores.ROS1_NOETIC if is_ros1 else Stores.ROS2_JAZZY)
    defined: dict[str, Any] = {}
    for msgtype, definition in definitions.items():
        try:
            defined |= _parsed(msgtype, definition)
        except Exception as error:  # one definition that cannot be read must not cost the other topics
            logger.warning("the definition of %s in the bag cannot be read: %s", msgtype, error)
    try:
        own.register(defined)
        return own
    except TypesysError:  # a type of ROS itself had other fields when the bag was recorded
        types = get_typestore(Stores.EMPTY)
        types.register({**own.fielddefs, **defined})
        return types


def _parsed(msgtype: str, definition: MessageDefinition) -> Mapping[str, Any]:
    from rosbags.interfaces import MessageDefinitionFormat
    from rosbags.typesys import get_types_from_idl, get_types_from_msg

    if definition.format is MessageDefinitionFormat.MSG:
        return get_types_from_msg(definition.data, msgtype)
    types: dict[str, Any] = {}
    if definition.format is MessageDefinitionFormat.IDL:
        # Several types come one behind the other, each headed by a rule and the line 'IDL: package/msg/Name'.
        for part in filter(None, definition.data.split("=" * 80 + "\n")):
            types |= get_types_from_idl(part.partition("\n")[2] if part.startswith("IDL: ") else part)
    return types


@dataclass(frozen=True)
class _Channel:
    """The messages of one type on one topic of one file."""

    topic: str
    msgtype: str
    count: int
    is_latched: bool


class _File(Protocol):
    """One opened file, or folder, of a recording."""

    channels: list[_Channel]
    span_ns: tuple[int, int] | None

    def messages(self, topics: Collection[str] | None) -> Iterator[BagMessage]:
        """Yield the messages of these topics, or of all."""

    def close(self) -> None:
        """Let go of the file."""


class _RosbagsFile:
    """A recording that rosbags opens: ROS 1 .bag, ROS 2 folder, indexed .mcap, .db3."""

    def __init__(self, path: Path) -> None:
        from rosbags.rosbag1 import Reader as Ros1Reader
        from rosbags.rosbag2 import Reader as Ros2Reader

        self._path = path
        is_ros1 = path.suffix == ".bag"
        self._reader = Ros1Reader(path) if is_ros1 else Ros2Reader(path)
        self._reader.open()
        connections = self._reader.connections
        definitions = {_type_of(c): c.msgdef for c in connections}
        self._codec: _Codec = _Ros1Codec(definitions) if is_ros1 else _Ros2Codec(definitions)
        self.channels = [_Channel(c.topic, _type_of(c), c.msgcount, _is_latched(c)) for c in connections]
        reader = self._reader
        self.span_ns = (reader.start_time, reader.end_time - 1) if reader.message_count else None

    def messages(self, topics: Collection[str] | None) -> Iterator[BagMessage]:
        wanted = [c for c in self._reader.connections if topics is None or c.topic in topics]
        if not wanted:  # which rosbags would take for all
            return
        try:
            for connection, log_time_ns, raw in self._reader.messages(wanted):
                yield BagMessage(connection.topic, _type_of(connection), log_time_ns, raw, self._codec)
        except Exception as error:  # each storage format fails in its own way on damaged bytes
            raise UserError(f"{self._path} is damaged: {error}; the messages before that were read") from error

    def close(self) -> None:
        self._reader.close()


def _type_of(connection: Connection) -> str:
    name = normalized_type(connection.msgtype)
    return RENAMED_TYPES.get(name, name)


def _is_latched(connection: Connection) -> bool:
    from rosbags.interfaces import ConnectionExtRosbag1, QosDurability

    if isinstance(connection.ext, ConnectionExtRosbag1):
        return bool(connection.ext.latching)
    return any(qos.durability is QosDurability.TRANSIENT_LOCAL for qos in connection.ext.offered_qos_profiles)


class _WholeReads:
    """A file whose reads give all they were asked for; the parser of MCAP takes a short one for the whole."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise EOFError("the file ends before its footer")
        return data


class _ScannedMcap:
    """An MCAP file without a usable index, read from its start up to its end or its first damage."""

    def __init__(self, path: Path, reason: str) -> None:
        self._path = path
        counts: dict[_Channel, int] = {}
        definitions: dict[str, MessageDefinition] = {}
        times_ns = (2**63 - 1, 0)
        end = "its end"
        try:
            for schema, channel, message in self._records():
                key = _channel_of(schema, channel)
                counts[key] = counts.get(key, 0) + 1
                definitions.setdefault(normalized_type(schema.name), _definition_of(schema))
                times_ns = min(times_ns[0], message.log_time), max(times_ns[1], message.log_time)
        except Exception as error:  # whatever the damage does to the parser
            end = f"its damage ({error})"
        self._count = sum(counts.values())
        if not self._count:
            raise UserError(f"{path} cannot be read: {reason}; it is damaged from its start or no recording of ROS 2")
        logger.warning("%s: %s; it is read up to %s, %d messages", path, reason, end, self._count)
        self._codec = _Ros2Codec(definitions)
        self.channels = [replace(channel, count=count) for channel, count in counts.items()]
        self.span_ns: tuple[int, int] | None = times_ns

    def messages(self, topics: Collection[str] | None) -> Iterator[BagMessage]:
        for schema, channel, message in islice(self._records(), self._count):
            if topics is None or channel.topic in topics:
                msgtype = normalized_type(schema.name)
                yield BagMessage(channel.topic, msgtype, message.log_time, message.data, self._codec)

    def close(self) -> None:
        """Do nothing: the file is open only while it is read."""

    def _records(self) -> Iterator[tuple[mcap.records.Schema, mcap.records.Channel, mcap.records.Message]]:
        """Yield the messages in CDR with what describes them; raise whatever the parser does at the damage."""
        from mcap.records import Channel, Message, Schema
        from mcap.stream_reader import StreamReader

        schemas: dict[int, Schema] = {}
        channels: dict[int, Channel] = {}
        with self._path.open("rb") as file:
            size = self._path.stat().st_size
            reader = StreamReader(_WholeReads(file), validate_crcs=True, record_size_limit=size)  # type: ignore[arg-type]
            for record in reader.records:
                if isinstance(record, Schema):
                    schemas[record.id] = record
                elif isinstance(record, Channel) and record.message_encoding == "cdr" and record.schema_id in schemas:
                    channels[record.id] = record
                elif isinstance(record, Message) and record.channel_id in channels:
                    channel = channels[record.channel_id]
                    yield schemas[channel.schema_id], channel, record


def _channel_of(schema: mcap.records.Schema, channel: mcap.records.Channel) -> _Channel:
    profiles = yaml.safe_load(channel.metadata.get("offered_qos_profiles", "")) or []
    is_latched = any(profile.get("durability") in (1, "transient_local") for profile in profiles)
    return _Channel(channel.topic, normalized_type(schema.name), 0, is_latched)


def _definition_of(schema: mcap.records.Schema) -> MessageDefinition:
    from rosbags.interfaces import MessageDefinition, MessageDefinitionFormat

    formats = {"ros2msg": MessageDefinitionFormat.MSG, "ros2idl": MessageDefinitionFormat.IDL}
    return MessageDefinition(formats.get(schema.encoding, MessageDefinitionFormat.NONE), schema.data.decode())


class Bag:
    """An opened recording of one or several files; close it, or use it in a with statement.

    topics: {topic: type}, types as 'package/msg/Name', in the order of the files.
    latched: the topics whose last messages a late subscriber expects, such as /tf_static.
    start_ns, end_ns: log times of the first and the last message; 0 if there is none.
    """

    def __init__(self, files: Sequence[_File]) -> None:
        self._files = files
        channels = [channel for file in files for channel in file.channels]
        self.topics: dict[str, str] = {}
        for channel in channels:
            self.topics.setdefault(channel.topic, channel.msgtype)
        self.latched = frozenset(channel.topic for channel in channels if channel.is_latched)
        spans_ns = [file.span_ns for file in files if file.span_ns is not None]
        self.start_ns = min((start_ns for start_ns, _ in spans_ns), default=0)
        self.end_ns = max((end_ns for _, end_ns in spans_ns), default=0)

    @property
    def duration_ns(self) -> int:
        """Nanoseconds from the first to the last message."""
        return self.end_ns - self.start_ns

    def message_count(self, topic: str) -> int:
        """Count the messages of a topic; 0 if there is no such topic."""
        return sum(channel.count for file in self._files for channel in file.channels if channel.topic == topic)

    def messages(self, topics: Collection[str] | None = None) -> Iterator[BagMessage]:
        """Yield the messages of these topics, or of all, in the order of their log times.

        UserError names the file when its damage is reached; the messages before it have been yielded by then.
        """
        return heapq.merge(*(file.messages(topics) for file in self._files), key=lambda message: message.log_time_ns)

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Bag:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_bag(path: Path | Sequence[Path]) -> Bag:
    """Open a ROS 1 .bag, a ROS 2 bag folder, an .mcap or a .db3 file, or several of them as one recording.

    A folder without metadata.yaml, as a killed recorder leaves it, is read file by file. Of an MCAP file without
    an index or with a damage, what lies before the damage is read, and a warning is logged. UserError names
    the file that cannot be read and why.
    """
    paths = [path] if isinstance(path, Path) else list(path)
    with ExitStack() as opened:
        files = []
        for file in [file for given in paths for file in _storage_files(given)]:
            files.append(_open_file(file))
            opened.callback(files[-1].close)
        opened.pop_all()
    return Bag(files)


def _storage_files(path: Path) -> list[Path]:
    """List what to open for a path: itself, the files of a folder without metadata, or the folder of a file."""
    if not path.exists():
        raise UserError(f"there is no recording {path}")
    if path.is_dir():
        if (path / "metadata.yaml").exists():
            return [path]
        files = sorted(file for file in path.iterdir() if file.suffix in (".mcap", ".db3"))
        if not files:
            raise UserError(f"{path} has neither metadata.yaml nor .mcap or .db3 files; it is no ROS 2 bag")
        return files
    if path.suffix not in (".bag", ".mcap", ".db3"):
        raise UserError(f"{path} is no recording; names end on .bag, .mcap or .db3")
    return [path.parent if _is_compressed_by_message(path) else path]


def _is_compressed_by_message(path: Path) -> bool:
    """Whether the metadata beside a file says that each of its messages is compressed; the file does not say it."""
    if not (path.parent / "metadata.yaml").exists():
        return False
    metadata = read_yaml(path.parent / "metadata.yaml").get("rosbag2_bagfile_information", {})
    is_alone = metadata.get("relative_file_paths") == [path.name]
    return is_alone and str(metadata.get("compression_mode")).lower() == "message"


def _open_file(path: Path) -> _File:
    try:
        return _RosbagsFile(path)
    except Exception as error:  # each storage format fails in its own way on bytes that are not its own
        reason = str(error).rstrip(".") or type(error).__name__
        if path.suffix == ".mcap":
            return _ScannedMcap(path, reason)
        remedy = "; try 'rosbag reindex'" if path.suffix == ".bag" else ""
        raise UserError(f"{path} cannot be read: {reason}{remedy}") from error


def topics_of_type(bag: Bag, msgtype: str) -> list[str]:
    """List the topics with messages of a type, given as 'package/msg/Name'."""
    return [topic for topic, kind in bag.topics.items() if kind == msgtype]


def cloud_topics(bag: Bag) -> list[str]:
    """List the topics with point clouds."""
    return topics_of_type(bag, POINT_CLOUD)


def why_no_clouds(bag: Bag) -> str:
    """Say why a bag has no point clouds, and what to do."""
    for topic, kind in bag.topics.items():
        if kind in PACKET_DRIVERS:
            return (
                f"the bag holds no point clouds but the lidar's packets: {topic} of type {kind}; the driver "
                f"{PACKET_DRIVERS[kind]} turns them into {POINT_CLOUD}, so play the bag to it and record its clouds"
            )
    held = ", ".join(f"{topic} ({kind})" for topic, kind in bag.topics.items()) or "no topics"
    return f"the bag holds no topic of type {POINT_CLOUD}; it has {held}"


class BagWriter:
    """Writes one MCAP file that ROS 2, rosbags and Foxglove open; close it, or use it in a with statement.

    The file is readable up to the last flush if the process dies; a flush happens twice per recorded second.
    """

    def __init__(self, path: Path) -> None:
        from mcap.writer import CompressionType, Writer
        from rosbags.typesys import Stores, get_typestore

        if path.suffix != ".mcap":
            raise UserError(f"recordings are written as .mcap files, but {path} is asked for")
        try:
            self._file = path.open("xb")
        except FileExistsError:
            raise UserError(f"{path} exists already; give another name or remove it") from None
        except OSError as error:
            raise UserError(f"cannot write {path}: {error}") from error
        self._typestore = get_typestore(Stores.ROS2_JAZZY)
        self._channels: dict[tuple[str, str], int] = {}
        self._schemas: dict[str, int] = {}
        self._flushed_ns: int | None = None
        # LZ4 packs clouds to 88 % at three times the speed at which Zstandard packs them to 73 %.
        self._writer = Writer(self._file, compression=CompressionType.LZ4)
        self._writer.start(profile="ros2", library="lidar_semseg_ros")
        # An empty description tells Jazzy that the QoS below is written in numbers.
        self._writer.add_metadata("rosbag2", {"serialized_metadata": ""})

    def write(self, topic: str, msgtype: str, log_time_ns: int, message: Any, latched: bool = False) -> None:
        """Write one message: CDR bytes with their header as rclpy has them, or a rosbags object.

        latched: the topic is one whose last messages a late subscriber expects.
        """
        key = (topic, msgtype)
        if key not in self._channels:
            self._channels[key] = self._new_channel(topic, msgtype, latched)
        if not isinstance(message, (bytes, bytearray, memoryview)):
            message = self._typestore.serialize_cdr(message, msgtype)
        self._writer.add_message(self._channels[key], log_time_ns, message, publish_time=log_time_ns)
        if self._flushed_ns is None or abs(log_time_ns - self._flushed_ns) >= FLUSH_PERIOD_NS:
            self.flush()
            self._flushed_ns = log_time_ns

    def _new_channel(self, topic: str, msgtype: str, latched: bool) -> int:
        if msgtype not in self._schemas:
            encoding, definition = "", ""  # how MCAP says that a type is not described
            if msgtype in self._typestore.fielddefs:
                encoding, definition = "ros2msg", self._typestore.generate_msgdef(msgtype, ros_version=2)[0]
            self._schemas[msgtype] = self._writer.register_schema(msgtype, encoding, definition.encode())
        metadata = {"offered_qos_profiles": LATCHED_QOS} if latched else {}
        return self._writer.register_channel(topic, "cdr", self._schemas[msgtype], metadata)

    def write_cloud(self, topic: str, content: CloudContent, log_time_ns: int | None = None) -> None:
        """Write a PointCloud2, logged at its stamp unless another time is given."""
        fields = [
            self._new("sensor_msgs/msg/PointField", name=f.name, offset=f.offset, datatype=f.datatype, count=f.count)
            for f in content.fields
        ]
        cloud = self._new(
            POINT_CLOUD,
            header=self._header(content.stamp_ns, content.frame_id),
            height=content.height,
            width=content.width,
            fields=fields,
            is_bigendian=content.is_bigendian,
            point_step=content.point_step,
            row_step=content.row_step,
            data=content.data,
            is_dense=content.is_dense,
        )
        self.write(topic, POINT_CLOUD, content.stamp_ns if log_time_ns is None else log_time_ns, cloud)

    def write_image(self, topic: str, image: CameraImage, jpeg: bool = False) -> None:
        """Write an image at its stamp: a rgb8 Image, or a CompressedImage if `jpeg`."""
        header = self._header(image.stamp_ns, image.frame_id)
        if jpeg:
            data = np.frombuffer(jpeg_bytes(image.pixels), np.uint8)
            compressed = self._new(COMPRESSED_IMAGE, header=header, format="rgb8; jpeg compressed bgr8", data=data)
            self.write(topic, COMPRESSED_IMAGE, image.stamp_ns, compressed)
            return
        self._write_raw_image(topic, "rgb8", image.pixels, image.stamp_ns, header)

    def write_camera_info(self, topic: str, camera: PinholeCamera, stamp_ns: int, frame_id: str) -> None:
        """Write the CameraInfo of a camera whose image is neither binned, cut nor rectified."""
        info = self._new(
            CAMERA_INFO,
            header=self._header(stamp_ns, frame_id),
            height=camera.height,
            width=camera.width,
            distortion_model="plumb_bob",
            d=camera.distortion.astype(np.float64),
            k=camera.matrix.astype(np.float64).ravel(),
            r=np.eye(3).ravel(),
            p=np.pad(camera.matrix.astype(np.float64), ((0, 0), (0, 1))).ravel(),
            binning_x=0,
            binning_y=0,
            roi=self._new(
                "sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
            ),
        )
        self.write(topic, CAMERA_INFO, stamp_ns, info)

    def write_tf_static(self, transforms: Mapping[tuple[str, str], np.ndarray], stamp_ns: int) -> None:
        """Write fixed transforms to /tf_static: {(parent, child): parent_from_child (4, 4)}."""
        stamped = [self._stamped(parent, child, matrix, stamp_ns) for (parent, child), matrix in transforms.items()]
        self.write("/tf_static", TF, stamp_ns, self._new(TF, transforms=stamped), latched=True)

    def write_pose(
        self, odom_from_base: np.ndarray, stamp_ns: int, odom_frame: str = "odom", base_frame: str = "base_link"
    ) -> None:
        """Write where the robot is, (4, 4), to /tf and /odom; its speed is not known and written as 0."""
        transform = self._stamped(odom_frame, base_frame, odom_from_base, stamp_ns)
        self.write("/tf", TF, stamp_ns, self._new(TF, transforms=[transform]))
        pose = self._new(
            "geometry_msgs/msg/Pose",
            position=self._xyz("Point", odom_from_base[:3, 3]),
            orientation=transform.transform.rotation,
        )
        zero = self._xyz("Vector3", np.zeros(3))
        odometry = self._new(
            ODOMETRY,
            header=self._header(stamp_ns, odom_frame),
            child_frame_id=base_frame,
            pose=self._new("geometry_msgs/msg/PoseWithCovariance", pose=pose, covariance=np.zeros(36)),
            twist=self._new(
                "geometry_msgs/msg/TwistWithCovariance",
                twist=self._new("geometry_msgs/msg/Twist", linear=zero, angular=zero),
                covariance=np.zeros(36),
            ),
        )
        self.write("/odom", ODOMETRY, stamp_ns, odometry)

    def write_class_ids(self, topic: str, class_id: np.ndarray, stamp_ns: int, frame_id: str) -> None:
        """Write the class id of every point or pixel, (H, W) uint8, as a mono8 Image."""
        self._write_raw_image(topic, "mono8", class_id, stamp_ns, self._header(stamp_ns, frame_id))

    def _write_raw_image(self, topic: str, encoding: str, pixels: np.ndarray, stamp_ns: int, header: Any) -> None:
        image = self._new(
            IMAGE,
            header=header,
            height=pixels.shape[0],
            width=pixels.shape[1],
            encoding=encoding,
            is_bigendian=0,
            step=pixels[:1].nbytes,
            data=pixels.ravel(),
        )
        self.write(topic, IMAGE, stamp_ns, image)

    def write_json(self, topic: str, text: str, stamp_ns: int) -> None:
        """Write a latched std_msgs/String, such as the class map."""
        self.write(topic, STRING, stamp_ns, self._new(STRING, data=text), latched=True)

    def flush(self) -> None:
        """Hand everything written so far to the operating system."""
        self._writer.flush()

    def close(self) -> None:
        """Write the index and close the file; a second call does nothing."""
        if not self._file.closed:
            self._writer.finish()
            self._file.close()

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _new(self, msgtype: str, **values: Any) -> Any:
        return self._typestore.types[msgtype](**values)

    def _header(self, stamp_ns: int, frame_id: str) -> Any:
        stamp = self._new("builtin_interfaces/msg/Time", sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
        return self._new("std_msgs/msg/Header", stamp=stamp, frame_id=frame_id)

    def _xyz(self, kind: str, values: np.ndarray) -> Any:
        x, y, z = (float(value) for value in values)
        return self._new(f"geometry_msgs/msg/{kind}", x=x, y=y, z=z)

    def _stamped(self, parent: str, child: str, parent_from_child: np.ndarray, stamp_ns: int) -> Any:
        x, y, z, w = (float(value) for value in quaternion_from_rotation(parent_from_child[:3, :3]))
        transform = self._new(
            "geometry_msgs/msg/Transform",
            translation=self._xyz("Vector3", parent_from_child[:3, 3]),
            rotation=self._new("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w),
        )
        header = self._header(stamp_ns, parent)
        return self._new("geometry_msgs/msg/TransformStamped", header=header, child_frame_id=child, transform=transform)
