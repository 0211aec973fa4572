"""sensor_msgs/PointCloud2 and the core types, by field names and datatypes, never by fixed offsets."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from lidar_semseg_ros.core.classes import packed_colors
from lidar_semseg_ros.core.errors import UserError, as_ros_defines
from lidar_semseg_ros.core.frame import LidarFrame, PointLabels
from lidar_semseg_ros.core.packed import COORDINATES, PackedCloud
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
        for name in COORDINATES:
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
    chosen = _chosen(content, names)
    with np.errstate(over="ignore", invalid="ignore"):  # any bits may stand for a value that a driver does not know
        return LidarFrame(
            stamp_ns=content.stamp_ns,
            frame_id=content.frame_id,
            xyz=_coordinates(content),
            intensity=None if chosen.intensity is None else _as_float32(_view(content, chosen.intensity)),
            ring=None if chosen.ring is None else _clipped_to_uint16(_view(content, chosen.ring)),
            time_s=_times(content, chosen.times),
            shape=(content.height, content.width),
        )


def packed_cloud(content: CloudContent, names: FieldNames, layout: str) -> PackedCloud:
    """Describe where in the bytes of a cloud the values lie that `read_cloud` reads, and `labelled_cloud` writes.

    Nothing is copied. names: as of `read_cloud`, and layout as of `labelled_cloud`; CloudError and UserError as there.
    """
    intensity = _chosen(content, names).intensity
    fields = {name: _field(content, name) for name in COORDINATES} | ({"intensity": intensity} if intensity else {})
    read = PointLayout(tuple(replace(field, name=name) for name, field in fields.items()), content.point_step)
    written = _labelled_as(content, layout)
    shape = (content.height, content.width * content.point_step)
    return PackedCloud(
        rows=np.ndarray(shape, np.uint8, content.data, 0, (content.row_step, 1)),
        point=_point_dtype(read, content.is_bigendian),
        labelled=written.values,
        kept=written.kept,
    )


def column(content: CloudContent, name: str) -> np.ndarray:
    """Copy one field of all points, in native byte order: (N,), or (N, count) where count is not 1.

    CloudError if the cloud has no such field.
    """
    view = _view(content, _field(content, name))
    return view.astype(view.dtype.newbyteorder("=")).reshape(len(content), *view.shape[2:])


def _field(content: CloudContent, name: str) -> CloudField:
    field = next((field for field in content.fields if field.name == name), None)
    if field is None:
        raise CloudError(f"the cloud has no field '{name}'; it has {_listed(content.fields)}")
    return field


def _view(content: CloudContent, field: CloudField) -> np.ndarray:
    """Look at a field in place: (height, width), or (height, width, count) where count is not 1."""
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


class _Chosen(NamedTuple):
    """The fields that a sweep is read from, beside its coordinates; times: one, none, or seconds and nanoseconds."""

    intensity: CloudField | None
    ring: CloudField | None
    times: tuple[CloudField, ...]


def _chosen(content: CloudContent, names: FieldNames) -> _Chosen:
    intensity = _wanted(content, "intensity", names.intensity, INTENSITY_NAMES)
    ring = _wanted(content, "ring", names.ring, RING_NAMES)
    seconds, nanoseconds = (_first_of(content, (name,)) for name in ("time_sec", "time_nsec"))
    if not names.time and seconds is not None and nanoseconds is not None:
        return _Chosen(intensity, ring, (seconds, nanoseconds))
    time = _wanted(content, "time", names.time, TIME_NAMES)
    return _Chosen(intensity, ring, () if time is None else (time,))


def _wanted(content: CloudContent, role: str, chosen: str, usual: tuple[str, ...]) -> CloudField | None:
    """Find the field the user chose, or else the first of the usual ones that the cloud has."""
    if chosen and all(field.name != chosen for field in content.fields):
        raise CloudError(f"input.fields.{role} is '{chosen}', but the cloud's fields are {_listed(content.fields)}")
    return _first_of(content, (chosen,) if chosen else usual)


def _first_of(content: CloudContent, names: tuple[str, ...]) -> CloudField | None:
    """Find the first of these fields that the cloud has, one number per point, or give None."""
    by_name = {field.name: field for field in content.fields}
    name = next((name for name in names if name in by_name), None)
    if name is None:
        return None
    if by_name[name].count != 1:
        raise CloudError(f"field '{name}' has count {by_name[name].count}; one value per point is expected")
    return by_name[name]


def _as_float32(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).ravel()


def _coordinates(content: CloudContent) -> np.ndarray:
    x, y, z = (_field(content, name) for name in COORDINATES)
    shape, strides = (content.height, content.width), (content.row_step, content.point_step)
    if len(content) and x.datatype == y.datatype == z.datatype and (x.end, y.end) == (y.offset, z.offset):
        # Side by side, as drivers write them: one copy of all three takes a third of the time.
        dtype = _dtype(x, content.is_bigendian)
        together = np.ndarray(shape, f"V{3 * dtype.itemsize}", content.data, x.offset, strides)
        return together.ravel().view(dtype).astype(np.float32).reshape(-1, 3)
    xyz = np.empty((*shape, 3), np.float32)
    for axis, field in enumerate((x, y, z)):
        xyz[..., axis] = _view(content, field)
    return xyz.reshape(-1, 3)


def _clipped_to_uint16(ring: np.ndarray) -> np.ndarray:
    if ring.dtype.kind != "u" or ring.dtype.itemsize > 2:
        ring = np.clip(np.nan_to_num(ring.astype(np.float64)), 0, np.iinfo(np.uint16).max)
    return ring.astype(np.uint16).ravel()


def _times(content: CloudContent, fields: tuple[CloudField, ...]) -> np.ndarray | None:
    """Read the seconds from the stamp to each point, (N,) float32, by the rules of `read_cloud`."""
    if not fields:
        return None
    time, *rest = (_view(content, field) for field in fields)
    if rest:
        seconds, nanoseconds = time, rest[0]
        since_stamp_ns = seconds.astype(np.int64) * 10**9 + nanoseconds.astype(np.int64) - content.stamp_ns
        return _as_float32(since_stamp_ns * 1e-9)
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
    written = _labelled_as(content, layout)
    _check_lengths(content, frame, labels)
    columns = {
        "class_id": labels.class_id,
        "probability": labels.probability,
        "entropy": labels.entropy,
        "rgb": packed_colors(palette)[labels.class_id],
    }
    return _laid_out(content, written, columns | _coordinate_columns(frame))


def finished_cloud(content: CloudContent, layout: str, points: np.ndarray) -> CloudContent:
    """Make the labelled cloud of points, (N,), that lie as `packed_cloud` says; it shares their bytes."""
    return _with_points(content, _labelled_as(content, layout), points)


def pseudo_labelled_cloud(
    content: CloudContent, class_id: np.ndarray, probability: np.ndarray, views: np.ndarray
) -> CloudContent:
    """Append what a teacher says, (N,) uint8, float32 and uint8, to the points of a cloud, which keep their bytes.

    CloudError if the cloud has one of these fields already, or if the lengths differ.
    """
    columns = {"class_id": class_id, "probability": probability, "views": views}
    if any(len(values) != len(content) for values in columns.values()):
        raise CloudError(f"a cloud of {len(content)} points got {len(class_id)} labels")
    return _laid_out(content, _behind(content, PSEUDO_LABELS), columns)


def visualization_cloud(
    frame: LidarFrame, content: CloudContent, labels: PointLabels, palette: np.ndarray
) -> CloudContent:
    """Lay out x, y, z and the colour of the class, 16 bytes per point, with the header and shape of `content`."""
    _check_lengths(content, frame, labels)
    columns = _coordinate_columns(frame) | {"rgb": packed_colors(palette)[labels.class_id]}
    return _laid_out(content, _alone(_COLORED), columns)


def filtered_cloud(content: CloudContent, keep: np.ndarray) -> CloudContent:
    """Keep the points of a mask (N,) bool with all their bytes, as one row; fields and byte order stay."""
    if keep.shape != (len(content),):
        raise CloudError(f"a cloud of {len(content)} points got a mask of shape {keep.shape}")
    points = _points(content).ravel()[keep]
    return replace(content, height=1, width=len(points), row_step=points.nbytes, data=points.view(np.uint8))


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
    return _laid_out(empty, _alone(PointLayout(tuple(fields), size)), columns)


def _check_lengths(content: CloudContent, frame: LidarFrame, labels: PointLabels) -> None:
    if not len(content) == len(frame) == len(labels):
        raise CloudError(f"a cloud of {len(content)} points got {len(frame)} coordinates and {len(labels)} labels")


def _coordinate_columns(frame: LidarFrame) -> dict[str, np.ndarray]:
    return {name: frame.xyz[:, axis] for axis, name in enumerate(COORDINATES)}


def _points(content: CloudContent) -> np.ndarray:
    """Look at the points in place: (height, width) of so many bytes."""
    step = content.point_step
    if len(content) == 0:
        return np.empty((content.height, content.width), f"V{step}")
    return np.ndarray((content.height, content.width), f"V{step}", content.data, 0, (content.row_step, step))


class _Written(NamedTuple):
    """How points are written: `values` lie behind so many `kept` bytes of the input's points, all or none of them."""

    layout: PointLayout
    values: np.dtype
    kept: int
    is_bigendian: bool


