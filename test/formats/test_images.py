from __future__ import annotations

import array
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.formats.images import ENCODINGS, ImageError, jpeg_bytes, read_camera_info, read_image

HEADER = SimpleNamespace(stamp=SimpleNamespace(sec=3, nanosec=500), frame_id="camera")
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def raw(
    encoding: str, height: int, width: int, data: bytes, step: int | None = None, big: bool = False
) -> SimpleNamespace:
    return SimpleNamespace(
        header=HEADER,
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=int(big),
        step=len(data) // height if step is None and height else step,
        data=data,
    )


def compressed(data: bytes, name: str = "bgr8; jpeg compressed bgr8") -> SimpleNamespace:
    return SimpleNamespace(header=HEADER, format=name, data=np.frombuffer(data, np.uint8))


def file_of(pixels: np.ndarray, kind: str) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def smooth_picture() -> np.ndarray:
    down, across = np.mgrid[0:48, 0:64]
    return np.stack([down * 5, across * 4, 255 - down * 3], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("rgb8", bytes([255, 0, 0, 1, 2, 3])),
        ("bgr8", bytes([0, 0, 255, 3, 2, 1])),
        ("8UC3", bytes([0, 0, 255, 3, 2, 1])),
        ("rgba8", bytes([255, 0, 0, 9, 1, 2, 3, 9])),
        ("bgra8", bytes([0, 0, 255, 9, 3, 2, 1, 9])),
    ],
)
def test_colour_channels_are_put_in_the_order_red_green_blue(encoding: str, data: bytes) -> None:
    image = read_image(raw(encoding, 1, 2, data))
    assert image.pixels.tolist() == [[[255, 0, 0], [1, 2, 3]]]
    assert (image.stamp_ns, image.frame_id) == (3_000_000_500, "camera")
    assert image.pixels.flags.c_contiguous


@pytest.mark.parametrize("encoding", ["mono8", "8UC1"])
def test_grey_becomes_three_equal_channels(encoding: str) -> None:
    assert read_image(raw(encoding, 1, 2, bytes([7, 200]))).pixels.tolist() == [[[7] * 3, [200] * 3]]


@pytest.mark.parametrize("big", [False, True])
def test_sixteen_bits_become_their_upper_eight(big: bool) -> None:
    data = np.array([0x1234, 0xFF00], ">u2" if big else "<u2").tobytes()
    assert read_image(raw("mono16", 1, 2, data, big=big)).pixels[0, :, 0].tolist() == [0x12, 0xFF]


def test_padding_at_the_end_of_rows_is_skipped() -> None:
    data = bytes([1, 2, 3, 4, 5, 6, 99, 99]) * 2 + b"\x63"
    pixels = read_image(raw("rgb8", 2, 2, data, step=8)).pixels
    assert pixels.tolist() == [[[1, 2, 3], [4, 5, 6]]] * 2


def test_image_does_not_share_memory_with_its_message() -> None:
    data = array.array("B", [1, 2, 3])
    message = raw("rgb8", 1, 1, data)  # type: ignore[arg-type]
    image = read_image(message)
    data[0] = 77
    assert image.pixels.tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
@pytest.mark.parametrize("size", [(4, 6), (3, 5), (2, 2)])
def test_bayer_mosaic_of_one_colour_gives_that_colour_everywhere(pattern: str, size: tuple[int, int]) -> None:
    color = {"r": 200, "g": 100, "b": 50}
    height, width = size
    data = bytes(color[pattern[2 * (row % 2) + place % 2]] for row in range(height) for place in range(width))
    pixels = read_image(raw(f"bayer_{pattern}8", height, width, data)).pixels
    np.testing.assert_array_equal(pixels, np.broadcast_to((200, 100, 50), (height, width, 3)))


def test_bayer_block_has_the_mean_of_its_greens() -> None:
    assert read_image(raw("bayer_rggb8", 2, 2, bytes([10, 250, 254, 30]))).pixels[1, 1].tolist() == [10, 252, 30]


# ITU-R BT.601: Y, U, V of full white, black, red, green and blue.
COLOR_BARS = [
    ((235, 128, 128), (255, 255, 255)),
    ((16, 128, 128), (0, 0, 0)),
    ((81, 90, 240), RED),
    ((145, 54, 34), GREEN),
    ((41, 240, 110), BLUE),
]


