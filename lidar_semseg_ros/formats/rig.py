"""The cameras of a recording: their images, their models, and where they sit as the lidar sees them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from lidar_semseg_ros.core.camera import Camera
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.transform_tree import TransformTree
from lidar_semseg_ros.formats.bags import CAMERA_INFO, COMPRESSED_IMAGE, IMAGE, Bag, topics_of_type
from lidar_semseg_ros.formats.calibration import Calibration, CameraCalibration, LidarCalibration
from lidar_semseg_ros.formats.images import read_camera_info

GROUND_TRUTH = "/ground_truth"


@dataclass(frozen=True, kw_only=True)
class RecordedCamera:
    """A camera that took part in a recording.

    topic: of its images. camera_from_lidar: (4, 4). stamp_offset_s: added to the stamps of its images.
    """

    name: str
    topic: str
    camera: Camera
    camera_from_lidar: np.ndarray
    stamp_offset_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Rig:
    """The sensors of a recording. lidar: what the stamps of its clouds mean."""

    lidar: LidarCalibration
    cameras: tuple[RecordedCamera, ...]


def recorded_rig(
    bag: Bag, cloud_topic: str, lidar_frame: str, tree: TransformTree, calibration: Calibration | None
) -> Rig:
    """Find the cameras of a recording whose pose and model are known.

    calibration: what a file says of the sensors; without one, every camera whose CameraInfo lies beside its images and
    whose frame hangs together with the lidar's in /tf_static. UserError says what is missing if there is none.
    """
    if calibration is not None:
        return _rig_of_file(bag, cloud_topic, lidar_frame, tree, calibration)
    cameras, faults = [], []
    for info_topic in topics_of_type(bag, CAMERA_INFO):
        topic = _image_topic_beside(bag, info_topic)
        if topic is None:
            faults.append(f"{info_topic} has no images beside it")
            continue
        frame = _frame_of(bag, topic)
        camera_from_lidar = tree.lookup(frame, lidar_frame)
        if camera_from_lidar is None:
            faults.append(f"/tf_static does not tell where '{frame}' of {topic} and '{lidar_frame}' are to each other")
            continue
        camera = _camera_of(bag, info_topic, rectified="rect" in topic.rpartition("/image")[2])
        name = info_topic.rpartition("/")[0].strip("/").replace("/", "_") or "camera"
        cameras.append(RecordedCamera(name=name, topic=topic, camera=camera, camera_from_lidar=camera_from_lidar))
    if not cameras:
        said = "; ".join(faults) or "it has no topic with CameraInfo"
        raise UserError(f"no camera of the recording can be used: {said}; give a calibration file with --calibration")
    return Rig(lidar=LidarCalibration(stamp="start"), cameras=tuple(cameras))


def _rig_of_file(bag: Bag, cloud_topic: str, lidar_frame: str, tree: TransformTree, calibration: Calibration) -> Rig:
    name = calibration.lidar_on(cloud_topic)
    cameras = []
    for camera_name, entry in calibration.cameras.items():
        if entry.lidar == name and entry.topic in bag.topics:
            cameras.append(_camera_of_file(bag, camera_name, str(entry.topic), entry, lidar_frame, tree))
    if not cameras:
        wanted = ", ".join(str(entry.topic) for entry in calibration.cameras.values() if entry.lidar == name)
        raise UserError(f"the calibration's images of lidar '{name}' are on {wanted}, which the recording lacks")
    return Rig(lidar=calibration.lidars[name], cameras=tuple(cameras))


def _camera_of_file(
    bag: Bag, name: str, topic: str, entry: CameraCalibration, lidar_frame: str, tree: TransformTree
) -> RecordedCamera:
    camera, camera_from_lidar = entry.camera, entry.camera_from_lidar
    if camera is None:
        camera = _camera_of(bag, str(entry.camera_info_topic), entry.rectified)
    if camera_from_lidar is None:
        frame = _frame_of(bag, topic)
        camera_from_lidar = tree.lookup(frame, lidar_frame)
        if camera_from_lidar is None:
            raise UserError(f"camera '{name}': /tf_static does not tell where '{frame}' is from '{lidar_frame}'")
    return RecordedCamera(
        name=name,
        topic=topic,
        camera=camera,
        camera_from_lidar=camera_from_lidar,
        stamp_offset_s=entry.stamp_offset_s,
    )


def image_topics(bag: Bag, kinds: Collection[str] = (IMAGE, COMPRESSED_IMAGE)) -> list[str]:
    """List the topics with images of cameras, without those that hold exact labels."""
    return [topic for topic, kind in bag.topics.items() if kind in kinds and not topic.startswith(GROUND_TRUTH)]


def _image_topic_beside(bag: Bag, info_topic: str) -> str | None:
    """Find the images in the namespace of a CameraInfo.

    Of several, those as they left the camera rather than rectified, and those right beside it rather than of a
    namespace within, such as a depth camera's.
    """
    namespace = info_topic.rpartition("/")[0]
    beside = [topic for topic in image_topics(bag) if topic.startswith(namespace + "/")]
    return min(beside, key=lambda topic: ("rect" in topic, topic.count("/"), topic), default=None)


def _frame_of(bag: Bag, topic: str) -> str:
    first = next(bag.messages([topic]), None)
    if first is None:
        raise UserError(f"{topic} holds no message")
    return str(first.message().header.frame_id)


def _camera_of(bag: Bag, info_topic: str, rectified: bool) -> Camera:
    first = next(bag.messages([info_topic]), None)
    if first is None:
        raise UserError(f"no CameraInfo was recorded on {info_topic}; give the camera in the calibration file")
    return read_camera_info(first.message(), rectified)
