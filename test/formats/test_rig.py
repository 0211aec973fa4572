"""Which cameras a recording has."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lidar_semseg_ros.core.camera import PinholeCamera
from lidar_semseg_ros.core.frame import CameraImage
from lidar_semseg_ros.core.transform_tree import TransformTree
from lidar_semseg_ros.formats.bags import BagWriter, open_bag
from lidar_semseg_ros.formats.rig import recorded_rig

CAMERA = PinholeCamera(width=8, height=6, matrix=np.array([[5.0, 0, 4], [0, 5, 3], [0, 0, 1]]), distortion=np.zeros(5))


def test_the_images_of_a_camera_are_those_right_beside_its_info_not_those_of_a_depth_camera_within(
    tmp_path: Path,
) -> None:
    image = CameraImage(stamp_ns=1, frame_id="eye", pixels=np.zeros((6, 8, 3), np.uint8))
    with BagWriter(tmp_path / "a.mcap") as writer:
        writer.write_camera_info("/camera/camera_info", CAMERA, 1, "eye")
        for topic in ("/camera/depth/image_raw", "/camera/image_rect", "/camera/image_raw"):
            writer.write_image(topic, image)
    tree = TransformTree()
    tree.add("lidar", "eye", np.eye(4))
    with open_bag(tmp_path / "a.mcap") as bag:
        (camera,) = recorded_rig(bag, "/points", "lidar", tree, None).cameras
    assert (camera.name, camera.topic) == ("camera", "/camera/image_raw")
