"""sensor_msgs/Image, CompressedImage and CameraInfo to core types, and pixels to JPEG."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np

from lidar_semseg_ros.core.camera import Camera, camera_of_model
from lidar_semseg_ros.core.errors import UserError, as_ros_defines
from lidar_semseg_ros.core.frame import CameraImage

JPEG_QUALITY = 92
LARGEST_PIXELS = 2**26
"""What a compressed image may claim to hold, 8192 × 8192: a few bytes could otherwise ask for gigabytes."""


class ImageError(UserError):
    """An image message whose description and bytes do not fit together, or in an encoding that is not known."""


@as_ros_defines("Image", ImageError)
def read_image(message: Any) -> CameraImage:
    """Read an Image or CompressedImage message of rclpy, rosbags or anything with the same attributes as RGB.

    Grey becomes three equal channels, 16 bits become their upper 8, alpha is dropped. ImageError names the
    encoding and the sizes of what cannot be read.
    """
    pixels = _decompressed(message) if hasattr(message, "format") else _unpacked(message)
    stamp = message.header.stamp
    return CameraImage(
        stamp_ns=stamp.sec * 10**9 + stamp.nanosec,
        frame_id=message.header.frame_id,
        pixels=np.ascontiguousarray(pixels),
    )


def _unpacked(message: Any) -> np.ndarray:
    """Turn the rows of an Image message into RGB pixels (height, width, 3), never the message's own memory."""
    encoding, height, width, step = message.encoding, message.height, message.width, message.step
    if encoding not in ENCODINGS:
        raise ImageError(f"images with encoding '{encoding}' cannot be read; those of {', '.join(ENCODINGS)} can")
    if height < 1 or width < 1:
        raise ImageError(f"the {encoding} image has {width}×{height} pixels")
    bytes_per_pixel, to_rgb = ENCODINGS[encoding]
    if step < width * bytes_per_pixel:
        raise ImageError(
            f"the {encoding} image has step {step}, but {width} pixels take {width * bytes_per_pixel} bytes"
        )
    try:
        data = np.frombuffer(message.data, np.uint8)
    except (TypeError, ValueError, BufferError):
        raise ImageError(f"data must be bytes or an array of them, but it is {type(message.data).__name__}") from None
    if len(data) < height * step:
        raise ImageError(
            f"the {encoding} image has {len(data)} bytes, but height {height} times step {step} is {height * step}"
        )
    rows = data[: height * step].reshape(height, step)[:, : width * bytes_per_pixel]
    return to_rgb(rows.reshape(height, width, bytes_per_pixel), bool(message.is_bigendian))


def _from_channels(channels: list[int], pixels: np.ndarray, is_bigendian: bool) -> np.ndarray:
    return pixels[..., channels]


def _from_mono16(pixels: np.ndarray, is_bigendian: bool) -> np.ndarray:
    return pixels[..., [0 if is_bigendian else 1] * 3]


def _from_bayer(pattern: str, pixels: np.ndarray, is_bigendian: bool) -> np.ndarray:
    """Give the four pixels of each 2×2 block its red, its blue and the mean of its two greens.

    Coarser than interpolation between the blocks, but free of its colour fringes.
    """
    height, width = pixels.shape[:2]
    # Reflection keeps the pattern going where the image ends in the middle of a block.
    mosaic = np.pad(pixels[..., 0], ((0, height % 2), (0, width % 2)), mode="reflect")
    planes = [mosaic[row::2, start::2] for row in (0, 1) for start in (0, 1)]
    first_green, second_green = (planes[k].astype(np.uint16) for k in range(4) if pattern[k] == "g")
    green = ((first_green + second_green) // 2).astype(np.uint8)
    blocks = np.stack([planes[pattern.index("r")], green, planes[pattern.index("b")]], axis=-1)
    return blocks.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]


def _from_yuv422(luma: int, pixels: np.ndarray, is_bigendian: bool) -> np.ndarray:
    """Convert by ITU-R BT.601 with luma from 16 to 235, as OpenCV does; `luma` is the place of Y in its two bytes."""
    width = pixels.shape[1]
    if width % 2:
        raise ImageError(f"a YUV 4:2:2 image has an even width, but this one is {width} pixels wide")
    y = 1.164 * (pixels[..., luma].astype(np.float32) - 16)
    u, v = (pixels[:, start::2, 1 - luma].astype(np.float32).repeat(2, axis=1) - 128 for start in (0, 1))
    rgb = np.stack([y + 1.596 * v, y - 0.813 * v - 0.391 * u, y + 2.018 * u], axis=-1)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


