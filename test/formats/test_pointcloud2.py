from __future__ import annotations

import array
import math
import struct
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import LidarFrame, PointLabels
from lidar_semseg_ros.formats.pointcloud2 import (
    FLOAT32,
    FLOAT64,
    LAYOUTS,
    UINT8,
    UINT16,
    CloudContent,
    CloudError,
    CloudField,
    cloud_content,
    cloud_from_frame,
    column,
    labelled_cloud,
    read_cloud,
    visualization_cloud,
)

UINT32 = 6
STRUCT_CODES = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 8: "d"}
SIZES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 8: 8}


def message(
    rows: list[tuple],
    fields: list[tuple[str, int, int]],
    step: int,
    *,
    height: int = 1,
    row_padding: int = 0,
    big: bool = False,
    stamp_ns: int = 0,
) -> SimpleNamespace:
    """Put a PointCloud2 together value by value; one tuple of numbers per point."""
    width = len(rows) // height
    data = bytearray()
    for line in range(height):
        for row in rows[line * width : (line + 1) * width]:
            point = bytearray(b"\xaa" * step)
            for (_, offset, datatype), value in zip(fields, row):
                struct.pack_into((">" if big else "<") + STRUCT_CODES[datatype], point, offset, value)
            data += point
        data += b"\xbb" * row_padding
    return SimpleNamespace(
        header=SimpleNamespace(
            stamp=SimpleNamespace(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9), frame_id="lidar"
        ),
        height=height,
        width=width,
        fields=[SimpleNamespace(name=n, offset=o, datatype=d, count=1) for n, o, d in fields],
        is_bigendian=big,
        point_step=step,
        row_step=width * step + row_padding,
        data=bytes(data),
        is_dense=True,
    )


XYZ = [("x", 0, FLOAT32), ("y", 4, FLOAT32), ("z", 8, FLOAT32)]
ROWS = [(1.0, 2.0, 3.0), (-4.0, 5.5, 6.0), (0.0, 0.0, 0.0), (math.nan, math.nan, math.nan)]


def valid_message() -> SimpleNamespace:
    return message(ROWS, XYZ, 12)


def some_labels(rows: int, rng: np.random.Generator) -> PointLabels:
    return PointLabels(
        class_id=rng.choice(np.array([0, 1, 7, 255], np.uint8), rows),
        probability=rng.random(rows, np.float32),
        entropy=rng.random(rows, np.float32),
    )


def some_palette(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (256, 3), dtype=np.uint8)


def unpacked(content: CloudContent, name: str) -> list[float]:
    """Read one field of all points, byte by byte."""
    field = next(field for field in content.fields if field.name == name)
    code = (">" if content.is_bigendian else "<") + STRUCT_CODES[field.datatype]
    data = content.data.tobytes()
    return [
        struct.unpack_from(code, data, row * content.row_step + place * content.point_step + field.offset)[0]
        for row in range(content.height)
        for place in range(content.width)
    ]


def test_ordinary_cloud_is_read_with_its_header_and_all_its_rows() -> None:
    frame = read_cloud(message(ROWS, XYZ, 12, stamp_ns=1_600_000_000_123_456_789))
    assert frame.stamp_ns == 1_600_000_000_123_456_789
    assert frame.frame_id == "lidar"
    np.testing.assert_array_equal(frame.xyz, np.array(ROWS, np.float32))
    assert frame.has_return().tolist() == [True, True, False, False]
    assert frame.shape == (1, 4)
    assert frame.intensity is None and frame.ring is None and frame.time_s is None


