"""Core values as ROS messages, and message classes by name."""

from __future__ import annotations

import array
import importlib
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import Image, PointCloud2, PointField
from std_msgs.msg import Header

from lidar_semseg_ros.formats.pointcloud2 import CloudContent


def installed_message(kind: str) -> Any | None:
    """Find the Python class of a type such as 'sensor_msgs/msg/Image'; None where its package is not installed."""
    package, _, name = kind.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name, None)
    except ImportError:
        return None


def time_message(stamp_ns: int) -> Time:
    """Split nanoseconds since the epoch into seconds and the rest."""
    return Time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)


def image_message(pixels: np.ndarray, header: Header) -> Image:
    """Wrap (H, W) uint8 as mono8 or (H, W, 3) uint8 as rgb8."""
    height, width = pixels.shape[:2]
    encoding = "mono8" if pixels.ndim == 2 else "rgb8"
    message = Image(
        header=header, height=height, width=width, encoding=encoding, step=pixels[0].nbytes if height else 0
    )
    message.data = _byte_array(pixels)
    return message


def _byte_array(data: np.ndarray) -> array.array[int]:
    # rclpy checks every byte of any other type in Python: 300 ms for a large cloud instead of 1 ms.
    copied = array.array("B")
    copied.frombytes(np.ascontiguousarray(data).reshape(-1).view(np.uint8))
    return copied


def cloud_message(content: CloudContent) -> PointCloud2:
    """Wrap the content of a cloud as a message."""
    message = PointCloud2(
        height=content.height,
        width=content.width,
        fields=[PointField(name=f.name, offset=f.offset, datatype=f.datatype, count=f.count) for f in content.fields],
        is_bigendian=content.is_bigendian,
        point_step=content.point_step,
        row_step=content.row_step,
        is_dense=content.is_dense,
    )
    message.header.stamp = time_message(content.stamp_ns)
    message.header.frame_id = content.frame_id
    message.data = _byte_array(content.data)
    return message
