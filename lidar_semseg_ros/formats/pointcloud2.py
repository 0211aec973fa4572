"""sensor_msgs/PointCloud2 and the core types, by field names and datatypes, never by fixed offsets."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from lidar_semseg_ros.core.errors import UserError, as_ros_defines
from lidar_semseg_ros.core.frame import LidarFrame, PointLabels
from lidar_semseg_ros.core.sensor import FieldNames

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

MEDIAN_OF = 1000

LARGEST_POINT_STEP = 2**30
"""Bytes of one point; NumPy takes no element of 2³¹ bytes, and labels come on top."""
LARGEST_SIZE = 2**32 - 1
"""What a size in the message can say."""


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
        if not -(2**31) <= self.stamp_ns // 10**9 < 2**31:
            raise CloudError(f"the stamp is {self.stamp_ns} ns, but a message holds its seconds as int32")

    def __len__(self) -> int:
        return self.height * self.width

    def _check_fields(self) -> None:
        times_named = Counter(field.name for field in self.fields)
        for field in self.fields:
            if times_named[field.name] > 1:
                raise CloudError(
                    f"the cloud has {times_named[field.name]} fields named '{field.name}'; names are unique"
                )
            if field.datatype not in NUMPY_CODES:
                raise CloudError(
                    f"field '{field.name}' has datatype {field.datatype}; sensor_msgs/PointField knows 1 to 8"
                )
            if field.offset < 0 or field.count < 0:
                raise CloudError(
                    f"field '{field.name}' has offset {field.offset} and count {field.count}; both are ≥ 0"
                )
            if field.end > self.point_step:
                raise CloudError(
                    f"field '{field.name}' ends at byte {field.end} of a point, but point_step is {self.point_step}"
                )
        in_order = sorted((field for field in self.fields if field.count), key=lambda field: field.offset)
        for first, second in pairwise(in_order):
            if first.end > second.offset:
                raise CloudError(
                    f"fields '{first.name}' (bytes {first.offset} to {first.end}) and '{second.name}' "
                    f"(from byte {second.offset}) overlap"
                )

    def _check_sizes(self) -> None:
        if self.height < 0 or self.width < 0:
            raise CloudError(f"the cloud's height is {self.height} and its width {self.width}; neither can be negative")
        if self.point_step > LARGEST_POINT_STEP:
            raise CloudError(f"point_step is {self.point_step}; at most {LARGEST_POINT_STEP} bytes can be read")
        for name in ("height", "width", "row_step"):
            if getattr(self, name) > LARGEST_SIZE:
                raise CloudError(f"{name} is {getattr(self, name)}, but a message holds at most {LARGEST_SIZE}")
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


@as_ros_defines("PointCloud2", CloudError)
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


def read_cloud(cloud: Any, names: FieldNames = FieldNames()) -> LidarFrame:
    """Read a CloudContent, or a message that `cloud_content` takes, as a sweep of all its N points in their order.

    Values are copied and converted: coordinates and intensity to float32, ring clipped to uint16, and time to
    seconds from the stamp. An integer time is nanoseconds after the stamp, a float is seconds after it; a float64
    above 1e8 is an absolute time in seconds, above 1e17 in nanoseconds (Livox), and NaN for a point that has none.
    The pair time_sec, time_nsec (Luminar) is absolute. names: the fields that a user wants taken; CloudError where the
    cloud lacks one of them.
    """
    content = cloud if isinstance(cloud, CloudContent) else cloud_content(cloud)
    intensity = _wanted(content, "intensity", names.intensity, INTENSITY_NAMES)
    ring = _wanted(content, "ring", names.ring, RING_NAMES)
    with np.errstate(over="ignore", invalid="ignore"):  # any bits may stand for a value that a driver does not know
        return LidarFrame(
            stamp_ns=content.stamp_ns,
            frame_id=content.frame_id,
            xyz=_coordinates(content),
            intensity=None if intensity is None else _as_float32(intensity),
            ring=None if ring is None else _clipped_to_uint16(ring),
            time_s=_times(content, names.time),
            shape=(content.height, content.width),
        )


def column(content: CloudContent, name: str) -> np.ndarray:
    """Copy one field of all points, in native byte order: (N,), or (N, count) where count is not 1.

    CloudError if the cloud has no such field.
    """
    view = _view(content, name)
    return view.astype(view.dtype.newbyteorder("=")).reshape(len(content), *view.shape[2:])


def _view(content: CloudContent, name: str) -> np.ndarray:
    """Look at a field in place: (height, width), or (height, width, count) where count is not 1."""
    field = next((field for field in content.fields if field.name == name), None)
    if field is None:
        raise CloudError(f"the cloud has no field '{name}'; it has {_listed(content.fields)}")
    dtype = _dtype(field, content.is_bigendian)
    shape, strides = (content.height, content.width), (content.row_step, content.point_step)
    if len(content) == 0:  # an offset into no bytes at all is an error to NumPy
        view = np.empty((*shape, *dtype.shape), dtype.base)
    else:
        view = np.ndarray(shape, dtype, content.data, field.offset, strides)
    return view


def _dtype(field: CloudField, is_bigendian: bool) -> np.dtype:
    code = (">" if is_bigendian else "<") + NUMPY_CODES[field.datatype]
    return np.dtype(code) if field.count == 1 else np.dtype((code, (field.count,)))


def _wanted(content: CloudContent, role: str, chosen: str, usual: tuple[str, ...]) -> np.ndarray | None:
    """Look at the field the user chose, or else at the first of the usual ones that the cloud has."""
    if chosen and all(field.name != chosen for field in content.fields):
        raise CloudError(f"input.fields.{role} is '{chosen}', but the cloud's fields are {_listed(content.fields)}")
    return _first_of(content, (chosen,) if chosen else usual)


def _first_of(content: CloudContent, names: tuple[str, ...]) -> np.ndarray | None:
    """Look at the first of these fields that the cloud has, one number per point, or give None."""
    counts = {field.name: field.count for field in content.fields}
    name = next((name for name in names if name in counts), None)
    if name is None:
        return None
    if counts[name] != 1:
        raise CloudError(f"field '{name}' has count {counts[name]}; one value per point is expected")
    return _view(content, name)


def _as_float32(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).ravel()


def _coordinates(content: CloudContent) -> np.ndarray:
    xyz = np.empty((content.height, content.width, 3), np.float32)
    for axis, name in enumerate("xyz"):
        xyz[..., axis] = _view(content, name)
    return xyz.reshape(-1, 3)


def _clipped_to_uint16(ring: np.ndarray) -> np.ndarray:
    if ring.dtype.kind != "u" or ring.dtype.itemsize > 2:
        ring = np.clip(np.nan_to_num(ring.astype(np.float64)), 0, np.iinfo(np.uint16).max)
    return ring.astype(np.uint16).ravel()


def _times(content: CloudContent, chosen: str) -> np.ndarray | None:
    """Read the seconds from the stamp to each point, (N,) float32, by the rules of `read_cloud`."""
    seconds, nanoseconds = (_first_of(content, (name,)) for name in ("time_sec", "time_nsec"))
    if not chosen and seconds is not None and nanoseconds is not None:
        since_stamp_ns = seconds.astype(np.int64) * 10**9 + nanoseconds.astype(np.int64) - content.stamp_ns
        return _as_float32(since_stamp_ns * 1e-9)
    time = _wanted(content, "time", chosen, TIME_NAMES)
    if time is None:
        return None
    if time.dtype.kind in "iu":
        return _as_float32(time * 1e-9)
    if time.dtype.itemsize == 4:
        return _as_float32(time)
    known = time[np.isfinite(time) & (time != 0)]
    # Of some of them, and their middle: one point of garbage must not decide for all.
    usual = np.median(known[:: len(known) // MEDIAN_OF + 1]) if len(known) else 0.0
    if usual <= ABSOLUTE_SECONDS_ABOVE:
        return _as_float32(time)
    if usual > ABSOLUTE_NANOSECONDS_ABOVE:
        since_stamp_s = (time - content.stamp_ns) * 1e-9
    else:
        since_stamp_s = time - content.stamp_ns * 1e-9
    return _as_float32(np.where(time > ABSOLUTE_SECONDS_ABOVE, since_stamp_s, np.nan))


@dataclass(frozen=True)
class PointLayout:
    """The fields of a point and the bytes it takes, padding included."""

    fields: tuple[CloudField, ...]
    size: int


_COORDINATES = (CloudField("x", 0, FLOAT32), CloudField("y", 4, FLOAT32), CloudField("z", 8, FLOAT32))

_COLORED = PointLayout((*_COORDINATES, CloudField("rgb", 12, FLOAT32)), 16)

LAYOUTS = {
    "aligned": PointLayout(
        (
            *_COLORED.fields,
            CloudField("probability", 16, FLOAT32),
            CloudField("entropy", 20, FLOAT32),
            CloudField("class_id", 24, UINT8),
        ),
        28,
    ),
    "autoware": PointLayout(
        (
            *_COORDINATES,
            CloudField("class_id", 12, UINT8),
            CloudField("probability", 13, FLOAT32),
            CloudField("entropy", 17, FLOAT32),
        ),
        21,
    ),
    "append": PointLayout(
        (
            CloudField("class_id", 0, UINT8),
            CloudField("probability", 1, FLOAT32),
            CloudField("entropy", 5, FLOAT32),
            CloudField("rgb", 9, FLOAT32),
        ),
        13,
    ),
}
"""How labelled clouds are laid out; the offsets of `append` count from the end of the input's point."""