@pytest.mark.parametrize("seed", range(40))
def test_random_layout_is_read_as_struct_unpack_reads_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    fields: list[tuple[str, int, int]] = []
    offset = 0
    extras = [("intensity", int(rng.integers(1, 9))), ("ring", int(rng.choice([2, 4]))), ("t", UINT32), ("junk", 3)]
    wanted = [(name, int(rng.choice([FLOAT32, FLOAT64]))) for name in "xyz"] + extras[: rng.integers(0, 5)]
    for index in rng.permutation(len(wanted)):
        name, datatype = wanted[index]
        offset += int(rng.integers(0, 4))
        fields.append((name, offset, datatype))
        offset += SIZES[datatype]
    rng.shuffle(fields)
    rows = [
        tuple(
            float(rng.normal() * 10) if datatype >= FLOAT32 else int(rng.integers(0, 127)) for _, _, datatype in fields
        )
        for _ in range(12)
    ]
    built = message(
        rows,
        fields,
        offset + int(rng.integers(0, 6)),
        height=int(rng.choice([1, 3, 4])),
        row_padding=int(rng.choice([0, 5])),
        big=bool(rng.integers(2)),
    )
    content = cloud_content(built)
    frame = read_cloud(built)
    assert frame.shape == (built.height, built.width)
    for axis, name in enumerate("xyz"):
        expected = np.array(unpacked(content, name), np.float64).astype(np.float32)
        np.testing.assert_array_equal(frame.xyz[:, axis], expected)
    names = [name for name, _, _ in fields]
    for name, values in (("intensity", frame.intensity), ("ring", frame.ring)):
        assert (values is None) == (name not in names)
        if values is not None:
            np.testing.assert_array_equal(values, np.array(unpacked(content, name)).astype(values.dtype))
    if "t" in names:
        assert frame.time_s is not None
        np.testing.assert_allclose(frame.time_s, np.array(unpacked(content, "t")) / 1e9, rtol=1e-6)
    for name in names:
        np.testing.assert_array_equal(column(content, name), unpacked(content, name))
        assert column(content, name).dtype.isnative


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda d: array.array("B", d), np.frombuffer])
def test_bytes_may_come_in_any_container(kind: Any) -> None:
    built = valid_message()
    built.data = np.frombuffer(built.data, np.uint8) if kind is np.frombuffer else kind(built.data)
    np.testing.assert_array_equal(read_cloud(built).xyz, np.array(ROWS, np.float32))


def test_bytes_of_the_wrong_kind_are_refused() -> None:
    built = valid_message()
    built.data = [1, 2, 3]
    with pytest.raises(CloudError, match="list"):
        read_cloud(built)


def test_empty_cloud_is_a_frame_without_points() -> None:
    frame = read_cloud(message([], [*XYZ, ("intensity", 12, FLOAT32), ("timestamp", 16, FLOAT64)], 24))
    assert len(frame) == 0
    assert frame.intensity is not None and frame.time_s is not None


def test_bytes_behind_the_last_row_are_ignored() -> None:
    built = valid_message()
    built.data += b"\xff" * 7
    assert len(read_cloud(built)) == 4


def broken(**changes: Any) -> SimpleNamespace:
    built = valid_message()
    for name, value in changes.items():
        setattr(built, name, value)
    return built


def with_fields(*fields: tuple[str, int, int, int]) -> SimpleNamespace:
    return broken(fields=[SimpleNamespace(name=n, offset=o, datatype=d, count=c) for n, o, d, c in fields])


