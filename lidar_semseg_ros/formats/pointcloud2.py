"""sensor_msgs/PointCloud2 and the core types, by field names and datatypes, never by fixed offsets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import LidarFrame, PointLabels

UINT8, UINT16, FLOAT32, FLOAT64 = 2, 4, 7, 8
"""The constants of sensor_msgs/PointField that this package writes or asks for."""

NUMPY_CODES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
"""All datatypes of sensor_msgs/PointField as NumPy type codes without byte order."""

INTENSITY_NAMES = ("intensity", "reflectivity", "i")
RING_NAMES = ("ring", "channel", "line", "laser_id")
TIME_NAMES = ("t", "time", "timestamp", "time_stamp", "offset_time")
"""What drivers call a value; the first name that a cloud has is taken."""

ABSOLUTE_SECONDS_ABOVE = 1e8
ABSOLUTE_NANOSECONDS_ABOVE = 1e17
"""Times of day since 1973; no sweep lasts so long, so a larger value cannot be relative to the stamp."""

LABEL_FIELD = "label"
"""The field in which `cloud_from_frame` writes true class ids; none of the output layouts uses the name."""


class CloudError(UserError):
    """A point cloud whose description and bytes do not fit together, or that lacks what is needed."""


@dataclass(frozen=True)
class CloudField:
    """One sensor_msgs/PointField: `count` values of a datatype, `offset` bytes from the start of the point."""

    name: str
    offset: int
    datatype: int
    count: int = 1

    @property
    def end(self) -> int:
        """The offset of the first byte behind the field."""
        return self.offset + self.count * int(NUMPY_CODES[self.datatype][1])


@dataclass(frozen=True, kw_only=True)
class CloudContent:
    """The content of a sensor_msgs/PointCloud2, free of ROS; it is consistent once it exists.

    data: flat uint8, row after row, row_step bytes each; CloudError if anything in the description is at odds
        with it, if two fields overlap, or if one of x, y, z is missing or no single float.
    """

    stamp_ns: int
    frame_id: str
    height: int
    width: int
    fields: tuple[CloudField, ...]
    is_bigendian: bool
    point_step: int
    row_step: int
    data: np.ndarray
    is_dense: bool

    def __post_init__(self) -> None:
        self._check_fields()
        self._check_sizes()
        self._check_coordinates()

    def __len__(self) -> int:
        return self.height * self.width

    def _check_fields(self) -> None:
        names = [field.name for field in self.fields]
        for field in self.fields:
            if names.count(field.name) > 1:
                raise CloudError(f"the cloud has {names.count(field.name)} fields named '{field.name}'; names are unique")
            if field.datatype not in NUMPY_CODES:
                raise CloudError(f"field '{field.name}' has datatype {field.datatype}; sensor_msgs/PointField knows 1 to 8")
            if field.offset < 0 or field.count < 0:
                raise CloudError(f"field '{field.name}' has offset {field.offset} and count {field.count}; both are ≥ 0")
            if field.end > self.point_step:
                raise CloudError(
                    f"field '{field.name}' ends at byte {field.end} of a point, but point_step is {self.point_step}"
                )
        in_order = sorted(self.fields, key=lambda field: field.offset)
        for first, second in zip(in_order, in_order[1:]):
            if first.end > second.offset:
                raise CloudError(
                    f"fields '{first.name}' (bytes {first.offset} to {first.end}) and '{second.name}' "
                    f"(from byte {second.offset}) overlap"
                )

    def _check_sizes(self) -> None:
        if self.height < 0 or self.width < 0:
            raise CloudError(f"the cloud's height is {self.height} and its width {self.width}; neither can be negative")
        if self.row_step < self.width * self.point_step:
            raise CloudError(
                f"row_step is {self.row_step}, but width {self.width} times point_step {self.point_step} "
                f"is {self.width * self.point_step}"
            )
        if len(self.data) < self.height * self.row_step:
            raise CloudError(
                f"data has {len(self.data)} bytes, but height {self.height} times row_step {self.row_step} "
                f"is {self.height * self.row_step}"
            )

    def _check_coordinates(self) -> None:
        by_name = {field.name: field for field in self.fields}
        for name in "xyz":
            if name not in by_name:
                raise CloudError(f"the cloud has no field '{name}'; it has {_listed(self.fields)}")
            if by_name[name].datatype not in (FLOAT32, FLOAT64):
                raise CloudError(f"field '{name}' has datatype {by_name[name].datatype}; float32 or float64 is needed")
            if by_name[name].count != 1:
                raise CloudError(f"field '{name}' has count {by_name[name].count}; a coordinate is one number")


def _listed(fields: tuple[CloudField, ...]) -> str:
    return ", ".join(field.name for field in fields) or "no fields"


def cloud_content(message: Any) -> CloudContent:
    """Take the content out of a PointCloud2 message of rclpy, rosbags or anything with the same attributes.

    The bytes are shared with the message, not copied. CloudError names what is wrong with the message.
    """
    try:
        data = np.frombuffer(message.data, np.uint8)
    except (TypeError, ValueError, BufferError):
        raise CloudError(f"data must be bytes or an array of them, but it is {type(message.data).__name__}") from None
    stamp = message.header.stamp
    return CloudContent(
        stamp_ns=stamp.sec * 10**9 + stamp.nanosec,
        frame_id=message.header.frame_id,
        height=message.height,
        width=message.width,
        fields=tuple(CloudField(f.name, int(f.offset), int(f.datatype), int(f.count)) for f in message.fields),
        is_bigendian=bool(message.is_bigendian),
        point_step=message.point_step,
        row_step=message.row_step,
        data=data,
        is_dense=bool(message.is_dense),
    )


def read_cloud(cloud: Any) -> LidarFrame:
    """Read a CloudContent, or a message that `cloud_content` takes, as a sweep of all its N points in their order.

    Values are copied and converted: coordinates and intensity to float32, ring clipped to uint16, and time to
    seconds from the stamp. An integer time is nanoseconds after the stamp, a float is seconds after it; above
    1e8 a float is an absolute time in seconds, above 1e17 in nanoseconds. The pair time_sec, time_nsec is absolute.
    """
    content = cloud if isinstance(cloud, CloudContent) else cloud_content(cloud)
    names = {field.name for field in content.fields}
    intensity = next((_single(content, name) for name in INTENSITY_NAMES if name in names), None)
    ring = next((_single(content, name) for name in RING_NAMES if name in names), None)
    return LidarFrame(
        stamp_ns=content.stamp_ns,
        frame_id=content.frame_id,
        xyz=_coordinates(content),
        intensity=None if intensity is None else intensity.astype(np.float32).ravel(),
        ring=None if ring is None else _clipped_to_uint16(ring).ravel(),
        time_s=_times(content, names),
        shape=(content.height, content.width),
    )


def column(content: CloudContent, name: str) -> np.ndarray:
    """Copy one field of all points, in native byte order: (N,), or (N, count) where count is not 1.

    CloudError if the cloud has no such field.
    """
    view = _view(content, name)
    native = view.astype(view.dtype.newbyteorder("="))
    return native.reshape(len(content), *native.shape[2:])


def _view(content: CloudContent, name: str) -> np.ndarray:
    """Look at a field in place: (height, width), or (height, width, count) where count is not 1."""
    field = next((field for field in content.fields if field.name == name), None)
    if field is None:
        raise CloudError(f"the cloud has no field '{name}'; it has {_listed(content.fields)}")
    dtype = np.dtype(">" if content.is_bigendian else "<") if False else _dtype(field.datatype, content.is_bigendian)
    shape: tuple[int, ...] = (content.height, content.width)
    strides: tuple[int, ...] = (content.row_step, content.point_step)
    if field.count != 1:
        shape, strides = (*shape, field.count), (*strides, dtype.itemsize)
    return np.ndarray(shape, dtype, content.data, field.offset, strides)
