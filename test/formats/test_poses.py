"""Poses as recordings tell them, also where some of them are none."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rosbags.typesys import Stores, get_typestore

from lidar_semseg_ros.core.transform_tree import TransformTree
from lidar_semseg_ros.formats.bags import ODOMETRY, TF, BagWriter, open_bag
from lidar_semseg_ros.formats.poses import POSE_STAMPED, RecordedPoses, fixed_transforms, recorded_poses

TYPES: dict[str, Any] = get_typestore(Stores.ROS2_JAZZY).types
SECOND = 10**9
TOPICS = {ODOMETRY: "/odom", POSE_STAMPED: "/pose", TF: "/tf"}
UPRIGHT, NOUGHT, NAN = (0.0, 0.0, 0.0, 1.0), (0.0, 0.0, 0.0, 0.0), (float("nan"), 0.0, 0.0, 1.0)


def message(kind: str, second: int, quaternion: Sequence[float]) -> Any:
    """Say that the lidar was `second` metres ahead at that second."""

    def new(name: str, *values: Any) -> Any:
        return TYPES[f"geometry_msgs/msg/{name}"](*values)

    stamp = TYPES["builtin_interfaces/msg/Time"](second, 0)
    header, place = TYPES["std_msgs/msg/Header"](stamp, "odom"), (float(second), 0.0, 0.0)
    rotation = new("Quaternion", *quaternion)
    if kind == TF:
        transform = new("Transform", new("Vector3", *place), rotation)
        return TYPES[TF]([new("TransformStamped", header, "lidar", transform)])
    pose = new("Pose", new("Point", *place), rotation)
    if kind == POSE_STAMPED:
        return new("PoseStamped", header, pose)
    still = new("TwistWithCovariance", new("Twist", new("Vector3", 0, 0, 0), new("Vector3", 0, 0, 0)), np.zeros(36))
    return TYPES[ODOMETRY](header, "lidar", new("PoseWithCovariance", pose, np.zeros(36)), still)


def read(path: Path, kind: str, quaternions: Sequence[Sequence[float]]) -> RecordedPoses | None:
    """Record a pose at each second, from the first on, and read them back."""
    with BagWriter(path) as writer:
        for second, quaternion in enumerate(quaternions, start=1):
            writer.write(TOPICS[kind], kind, second * SECOND, message(kind, second, quaternion))
    with open_bag(path) as bag:
        return recorded_poses(bag, "lidar", TransformTree())


@pytest.mark.parametrize("kind", TOPICS)
def test_poses_that_turn_by_no_rotation_are_left_out_with_one_warning_and_the_others_are_kept(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = read(tmp_path / "a.mcap", kind, [UPRIGHT, NOUGHT, NAN, UPRIGHT])
    assert found is not None and found.stamps_ns.tolist() == [1 * SECOND, 4 * SECOND]
    assert found.map_from_base[:, 0, 3].tolist() == [1.0, 4.0]
    (said,) = caplog.messages
    assert said.startswith(f"2 poses of {TOPICS[kind]} are left out, the first one at 2000000000 ns: ")


@pytest.mark.parametrize("kind", TOPICS)
def test_a_recording_whose_poses_all_turn_by_no_rotation_tells_none(tmp_path: Path, kind: str) -> None:
    assert read(tmp_path / "a.mcap", kind, [NOUGHT, NOUGHT]) is None


def test_a_transform_of_tf_static_that_is_none_is_left_out_and_the_others_hold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = message(TF, 2, UPRIGHT), message(TF, 3, NOUGHT)
    bad.transforms[0].child_frame_id = "gripper"
    with BagWriter(tmp_path / "a.mcap") as writer:
        for told in (bad, good):
            writer.write("/tf_static", TF, SECOND, told, latched=True)
    with caplog.at_level(logging.WARNING), open_bag(tmp_path / "a.mcap") as bag:
        tree = fixed_transforms(bag)
    place = tree.lookup("odom", "lidar")
    assert place is not None and place[0, 3] == 2.0 and tree.lookup("odom", "gripper") is None
    assert len(caplog.messages) == 1 and "'gripper' in /tf_static is left out" in caplog.text


def test_a_pose_that_is_nowhere_is_left_out(tmp_path: Path) -> None:
    lost = message(POSE_STAMPED, 2, UPRIGHT)
    lost.pose.position.y = float("nan")
    with BagWriter(tmp_path / "a.mcap") as writer:
        for second, told in enumerate((message(POSE_STAMPED, 1, UPRIGHT), lost), start=1):
            writer.write("/pose", POSE_STAMPED, second * SECOND, told)
    with open_bag(tmp_path / "a.mcap") as bag:
        found = recorded_poses(bag, "lidar", TransformTree())
    assert found is not None and found.stamps_ns.tolist() == [SECOND]
