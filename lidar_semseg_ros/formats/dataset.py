"""Recordings with exact labels: the names of their topics, and sweeps with labels read back from them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lidar_semseg_ros.core.camera import Camera, camera_of_model
from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.formats.bags import Bag, cloud_topics, header_stamp_ns
from lidar_semseg_ros.formats.calibration import LidarCalibration
from lidar_semseg_ros.formats.pointcloud2 import cloud_content, column, read_cloud
from lidar_semseg_ros.formats.rig import RecordedCamera, Rig

LIDAR_TOPIC = "/lidar/points"
LABEL_TOPIC = "/ground_truth/labels"
"""An Image (mono8) per cloud with its stamp and shape: the class id of every point, 255 for none."""
CLASS_MAP_TOPIC = "/ground_truth/class_map"


PSEUDO_LABEL_TOPIC = "/teacher/output/pointcloud/pseudo_labels"
"""The cloud with all its fields and, of each point, class_id, probability and views (pointcloud2.PSEUDO_LABELS)."""
TEACHER_CLASS_MAP_TOPIC = "/teacher/output/class_map"
TEACHER_SETTINGS_TOPIC = "/teacher/output/settings"
"""JSON: every setting of the teacher, its model and that one's hash, the calibration. Named as the live node's."""
PSEUDO_LABEL_ENDING = "/output/pointcloud/pseudo_labels"
"""So ends the topic of any teacher, whatever its name and namespace; its class map and settings lie beside it."""


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
            stamp_ns = header_stamp_ns(image)
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


def camera_from_json(values: Mapping[str, Any]) -> tuple[Camera, np.ndarray]:
    """Read `camera_to_json` back."""
    camera = camera_of_model(
        values["model"],
        width=values["width"],
        height=values["height"],
        matrix=np.reshape(values["K"], (3, 3)),
        distortion=np.array(values["distortion"]),
    )
    return camera, np.reshape(values["camera_from_lidar"], (4, 4))


def settings_text(
    settings: Mapping[str, Any],
    teacher: Mapping[str, str],
    never_labelled: Sequence[str],
    *,
    cloud_topic: str,
    rig: Rig,
    poses_topic: str | None = None,
    is_live: bool = False,
) -> str:
    """Write as JSON what makes pseudo-labels: settings, the model, and the sensors with what their stamps mean.

    cloud_topic: of the clouds that the teacher heard. poses_topic: the `topic` of `recorded_poses`, or NO_POSES.
    is_live: pseudo-labels are recorded when they are made, not when their clouds came. `taught_rig` reads the sensors
    back.
    """
    lidar = {"topic": cloud_topic, "stamp": rig.lidar.stamp, "stamp_offset_s": rig.lidar.stamp_offset_s}
    cameras = {
        one.name: {
            "topic": one.topic,
            "stamp_offset_s": one.stamp_offset_s,
            **camera_to_json(one.camera, one.camera_from_lidar),
        }
        for one in rig.cameras
    }
    made_by = {"settings": dict(settings), "teacher": dict(teacher), "never_labelled": list(never_labelled)}
    return json.dumps(made_by | {"lidar": lidar, "cameras": cameras, "poses_topic": poses_topic, "is_live": is_live})


def taught_rig(said: Mapping[str, Any]) -> Rig | None:
    """Read the sensors that a teacher had from its settings; None where they do not tell what the stamps mean."""
    if "lidar" not in said:
        return None
    cameras = []
    for name, values in said["cameras"].items():
        camera, camera_from_lidar = camera_from_json(values)
        cameras.append(
            RecordedCamera(
                name=name,
                topic=values["topic"],
                camera=camera,
                camera_from_lidar=camera_from_lidar,
                stamp_offset_s=values["stamp_offset_s"],
            )
        )
    return Rig(lidar=LidarCalibration(**said["lidar"]), cameras=tuple(cameras))


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


def pseudo_label_topics(bag: Bag) -> list[str]:
    """List the clouds with pseudo-labels of a recording, one topic for each teacher."""
    return [topic for topic in cloud_topics(bag) if topic.endswith(PSEUDO_LABEL_ENDING)]


def chosen_pseudo_label_topic(bag: Bag, wanted: str | None, source: str) -> str:
    """Pick the clouds with pseudo-labels to read; UserError unless there are exactly one or the wanted ones exist."""
    topics = pseudo_label_topics(bag)
    if not topics:
        raise UserError(
            f"{source} holds no pseudo-labels (…{PSEUDO_LABEL_ENDING}); make them with `lidar-semseg label`"
        )
    if wanted is not None:
        if wanted not in topics:
            raise UserError(f"{source} holds no pseudo-labels on {wanted}; it has them on {', '.join(topics)}")
        return wanted
    if len(topics) != 1:
        raise UserError(
            f"{source} holds the pseudo-labels of {len(topics)} teachers ({', '.join(topics)}); choose one with "
            "--topic, or 'topic' in a training configuration"
        )
    return topics[0]


def _beside(topic: str, name: str) -> str:
    """Name another output of the teacher whose pseudo-labels are on a topic."""
    return f"{topic.removesuffix(PSEUDO_LABEL_ENDING)}/output/{name}"


def pseudo_labelled_sweeps(bag: Bag, topic: str) -> Iterator[PseudoLabelledSweep]:
    """Yield every sweep of a teacher's recording; topic: of its pseudo-labels."""
    for recorded in bag.messages([topic]):
        content = cloud_content(recorded.message())
        yield PseudoLabelledSweep(
            frame=read_cloud(content),
            class_id=column(content, "class_id"),
            probability=column(content, "probability"),
            views=column(content, "views"),
        )


def taught_classes(bag: Bag, topic: str, source: str) -> ClassTable:
    """Read which classes the pseudo-labels on a topic have; UserError if nothing says it."""
    class_map = _beside(topic, "class_map")
    recorded = next(bag.messages([class_map]), None) if class_map in bag.topics else None
    if recorded is None:
        raise UserError(f"{source} holds pseudo-labels on {topic}, but no {class_map} that names them; record it too")
    return ClassTable.from_mapping(json.loads(recorded.message().data), source=f"{source} {class_map}")


def teacher_settings(bag: Bag, topic: str) -> dict[str, Any]:
    """Read what made the pseudo-labels on a topic; empty where the recording does not tell.

    A live teacher says it anew with each camera that it comes to know; the last word holds, of all cameras.
    """
    said: dict[str, Any] = {}
    if _beside(topic, "settings") in bag.topics:
        for recorded in bag.messages([_beside(topic, "settings")]):
            newer = json.loads(recorded.message().data)
            said = {**newer, "cameras": {**said.get("cameras", {}), **newer.get("cameras", {})}}
    return said