PSEUDO_LABELS = PointLayout(
    (CloudField("class_id", 0, UINT8), CloudField("probability", 1, FLOAT32), CloudField("views", 5, UINT8)), 6
)
"""What a teacher appends to each point: class, confidence in it, and how many images voted."""


def labelled_cloud(
    content: CloudContent, frame: LidarFrame, labels: PointLabels, palette: np.ndarray, layout: str
) -> CloudContent:
    """Lay out the points of `frame` with their labels: header, number, order and shape are those of `content`.

    palette: (256, 3) uint8, colours by class id. layout: a key of LAYOUTS; `append` keeps the bytes and the byte
    order of the input's points, the others hold x, y, z as little-endian float32. Rows are not padded. CloudError
    if the input of `append` has one of the appended fields, or if the lengths differ.
    """
    if layout not in LAYOUTS:
        raise UserError(f"no output layout '{layout}'; there are {', '.join(LAYOUTS)}")
    _check_lengths(content, frame, labels)
    columns = {
        "class_id": labels.class_id,
        "probability": labels.probability,
        "entropy": labels.entropy,
        "rgb": _packed_colors(palette, labels),
    }
    if layout == "append":
        return _appended(content, LAYOUTS[layout], columns)
    columns |= _coordinate_columns(frame)
    return _laid_out(content, LAYOUTS[layout], columns)


