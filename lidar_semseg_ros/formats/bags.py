"""Recordings: ROS 1 and ROS 2 bags are read, MCAP files are written; needs no ROS installation."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
import yaml

from lidar_semseg_ros.core.camera import Camera
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import CameraImage
from lidar_semseg_ros.core.geometry import quaternion_from_rotation
from lidar_semseg_ros.formats.config_files import read_yaml
from lidar_semseg_ros.formats.images import jpeg_bytes
from lidar_semseg_ros.formats.livox import CUSTOM_MESSAGES, livox_cloud
from lidar_semseg_ros.formats.pointcloud2 import CloudContent

if TYPE_CHECKING:
    import mcap.records
    from rosbags.interfaces import Connection, MessageDefinition
    from rosbags.rosbag2 import Reader as Ros2Reader
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

DESCRIBED_TYPES = """\
CREATE TEMP VIEW message_definitions AS
SELECT * FROM main.message_definitions WHERE encoding IN ('ros2msg', 'ros2idl')
"""
"""Stands before the table of a .db3 file, in which rosbag2 describes the types."""


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


def header_stamp_ns(message: Any) -> int:
    """Tell the stamp in the header of a message, in nanoseconds."""
    return int(message.header.stamp.sec) * 10**9 + int(message.header.stamp.nanosec)


@dataclass(frozen=True)
class BagMessage:
    """One recorded message, still in the bytes of its bag; Livox's own clouds are given as PointCloud2."""

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
        except UserError as error:
            raise UserError(f"{self.topic}: {error}") from error
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


class _LivoxCodec:
    """Makes the PointCloud2 that everybody reads of the CustomMsg that only Livox's drivers define."""

    def __init__(self, is_ros1: bool) -> None:
        self._is_ros1 = is_ros1

    @cached_property
    def _types(self) -> Typestore:
        from rosbags.typesys import Stores, get_typestore

        return get_typestore(Stores.ROS2_JAZZY)

    def decoded(self, raw: bytes, msgtype: str) -> Any:
        return _cloud_object(self._types, livox_cloud(raw, self._is_ros1))

    def cdr(self, raw: bytes, msgtype: str) -> bytes:
        return bytes(self._types.serialize_cdr(self.decoded(raw, msgtype), msgtype, little_endian=True))


class _Codecs:
    """What makes messages of the bytes of one file, by their recorded type."""

    def __init__(self, definitions: Mapping[str, MessageDefinition], is_ros1: bool) -> None:
        known = {name: text for name, text in definitions.items() if name not in CUSTOM_MESSAGES}
        self._own: _Codec = _Ros1Codec(known) if is_ros1 else _Ros2Codec(known)
        self._livox = _LivoxCodec(is_ros1)

    def message(self, topic: str, recorded_type: str, log_time_ns: int, raw: bytes) -> BagMessage:
        codec = self._livox if recorded_type in CUSTOM_MESSAGES else self._own
        return BagMessage(topic, _given_type(recorded_type), log_time_ns, raw, codec)


def _given_type(recorded_type: str) -> str:
    """Name the type that a message is given in."""
    return POINT_CLOUD if recorded_type in CUSTOM_MESSAGES else recorded_type


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
    """The messages of one given type on one topic of one file."""

    topic: str
    msgtype: str
    count: int
    is_latched: bool


@dataclass(frozen=True)
class Span:
    """Log times from start_ns on and before end_ns; None is no bound."""

    start_ns: int | None = None
    end_ns: int | None = None

    def __contains__(self, time_ns: int) -> bool:
        is_late_enough = self.start_ns is None or time_ns >= self.start_ns
        return is_late_enough and (self.end_ns is None or time_ns < self.end_ns)


EVERYTHING = Span()


