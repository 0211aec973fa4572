"""Our clouds and those of ROS 2's own Python library: each reads what the other writes."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed (source one, or install the extra [ros])")
theirs = pytest.importorskip("sensor_msgs_py.point_cloud2", reason="sensor_msgs_py comes with a ROS 2 installation")
from robot import room
from sensor_msgs.msg import PointField
from std_msgs.msg import Header

from lidar_semseg_ros.core.frame import LidarFrame, PointLabels
from lidar_semseg_ros.formats.pointcloud2 import (
    LAYOUTS,
    CloudContent,
    cloud_content,
    cloud_from_frame,
    labelled_cloud,
    read_cloud,
    visualization_cloud,
)
from lidar_semseg_ros.ros.messages import cloud_message

ROWS = 60
PALETTE = np.arange(256 * 3, dtype=np.int64).reshape(256, 3).astype(np.uint8)


@pytest.fixture
def frame() -> LidarFrame:
    rng = np.random.default_rng(0)
    xyz = room(ROWS)
    xyz[::7] = np.nan
    return LidarFrame(
        stamp_ns=1_700_000_000_123_456_789,
        frame_id="lidar",
        xyz=xyz,
        intensity=rng.uniform(0, 255, ROWS).astype(np.float32),
        ring=rng.integers(0, 128, ROWS).astype(np.uint16),
        time_s=rng.uniform(0, 0.1, ROWS).astype(np.float32),
    )


@pytest.fixture
def labels() -> PointLabels:
    rng = np.random.default_rng(1)
    class_id = rng.integers(0, 256, ROWS).astype(np.uint8)
    probability, entropy = rng.uniform(0, 1, (2, ROWS)).astype(np.float32)
    return PointLabels(class_id=class_id, probability=probability, entropy=entropy)


def read_by_ros(content: CloudContent) -> np.ndarray:
    return theirs.read_points(cloud_message(content))


def test_a_cloud_of_ours_is_read_with_all_its_fields(frame: LidarFrame) -> None:
    points = read_by_ros(cloud_from_frame(frame))
    for place, name in enumerate("xyz"):
        np.testing.assert_array_equal(points[name], frame.xyz[:, place])
    for name, values in (("intensity", frame.intensity), ("ring", frame.ring), ("time", frame.time_s)):
        np.testing.assert_array_equal(points[name], values)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_labels_are_read_from_every_output_layout(layout: str, frame: LidarFrame, labels: PointLabels) -> None:
    points = read_by_ros(labelled_cloud(cloud_from_frame(frame), frame, labels, PALETTE, layout))
    for name in ("class_id", "probability", "entropy"):
        np.testing.assert_array_equal(points[name], getattr(labels, name))
    for place, name in enumerate("xyz"):
        np.testing.assert_array_equal(points[name], frame.xyz[:, place])


def test_colours_lie_as_rviz_reads_them(frame: LidarFrame, labels: PointLabels) -> None:
    points = read_by_ros(visualization_cloud(frame, cloud_from_frame(frame), labels, PALETTE))
    packed = np.ascontiguousarray(points["rgb"]).view(np.uint32)
    seen = np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], axis=1)
    np.testing.assert_array_equal(seen, PALETTE[labels.class_id])


def test_a_cloud_made_by_ros_is_read_with_its_values(frame: LidarFrame) -> None:
    kinds = {"x": PointField.FLOAT32, "y": PointField.FLOAT32, "z": PointField.FLOAT32}
    kinds |= {"intensity": PointField.FLOAT32, "ring": PointField.UINT16, "time": PointField.FLOAT32}
    sizes = {PointField.FLOAT32: 4, PointField.UINT16: 2}
    fields, offset = [], 0
    for name, kind in kinds.items():
        fields.append(PointField(name=name, offset=offset, datatype=kind, count=1))
        offset += sizes[kind]
    columns = [*frame.xyz.T.tolist(), frame.intensity.tolist(), frame.ring.tolist(), frame.time_s.tolist()]
    header = Header(frame_id="lidar")
    header.stamp.sec, header.stamp.nanosec = divmod(frame.stamp_ns, 10**9)
    read = read_cloud(cloud_content(theirs.create_cloud(header, fields, list(zip(*columns)))))
    assert (read.stamp_ns, read.frame_id) == (frame.stamp_ns, "lidar")
    for name in ("xyz", "intensity", "ring", "time_s"):
        np.testing.assert_array_equal(getattr(read, name), getattr(frame, name))


def test_bare_points_made_by_ros_are_read(frame: LidarFrame) -> None:
    read = read_cloud(cloud_content(theirs.create_cloud_xyz32(Header(frame_id="lidar"), frame.xyz)))
    np.testing.assert_array_equal(read.xyz, frame.xyz)
    assert read.intensity is None and read.ring is None