def pseudo_labelled_cloud(
    content: CloudContent, class_id: np.ndarray, probability: np.ndarray, views: np.ndarray
) -> CloudContent:
    """Append what a teacher says, (N,) uint8, float32 and uint8, to the points of a cloud, which keep their bytes.

    CloudError if the cloud has one of these fields already, or if the lengths differ.
    """
    columns = {"class_id": class_id, "probability": probability, "views": views}
    if any(len(values) != len(content) for values in columns.values()):
        raise CloudError(f"a cloud of {len(content)} points got {len(class_id)} labels")
    return _appended(content, PSEUDO_LABELS, columns)


def visualization_cloud(
    frame: LidarFrame, content: CloudContent, labels: PointLabels, palette: np.ndarray
) -> CloudContent:
    """Lay out x, y, z and the colour of the class, 16 bytes per point, with the header and shape of `content`."""
    _check_lengths(content, frame, labels)
    return _laid_out(content, _COLORED, _coordinate_columns(frame) | {"rgb": _packed_colors(palette, labels)})


def filtered_cloud(content: CloudContent, keep: np.ndarray) -> CloudContent:
    """Keep the points of a mask (N,) bool with all their bytes, as one row; fields and byte order stay."""
    if keep.shape != (len(content),):
        raise CloudError(f"a cloud of {len(content)} points got a mask of shape {keep.shape}")
    step = content.point_step
    rows = np.ndarray((content.height, content.width), f"V{step}", content.data, 0, (content.row_step, step))
    points = rows.ravel()[keep] if len(content) else np.empty(0, f"V{step}")
    return replace(content, height=1, width=len(points), row_step=len(points) * step, data=points.view(np.uint8))