_ToRgb = Callable[[np.ndarray, bool], np.ndarray]

ENCODINGS: dict[str, tuple[int, _ToRgb]] = {
    "rgb8": (3, partial(_from_channels, [0, 1, 2])),
    "bgr8": (3, partial(_from_channels, [2, 1, 0])),
    "rgba8": (4, partial(_from_channels, [0, 1, 2])),
    "bgra8": (4, partial(_from_channels, [2, 1, 0])),
    "mono8": (1, partial(_from_channels, [0, 0, 0])),
    "mono16": (2, _from_mono16),
    "bayer_rggb8": (1, partial(_from_bayer, "rggb")),
    "bayer_bggr8": (1, partial(_from_bayer, "bggr")),
    "bayer_gbrg8": (1, partial(_from_bayer, "gbrg")),
    "bayer_grbg8": (1, partial(_from_bayer, "grbg")),
    "8UC1": (1, partial(_from_channels, [0, 0, 0])),
    "8UC3": (3, partial(_from_channels, [2, 1, 0])),
    "yuv422": (2, partial(_from_yuv422, 1)),
    "uyvy": (2, partial(_from_yuv422, 1)),
    "yuv422_yuy2": (2, partial(_from_yuv422, 0)),
    "yuyv": (2, partial(_from_yuv422, 0)),
}
"""Encodings of sensor_msgs/Image: bytes per pixel and the way to RGB; 8UC3 is BGR, OpenCV's order."""


def _decompressed(message: Any) -> np.ndarray:
    """Decode the JPEG or PNG file in a CompressedImage message: RGB pixels (height, width, 3)."""
    from PIL import Image

    described = f"the compressed image of format '{message.format}' with {len(message.data)} bytes"
    if "compressedDepth" in message.format:
        raise ImageError(f"{described} is a depth map; choose a colour topic")
    try:
        with Image.open(BytesIO(memoryview(message.data)), formats=("JPEG", "PNG")) as picture:
            if picture.width * picture.height > LARGEST_PIXELS:
                raise ValueError(f"it claims {picture.width}×{picture.height} pixels, more than {LARGEST_PIXELS}")
            if picture.mode.startswith("I"):
                return (np.asarray(picture) >> 8).astype(np.uint8)[..., np.newaxis].repeat(3, axis=-1)
            # image_transport compresses a Bayer mosaic as the grey picture that it is: 'bayer_rggb8; jpeg compressed '.
            encoding = message.format.partition(";")[0].strip()
            if encoding.startswith("bayer") and encoding in ENCODINGS and picture.mode == "L":
                return ENCODINGS[encoding][1](np.asarray(picture)[..., np.newaxis], False)
            return np.asarray(picture.convert("RGB"))
    except Exception as error:  # decoders fail in many ways on bytes that are not what they claim to be
        raise ImageError(f"{described} is no JPEG or PNG that can be decoded: {error}") from error


def jpeg_bytes(pixels: np.ndarray) -> bytes:
    """Encode RGB pixels (height, width, 3) uint8 as a JPEG file."""
    from PIL import Image

    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


@as_ros_defines("CameraInfo")
def read_camera_info(message: Any, rectified: bool = False) -> Camera:
    """Read the camera of a CameraInfo message of ROS 1 (attributes K, D, P) or ROS 2 (k, d, p).

    For the raw image, that is K with its distortion model; for the `rectified` one, P without distortion.
    UserError names what the camera cannot have: another distortion model or number of coefficients, no focal
    length or size, values that are not finite; and an image that is binned or cut out, as the matrices describe
    the full one.
    """
    fields = ("k", "d", "p") if hasattr(message, "k") else ("K", "D", "P")
    k, d, p = (np.array(getattr(message, name), np.float64) for name in fields)
    if max(message.binning_x, message.binning_y) > 1 or message.roi.x_offset or message.roi.y_offset:
        raise UserError(
            f"the camera info is for a full image, but the image is binned {message.binning_x}×{message.binning_y} "
            f"from pixel ({message.roi.x_offset}, {message.roi.y_offset}); publish it whole"
        )
    model = message.distortion_model
    if rectified or (not model and not len(d)):
        model, d = "plumb_bob", d[:0]
    try:
        return camera_of_model(
            model,
            width=message.width,
            height=message.height,
            matrix=p.reshape(3, 4)[:, :3] if rectified else k.reshape(3, 3),
            distortion=d,
        )
    except UserError as error:
        raise UserError(f"camera info of '{message.header.frame_id}': {error}") from None
