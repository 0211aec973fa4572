"""The CustomMsg of Livox's drivers as a point cloud with a time for every point."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from lidar_semseg_ros.formats.pointcloud2 import FLOAT32, NUMPY_CODES, UINT8, CloudContent, CloudError, CloudField

CUSTOM_MESSAGES = frozenset(
    {
        "livox_ros_driver/msg/CustomMsg",
        "livox_interfaces/msg/CustomMsg",
        "livox_ros_driver2/msg/CustomMsg",
    }
)
"""What the drivers for ROS 1, for ROS 2 and for both call the message; its fields are the same in all."""

UINT32 = 6
"""The constant of sensor_msgs/PointField for the time of a point."""

_FIELDS = (
    CloudField("x", 0, FLOAT32),
    CloudField("y", 4, FLOAT32),
    CloudField("z", 8, FLOAT32),
    CloudField("intensity", 12, FLOAT32),
    CloudField("offset_time", 16, UINT32),
    CloudField("tag", 20, UINT8),
    CloudField("line", 21, UINT8),
)
_POINT_STEP = 24

_RECORDED_POINT = (
    ("offset_time", "u4"),
    ("x", "f4"),
    ("y", "f4"),
    ("z", "f4"),
    ("reflectivity", "u1"),
    ("tag", "u1"),
    ("line", "u1"),
)
"""A livox_ros_driver/CustomPoint: 19 bytes, which CDR pads to 20 in front of a next point."""

_BEHIND_FRAME_ID = "QIB3sI"
"""timebase, point_num, lidar_id, rsvd and the length of points; it needs no padding once timebase is aligned to 8."""


@dataclass(frozen=True)
class _Head:
    """What a message says before its points, and where and how these lie."""

    stamp_ns: int
    frame_id: bytes
    announced: int
    count: int
    points_at: int
    point_stride: int
    byte_order: str


def livox_cloud(raw: bytes, is_ros1: bool) -> CloudContent:
    """Read a serialized CustomMsg of ROS 1, or of ROS 2 (CDR behind its 4 bytes of header), without its definition.

    The N points become one row of x, y, z in metres, intensity (reflectivity, 0 to 255), offset_time in nanoseconds,
    tag and line. The stamp is that of the header and offset_time counts from it: timebase, from which the driver
    counts, is the same instant in the clock of the lidar, which may be set or not. CloudError if the bytes are not
    such a message or if it announces another number of points than it holds.
    """
    try:
        head = _ros1_head(raw) if is_ros1 else _ros2_head(raw)
    except struct.error:
        raise CloudError(f"the Livox message of {len(raw)} bytes ends before its points") from None
    dtype = np.dtype([(name, head.byte_order + code) for name, code in _RECORDED_POINT])
    if head.announced != head.count:
        raise CloudError(f"the Livox message announces {head.announced} points (point_num), but holds {head.count}")
    end = head.points_at + max(0, head.count * head.point_stride - (head.point_stride - dtype.itemsize))
    # Behind its last field, a message in CDR may be filled up to a multiple of 4 bytes.
    if not end <= len(raw) <= end + (0 if is_ros1 else 3):
        raise CloudError(f"the Livox message has {len(raw)} bytes, but its {head.count} points end at byte {end}")
    if head.count:
        recorded = np.ndarray((head.count,), dtype, raw, head.points_at, (head.point_stride,))
    else:  # an offset behind the last byte is an error to NumPy
        recorded = np.empty(0, dtype)
    return _content(head, recorded)


def _ros1_head(raw: bytes) -> _Head:
    _, seconds, nanoseconds, length = struct.unpack_from("<4I", raw)
    place = 16 + length
    _, announced, _, _, count = struct.unpack_from("<" + _BEHIND_FRAME_ID, raw, place)
    return _Head(
        stamp_ns=seconds * 10**9 + nanoseconds,
        frame_id=raw[16:place],
        announced=announced,
        count=count,
        points_at=place + struct.calcsize("<" + _BEHIND_FRAME_ID),
        point_stride=19,
        byte_order="<",
    )


def _ros2_head(raw: bytes) -> _Head:
    order = ">" if raw[:2] == b"\x00\x00" else "<"
    seconds, nanoseconds, length = struct.unpack_from(order + "iII", raw, 4)
    place = 16 + length
    frame_id = raw[16:place].removesuffix(b"\x00")
    place += -(place - 4) % 8  # CDR aligns from behind its header
    _, announced, _, _, count = struct.unpack_from(order + _BEHIND_FRAME_ID, raw, place)
    return _Head(
        stamp_ns=seconds * 10**9 + nanoseconds,
        frame_id=frame_id,
        announced=announced,
        count=count,
        points_at=place + struct.calcsize(order + _BEHIND_FRAME_ID),
        point_stride=20,
        byte_order=order,
    )


def _content(head: _Head, recorded: np.ndarray) -> CloudContent:
    layout = np.dtype(
        {
            "names": [field.name for field in _FIELDS],
            "formats": ["<" + NUMPY_CODES[field.datatype] for field in _FIELDS],
            "offsets": [field.offset for field in _FIELDS],
            "itemsize": _POINT_STEP,
        }
    )
    points = np.zeros(len(recorded), layout)
    for field in _FIELDS:
        points[field.name] = recorded["reflectivity" if field.name == "intensity" else field.name]
    return CloudContent(
        stamp_ns=head.stamp_ns,
        frame_id=head.frame_id.decode("utf-8", "replace"),
        height=1,
        width=len(points),
        fields=_FIELDS,
        is_bigendian=False,
        point_step=_POINT_STEP,
        row_step=len(points) * _POINT_STEP,
        data=points.view(np.uint8),
        is_dense=bool(all(np.isfinite(points[axis]).all() for axis in "xyz")),
    )