class _File(Protocol):
    """One opened file, or folder, of a recording."""

    channels: list[_Channel]
    span_ns: tuple[int, int] | None

    def messages(self, topics: Collection[str] | None, span: Span) -> Iterator[BagMessage]:
        """Yield the messages of these topics, or of all, that were logged in a span."""

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
        with _undescribed_types_hidden():
            self._reader.open()
        if isinstance(self._reader, Ros2Reader) and _lacks_index(self._reader):
            self._reader.close()
            raise UserError("it has no index")
        connections = self._reader.connections
        self._codecs = _Codecs({_type_of(c): c.msgdef for c in connections}, is_ros1)
        self.channels = [_Channel(c.topic, _given_type(_type_of(c)), c.msgcount, _is_latched(c)) for c in connections]
        reader = self._reader
        self.span_ns = (reader.start_time, reader.end_time - 1) if reader.message_count else None

    def messages(self, topics: Collection[str] | None, span: Span) -> Iterator[BagMessage]:
        wanted = [c for c in self._reader.connections if topics is None or c.topic in topics]
        if not wanted:  # which rosbags would take for all
            return
        try:
            for connection, log_time_ns, raw in self._reader.messages(wanted, span.start_ns, span.end_ns):
                yield self._codecs.message(connection.topic, _type_of(connection), log_time_ns, raw)
        except Exception as error:  # each storage format fails in its own way on damaged bytes
            raise UserError(f"{self._path} is damaged: {error}; the messages before that were read") from error

    def close(self) -> None:
        self._reader.close()


@contextmanager
def _undescribed_types_hidden() -> Iterator[None]:
    """Let rosbags open a .db3 file with a type of which rosbag2 found no definition, for which it refuses the whole."""
    import apsw  # with which rosbags opens them

    def hide(database: apsw.Connection) -> None:
        database.execute(DESCRIBED_TYPES)

    apsw.connection_hooks.append(hide)
    try:
        yield
    finally:
        apsw.connection_hooks.remove(hide)


