"""Pictures of a labelled cloud of a recording with two cameras, one all red and one all green."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from taught import CAMERA, STOREYS, two_storeys

from lidar_semseg_ros.cli.pictures import pictures_of
from lidar_semseg_ros.core.frame import CameraImage, PointLabels
from lidar_semseg_ros.core.geometry import OPTICAL_FROM_BODY, rigid
from lidar_semseg_ros.formats.bags import COMPRESSED_IMAGE, BagWriter, open_bag
from lidar_semseg_ros.formats.pointcloud2 import CloudContent, cloud_from_frame, labelled_cloud

CLOUDS, TOPIC = "/lidar/points", "/{}/image_raw/compressed"
STAMP_NS = 20 * 10**9
COLORS = {"left": (255, 0, 0), "right": (0, 255, 0)}
NO_FOCAL_LENGTH = SimpleNamespace(
    model="plumb_bob", width=64, height=48, matrix=np.zeros((3, 3)), distortion=np.zeros(5)
)
"""What a driver publishes that has not been calibrated."""


def write_image(bag: BagWriter, name: str, stamp_ns: int) -> None:
    pixels = np.full((48, 64, 3), COLORS[name], np.uint8)
    bag.write_image(TOPIC.format(name), CameraImage(stamp_ns=stamp_ns, frame_id=name, pixels=pixels), jpeg=True)


def recorded(path: Path, camera: Any = CAMERA, image_after_s: float = 0.01) -> CloudContent:
    """Write a sweep with an image of each camera, others and garbage long before it, and give the labelled sweep.

    The images of the right camera stand before those of the left, the CameraInfo of the left before the right's.
    """
    frame, class_id = two_storeys(np.random.default_rng(0), 300, STAMP_NS)
    cloud = cloud_from_frame(frame)
    with BagWriter(path) as bag:
        mounts = {("base_link", name): rigid(OPTICAL_FROM_BODY.T, np.zeros(3)) for name in COLORS}
        bag.write_tf_static({("base_link", "lidar"): np.eye(4), **mounts}, 0)
        for name in ("right", "left"):
            write_image(bag, name, 10**9)
            bag.write(TOPIC.format(name), COMPRESSED_IMAGE, 2 * 10**9, b"\x00\x01\x00\x00 no image")
        bag.write_cloud(CLOUDS, cloud)
        for name in ("left", "right"):
            bag.write_camera_info(f"/{name}/camera_info", camera, STAMP_NS, name)
            write_image(bag, name, STAMP_NS + round(image_after_s * 1e9))
    sure = np.ones(len(frame), np.float32)
    labels = PointLabels(class_id=class_id, probability=sure, entropy=0 * sure)
    return labelled_cloud(cloud, frame, labels, STOREYS.palette(), "aligned")


def titles(path: Path, cloud: CloudContent) -> list[str]:
    with open_bag(path) as bag:
        return [picture.title for picture in pictures_of(bag, CLOUDS, cloud, STOREYS)]


def test_points_are_drawn_over_an_image_of_the_camera_they_are_projected_with(tmp_path: Path) -> None:
    cloud = recorded(tmp_path / "a.mcap")
    with open_bag(tmp_path / "a.mcap") as bag:
        over = pictures_of(bag, CLOUDS, cloud, STOREYS)[-1]
    assert over.title == "Over the camera" and over.pixels.shape == (48, 64, 3)
    red, green, _ = np.median(over.pixels.reshape(-1, 3), axis=0)
    assert red > 50 > green


@pytest.mark.parametrize("how", [{"camera": NO_FOCAL_LENGTH}, {"image_after_s": 0.3}])
def test_without_a_calibrated_camera_or_an_image_of_the_time_the_other_pictures_are_drawn(
    how: dict[str, Any], tmp_path: Path
) -> None:
    cloud = recorded(tmp_path / "a.mcap", **how)
    assert titles(tmp_path / "a.mcap", cloud) == ["From above", "From behind"]
