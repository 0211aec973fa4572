"""Where a recording says its sensors sit and its robot was."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.geometry import rigid, rotation_from_quaternion
from lidar_semseg_ros.core.transform_tree import TransformTree
from lidar_semseg_ros.formats.bags import ODOMETRY, Bag, header_stamp_ns, topics_of_type

_logger = logging.getLogger(__name__)

POSE_STAMPED = "geometry_msgs/msg/PoseStamped"


@dataclass(frozen=True, kw_only=True)
class RecordedPoses:
    """Poses at increasing times. stamps_ns: (P,) int64, P ≥ 1. map_from_base: (P, 4, 4).

    base_frame: the frame whose poses these are; empty where the recording does not say.
    """

    stamps_ns: np.ndarray
    map_from_base: np.ndarray
    base_frame: str


NO_POSES = "none"
"""Instead of a topic: the robot is taken to stand still, whatever the recording says."""


def fixed_transforms(bag: Bag) -> TransformTree:
    """Read all of /tf_static; a transform that is none is left out with a warning."""
    tree = TransformTree()
    if "/tf_static" in bag.topics:
        for recorded in bag.messages(["/tf_static"]):
            for stamped in recorded.message().transforms:
                try:
                    tree.add(stamped.header.frame_id, stamped.child_frame_id, matrix_of_transform(stamped.transform))
                except UserError as error:
                    _logger.warning("'%s' in /tf_static is left out: %s", stamped.child_frame_id, error)
    return tree


def recorded_poses(bag: Bag, sensor_frame: str, tree: TransformTree, topic: str | None = None) -> RecordedPoses | None:
    """Read where the robot that carries a sensor was; None where the recording does not tell.

    topic: of Odometry or PoseStamped. Without it: the only Odometry, else what /tf says of the frame that carries the
    sensor, else the only PoseStamped. UserError if the topic is none of these. Poses whose quaternion is no rotation or
    whose position is no place are left out, with one warning.
    """
    if topic is not None and bag.topics.get(topic) not in (ODOMETRY, POSE_STAMPED):
        there = [name for name, kind in bag.topics.items() if kind in (ODOMETRY, POSE_STAMPED)]
        raise UserError(f"{topic} holds no poses; topics with poses are {', '.join(there) or 'none'}")
    odometry, poses = topics_of_type(bag, ODOMETRY), topics_of_type(bag, POSE_STAMPED)
    if topic is None and len(odometry) == 1:
        topic = odometry[0]
    if topic is None:
        root = tree.root(sensor_frame)
        found = _collected("/tf", _of_tf(bag, root), root)
        if found is not None or len(poses) != 1:
            return found
        topic = poses[0]
    base = _base_frame(bag, topic) if bag.topics[topic] == ODOMETRY else ""
    return _collected(topic, _of_topic(bag, topic), base)


def pose_of_message(message: Any) -> tuple[int, np.ndarray]:
    """Read an Odometry or a PoseStamped: stamp in nanoseconds, and pose (4, 4); UserError if it is none."""
    return header_stamp_ns(message), _matrix(*_place(message))


def matrix_of_transform(transform: Any) -> np.ndarray:
    """Give a geometry_msgs/Transform as a matrix (4, 4); UserError if it is none."""
    return _matrix(transform.translation, transform.rotation)


def _matrix(position: Any, rotation: Any) -> np.ndarray:
    xyzw = np.array([rotation.x, rotation.y, rotation.z, rotation.w])
    if not 0 < np.linalg.norm(xyzw) < np.inf:
        raise UserError(f"a transform has the quaternion {xyzw.tolist()}, which is no rotation")
    xyz = np.array([position.x, position.y, position.z])
    if not np.isfinite(xyz).all():
        raise UserError(f"a transform has the position {xyz.tolist()}, which is nowhere")
    return rigid(rotation_from_quaternion(xyzw), xyz)


def _place(message: Any) -> tuple[Any, Any]:
    pose = message.pose.pose if hasattr(message.pose, "pose") else message.pose
    return pose.position, pose.orientation


_Told = tuple[int, tuple[Any, Any]]
"""A stamp, and position and rotation as messages have them."""


def _of_topic(bag: Bag, topic: str) -> Iterator[_Told]:
    for recorded in bag.messages([topic]):
        message = recorded.message()
        yield header_stamp_ns(message), _place(message)


def _of_tf(bag: Bag, base: str) -> Iterator[_Told]:
    if "/tf" not in bag.topics:
        return
    for recorded in bag.messages(["/tf"]):
        for stamped in recorded.message().transforms:
            if stamped.child_frame_id.lstrip("/") == base:
                yield header_stamp_ns(stamped), (stamped.transform.translation, stamped.transform.rotation)


def _base_frame(bag: Bag, topic: str) -> str:
    first = next(bag.messages([topic]), None)
    return "" if first is None else str(first.message().child_frame_id).lstrip("/")


def _collected(topic: str, poses: Iterator[_Told], base_frame: str) -> RecordedPoses | None:
    by_stamp, faults = {}, []
    for stamp_ns, place in poses:
        try:
            by_stamp[stamp_ns] = _matrix(*place)
        except UserError as error:
            faults.append(f"at {stamp_ns} ns: {error}")
    if faults:
        _logger.warning("%d poses of %s are left out, the first one %s", len(faults), topic, faults[0])
    if not by_stamp:
        return None
    stamps = sorted(by_stamp)
    return RecordedPoses(
        stamps_ns=np.array(stamps, np.int64),
        map_from_base=np.stack([by_stamp[stamp] for stamp in stamps]),
        base_frame=base_frame,
    )