X, Y, Z = ("x", 0, FLOAT32, 1), ("y", 4, FLOAT32, 1), ("z", 8, FLOAT32, 1)
FAULTS = {
    "data one byte short": (broken(data=valid_message().data[:-1]), "47 bytes.*48"),
    "no data": (broken(data=b""), "0 bytes.*48"),
    "height that lies": (broken(height=2), "48 bytes.*96"),
    "width that lies": (broken(width=5), "row_step is 48.*60"),
    "row_step too small": (broken(row_step=47), "row_step is 47.*48"),
    "negative height": (broken(height=-1), "height is -1"),
    "negative width": (broken(width=-4), "width -4"),
    "point_step too small": (broken(point_step=11), "'z' ends at byte 12.*11"),
    "point_step zero": (broken(point_step=0), "point_step is 0"),
    "negative offset": (with_fields(("x", -4, FLOAT32, 1), Y, Z), "'x' has offset -4"),
    "negative count": (with_fields(X, Y, Z, ("n", 0, UINT8, -1)), "'n' has offset 0 and count -1"),
    "unknown datatype": (with_fields(("x", 0, 9, 1), Y, Z), "'x' has datatype 9"),
    "datatype zero": (with_fields(X, Y, ("z", 8, 0, 1)), "'z' has datatype 0"),
    "duplicated name": (with_fields(X, Y, Z, Y), "2 fields named 'y'"),
    "overlapping fields": (with_fields(X, ("y", 3, FLOAT32, 1), Z), "'x'.*'y'.*overlap"),
    "array over a field": (with_fields(X, Y, ("a", 5, UINT8, 3), Z), "'y'.*'a'.*overlap"),
    "missing z": (with_fields(X, Y), "no field 'z'; it has x, y"),
    "no fields": (with_fields(), "no field 'x'; it has no fields"),
    "integer x": (with_fields(("x", 0, 5, 1), Y, Z), "'x' has datatype 5"),
    "x with several values": (with_fields(("x", 0, UINT8, 4), Y, Z), "'x' has datatype 2"),
    "z with count 0": (with_fields(X, Y, ("z", 8, FLOAT32, 0)), "'z' has count 0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_cloud_is_refused_with_the_field_and_the_numbers(fault: str) -> None:
    built, words = FAULTS[fault]
    with pytest.raises(CloudError, match=words):
        cloud_content(built)


def test_coordinate_with_two_values_is_refused() -> None:
    fields = (CloudField("x", 0, FLOAT32, 2), CloudField("y", 8, FLOAT32), CloudField("z", 12, FLOAT32))
    with pytest.raises(CloudError, match="'x' has count 2"):
        replace(cloud_content(valid_message()), fields=fields, point_step=16, row_step=64, data=np.zeros(64, np.uint8))


def test_intensity_with_two_values_per_point_is_refused() -> None:
    built = message([(1.0, 2.0, 3.0)], XYZ, 20)
    built.fields.append(SimpleNamespace(name="intensity", offset=12, datatype=FLOAT32, count=2))
    with pytest.raises(CloudError, match="'intensity' has count 2"):
        read_cloud(built)
    assert column(cloud_content(built), "intensity").shape == (1, 2)


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (("reflectivity", "intensity"), "intensity"),
        (("i", "reflectivity"), "reflectivity"),
        (("i",), "i"),
        (("remission",), None),
    ],
)
def test_intensity_is_the_first_known_name(names: tuple[str, ...], taken: str | None) -> None:
    fields = XYZ + [(name, 12 + index, UINT8) for index, name in enumerate(names)]
    frame = read_cloud(message([(1.0, 2.0, 3.0, *range(10, 10 + len(names)))], fields, 16))
    if taken is None:
        assert frame.intensity is None
    else:
        assert frame.intensity is not None and frame.intensity.tolist() == [10 + names.index(taken)]


@pytest.mark.parametrize("name", ["ring", "channel", "line", "laser_id"])
def test_ring_goes_by_any_of_its_names(name: str) -> None:
    frame = read_cloud(message([(1.0, 2.0, 3.0, 63)], [*XYZ, (name, 12, UINT16)], 14))
    assert frame.ring is not None and frame.ring.tolist() == [63] and frame.ring.dtype == np.uint16


def test_ring_outside_its_range_is_clipped() -> None:
    rows = [(0.0, 0.0, 0.0, value) for value in (-1.0, 2.0, 70000.0, math.nan)]
    frame = read_cloud(message(rows, [*XYZ, ("ring", 12, FLOAT32)], 16))
    assert frame.ring is not None and frame.ring.tolist() == [0, 2, 65535, 0]