def _lacks_index(reader: Ros2Reader) -> bool:
    """Whether a file has messages but no index, so that rosbags would insist on their order in the file."""
    from rosbags.rosbag2.storage_mcap import McapReader

    storages = getattr(reader.storage, "storages", [reader.storage])
    return any(isinstance(one, McapReader) and one.metadata.message_count and not one.chunks for one in storages)


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
        by_id: dict[int, _Channel] = {}
        counts: dict[_Channel, int] = {}
        definitions: dict[str, MessageDefinition] = {}
        times_ns: list[int] = []
        end = "its end"
        try:
            for schema, channel, message in self._records():
                if channel.id not in by_id:  # its quality of service is YAML, which takes a millisecond to read
                    by_id[channel.id] = _channel_of(schema, channel)
                    definitions.setdefault(normalized_type(schema.name), _definition_of(schema))
                key = by_id[channel.id]
                counts[key] = counts.get(key, 0) + 1
                times_ns.append(message.log_time)
        except Exception as error:  # whatever the damage does to the parser
            end = f"its damage ({error})"
        self._count = len(times_ns)
        if not times_ns:
            raise UserError(f"{path} cannot be read: {reason}; it is damaged from its start or no recording of ROS 2")
        logger.warning("%s: %s; it is read up to %s, %d messages", path, reason, end, self._count)
        self._codecs = _Codecs(definitions, is_ros1=False)
        self.channels = [replace(channel, count=count) for channel, count in counts.items()]
        self.span_ns: tuple[int, int] | None = (min(times_ns), max(times_ns))
        # How far a message may lie behind its place in time.
        ranks = np.empty(self._count, np.int64)
        ranks[np.argsort(times_ns, kind="stable")] = np.arange(self._count)
        self._reach = int((np.arange(self._count) - ranks).max())

    def messages(self, topics: Collection[str] | None, span: Span) -> Iterator[BagMessage]:
        waiting: list[tuple[int, int, BagMessage | None]] = []
        for place, (schema, channel, record) in enumerate(islice(self._records(), self._count)):
            message = None
            if (topics is None or channel.topic in topics) and record.log_time in span:
                kind = normalized_type(schema.name)
                message = self._codecs.message(channel.topic, kind, record.log_time, record.data)
            heapq.heappush(waiting, (record.log_time, place, message))
            if len(waiting) > self._reach:
                yield from filter(None, [heapq.heappop(waiting)[2]])
        yield from filter(None, (message for _, _, message in sorted(waiting)))

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
    return _Channel(channel.topic, _given_type(normalized_type(schema.name)), 0, is_latched)


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

    def messages(self, topics: Collection[str] | None = None, span: Span = EVERYTHING) -> Iterator[BagMessage]:
        """Yield the messages of these topics, or of all, that were logged in a span, in the order of their log times.

        UserError names the file when its damage is reached; the messages before it have been yielded by then.
        """
        parts = (file.messages(topics, span) for file in self._files)
        return heapq.merge(*parts, key=lambda message: message.log_time_ns)

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

    A folder whose metadata.yaml is missing, as a killed recorder leaves it, or at odds with its files is read file by
    file; a file of it that cannot be read is left out with a warning. Of an MCAP file without an index or with a
    damage, what lies before the damage is read, and a warning is logged. UserError names the file that cannot be
    read and why.
    """
    paths = [path] if isinstance(path, Path) else list(path)
    files: list[_File] = []
    with ExitStack() as opened:
        for given in paths:
            for file in _opened(given):
                opened.callback(file.close)
                files.append(file)
        opened.pop_all()
    return Bag(files)


def _opened(path: Path) -> Iterator[_File]:
    """Open what a path stands for: a file, the folder of a file, or a folder as a whole or file by file."""
    if not path.exists():
        raise UserError(f"there is no recording {path}")
    if path.is_dir():
        yield from _opened_folder(path)
    elif path.suffix == ".zstd":
        raise UserError(f"{path} is a file that rosbag2 compressed as a whole; give its folder, {path.parent}")
    elif path.suffix not in (".bag", ".mcap", ".db3"):
        raise UserError(f"{path} is no recording; names end on .bag, .mcap or .db3")
    else:
        metadata = _metadata_of(path.parent)
        is_alone = metadata.get("relative_file_paths") == [path.name]
        # That each message is compressed stands in the metadata beside the file, not in the file.
        yield _open_file(path.parent if is_alone and _compression(metadata) == "message" else path)


def _opened_folder(folder: Path) -> Iterator[_File]:
    files = sorted(file for file in folder.iterdir() if file.suffix in (".mcap", ".db3"))
    has_metadata = (folder / "metadata.yaml").exists()
    if not files and not has_metadata:
        raise UserError(f"{folder} has neither metadata.yaml nor .mcap or .db3 files; it is no ROS 2 bag")
    if has_metadata:
        try:
            yield _open_file(folder)
            return
        except UserError as error:
            if not files or _compression(_metadata_of(folder)):
                raise
            logger.warning("%s; its files are read one by one", error)
    readable = 0
    for file in files:
        try:
            opened = _open_file(file)
        except UserError as error:
            logger.warning("%s; the other files of the folder are read", error)
        else:
            readable += 1
            yield opened
    if not readable:
        raise UserError(f"{folder} cannot be read: none of {', '.join(file.name for file in files)} can")


def _metadata_of(folder: Path) -> dict[str, Any]:
    """Read what a ROS 2 bag folder says of itself; nothing where it does not or not legibly."""
    try:
        metadata = read_yaml(folder / "metadata.yaml").get("rosbag2_bagfile_information")
    except UserError:
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _compression(metadata: Mapping[str, Any]) -> str:
    """Tell what rosbag2 compressed, "message" or "file"; empty for nothing, or only what MCAP does inside."""
    mode = str(metadata.get("compression_mode") or "none").lower()
    return "" if mode == "none" else mode


def _open_file(path: Path) -> _File:
    try:
        return _RosbagsFile(path)
    except Exception as error:  # each storage format fails in its own way on bytes that are not its own
        reason = str(error).rstrip(".") or type(error).__name__
        if path.suffix == ".mcap" and path.is_file():
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


def require_new_recording(path: Path) -> None:
    """Raise UserError unless a recording could have this name, and none has it."""
    if path.suffix != ".mcap":
        raise UserError(f"recordings are written as .mcap files, but {path} is asked for")
    if path.exists():
        raise UserError(f"{path} exists already; give another name or remove it")


class BagWriter:
    """Writes one MCAP file that ROS 2, rosbags and Foxglove open; close it, or use it in a with statement.

    The file is readable up to the last flush if the process dies; a flush happens twice per recorded second.
    """

    def __init__(self, path: Path) -> None:
        from mcap.writer import CompressionType, Writer
        from rosbags.typesys import Stores, get_typestore

        require_new_recording(path)
        try:
            self._file = path.open("xb")
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
        cloud = _cloud_object(self._typestore, content)
        self.write(topic, POINT_CLOUD, content.stamp_ns if log_time_ns is None else log_time_ns, cloud)

    def write_image(self, topic: str, image: CameraImage, jpeg: bool = False) -> None:
        """Write an image at its stamp: a rgb8 Image, or a CompressedImage if `jpeg`."""
        if jpeg:
            kind = "rgb8; jpeg compressed bgr8"
            self.write_compressed_image(topic, jpeg_bytes(image.pixels), kind, image.stamp_ns, image.frame_id)
            return
        header = self._header(image.stamp_ns, image.frame_id)
        self._write_raw_image(topic, "rgb8", image.pixels, image.stamp_ns, header)

    def write_compressed_image(self, topic: str, file: bytes, kind: str, stamp_ns: int, frame_id: str) -> None:
        """Write the bytes of a JPEG or PNG file as a CompressedImage; kind is its `format`."""
        data = np.frombuffer(file, np.uint8)
        compressed = self._new(COMPRESSED_IMAGE, header=self._header(stamp_ns, frame_id), format=kind, data=data)
        self.write(topic, COMPRESSED_IMAGE, stamp_ns, compressed)

    def write_camera_info(self, topic: str, camera: Camera, stamp_ns: int, frame_id: str) -> None:
        """Write the CameraInfo of a camera whose image is neither binned, cut nor rectified."""
        info = self._new(
            CAMERA_INFO,
            header=self._header(stamp_ns, frame_id),
            height=camera.height,
            width=camera.width,
            distortion_model=camera.model,
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

    def size(self) -> int:
        """Tell how many bytes the file has, without what waits for the next flush."""
        return self._file.tell()

    def flush(self) -> None:
        """Hand everything written so far to the operating system."""
        self._writer.flush()

    def close(self) -> None:
        """Write the index and close the file; a second call does nothing."""
        if not self._file.closed:
            try:
                self._writer.finish()
            finally:
                self._file.close()

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _new(self, msgtype: str, **values: Any) -> Any:
        return self._typestore.types[msgtype](**values)

    def _header(self, stamp_ns: int, frame_id: str) -> Any:
        return _header_object(self._typestore, stamp_ns, frame_id)

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


@contextmanager
def new_recording(path: Path) -> Iterator[BagWriter]:
    """Write a recording that has its name only when it is complete; until then it is called <name>.part.mcap.

    One of that name that is left over is overwritten. UserError as of BagWriter, before anything is written, and where
    the disk is full.
    """
    require_new_recording(path)
    part = path.with_suffix(".part.mcap")
    try:
        if part.exists():
            part.unlink()
        with BagWriter(part) as writer:
            yield writer
        part.rename(path)
    except OSError as error:
        raise UserError(f"{path} is not finished: {error}; mend that and give the same command again") from error


def _header_object(typestore: Typestore, stamp_ns: int, frame_id: str) -> Any:
    types = typestore.types
    stamp = types["builtin_interfaces/msg/Time"](sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return types["std_msgs/msg/Header"](stamp=stamp, frame_id=frame_id)


def _cloud_object(typestore: Typestore, content: CloudContent) -> Any:
    new_field = typestore.types["sensor_msgs/msg/PointField"]
    return typestore.types[POINT_CLOUD](
        header=_header_object(typestore, content.stamp_ns, content.frame_id),
        height=content.height,
        width=content.width,
        fields=[new_field(name=f.name, offset=f.offset, datatype=f.datatype, count=f.count) for f in content.fields],
        is_bigendian=content.is_bigendian,
        point_step=content.point_step,
        row_step=content.row_step,
        data=content.data,
        is_dense=content.is_dense,
    )
