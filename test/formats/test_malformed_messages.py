"""Clouds, images, camera infos and scans as no driver should send them: refused by name, or kept with all rows."""

from __future__ import annotations

import resource
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.formats.images import ImageError, jpeg_bytes, read_camera_info, read_image
from lidar_semseg_ros.formats.loose_scans import read_scan
from lidar_semseg_ros.formats.pointcloud2 import (
    FLOAT32,
    FLOAT64,
    LAYOUTS,
    UINT8,
    CloudContent,
    CloudError,
    cloud_content,
    labelled_cloud,
    read_cloud,
)
from lidar_semseg_ros.network.inputs import InputConfig, prepare, to_points

pytestmark = pytest.mark.filterwarnings("error")  # a RuntimeWarning of NumPy is a value that nobody meant

INT8, INT16, UINT32 = 1, 3, 6
UINT32_MAX = 2**32 - 1
CLASSES = 3
INPUTS = InputConfig(
    voxel_size_m=0.1,
    fov_min_m=(-8, -8, -2),
    fov_max_m=(8, 8, 2),
    planes=("z", "y", "x"),
    grids=((32, 32), (32, 8), (32, 8)),
)


@pytest.fixture(autouse=True)
def little_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test whose arrays took more than a message of its size can need."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (2_000_000_000 if "2 million" in request.node.name else 100_000_000)


def stamp(sec: int = 1_700_000_000, nanosec: int = 5) -> SimpleNamespace:
    return SimpleNamespace(sec=sec, nanosec=nanosec)


def field(name: str, offset: int, datatype: int = FLOAT32, count: int = 1) -> SimpleNamespace:
    return SimpleNamespace(name=name, offset=offset, datatype=datatype, count=count)


X, Y, Z = field("x", 0), field("y", 4), field("z", 8)


def cloud(rows: Any = ((1, 2, 0.5), (3, -4, 1)), *extra: SimpleNamespace, step: int = 12, **changes: Any) -> Any:
    """Make a cloud of one row from (N, 3) coordinates; the bytes behind them up to `step` are 0x01."""
    xyz = np.asarray(rows, "<f4").reshape(-1, 3)
    points = np.full((len(xyz), step), 1, np.uint8)
    points[:, :12] = xyz.view(np.uint8).reshape(-1, 12)
    message = {
        "header": SimpleNamespace(stamp=stamp(), frame_id="lidar"),
        "height": 1,
        "width": len(xyz),
        "fields": [X, Y, Z, *extra],
        "is_bigendian": False,
        "point_step": step,
        "row_step": len(xyz) * step,
        "data": points.tobytes(),
        "is_dense": True,
    }
    return SimpleNamespace(**(message | changes))


def made_of(*fields: SimpleNamespace, step: int = 16) -> Any:
    return cloud(step=step, fields=list(fields))


def headed(frame_id: str = "lidar", **time: int) -> Any:
    return cloud(header=SimpleNamespace(stamp=stamp(**time), frame_id=frame_id))


def big_endian() -> Any:
    return cloud(is_bigendian=True, data=np.array([(1, 2, 0.5), (3, -4, 1)], ">f4").tobytes())


def two_million() -> Any:
    return cloud(np.random.default_rng(0).uniform(-1, 1, (2_000_000, 3)))


def doubles(value: float) -> Any:
    fields = [field("x", 0, FLOAT64), field("y", 8, FLOAT64), field("z", 16, FLOAT64)]
    data = np.full((4, 3), value, "<f8").tobytes()
    return cloud(fields=fields, width=4, point_step=24, row_step=96, data=data)


def with_values(name: str, datatype: int, values: Any) -> Any:
    """Give every point one value of a field behind its coordinates."""
    code = {FLOAT32: "<f4", FLOAT64: "<f8", INT8: "<i1", UINT32: "<u4"}[datatype]
    column = np.asarray(values, code)
    message = cloud(np.ones((len(column), 3)), field(name, 12, datatype), step=12 + column.itemsize)
    points = np.frombuffer(message.data, np.uint8).reshape(len(column), -1).copy()
    points[:, 12:] = column.view(np.uint8).reshape(len(column), -1)
    message.data = points.tobytes()
    return message