STAMP_NS = 1_700_000_000_500_000_000


@pytest.mark.parametrize(
    ("name", "datatype", "values", "seconds"),
    [
        ("t", UINT32, [0, 50_000_000], [0.0, 0.05]),  # Ouster
        ("offset_time", UINT32, [10, 99_999_999], [1e-8, 0.099999999]),
        ("time_stamp", UINT32, [1, 2_000], [1e-9, 2e-6]),  # Nebula
        ("time", FLOAT32, [-0.1, 0.0], [-0.1, 0.0]),  # Velodyne
        ("timestamp", FLOAT64, [1_700_000_000.5, 1_700_000_000.55], [0.0, 0.05]),  # Hesai, RoboSense
        ("timestamp", FLOAT64, [0.25, -0.5], [0.25, -0.5]),
        ("timestamp", FLOAT64, [1.7000000005e18, 1.7000000006e18], [0.0, 0.1]),  # Livox
        ("timestamp", FLOAT64, [1_700_000_000.75, 0.0], [0.25, math.nan]),
        ("timestamp", FLOAT64, [math.nan, math.inf], [math.nan, math.inf]),
        # One of garbage decides neither the unit nor whether the others are absolute.
        ("timestamp", FLOAT64, [0.0, 0.02, 0.05, 1_700_000_005.0], [0.0, 0.02, 0.05, 1_700_000_005.0]),
        ("timestamp", FLOAT64, [1_700_000_000.5, 1_700_000_000.55, 1e30], [0.0, 0.05, 1e30]),
    ],
)
def test_time_is_read_by_its_datatype_and_size(
    name: str, datatype: int, values: list[float], seconds: list[float]
) -> None:
    rows = [(1.0, 2.0, 3.0, value) for value in values]
    frame = read_cloud(message(rows, [*XYZ, (name, 12, datatype)], 20, stamp_ns=STAMP_NS))
    # A float64 resolves the seconds since 1970 to 0.24 µs, and their nanoseconds to 0.26 µs.
    np.testing.assert_allclose(frame.time_s, seconds, atol=6e-7, rtol=1e-6)


def test_time_in_two_integers_is_absolute() -> None:
    rows = [(1.0, 2.0, 3.0, 1_700_000_001, 100_000_000), (1.0, 2.0, 3.0, 1_700_000_000, 500_000_007)]
    fields = [*XYZ, ("time_sec", 12, UINT32), ("time_nsec", 16, UINT32)]
    frame = read_cloud(message(rows, fields, 20, stamp_ns=STAMP_NS))
    np.testing.assert_allclose(frame.time_s, [0.6, 7e-9], rtol=1e-6)


def test_coordinates_too_large_for_float32_are_no_return() -> None:
    fields = [("x", 0, FLOAT64), ("y", 8, FLOAT64), ("z", 16, FLOAT64)]
    frame = read_cloud(message([(1e300, 0.0, 0.0)], fields, 24))
    assert not frame.has_return().any()


def test_missing_column_is_named_with_those_that_exist() -> None:
    with pytest.raises(CloudError, match="no field 'label'; it has x, y, z"):
        column(cloud_content(valid_message()), "label")


PUBLISHED = {
    "aligned": (
        [
            *[("x", 0, 7), ("y", 4, 7), ("z", 8, 7)],
            *[("rgb", 12, 7), ("probability", 16, 7), ("entropy", 20, 7), ("class_id", 24, 2)],
        ],
        28,
    ),
    "autoware": (
        [("x", 0, 7), ("y", 4, 7), ("z", 8, 7), ("class_id", 12, 2), ("probability", 13, 7), ("entropy", 17, 7)],
        21,
    ),
}