def cloud_from_frame(frame: LidarFrame, labels: np.ndarray | None = None) -> CloudContent:
    """Write a sweep as the Velodyne driver does: x, y, z, intensity float32, ring uint16, time float32, unaligned.

    What the sweep does not have is left out. labels: (N,) uint8, true class ids, in a field `label` at the end.
    """
    height, width = frame.shape if frame.shape is not None else (1, len(frame))
    columns = _coordinate_columns(frame)
    optional = (
        ("intensity", FLOAT32, frame.intensity),
        ("ring", UINT16, frame.ring),
        ("time", FLOAT32, frame.time_s),
        ("label", UINT8, labels),
    )
    fields = list(_COORDINATES)
    for name, datatype, values in optional:
        if values is not None:
            fields.append(CloudField(name, fields[-1].end, datatype))
            columns[name] = values
    size = fields[-1].end
    empty = CloudContent(
        stamp_ns=frame.stamp_ns,
        frame_id=frame.frame_id,
        height=height,
        width=width,
        fields=tuple(fields),
        is_bigendian=False,
        point_step=size,
        row_step=width * size,
        data=np.zeros(height * width * size, np.uint8),
        is_dense=bool(np.isfinite(frame.xyz).all()),
    )
    return _laid_out(empty, PointLayout(tuple(fields), size), columns)


def _check_lengths(content: CloudContent, frame: LidarFrame, labels: PointLabels) -> None:
    if not len(content) == len(frame) == len(labels):
        raise CloudError(f"a cloud of {len(content)} points got {len(frame)} coordinates and {len(labels)} labels")


def _coordinate_columns(frame: LidarFrame) -> dict[str, np.ndarray]:
    return {name: frame.xyz[:, axis] for axis, name in enumerate("xyz")}


def _packed_colors(palette: np.ndarray, labels: PointLabels) -> np.ndarray:
    """Pack the colours of the points as PCL does: the bits 0x00RRGGBB, declared float32."""
    red, green, blue = palette.astype(np.uint32).T
    return (red << 16 | green << 8 | blue)[labels.class_id].view(np.float32)


def _laid_out(content: CloudContent, layout: PointLayout, columns: dict[str, np.ndarray]) -> CloudContent:
    """Put columns into a little-endian cloud with the header and shape of `content`."""
    points = np.zeros(len(content), _point_dtype(layout, is_bigendian=False))
    for field in layout.fields:
        points[field.name] = columns[field.name]
    return _with_points(content, layout, points, is_bigendian=False)


def _appended(content: CloudContent, addition: PointLayout, columns: dict[str, np.ndarray]) -> CloudContent:
    """Put columns behind each point of a cloud."""
    for field in content.fields:
        if field.name in columns:
            raise CloudError(
                f"the cloud already has a field '{field.name}': take output layout aligned or autoware, "
                "or a cloud without labels"
            )
    step = content.point_step
    added = tuple(replace(field, offset=field.offset + step) for field in addition.fields)
    layout = PointLayout((*content.fields, *added), step + addition.size)
    point = np.dtype(
        {
            "names": ["kept", "added"],
            "formats": [f"V{step}", _point_dtype(addition, content.is_bigendian)],
            "offsets": [0, step],
            "itemsize": layout.size,
        }
    )
    points = np.empty((content.height, content.width), point)
    if len(content):
        points["kept"] = np.ndarray(points.shape, f"V{step}", content.data, 0, (content.row_step, step))
    for name, values in columns.items():
        points["added"][name] = values.reshape(points.shape)
    return _with_points(content, layout, points.ravel(), content.is_bigendian)


def _point_dtype(layout: PointLayout, is_bigendian: bool) -> np.dtype:
    return np.dtype(
        {
            "names": [field.name for field in layout.fields],
            "formats": [_dtype(field, is_bigendian) for field in layout.fields],
            "offsets": [field.offset for field in layout.fields],
            "itemsize": layout.size,
        }
    )


def _with_points(content: CloudContent, layout: PointLayout, points: np.ndarray, is_bigendian: bool) -> CloudContent:
    return replace(
        content,
        fields=layout.fields,
        is_bigendian=is_bigendian,
        point_step=layout.size,
        row_step=content.width * layout.size,
        data=points.view(np.uint8),
    )