def _labelled_as(content: CloudContent, layout: str) -> _Written:
    if layout not in LAYOUTS:
        raise UserError(f"no output layout '{layout}'; there are {', '.join(LAYOUTS)}")
    return _behind(content, LAYOUTS[layout]) if layout == "append" else _alone(LAYOUTS[layout])


def _alone(layout: PointLayout) -> _Written:
    """Write nothing but the values of a layout, little-endian."""
    return _Written(layout, _point_dtype(layout, is_bigendian=False), 0, is_bigendian=False)


def _behind(content: CloudContent, addition: PointLayout) -> _Written:
    """Write values behind each point of a cloud, in its byte order; CloudError where it has such fields already."""
    for field in content.fields:
        if field.name in (added.name for added in addition.fields):
            raise CloudError(
                f"the cloud already has a field '{field.name}': take output layout aligned or autoware, "
                "or a cloud without labels"
            )
    step = content.point_step
    added = tuple(replace(field, offset=field.offset + step) for field in addition.fields)
    values = _point_dtype(PointLayout(added, step + addition.size), content.is_bigendian)
    layout = PointLayout((*content.fields, *added), step + addition.size)
    return _Written(layout, values, step, content.is_bigendian)


def _laid_out(content: CloudContent, written: _Written, columns: dict[str, np.ndarray]) -> CloudContent:
    """Put columns, and what is kept of the points, into a cloud with the header and shape of `content`."""
    points = np.zeros((content.height, content.width), written.values)
    if written.kept:
        np.ndarray(points.shape, f"V{written.kept}", points, 0, points.strides)[...] = _points(content)
    for name in written.values.names or ():
        points[name] = columns[name].reshape(points.shape)
    return _with_points(content, written, points.ravel())


def _point_dtype(layout: PointLayout, is_bigendian: bool) -> np.dtype:
    return np.dtype(
        {
            "names": [field.name for field in layout.fields],
            "formats": [_dtype(field, is_bigendian) for field in layout.fields],
            "offsets": [field.offset for field in layout.fields],
            "itemsize": layout.size,
        }
    )


def _with_points(content: CloudContent, written: _Written, points: np.ndarray) -> CloudContent:
    return replace(
        content,
        fields=written.layout.fields,
        is_bigendian=written.is_bigendian,
        point_step=written.layout.size,
        row_step=content.width * written.layout.size,
        data=points.view(np.uint8),
    )
