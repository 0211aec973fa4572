"""What a teacher says of itself in its recording, read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from taught import RIG

from lidar_semseg_ros.core.camera import FisheyeCamera
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.formats.bags import BagWriter, open_bag
from lidar_semseg_ros.formats.calibration import LidarCalibration
from lidar_semseg_ros.formats.dataset import settings_text, taught_classes, taught_rig, teacher_settings
from lidar_semseg_ros.formats.rig import RecordedCamera, Rig

LABELS = "/robot1/teacher/output/pointcloud/pseudo_labels"
SETTINGS = "/robot1/teacher/output/settings"
FISHEYE = RecordedCamera(
    name="rear",
    topic="/rear/image",
    camera=FisheyeCamera(
        width=8,
        height=6,
        matrix=np.array([[4.5, 0, 4], [0, 4.25, 3], [0, 0, 1]]),
        distortion=np.array([0.1, 0, 0, -0.2]),
    ),
    camera_from_lidar=np.diag([-1.0, -1.0, 1.0, 1.0]),
    stamp_offset_s=-0.033,
)


def test_sensors_are_read_back_with_what_their_stamps_mean_and_a_live_teacher_adds_cameras(tmp_path: Path) -> None:
    lidar = LidarCalibration(stamp="end", stamp_offset_s=0.125, topic="only the file's")
    front = RIG.cameras[0]
    with BagWriter(tmp_path / "a.mcap") as bag:
        for cameras in ((front,), (FISHEYE,)):
            rig = Rig(lidar=lidar, cameras=cameras)
            bag.write_json(SETTINGS, settings_text({"a": 1}, {"model": "m"}, (), cloud_topic="/os/points", rig=rig), 7)
    with open_bag(tmp_path / "a.mcap") as bag:
        said = teacher_settings(bag, LABELS)
        with pytest.raises(UserError, match="but no /robot1/teacher/output/class_map that names them"):
            taught_classes(bag, LABELS, "a.mcap")
        assert teacher_settings(bag, LABELS.replace("1", "2")) == {}
    assert (said["settings"], said["teacher"], said["never_labelled"]) == ({"a": 1}, {"model": "m"}, [])
    found = taught_rig(said)
    assert found is not None and found.lidar == replace(lidar, topic="/os/points")
    for camera, expected in zip(found.cameras, (front, FISHEYE), strict=True):
        assert (camera.name, camera.topic, camera.stamp_offset_s) == (
            expected.name, expected.topic, expected.stamp_offset_s
        )  # fmt: skip
        assert type(camera.camera) is type(expected.camera) and camera.camera.width == expected.camera.width
        assert np.array_equal(camera.camera.matrix, expected.camera.matrix)
        assert np.array_equal(camera.camera.distortion, expected.camera.distortion)
        assert np.array_equal(camera.camera_from_lidar, expected.camera_from_lidar)
