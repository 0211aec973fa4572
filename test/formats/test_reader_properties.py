"""Properties of the readers on random clouds and images, beside readers that were written independently."""

from __future__ import annotations

import array
import struct
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.sensor import FieldNames
from lidar_semseg_ros.formats.images import ENCODINGS, ImageError, read_camera_info, read_image
from lidar_semseg_ros.formats.pointcloud2 import CloudError, cloud_content, column, packed_cloud, read_cloud

settings.register_profile(
    "readers",
    derandomize=True,
    deadline=None,
    max_examples=200,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("readers")

STRUCT_CODES = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 8: "d"}
HEADER = SimpleNamespace(stamp=SimpleNamespace(sec=7, nanosec=9), frame_id="lidar")
UINT32 = st.one_of(st.integers(0, 40), st.sampled_from([2**16, 2**31 - 1, 2**31, 2**32 - 1]), st.integers(0, 2**32 - 1))


@dataclass(frozen=True)
class Layout:
    """A well-formed cloud, and its fields as (name, offset, datatype, count)."""

    message: Any
    fields: list[tuple[str, int, int, int]]


@st.composite
def layouts(draw: st.DrawFn, row_padding: st.SearchStrategy[int] = st.integers(0, 9)) -> Layout:  # noqa: B008
    """Draw fields in any order with gaps between them, sizes, a byte order and random bytes for the points."""
    extras = draw(st.lists(st.text(min_size=1, max_size=4), unique=True, max_size=4))
    names = draw(st.permutations(["x", "y", "z", *(name for name in extras if name not in ("x", "y", "z"))]))
    fields, offset = [], 0
    for name in names:
        is_coordinate = name in ("x", "y", "z")
        offset += draw(st.integers(0, 5))
        datatype = draw(st.sampled_from([7, 8] if is_coordinate else list(STRUCT_CODES)))
        count = 1 if is_coordinate else draw(st.integers(1, 3))
        fields.append((name, offset, datatype, count))
        offset += count * struct.calcsize("<" + STRUCT_CODES[datatype])
    height, width = draw(st.integers(0, 4)), draw(st.integers(0, 6))
    step = offset + draw(st.integers(0, 5))
    row_step = width * step + draw(row_padding)
    seed = draw(st.integers(0, 2**32 - 1))
    listed = draw(st.permutations(fields))
    message = SimpleNamespace(
        header=HEADER,
        height=height,
        width=width,
        fields=[SimpleNamespace(name=n, offset=o, datatype=d, count=c) for n, o, d, c in listed],
        is_bigendian=draw(st.booleans()),
        point_step=step,
        row_step=row_step,
        data=np.random.default_rng(seed).bytes(height * row_step + draw(st.integers(0, 3))),
        is_dense=False,
    )
    return Layout(message, list(listed))


def unpacked(message: Any, offset: int, datatype: int, count: int) -> np.ndarray:
    """Read a field of every point with struct: (N, count)."""
    code = (">" if message.is_bigendian else "<") + str(count) + STRUCT_CODES[datatype]
    places = [
        row * message.row_step + place * message.point_step + offset
        for row in range(message.height)
        for place in range(message.width)
    ]
    values = [struct.unpack_from(code, message.data, place) for place in places]
    return np.array(values, np.float64 if datatype >= 7 else np.int64).reshape(len(places), count)


def as_float32(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32)


@given(layouts())
def test_every_field_is_read_as_struct_reads_it(layout: Layout) -> None:
    content = cloud_content(layout.message)
    for name, offset, datatype, count in layout.fields:
        expected = unpacked(layout.message, offset, datatype, count)
        found = column(content, name)
        assert found.dtype.isnative and found.shape == (len(expected), *([count] if count > 1 else []))
        with np.errstate(invalid="ignore"):  # of a signalling NaN
            # float64 holds every value of the eight datatypes.
            np.testing.assert_array_equal(found.reshape(expected.shape).astype(np.float64), expected.astype(np.float64))


@given(layouts())
def test_frame_has_the_coordinates_that_struct_reads_row_by_row(layout: Layout) -> None:
    try:
        frame = read_cloud(layout.message)
    except CloudError as error:  # a drawn name may be that of an intensity, ring or time
        assert "one value per point" in str(error)
        return
    assert frame.shape == (layout.message.height, layout.message.width)
    for name, offset, datatype, _ in layout.fields:
        if name in ("x", "y", "z"):
            expected = as_float32(unpacked(layout.message, offset, datatype, 1)[:, 0])
            np.testing.assert_array_equal(frame.xyz[:, "xyz".index(name)], expected)


@given(layouts())
def test_bytes_are_described_where_they_are_read(layout: Layout) -> None:
    content = cloud_content(layout.message)
    try:
        frame = read_cloud(content)
    except CloudError as error:  # see above
        with pytest.raises(CloudError) as other:
            packed_cloud(content, FieldNames(), "aligned")
        assert str(other.value) == str(error)
        return
    packed = packed_cloud(content, FieldNames(), "aligned")
    points = np.ascontiguousarray(packed.rows).reshape(-1).view(packed.point)
    assert len(packed) == len(points) == len(frame) and packed.has_intensity() == (frame.intensity is not None)
    for axis, name in enumerate("xyz"):
        np.testing.assert_array_equal(as_float32(points[name]), frame.xyz[:, axis])


@given(layouts())
def test_columns_share_no_memory_with_the_message(layout: Layout) -> None:
    data = layout.message.data = bytearray(layout.message.data)
    content = cloud_content(layout.message)
    columns = [column(content, name) for name, *_ in layout.fields]
    before = [taken.tobytes() for taken in columns]
    data[:] = bytes(255 - byte for byte in data)
    assert [taken.tobytes() for taken in columns] == before