def seconds_and_nanoseconds_that_are_nan() -> Any:
    message = cloud(((1, 1, 1),), field("time_sec", 12, FLOAT64), field("time_nsec", 20, FLOAT64), step=28)
    message.data = message.data[:12] + struct.pack("<2d", np.nan, np.inf)
    return message


SIGNALLING = np.array([0x7F800001], "<u4").view("<f4")
SIGNALLING_DOUBLES = np.array([0x7FF0000000000001, 0x41D9500000000000], "<u8").view("<f8")  # and a time of 2023
CLOUDS: dict[str, tuple[Callable[[], Any], int | str]] = {
    # sizes
    "data too short": (lambda: cloud(data=cloud().data[:-1]), "data has 23 bytes"),
    "data too long": (lambda: cloud(data=cloud().data + b"\xff" * 999), 2),
    "data empty": (lambda: cloud(data=b""), "data has 0 bytes"),
    "data a list": (lambda: cloud(data=[0] * 24), "data must be bytes"),
    "data None": (lambda: cloud(data=None), "data must be bytes"),
    "data with gaps": (lambda: cloud(data=memoryview(cloud().data * 2)[::2]), "data must be bytes"),
    "row_step too small": (lambda: cloud(row_step=23), "row_step is 23"),
    "row_step zero": (lambda: cloud(row_step=0), "row_step is 0"),
    "row_step larger than the data": (lambda: cloud(row_step=25), "data has 24 bytes"),
    "point_step zero": (lambda: cloud(point_step=0), "point_step is 0"),
    "point_step zero for a width of 2³²": (lambda: cloud(point_step=0, width=UINT32_MAX, row_step=0), "point_step"),
    "2³¹ × 2³¹ points": (lambda: cloud(height=2**31, width=2**31, row_step=2**31), "row_step"),
    "2³¹ rows": (lambda: cloud(height=2**31), "height 2147483648 times row_step"),
    "2³² columns": (lambda: cloud(width=UINT32_MAX), "row_step"),
    "no rows": (lambda: cloud(height=0), 0),
    "no columns": (lambda: cloud(width=0), 0),
    "2³² rows without columns": (lambda: cloud(height=UINT32_MAX, width=0, row_step=0, data=b""), 0),
    "a row too long for the output, no rows": (
        lambda: cloud(height=0, width=UINT32_MAX // 12, row_step=UINT32_MAX, data=b""),
        "row_step",
    ),
    "10³⁰ rows without columns": (lambda: cloud(height=10**30, width=0, row_step=0, data=b""), "height is 1000"),
    "no points of 2³² bytes": (lambda: cloud(width=0, point_step=UINT32_MAX), "point_step is 4294967295"),
    "point_step of 64 KiB": (lambda: cloud(step=65536), 2),
    # coordinates
    "no points": (lambda: cloud(()), 0),
    "one point": (lambda: cloud(((1, 1, 1),)), 1),
    "fewer points than neighbours": (lambda: cloud(np.arange(21) / 10), 7),
    "all points in one place": (lambda: cloud(np.ones((40, 3))), 40),
    "2 million points": (two_million, 2_000_000),
    "only NaN": (lambda: cloud(np.full((50, 3), np.nan)), 50),
    "signalling NaN": (lambda: cloud(np.repeat(SIGNALLING, 9)), 3),
    "±Inf": (lambda: cloud(((np.inf, 0, 0), (0, -np.inf, 1), (1, 1, 1))), 3),
    "NaN in z only": (lambda: cloud(((1, 2, np.nan), (1, 1, 1))), 2),
    "coordinates of 1e38": (lambda: cloud(((1e38, 1e38, 1e38), (-1e38, 0, 0), (1, 1, 1))), 3),
    "coordinates of 1e5": (lambda: cloud(((1e5, -1e5, 1e5), (-1e5, 1e5, -1e5), (1, 1, 1))), 3),
    "smallest float32": (lambda: cloud(np.full((5, 3), 1e-45)), 5),
    "only origin": (lambda: cloud(np.zeros((30, 3))), 30),
    "doubles beyond float32": (lambda: doubles(1e300), 4),
    "doubles that are NaN": (lambda: doubles(np.nan), 4),
    # fields
    "no fields": (lambda: cloud(fields=[]), "no field 'x'"),
    "missing x": (lambda: made_of(Y, Z), "no field 'x'"),
    "X in capitals": (lambda: made_of(field("X", 0), Y, Z), "no field 'x'"),
    "x as uint8": (lambda: made_of(field("x", 0, UINT8), Y, Z), "'x' has datatype 2"),
    "x as int16": (lambda: made_of(field("x", 0, INT16), Y, Z), "'x' has datatype 3"),
    "x with count 3": (lambda: made_of(field("x", 4, FLOAT32, 3), field("y", 0), field("z", 16), step=20), "'x'"),
    "x with count 0": (lambda: made_of(field("x", 0, FLOAT32, 0), Y, Z), "'x' has count 0"),
    "y twice": (lambda: made_of(X, Y, Z, Y), "'y'"),
    "30,000 fields named alike": (lambda: cloud(fields=[X, Y, Z, *[field("n", 0, UINT8, 0)] * 30_000]), "'n'"),
    "30,000 fields": (lambda: made_of(X, Y, Z, *[field(f"n{k}", 12, UINT8, 0) for k in range(30_000)]), 2),
    "offset beyond point_step": (lambda: made_of(X, Y, field("z", 999)), "'z' ends at byte 1003"),
    "offset of 2³²": (lambda: made_of(X, Y, field("z", UINT32_MAX)), "'z' ends at byte"),
    "field over the end of the point": (lambda: made_of(X, Y, field("z", 13)), "'z' ends at byte 17"),
    "negative offset": (lambda: made_of(X, field("y", -4), Z), "'y' has offset -4"),
    "overlapping fields": (lambda: made_of(X, field("y", 2), Z), "'x'.*'y'.*overlap"),
    "a double over two floats": (lambda: made_of(X, Y, Z, field("time", 4, FLOAT64)), "overlap"),
    "datatype 0": (lambda: made_of(X, Y, field("z", 8, 0)), "'z' has datatype 0"),
    "datatype 9": (lambda: made_of(X, Y, Z, field("t", 12, 9)), "'t' has datatype 9"),
    "datatype -1": (lambda: made_of(X, Y, Z, field("t", 12, -1)), "'t' has datatype -1"),
    "datatype 255": (lambda: made_of(X, Y, Z, field("t", 12, 255)), "'t' has datatype 255"),
    "count 4 beside the coordinates": (lambda: made_of(X, Y, Z, field("feature", 12, UINT8, 4)), 2),
    "count 2³²": (lambda: made_of(X, Y, Z, field("feature", 12, UINT8, UINT32_MAX)), "'feature' ends at byte"),
    "count -1": (lambda: made_of(X, Y, Z, field("feature", 12, UINT8, -1)), "'feature'.*count -1"),
    "count 0 beside the coordinates": (lambda: made_of(X, Y, Z, field("empty", 16, FLOAT32, 0)), 2),
    "count 0 before x, at its place": (lambda: made_of(field("empty", 0, FLOAT32, 0), X, Y, Z), 2),
    "count 0 after x, at its place": (lambda: made_of(X, Y, Z, field("empty", 0, FLOAT32, 0)), 2),
    "intensity with count 4": (lambda: made_of(X, Y, Z, field("intensity", 12, UINT8, 4)), "'intensity' has count 4"),
    "ring with count 0": (lambda: made_of(X, Y, Z, field("ring", 12, UINT8, 0)), "'ring' has count 0"),
    "empty field name": (lambda: made_of(X, Y, Z, field("", 12)), 2),
    "field names not in ASCII": (lambda: made_of(X, Y, Z, field("intensité", 12, UINT8), field("強度", 13, UINT8)), 2),
    "field name with quotes and a line break": (lambda: made_of(X, Y, Z, field("a'\n\0b", 12)), 2),
    "field name of half a surrogate": (lambda: made_of(X, Y, Z, field("\ud800", 12)), 2),
    "fields in reverse": (lambda: made_of(Z, Y, X), 2),
    "big-endian": (big_endian, 2),
    "little-endian bytes called big-endian": (lambda: cloud(np.ones((5, 3)), is_bigendian=True), 5),
    # other values
    "intensity NaN, ±Inf": (lambda: with_values("intensity", FLOAT32, [np.nan, np.inf, -np.inf, 1]), 4),
    "intensity beyond float32": (lambda: with_values("intensity", FLOAT64, [1e300, -1e300, np.nan]), 3),
    "ring a signalling NaN": (lambda: with_values("ring", FLOAT32, np.repeat(SIGNALLING, 2)), 2),
    "ring negative": (lambda: with_values("ring", INT8, [-1, -128, 127]), 3),
    "ring of 1e308, NaN, ±Inf": (lambda: with_values("ring", FLOAT64, [1e308, np.nan, np.inf, -np.inf]), 4),
    "time a signalling NaN": (lambda: with_values("time", FLOAT32, np.repeat(SIGNALLING, 2)), 2),
    "time of ±1e308, NaN, ±Inf": (lambda: with_values("timestamp", FLOAT64, [1e308, -1e308, np.nan, np.inf]), 4),
    "absolute time a signalling NaN": (lambda: with_values("timestamp", FLOAT64, SIGNALLING_DOUBLES), 2),
    "time of 2³² ns": (lambda: with_values("t", UINT32, [UINT32_MAX, 0]), 2),
    "time_sec and time_nsec NaN and Inf": (seconds_and_nanoseconds_that_are_nan, 1),
    # header
    "frame_id empty": (lambda: headed(frame_id=""), 2),
    "nanosec of 2³²": (lambda: headed(nanosec=UINT32_MAX), 2),
    "sec negative": (lambda: headed(sec=-1), 2),
    "sec as early as possible": (lambda: headed(sec=-(2**31), nanosec=0), 2),
    "a stamp that its seconds cannot hold": (lambda: headed(sec=2**31 - 1, nanosec=UINT32_MAX), "stamp"),
}


def labelled_in_every_layout(message: Any) -> list[CloudContent]:
    content = cloud_content(message)
    frame = read_cloud(content)
    prepared = prepare(frame, INPUTS)
    labels = to_points(np.zeros((len(prepared), CLASSES), np.float32), prepared)
    palette = np.zeros((256, 3), np.uint8)
    return [labelled_cloud(content, frame, labels, palette, layout) for layout in LAYOUTS]


@pytest.mark.parametrize("name", [name for name, (_, expected) in CLOUDS.items() if isinstance(expected, str)])
def test_malformed_cloud_is_refused_by_the_name_of_its_fault(name: str) -> None:
    make, words = CLOUDS[name]
    with pytest.raises(CloudError, match=words):  # type: ignore[arg-type]
        labelled_in_every_layout(make())


@pytest.mark.parametrize("name", [name for name, (_, expected) in CLOUDS.items() if isinstance(expected, int)])
def test_extreme_cloud_keeps_its_rows_from_the_message_to_every_output_layout(name: str) -> None:
    make, rows = CLOUDS[name]
    message = make()
    assert len(read_cloud(message)) == rows
    for out in labelled_in_every_layout(message):
        assert len(out) == rows and (out.height, out.width) == (message.height, message.width)
        assert len(out.data) == rows * out.point_step
        # What a message can hold: sizes are uint32, seconds are int32.
        assert out.row_step <= UINT32_MAX and -(2**31) <= out.stamp_ns // 10**9 < 2**31
        assert len(read_cloud(out)) == rows


def image(encoding: str = "rgb8", height: int = 2, width: int = 2, **changes: Any) -> Any:
    header = SimpleNamespace(stamp=stamp(), frame_id="camera")
    message = {"header": header, "height": height, "width": width, "encoding": encoding}
    message |= {"is_bigendian": 0, "step": 3 * width, "data": bytes(12)}
    return SimpleNamespace(**(message | changes))


def compressed(data: bytes, kind: str = "jpeg") -> Any:
    header = SimpleNamespace(stamp=stamp(), frame_id="camera")
    return SimpleNamespace(header=header, format=kind, data=np.frombuffer(data, np.uint8))


PIXELS = np.full((16, 24, 3), 100, np.uint8)


def png(pixels: np.ndarray = PIXELS) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def changed(data: bytes, place: int, by: bytes) -> bytes:
    return data[:place] + by + data[place + len(by) :]


def sized_jpeg(width: int, height: int) -> bytes:
    """Make a JPEG whose header (SOF0: marker, length, precision, height, width) declares another size."""
    data = jpeg_bytes(PIXELS)
    return changed(data, data.index(b"\xff\xc0") + 5, struct.pack(">HH", height, width))


def sized_png(width: int, height: int) -> bytes:
    """Make a PNG whose header declares another size, with a matching checksum."""
    data = changed(png(), 16, struct.pack(">II", width, height))
    return changed(data, 29, struct.pack(">I", zlib.crc32(data[12:29])))


IMAGES: dict[str, tuple[Callable[[], Any], tuple[int, int] | str]] = {
    "zero size": (lambda: image(height=0, width=0), "0×0 pixels"),
    "zero height": (lambda: image(height=0), "2×0 pixels"),
    "zero width": (lambda: image(width=0), "0×2 pixels"),
    "negative height": (lambda: image(height=-1), "pixels"),
    "one pixel": (lambda: image(height=1, width=1), (1, 1)),
    "one pixel of a mosaic": (lambda: image("bayer_rggb8", 1, 1), (1, 1)),
    "one column of a mosaic": (lambda: image("bayer_gbrg8", 5, 1, step=2), (5, 1)),
    "one column of YUV": (lambda: image("yuyv", 5, 1, step=2), "even width"),
    "unknown encoding": (lambda: image("rgb9"), "encoding 'rgb9'"),
    "empty encoding": (lambda: image(""), "encoding ''"),
    "depth map": (lambda: image("32FC1"), "encoding '32FC1'"),
    "encoding with an attribute": (lambda: image("8UC3; jpeg"), "encoding '8UC3; jpeg'"),
    "step smaller than the width": (lambda: image(step=5), "step 5"),
    "step zero": (lambda: image(step=0), "step 0"),
    "step of 2³²": (lambda: image(step=UINT32_MAX), "12 bytes.*step 4294967295"),
    "step that wraps around": (lambda: image(width=2**31, step=2**31), "step 2147483648"),
    "2³¹ × 2³¹ pixels": (lambda: image("mono8", 2**31, 2**31, step=2**31), "12 bytes"),
    "data one byte short": (lambda: image(data=bytes(11)), "11 bytes"),
    "data too long": (lambda: image(data=bytes(999)), (2, 2)),
    "data a list": (lambda: image(data=[0] * 12), "data"),
    "data None": (lambda: image(data=None), "data"),
    "nanosec of 2³²": (lambda: image(header=SimpleNamespace(stamp=stamp(-1, UINT32_MAX), frame_id="")), (2, 2)),
    "JPEG": (lambda: compressed(jpeg_bytes(PIXELS)), (16, 24)),
    "JPEG called PNG": (lambda: compressed(jpeg_bytes(PIXELS), "png"), (16, 24)),
    "JPEG with bytes behind it": (lambda: compressed(jpeg_bytes(PIXELS) + b"x" * 99), (16, 24)),
    "JPEG cut in its header": (lambda: compressed(jpeg_bytes(PIXELS)[:30]), "no JPEG or PNG"),
    "JPEG cut in its pixels": (lambda: compressed(jpeg_bytes(np.zeros((512, 512, 3), np.uint8))[:900]), "truncated"),
    "JPEG of no lines": (lambda: compressed(sized_jpeg(24, 0)), "no JPEG or PNG"),
    "JPEG of no columns": (lambda: compressed(sized_jpeg(0, 16)), "no JPEG or PNG"),
    "JPEG bomb of 4 gigapixels": (lambda: compressed(sized_jpeg(65500, 65500)), "pixels"),
    "JPEG bomb of 80 megapixels": (lambda: compressed(sized_jpeg(10000, 8000)), "10000×8000 pixels"),
    "PNG": (lambda: compressed(png(), "png"), (16, 24)),
    "PNG with the wrong checksum of its header": (lambda: compressed(changed(png(), 29, b"CRC?")), "no JPEG or PNG"),
    "PNG with the wrong checksum of its pixels, which have their own": (
        lambda: compressed(changed(png(), png().index(b"IEND") - 8, b"CRC?")),
        (16, 24),
    ),
    "PNG whose pixels do not have their own checksum": (
        lambda: compressed(changed(png(), png().index(b"IEND") - 12, b"sum?CRC?")),
        "no JPEG or PNG",
    ),
    "PNG cut in its pixels": (lambda: compressed(png()[:60]), "no JPEG or PNG"),
    "PNG of no pixels": (lambda: compressed(sized_png(0, 0)), "no JPEG or PNG"),
    "PNG bomb of 2³¹ × 2³¹": (lambda: compressed(sized_png(2**31 - 1, 2**31 - 1)), "pixels"),
    "PNG bomb of 170 megapixels": (lambda: compressed(sized_png(17000, 10000)), "pixels"),
    "PNG bomb of 68 megapixels": (lambda: compressed(sized_png(68_000_000, 1)), "68000000×1 pixels"),
    "empty file": (lambda: compressed(b""), "0 bytes is no JPEG or PNG"),
    "GIF": (lambda: compressed(b"GIF89a" + bytes(90)), "no JPEG or PNG"),
    "compressedDepth": (lambda: compressed(bytes(12) + png(), "16UC1; compressedDepth png"), "depth map"),
    "theora": (lambda: compressed(b"OggS" + bytes(90), "theora"), "no JPEG or PNG"),
}


@pytest.mark.parametrize("name", [name for name, (_, expected) in IMAGES.items() if isinstance(expected, str)])
def test_malformed_image_is_refused_by_the_name_of_its_fault(name: str) -> None:
    make, words = IMAGES[name]
    with pytest.raises(ImageError, match=words):  # type: ignore[arg-type]
        read_image(make())


@pytest.mark.parametrize("name", [name for name, (_, expected) in IMAGES.items() if not isinstance(expected, str)])
def test_extreme_image_is_read_with_its_size(name: str) -> None:
    make, size = IMAGES[name]
    assert read_image(make()).pixels.shape == (*size, 3)


@pytest.mark.parametrize("name", [name for name in IMAGES if "bomb" in name])
def test_decompression_bomb_takes_no_memory(name: str) -> None:
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError):
        read_image(IMAGES[name][0]())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 50_000


