"""Where a recording says its sensors sit and its robot was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.geometry import rigid, rotation_from_quaternion
from lidar_semseg_ros.core.transform_tree import TransformTree
from lidar_semseg_ros.formats.bags import ODOMETRY, Bag, topics_of_type

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
    """Read all of /tf_static."""
    tree = TransformTree()
    if "/tf_static" in bag.topics:
        for recorded in bag.messages(["/tf_static"]):
            for stamped in recorded.message().transforms:
                tree.add(stamped.header.frame_id, stamped.child_frame_id, matrix_of_transform(stamped.transform))
    return tree


def recorded_poses(bag: Bag, sensor_frame: str, tree: TransformTree, topic: str | None = None) -> RecordedPoses | None:
    """Read where the robot that carries a sensor was; None where the recording does not tell.

    topic: of Odometry or PoseStamped. Without it: the only Odometry, else what /tf says of the frame that carries the
    sensor, else the only PoseStamped. UserError if the topic is none of these.
    """
    if topic is not None and bag.topics.get(topic) not in (ODOMETRY, POSE_STAMPED):
        there = [name for name, kind in bag.topics.items() if kind in (ODOMETRY, POSE_STAMPED)]
        raise UserError(f"{topic} holds no poses; topics with poses are {', '.join(there) or 'none'}")
    odometry, poses = topics_of_type(bag, ODOMETRY), topics_of_type(bag, POSE_STAMPED)
    if topic is None and len(odometry) == 1:
        topic = odometry[0]
    if topic is None:
        found = _collected(_of_tf(bag, tree.root(sensor_frame)), tree.root(sensor_frame))
        if found is not None or len(poses) != 1:
            return found
        topic = poses[0]
    base = _base_frame(bag, topic) if bag.topics[topic] == ODOMETRY else ""
    return _collected(_of_topic(bag, topic), base)


def pose_of_message(message: Any) -> tuple[int, np.ndarray]:
    """Read an Odometry or a PoseStamped: stamp in nanoseconds, and pose (4, 4)."""
    pose = message.pose
    return _stamp_ns(message), matrix_of_pose(pose.pose if hasattr(pose, "pose") else pose)


def matrix_of_pose(pose: Any) -> np.ndarray:
    """Give a geometry_msgs/Pose as a matrix (4, 4)."""
    return _matrix(pose.position, pose.orientation)


def matrix_of_transform(transform: Any) -> np.ndarray:
    """Give a geometry_msgs/Transform as a matrix (4, 4)."""
    return _matrix(transform.translation, transform.rotation)


def _matrix(position: Any, rotation: Any) -> np.ndarray:
    xyzw = np.array([rotation.x, rotation.y, rotation.z, rotation.w])
    if not 0 < np.linalg.norm(xyzw) < np.inf:
        raise UserError(f"a transform has the quaternion {xyzw.tolist()}, which is no rotation")
    return rigid(rotation_from_quaternion(xyzw), np.array([position.x, position.y, position.z]))


def _stamp_ns(message: Any) -> int:
    return int(message.header.stamp.sec) * 10**9 + int(message.header.stamp.nanosec)


def _of_topic(bag: Bag, topic: str) -> Iterator[tuple[int, np.ndarray]]:
    for recorded in bag.messages([topic]):
        yield pose_of_message(recorded.message())


def _of_tf(bag: Bag, base: str) -> Iterator[tuple[int, np.ndarray]]:
    if "/tf" not in bag.topics:
        return
    for recorded in bag.messages(["/tf"]):
        for stamped in recorded.message().transforms:
            if stamped.child_frame_id.lstrip("/") == base:
                yield _stamp_ns(stamped), matrix_of_transform(stamped.transform)


def _base_frame(bag: Bag, topic: str) -> str:
    first = next(bag.messages([topic]), None)
    return "" if first is None else str(first.message().child_frame_id).lstrip("/")


def _collected(poses: Iterator[tuple[int, np.ndarray]], base_frame: str) -> RecordedPoses | None:
    by_stamp = dict(poses)
    if not by_stamp:
        return None
    stamps = sorted(by_stamp)
    return RecordedPoses(
        stamps_ns=np.array(stamps, np.int64),
        map_from_base=np.stack([by_stamp[stamp] for stamp in stamps]),
        base_frame=base_frame,
    )