any_field = st.builds(
    SimpleNamespace,
    name=st.sampled_from(["x", "y", "z", "intensity", "ring", "t", "timestamp", "time_sec", "time_nsec", "", "é"]),
    offset=UINT32,
    datatype=st.integers(0, 10),
    count=st.one_of(st.just(1), UINT32),
)


@given(
    st.builds(
        SimpleNamespace,
        header=st.builds(
            SimpleNamespace,
            stamp=st.builds(SimpleNamespace, sec=st.integers(-(2**31), 2**31 - 1), nanosec=UINT32),
            frame_id=st.text(max_size=3),
        ),
        height=UINT32,
        width=UINT32,
        fields=st.lists(any_field, max_size=6),
        is_bigendian=st.booleans(),
        point_step=UINT32,
        row_step=UINT32,
        data=st.binary(max_size=200),
        is_dense=st.booleans(),
    )
)
def test_any_description_and_bytes_are_read_whole_or_refused(message: Any) -> None:
    try:
        frame = read_cloud(message)
    except CloudError:
        return
    assert len(frame) == message.height * message.width


@given(layouts(), st.data())
def test_cloud_with_one_changed_number_is_read_whole_or_refused(layout: Layout, data: st.DataObject) -> None:
    message = layout.message
    target, names = data.draw(
        st.sampled_from(
            [(message, ("height", "width", "point_step", "row_step"))]
            + [(field, ("offset", "datatype", "count")) for field in message.fields]
        )
    )
    setattr(target, data.draw(st.sampled_from(names)), data.draw(UINT32))
    try:
        frame = read_cloud(message)
    except CloudError:
        return
    assert len(frame) == message.height * message.width


@given(layouts(row_padding=st.just(0)))  # sensor_msgs_py does not look at row_step
def test_every_field_is_read_as_sensor_msgs_py_reads_it(layout: Layout) -> None:
    sensor_msgs = pytest.importorskip("sensor_msgs.msg", reason="sensor_msgs comes with ROS 2")
    theirs = pytest.importorskip("sensor_msgs_py.point_cloud2", reason="sensor_msgs_py comes with ROS 2")
    drawn = layout.message
    message = sensor_msgs.PointCloud2(
        height=drawn.height,
        width=drawn.width,
        fields=[
            sensor_msgs.PointField(name=f"f{k}", offset=f[1], datatype=f[2], count=f[3])
            for k, f in enumerate(layout.fields)
        ],
        is_bigendian=drawn.is_bigendian,
        point_step=drawn.point_step,
        row_step=drawn.row_step,
        is_dense=False,
    )
    message.data = array.array("B", drawn.data)
    points = theirs.read_points(message)  # swaps the bytes of the message where they stand, so ours has its own
    content = cloud_content(drawn)
    assert len(points) == len(content)
    for place, (name, _, _, count) in enumerate(layout.fields):
        ours = column(content, name).reshape(len(points), count)
        for index in range(count):
            np.testing.assert_array_equal(ours[:, index], points[f"f{place}" if count == 1 else f"f{place}_{index}"])


@given(
    st.builds(
        SimpleNamespace,
        header=st.just(HEADER),
        height=UINT32,
        width=UINT32,
        encoding=st.one_of(st.sampled_from(sorted(ENCODINGS)), st.text(max_size=5)),
        is_bigendian=st.integers(0, 255),
        step=UINT32,
        data=st.binary(max_size=200),
    )
)
def test_any_raw_image_is_read_in_its_size_or_refused(message: Any) -> None:
    try:
        image = read_image(message)
    except ImageError:
        return
    assert image.pixels.shape == (message.height, message.width, 3)


@given(
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    padding=st.integers(0, 4),
    swapped=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_colour_image_is_read_pixel_by_pixel(height: int, width: int, padding: int, swapped: bool, seed: int) -> None:
    step = 3 * width + padding
    data = np.random.default_rng(seed).bytes(height * step)
    encoding = "bgr8" if swapped else "rgb8"
    message = SimpleNamespace(
        header=HEADER, height=height, width=width, encoding=encoding, is_bigendian=0, step=step, data=data
    )
    pixels = read_image(message).pixels
    for row in range(height):
        for place in range(width):
            start = row * step + 3 * place
            expected = list(data[start : start + 3])
            assert pixels[row, place].tolist() == (expected[::-1] if swapped else expected)


@given(st.sampled_from(["jpeg", "png", "", "16UC1; compressedDepth png"]), st.binary(max_size=300))
def test_any_bytes_called_a_compressed_image_are_refused(name: str, data: bytes) -> None:
    for start in (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(ImageError):
            read_image(SimpleNamespace(header=HEADER, format=name, data=start + data))


numbers = st.floats(width=64)


@given(
    model=st.sampled_from(["plumb_bob", "rational_polynomial", "equidistant", "fisheye", "", "wobbly"]),
    k=st.lists(st.one_of(st.sampled_from([0.0, 1.0, 500.0]), numbers), min_size=9, max_size=9),
    d=st.lists(numbers, max_size=9),
    width=UINT32,
    height=UINT32,
)
def test_any_camera_info_is_read_or_refused(
    model: str, k: list[float], d: list[float], width: int, height: int
) -> None:
    roi = SimpleNamespace(x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    info = SimpleNamespace(distortion_model=model, k=k, d=d, r=[0.0] * 9, p=[0.0] * 12, width=width, height=height)
    info.header, info.binning_x, info.binning_y, info.roi = HEADER, 0, 0, roi
    try:
        camera = read_camera_info(info)
    except UserError:
        return
    assert (camera.width, camera.height) == (width, height)
    assert camera.matrix.tolist() == np.reshape(k, (3, 3)).tolist()