def info(**changes: Any) -> Any:
    message = {
        "header": SimpleNamespace(stamp=stamp(), frame_id="camera"),
        "height": 480,
        "width": 640,
        "distortion_model": "plumb_bob",
        "d": np.zeros(5),
        "k": np.array([500.0, 0, 320, 0, 500, 240, 0, 0, 1]),
        "r": np.eye(3).ravel(),
        "p": np.zeros(12),
        "binning_x": 0,
        "binning_y": 0,
        "roi": SimpleNamespace(x_offset=0, y_offset=0, height=0, width=0, do_rectify=False),
    }
    return SimpleNamespace(**(message | changes))


def matrix(place: int, value: float) -> np.ndarray:
    k: np.ndarray = info().k
    k[place] = value
    return k


INFOS: dict[str, tuple[dict[str, Any], str | None]] = {
    "uncalibrated: K of zeros": ({"k": np.zeros(9)}, "matrix"),
    "K with NaN for the focal length": ({"k": matrix(0, np.nan)}, "matrix"),
    "K with NaN for the centre": ({"k": matrix(2, np.nan)}, "matrix"),
    "K with an infinite focal length": ({"k": matrix(4, np.inf)}, "matrix"),
    "K with a negative focal length": ({"k": matrix(0, -500)}, "matrix"),
    "size of zero": ({"height": 0, "width": 0}, "pixels"),
    "size of 2³²": ({"height": UINT32_MAX, "width": UINT32_MAX}, None),
    "3 coefficients": ({"d": np.zeros(3)}, "distortion"),
    "6 coefficients": ({"d": np.zeros(6)}, "distortion"),
    "10,000 coefficients": ({"d": np.zeros(10_000)}, "distortion"),
    "NaN among the coefficients": ({"d": np.array([0, np.nan, 0, 0, 0])}, "distortion"),
    "unknown distortion model": ({"distortion_model": "wobbly"}, "distortion model"),
    "distortion model in capitals": ({"distortion_model": "PLUMB_BOB"}, "distortion model"),
    "no coefficients": ({"d": np.zeros(0)}, None),
    "frame_id empty, stamp odd": ({"header": SimpleNamespace(stamp=stamp(-5, UINT32_MAX), frame_id="")}, None),
}