@pytest.mark.parametrize(("yuv", "rgb"), COLOR_BARS)
@pytest.mark.parametrize("encoding", ["uyvy", "yuv422", "yuyv", "yuv422_yuy2"])
def test_colour_bars_in_yuv_have_their_colours(
    encoding: str, yuv: tuple[int, int, int], rgb: tuple[int, int, int]
) -> None:
    y, u, v = yuv
    data = bytes([u, y, v, y] if encoding in ("uyvy", "yuv422") else [y, u, y, v])
    pixels = read_image(raw(encoding, 1, 2, data)).pixels
    # The bars are rounded to whole numbers, which the conversion magnifies by up to 2.
    np.testing.assert_allclose(pixels.astype(int), np.broadcast_to(rgb, (1, 2, 3)), atol=2)


def test_luma_of_neighbours_in_yuv_stays_apart() -> None:
    assert read_image(raw("yuyv", 1, 2, bytes([235, 128, 16, 128]))).pixels.tolist() == [[[255] * 3, [0] * 3]]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (raw("rgb8", 0, 4, b"", step=12), "rgb8 image has 4×0 pixels"),
        (raw("rgb8", 4, 0, b"", step=0), "rgb8 image has 0×4 pixels"),
        (raw("rgb8", 2, 2, bytes(11), step=6), "rgb8 image has 11 bytes.*12"),
        (raw("bgra8", 2, 2, bytes(16), step=7), "bgra8 image has step 7, but 2 pixels take 8 bytes"),
        (raw("mono8", 1, 1, b"", step=1), "mono8 image has 0 bytes"),
        (raw("32FC1", 1, 1, bytes(4)), "encoding '32FC1'.*rgb8"),
        (raw("uyvy", 1, 3, bytes(6)), "3 pixels wide"),
    ],
)
def test_faulty_image_is_refused_with_its_encoding_and_sizes(message: Any, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        read_image(message)


def test_every_encoding_reads_random_bytes_into_pixels() -> None:
    rng = np.random.default_rng(0)
    for encoding, (bytes_per_pixel, _) in ENCODINGS.items():
        data = rng.bytes(6 * 8 * bytes_per_pixel)
        assert read_image(raw(encoding, 6, 8, data)).pixels.shape == (6, 8, 3), encoding


def test_png_is_read_exactly() -> None:
    picture = smooth_picture()
    np.testing.assert_array_equal(
        read_image(compressed(file_of(picture, "PNG"), "rgb8; png compressed ")).pixels, picture
    )


@pytest.mark.parametrize("name", ["jpeg", "bgr8; jpeg compressed bgr8", "rgb8; jpeg compressed bgr8", ""])
def test_jpeg_is_read_whatever_its_format_is_called(name: str) -> None:
    picture = smooth_picture()
    pixels = read_image(compressed(jpeg_bytes(picture), name)).pixels
    # JPEG is lossy; a smooth picture survives quality 92 within a few grey levels.
    assert np.abs(pixels.astype(int) - picture).max() <= 10


def test_grey_jpeg_becomes_three_equal_channels() -> None:
    pixels = read_image(compressed(file_of(np.full((8, 8), 99, np.uint8), "JPEG"), "mono8; jpeg compressed ")).pixels
    assert pixels.shape == (8, 8, 3)
    np.testing.assert_allclose(pixels, 99, atol=1)


def test_a_bayer_mosaic_that_was_compressed_as_a_grey_picture_gets_its_colours() -> None:
    mosaic = np.tile(np.array([[200, 100], [100, 50]], np.uint8), (4, 4))
    pixels = read_image(compressed(file_of(mosaic, "PNG"), "bayer_rggb8; png compressed ")).pixels
    np.testing.assert_array_equal(pixels, np.broadcast_to((200, 100, 50), (8, 8, 3)))
    # image_transport may have made colours of it first, and says so behind.
    picture = smooth_picture()
    said = "bayer_rggb8; png compressed bgr8"
    np.testing.assert_array_equal(read_image(compressed(file_of(picture, "PNG"), said)).pixels, picture)


def test_sixteen_bit_png_becomes_its_upper_eight_bits() -> None:
    picture = np.array([[0x1234, 0xFE00]], np.uint16)
    assert read_image(compressed(file_of(picture, "PNG"))).pixels.tolist() == [[[0x12] * 3, [0xFE] * 3]]


def test_png_with_transparency_loses_it() -> None:
    picture = np.full((2, 2, 4), (1, 2, 3, 128), np.uint8)
    assert read_image(compressed(file_of(picture, "PNG"))).pixels[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_file_is_refused_with_its_format_and_size(kind: str) -> None:
    data = file_of(smooth_picture(), kind)
    half = data[: len(data) // 2]
    with pytest.raises(ImageError, match=rf"'{kind} compressed' with {len(half)} bytes"):
        read_image(compressed(half, f"{kind} compressed"))


@pytest.mark.parametrize("data", [b"", b"\x00" * 50, b"GIF89a" + b"\x00" * 50])
def test_bytes_that_are_no_image_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match=f"with {len(data)} bytes is no JPEG or PNG"):
        read_image(compressed(data))


def test_compressed_depth_map_is_refused() -> None:
    with pytest.raises(ImageError, match="depth map"):
        read_image(compressed(b"\x00" * 12, "16UC1; compressedDepth png"))


def camera_info(**changes: Any) -> SimpleNamespace:
    fields = {
        "header": HEADER,
        "width": 640,
        "height": 480,
        "distortion_model": "plumb_bob",
        "k": np.array([500.0, 0, 320, 0, 510, 240, 0, 0, 1]),
        "d": np.array([0.1, -0.2, 0.001, 0.002, 0.05]),
        "p": np.array([450.0, 0, 318, 0, 0, 460, 238, 0, 0, 0, 1, 0]),
        "binning_x": 0,
        "binning_y": 0,
        "roi": SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0),
    }
    return SimpleNamespace(**(fields | changes))


def test_camera_info_of_ros2_is_read() -> None:
    camera = read_camera_info(camera_info())
    assert (camera.width, camera.height) == (640, 480)
    assert camera.matrix.tolist() == [[500, 0, 320], [0, 510, 240], [0, 0, 1]]
    assert camera.distortion.tolist() == [0.1, -0.2, 0.001, 0.002, 0.05]


def test_camera_info_of_ros1_is_read() -> None:
    message = camera_info(K=np.array([4.0, 0, 3, 0, 5, 2, 0, 0, 1]), D=np.array([0.1, 0.2, 0.3, 0.4]), P=np.ones(12))
    del message.k, message.d, message.p
    camera = read_camera_info(message)
    assert camera.matrix.tolist() == [[4, 0, 3], [0, 5, 2], [0, 0, 1]]
    assert camera.distortion.tolist() == [0.1, 0.2, 0.3, 0.4, 0]


@pytest.mark.parametrize(
    ("model", "coefficients", "known_as"),
    [
        ("rational_polynomial", 8, "rational_polynomial"),
        ("equidistant", 4, "equidistant"),
        ("fisheye", 4, "equidistant"),
    ],
)
def test_cameras_of_other_models_are_read(model: str, coefficients: int, known_as: str) -> None:
    camera = read_camera_info(camera_info(distortion_model=model, d=array.array("d", range(coefficients))))
    assert (camera.model, camera.distortion.tolist()) == (known_as, list(range(coefficients)))


def test_camera_of_a_rectified_image_is_read_from_the_projection_matrix() -> None:
    camera = read_camera_info(camera_info(distortion_model="equidistant", d=np.ones(4)), rectified=True)
    assert camera.matrix.tolist() == [[450, 0, 318], [0, 460, 238], [0, 0, 1]]
    assert camera.model == "plumb_bob" and not camera.distortion.any()


@pytest.mark.parametrize("model", ["plumb_bob", ""])
def test_camera_without_coefficients_has_no_distortion(model: str) -> None:
    assert not read_camera_info(camera_info(distortion_model=model, d=array.array("d"))).distortion.any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distortion_model": "rational_polynomial"}, "rational_polynomial takes 8 coefficients, but got 5"),
        ({"distortion_model": "equidistant"}, "equidistant takes 4 coefficients, but got 5"),
        ({"distortion_model": "omni"}, "'omni' is not known; there are plumb_bob"),
        ({"d": np.zeros(3)}, "plumb_bob takes 0 or 4 or 5 coefficients, but got 3"),
        ({"distortion_model": "", "d": np.zeros(5)}, "'' is not known"),
        ({"d": np.full(5, np.nan)}, "coefficients must be finite"),
        ({"k": np.zeros(9)}, "camera info of 'camera'.*positive focal lengths"),
        ({"k": np.full(9, np.nan)}, "3×3 finite numbers"),
        ({"height": 0}, "640×0"),
        ({"width": 0}, "0×480"),
        ({"binning_x": 2, "binning_y": 2}, "binned 2×2"),
        ({"roi": SimpleNamespace(x_offset=10, y_offset=0)}, r"from pixel \(10, 0\)"),
    ],
)
def test_camera_info_that_cannot_be_used_is_refused_with_the_reason(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_camera_info(camera_info(**changes))