@pytest.mark.parametrize("layout", PUBLISHED)
@pytest.mark.parametrize("big", [False, True])
def test_output_layout_is_as_published_point_by_point(layout: str, big: bool) -> None:
    rng = np.random.default_rng(1)
    rows = [(*rng.normal(size=3), 7) for _ in range(5)] + [(math.nan, 0.0, math.inf, 0)]
    built = message(
        rows, [*XYZ, ("ring", 13, UINT16)], 17, height=2, row_padding=3, big=big, stamp_ns=1_000_000_000_000_000_007
    )
    built.is_dense = False
    content = cloud_content(built)
    frame, labels, palette = read_cloud(content), some_labels(6, rng), some_palette(rng)
    out = labelled_cloud(content, frame, labels, palette, layout)
    fields, step = PUBLISHED[layout]
    assert [(field.name, field.offset, field.datatype, field.count) for field in out.fields] == [
        (*field, 1) for field in fields
    ]
    assert (out.point_step, out.row_step, len(out.data)) == (step, 3 * step, 6 * step)
    assert (out.stamp_ns, out.frame_id, out.height, out.width) == (1_000_000_000_000_000_007, "lidar", 2, 3)
    assert (out.is_bigendian, out.is_dense) == (False, False)
    for axis, name in enumerate("xyz"):
        np.testing.assert_array_equal(unpacked(out, name), [np.float32(row[axis]) for row in rows])
    check_labels(out, labels, palette, has_color=layout == "aligned")


def check_labels(out: CloudContent, labels: PointLabels, palette: np.ndarray, has_color: bool) -> None:
    assert unpacked(out, "class_id") == labels.class_id.tolist()
    np.testing.assert_array_equal(unpacked(out, "probability"), labels.probability)
    np.testing.assert_array_equal(unpacked(out, "entropy"), labels.entropy)
    if has_color:
        order = ">" if out.is_bigendian else "<"
        for value, class_id in zip(unpacked(out, "rgb"), labels.class_id):
            red, green, blue = palette[class_id]
            bits = struct.unpack(order + "I", struct.pack(order + "f", value))[0]
            assert bits == int(red) * 65536 + int(green) * 256 + int(blue)


@pytest.mark.parametrize("big", [False, True])
def test_append_layout_keeps_the_bytes_of_every_input_point(big: bool) -> None:
    rng = np.random.default_rng(2)
    rows = [(*rng.normal(size=3), index) for index in range(6)]
    built = message(rows, [*XYZ, ("ring", 17, UINT16)], 22, height=3, row_padding=5, big=big)
    content = cloud_content(built)
    frame, labels, palette = read_cloud(content), some_labels(6, rng), some_palette(rng)
    out = labelled_cloud(content, frame, labels, palette, "append")
    assert (out.point_step, out.row_step, out.height, out.width) == (35, 70, 3, 2)
    assert out.is_bigendian == big
    assert out.fields[:4] == content.fields
    assert [(field.name, field.offset, field.datatype) for field in out.fields[4:]] == [
        ("class_id", 22, 2),
        ("probability", 23, 7),
        ("entropy", 27, 7),
        ("rgb", 31, 7),
    ]
    for point in range(6):
        start = point // 2 * 49 + point % 2 * 22
        assert out.data[point * 35 : point * 35 + 22].tobytes() == built.data[start : start + 22]
    check_labels(out, labels, palette, has_color=True)


@pytest.mark.parametrize("name", ["class_id", "probability", "entropy", "rgb"])
def test_append_layout_refuses_a_cloud_that_has_the_field_already(name: str) -> None:
    rng = np.random.default_rng(3)
    content = cloud_content(message([(1.0, 2.0, 3.0, 4.0)], [*XYZ, (name, 12, FLOAT32)], 16))
    with pytest.raises(CloudError, match=f"already has a field '{name}'"):
        labelled_cloud(content, read_cloud(content), some_labels(1, rng), some_palette(rng), "append")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_cloud_is_labelled_in_every_layout(layout: str) -> None:
    rng = np.random.default_rng(4)
    content = cloud_content(message([], XYZ, 12))
    out = labelled_cloud(content, read_cloud(content), some_labels(0, rng), some_palette(rng), layout)
    assert len(out) == 0 and len(out.data) == 0


