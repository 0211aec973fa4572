"""Recordings with exact labels: the names of their topics, and sweeps with labels read back from them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.formats.bags import Bag, cloud_topics
from lidar_semseg_ros.formats.pointcloud2 import cloud_content, read_cloud

LIDAR_TOPIC = "/lidar/points"
LABEL_TOPIC = "/ground_truth/labels"
"""An Image (mono8) per cloud with its stamp and shape: the class id of every point, 255 for none."""
CLASS_MAP_TOPIC = "/ground_truth/class_map"


def camera_topics(camera: str) -> tuple[str, str]:
    """Name the image and the camera_info topic of a camera."""
    return f"/{camera}/image_raw/compressed", f"/{camera}/camera_info"


def chosen_cloud_topic(bag: Bag, wanted: str | None, source: str) -> str:
    """Pick the cloud topic to read; UserError unless there is exactly one or the wanted one exists."""
    topics = cloud_topics(bag)
    if wanted is not None:
        if wanted not in topics:
            raise UserError(f"{source} has no cloud topic {wanted}; it has {', '.join(topics) or 'none'}")
        return wanted
    if len(topics) != 1:
        raise UserError(f"{source} has {len(topics)} cloud topics ({', '.join(topics)}); choose one with --topic")
    return topics[0]


def exact_labels(bag: Bag) -> dict[int, np.ndarray]:
    """Read all exact labels of a recording: {stamp_ns of the cloud: (N,) uint8}; empty where it holds none."""
    labels = {}
    if LABEL_TOPIC in bag.topics:
        for recorded in bag.messages([LABEL_TOPIC]):
            image = recorded.message()
            stamp_ns = image.header.stamp.sec * 10**9 + image.header.stamp.nanosec
            labels[stamp_ns] = np.frombuffer(bytes(image.data), np.uint8)
    return labels


def labelled_sweeps(bag: Bag, topic: str) -> Iterator[tuple[LidarFrame, np.ndarray]]:
    """Yield every sweep that has exact labels, with them (N,) uint8."""
    labels = exact_labels(bag)
    for recorded in bag.messages([topic]):
        frame = read_cloud(cloud_content(recorded.message()))
        if frame.stamp_ns in labels:
            if len(labels[frame.stamp_ns]) != len(frame):
                raise UserError(
                    f"cloud {frame.stamp_ns} has {len(frame)} points, but {len(labels[frame.stamp_ns])} labels"
                )
            yield frame, labels[frame.stamp_ns]