@pytest.mark.parametrize("name", INFOS)
def test_odd_camera_info_is_read_or_refused_by_the_name_of_its_fault(name: str) -> None:
    changes, words = INFOS[name]
    if words is None:
        camera = read_camera_info(info(**changes))
        assert (camera.width, camera.height) == (info(**changes).width, info(**changes).height)
    else:
        with pytest.raises(UserError, match=words):
            read_camera_info(info(**changes))


def pcd(body: bytes, **changes: str) -> bytes:
    header = {"FIELDS": "x y z q", "SIZE": "4 4 4 1", "TYPE": "F F F U", "COUNT": "1 1 1 1", "WIDTH": "1"}
    header |= {"HEIGHT": "1", "DATA": "binary"} | changes
    return "".join(f"{word} {values}\n" for word, values in header.items()).encode() + body


SCANS: dict[str, tuple[bytes, int | str]] = {
    "HEIGHT -1": (pcd(bytes(13), HEIGHT="-1"), "HEIGHT -1"),
    "HEIGHT -5 and odd bytes": (pcd(bytes(14), HEIGHT="-5"), "HEIGHT -5"),
    "WIDTH and HEIGHT -1": (pcd(bytes(13), HEIGHT="-1", WIDTH="-1"), "WIDTH -1"),
    "WIDTH 10³⁰": (pcd(bytes(13), WIDTH=f"{10**30}"), "has 13 bytes"),
    "WIDTH 0, HEIGHT 10³⁰": (pcd(b"", WIDTH="0", HEIGHT=f"{10**30}"), "height is 1000"),
    "a table of 10⁸ numbers per point": (pcd(b"1 2 3", COUNT=f"1 1 1 {10**8}", DATA="ascii"), "1 points of 100000003"),
    "no point of 10⁸ numbers": (pcd(b"", COUNT=f"1 1 1 {10**8}", DATA="ascii", WIDTH="0"), 0),
    "a COUNT of 2³²": (pcd(bytes(13), COUNT=f"1 1 1 {2**32}"), "header is incomplete or faulty"),
    "a COUNT of -1": (pcd(bytes(13), COUNT="1 1 1 -1"), "header is incomplete or faulty"),
    "a COUNT of 0 for x": (pcd(bytes(13), COUNT="0 1 1 1"), "'x' has count 0"),
    "no FIELDS": (pcd(b"", FIELDS="", SIZE="", TYPE="", COUNT="", WIDTH="9", DATA="ascii"), "no field 'x'"),
    "no FIELDS for 10¹² points": (
        pcd(b"", FIELDS="", SIZE="", TYPE="", COUNT="", WIDTH="9" * 12),
        "width is 9999",
    ),
    "integers of 3 bytes": (pcd(bytes(13), SIZE="3 3 3 1", TYPE="I I I U"), "header is incomplete or faulty"),
    "halves for coordinates": (pcd(bytes(7), SIZE="2 2 2 1"), "no field 'x'"),
    "numbers beyond their type": (pcd(b"1e300 nan -inf 1e9", DATA="ascii"), 1),
}


@pytest.mark.parametrize("name", SCANS)
def test_malformed_scan_is_read_whole_or_refused_by_the_name_of_its_fault(name: str, tmp_path: Path) -> None:
    data, expected = SCANS[name]
    path = tmp_path / "scan.pcd"
    path.write_bytes(data)
    if isinstance(expected, int):
        assert len(read_scan(path, 0, "lidar")) == expected
    else:
        with pytest.raises(UserError, match=expected):
            read_scan(path, 0, "lidar")
