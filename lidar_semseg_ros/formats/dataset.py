"""Recordings with exact labels: the names of their topics, and sweeps with labels read back from them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lidar_semseg_ros.core.camera import Camera
from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.formats.bags import Bag, cloud_topics
from lidar_semseg_ros.formats.pointcloud2 import cloud_content, column, read_cloud

LIDAR_TOPIC = "/lidar/points"
LABEL_TOPIC = "/ground_truth/labels"
"""An Image (mono8) per cloud with its stamp and shape: the class id of every point, 255 for none."""
CLASS_MAP_TOPIC = "/ground_truth/class_map"


PSEUDO_LABEL_TOPIC = "/teacher/output/pointcloud/pseudo_labels"
"""The cloud with all its fields and, of each point, class_id, probability and views (pointcloud2.PSEUDO_LABELS)."""
TEACHER_CLASS_MAP_TOPIC = "/teacher/output/class_map"
TEACHER_SETTINGS_TOPIC = "/teacher/output/settings"
"""JSON: every setting of the teacher, its model and that one's hash, the calibration. Named as the live node's."""


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


def camera_to_json(camera: Camera, camera_from_lidar: np.ndarray) -> dict[str, Any]:
    """Give a camera and its place as plain values."""
    return {
        "model": camera.model,
        "width": camera.width,
        "height": camera.height,
        "K": camera.matrix.ravel().tolist(),
        "distortion": camera.distortion.tolist(),
        "camera_from_lidar": camera_from_lidar.ravel().tolist(),
    }


def settings_text(
    settings: Mapping[str, Any],
    teacher: Mapping[str, str],
    never_labelled: Sequence[str],
    cameras: Mapping[str, tuple[Camera, np.ndarray]],
) -> str:
    """Write as JSON what makes pseudo-labels: settings, the model, each camera with its camera_from_lidar (4, 4)."""
    calibration = {name: camera_to_json(*camera) for name, camera in cameras.items()}
    made_by = {"settings": dict(settings), "teacher": dict(teacher), "never_labelled": list(never_labelled)}
    return json.dumps(made_by | {"cameras": calibration})


@dataclass(frozen=True, kw_only=True)
class PseudoLabelledSweep:
    """A sweep with what a teacher says of its N points.

    class_id: (N,) uint8, 255 where it says nothing. probability: (N,) float32, its confidence, 0 there. views: (N,)
    uint8, how many images voted.
    """

    frame: LidarFrame
    class_id: np.ndarray
    probability: np.ndarray
    views: np.ndarray


def pseudo_labelled_sweeps(bag: Bag) -> Iterator[PseudoLabelledSweep]:
    """Yield every sweep of a teacher's recording."""
    for recorded in bag.messages([PSEUDO_LABEL_TOPIC]):
        content = cloud_content(recorded.message())
        yield PseudoLabelledSweep(
            frame=read_cloud(content),
            class_id=column(content, "class_id"),
            probability=column(content, "probability"),
            views=column(content, "views"),
        )


def taught_classes(bag: Bag, source: str) -> ClassTable:
    """Read which classes a teacher's recording has; UserError if it is none."""
    if PSEUDO_LABEL_TOPIC not in bag.topics or TEACHER_CLASS_MAP_TOPIC not in bag.topics:
        raise UserError(f"{source} holds no pseudo-labels ({PSEUDO_LABEL_TOPIC}); make them with `lidar-semseg label`")
    recorded = next(bag.messages([TEACHER_CLASS_MAP_TOPIC]))
    return ClassTable.from_mapping(json.loads(recorded.message().data), source=f"{source} {TEACHER_CLASS_MAP_TOPIC}")


def teacher_settings(bag: Bag) -> dict[str, Any]:
    """Read what made the pseudo-labels of a recording; empty where it does not tell."""
    if TEACHER_SETTINGS_TOPIC not in bag.topics:
        return {}
    settings: dict[str, Any] = json.loads(next(bag.messages([TEACHER_SETTINGS_TOPIC])).message().data)
    return settings