def test_labels_of_another_length_are_refused() -> None:
    rng = np.random.default_rng(5)
    content = cloud_content(valid_message())
    with pytest.raises(CloudError, match="4 points got 4 coordinates and 3 labels"):
        labelled_cloud(content, read_cloud(content), some_labels(3, rng), some_palette(rng), "aligned")


def test_unknown_layout_is_named_with_those_that_exist() -> None:
    rng = np.random.default_rng(6)
    content = cloud_content(valid_message())
    with pytest.raises(UserError, match="no output layout 'pcl'; there are aligned, autoware, append"):
        labelled_cloud(content, read_cloud(content), some_labels(4, rng), some_palette(rng), "pcl")


def test_visualization_cloud_is_position_and_colour() -> None:
    rng = np.random.default_rng(7)
    content = cloud_content(message(ROWS, XYZ, 12, height=2, row_padding=4))
    labels, palette = some_labels(4, rng), some_palette(rng)
    out = visualization_cloud(read_cloud(content), content, labels, palette)
    assert [(field.name, field.offset) for field in out.fields] == [("x", 0), ("y", 4), ("z", 8), ("rgb", 12)]
    assert (out.point_step, out.height, out.width) == (16, 2, 2)
    np.testing.assert_array_equal(read_cloud(out).xyz, np.array(ROWS, np.float32))
    expected = palette[labels.class_id].astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
    np.testing.assert_array_equal(column(out, "rgb").view(np.uint32), expected)


def full_frame(rng: np.random.Generator) -> LidarFrame:
    return LidarFrame(
        stamp_ns=123,
        frame_id="velodyne",
        xyz=rng.normal(size=(6, 3)).astype(np.float32),
        intensity=rng.random(6, np.float32),
        ring=np.arange(6, dtype=np.uint16),
        time_s=np.linspace(-0.1, 0, 6, dtype=np.float32),
        shape=(2, 3),
    )


def test_cloud_from_frame_has_the_layout_of_the_velodyne_driver_and_reads_back_equal() -> None:
    rng = np.random.default_rng(8)
    frame = full_frame(rng)
    labels = np.array([0, 1, 2, 3, 4, 255], np.uint8)
    content = cloud_from_frame(frame, labels)
    assert [(field.name, field.offset, field.datatype) for field in content.fields] == [
        ("x", 0, 7),
        ("y", 4, 7),
        ("z", 8, 7),
        ("intensity", 12, 7),
        ("ring", 16, 4),
        ("time", 18, 7),
        ("label", 22, 2),
    ]
    assert cloud_from_frame(frame).point_step == 22
    back = read_cloud(content)
    for name in ("xyz", "intensity", "ring", "time_s"):
        np.testing.assert_array_equal(getattr(back, name), getattr(frame, name))
    assert (back.stamp_ns, back.frame_id, back.shape) == (123, "velodyne", (2, 3))
    assert column(content, "label").tolist() == labels.tolist()
    assert content.is_dense


def test_cloud_from_frame_leaves_out_what_the_sweep_lacks() -> None:
    frame = LidarFrame(stamp_ns=0, frame_id="", xyz=np.full((2, 3), np.nan, np.float32))
    content = cloud_from_frame(frame)
    assert [field.name for field in content.fields] == ["x", "y", "z"]
    assert not content.is_dense


def test_cloud_with_true_labels_can_be_labelled_in_every_layout() -> None:
    rng = np.random.default_rng(9)
    content = cloud_from_frame(full_frame(rng), np.zeros(6, np.uint8))
    for layout in LAYOUTS:
        assert len(labelled_cloud(content, read_cloud(content), some_labels(6, rng), some_palette(rng), layout)) == 6
