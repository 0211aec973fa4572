"""Small recordings as a teacher leaves them, tiny teachers of features, and a training configuration for both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml

from lidar_semseg_ros.core.camera import PinholeCamera
from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.frame import UNLABELLED, CameraImage, LidarFrame
from lidar_semseg_ros.core.geometry import OPTICAL_FROM_BODY, rigid
from lidar_semseg_ros.formats.bags import BagWriter
from lidar_semseg_ros.formats.calibration import LidarCalibration
from lidar_semseg_ros.formats.dataset import (
    CLASS_MAP_TOPIC,
    LABEL_TOPIC,
    PSEUDO_LABEL_TOPIC,
    TEACHER_CLASS_MAP_TOPIC,
    TEACHER_SETTINGS_TOPIC,
    settings_text,
)
from lidar_semseg_ros.formats.pointcloud2 import cloud_from_frame, pseudo_labelled_cloud
from lidar_semseg_ros.formats.rig import RecordedCamera, Rig
from lidar_semseg_ros.network.inputs import InputConfig

STOREYS = ClassTable(name="storeys", names=("below", "above"), colors=((0, 0, 0), (255, 255, 255)))
CAMERA = PinholeCamera(
    width=64, height=48, matrix=np.array([[40.0, 0, 31.5], [0, 40.0, 23.5], [0, 0, 1]]), distortion=np.zeros(5)
)
PERIOD_NS = 100_000_000
INPUTS = InputConfig(
    voxel_size_m=0.1,
    fov_min_m=(-6, -6, -2),
    fov_max_m=(6, 6, 2),
    planes=("z", "y", "x"),
    grids=((24, 24), (24, 8), (24, 8)),
)
FORWARD = rigid(OPTICAL_FROM_BODY, np.zeros(3))
RIG = Rig(
    lidar=LidarCalibration(stamp="start"),
    cameras=(
        RecordedCamera(name="camera", topic="/camera/image_raw/compressed", camera=CAMERA, camera_from_lidar=FORWARD),
    ),
)


def two_storeys(rng: np.random.Generator, points: int, stamp_ns: int = 0) -> tuple[LidarFrame, np.ndarray]:
    """Points whose class is whether they lie above or below z = 0."""
    xyz = rng.uniform((-4, -4, -1.5), (4, 4, 1.5), (points, 3)).astype(np.float32)
    frame = LidarFrame(
        stamp_ns=stamp_ns,
        frame_id="lidar",
        xyz=xyz,
        ring=(np.arange(points) % 16).astype(np.uint16),
        intensity=rng.uniform(0, 200, points).astype(np.float32),
    )
    return frame, (xyz[:, 2] > 0).astype(np.uint8)


def write_taught(
    path: Path,
    *,
    sweeps: int = 6,
    points: int = 400,
    seed: int = 0,
    table: ClassTable = STOREYS,
    taught: bool = True,
    camera: bool = True,
    images: bool = True,
    settings: Mapping[str, object] | None = None,
    rig: Rig | None = RIG,
    namespace: str = "",
    late_ns: int | None = None,
) -> list[tuple[LidarFrame, np.ndarray, np.ndarray]]:
    """Write a drive whose teacher knows four fifths of the points, and give its frames, labels and confidences.

    rig: what the teacher says of its sensors; None: nothing, as it used to. namespace: the teacher's, as /robot1.
    late_ns: how long after its clouds it is done with them, if it is a live one.
    """
    rng = np.random.default_rng(seed)
    written = []
    with BagWriter(path) as bag:
        transforms = {("base_link", "lidar"): np.eye(4)}
        if camera:
            transforms[("base_link", "camera")] = rigid(OPTICAL_FROM_BODY.T, np.zeros(3))
        bag.write_tf_static(transforms, 0)
        bag.write_json(CLASS_MAP_TOPIC, json.dumps(table.to_mapping()), 0)
        if taught:
            bag.write_json(namespace + TEACHER_CLASS_MAP_TOPIC, json.dumps(table.to_mapping()), 0)
            identity = {"model": "tiny", "sha256": "00"}
            text = settings_text(
                settings or {}, identity, (), cloud_topic="/lidar/points", rig=rig or RIG, is_live=late_ns is not None
            )
            if rig is None or not camera:
                text = json.dumps({key: value for key, value in json.loads(text).items() if key != "lidar"})
            bag.write_json(namespace + TEACHER_SETTINGS_TOPIC, text, 0)
        for number in range(sweeps):
            stamp_ns = number * PERIOD_NS
            frame, truth = two_storeys(rng, points, stamp_ns)
            class_id = np.where(rng.random(points) < 0.8, truth, UNLABELLED).astype(np.uint8)
            confidence = np.where(class_id == UNLABELLED, 0, rng.uniform(0.5, 1, points)).astype(np.float32)
            bag.write_pose(rigid(np.eye(3), np.array([0.1 * number, 0, 0])), stamp_ns)
            bag.write_class_ids(LABEL_TOPIC, truth[None], stamp_ns, "lidar")
            cloud = cloud_from_frame(frame)
            if taught:
                views = (class_id != UNLABELLED).astype(np.uint8)
                labelled = pseudo_labelled_cloud(cloud, class_id, confidence, views)
                bag.write_cloud(namespace + PSEUDO_LABEL_TOPIC, labelled, log_time_ns=stamp_ns + (late_ns or 0))
            else:
                bag.write_cloud("/lidar/points", cloud)
            if camera:
                bag.write_camera_info("/camera/camera_info", CAMERA, stamp_ns, "camera")
            if camera and images:
                # Dark below the horizon and bright above it.
                pixels = rng.integers(0, 55, (CAMERA.height, CAMERA.width, 3), np.uint8)
                pixels[: CAMERA.height // 2] += 200
                image = CameraImage(stamp_ns=stamp_ns, frame_id="camera", pixels=pixels)
                bag.write_image("/camera/image_raw/compressed", image, jpeg=True)
            written.append((frame, class_id, confidence))
    return written


def write_feature_teacher(folder: Path) -> Path:
    """Save a DINOv2 of random weights with 16 features."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    Dinov2Model(Dinov2Config(**shape)).save_pretrained(folder)
    normal = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(normal))
    return folder


def write_config(path: Path, bags: list[Path], cache: Path, **settings: object) -> Path:
    """Write a training configuration of a tiny network that learns the two storeys."""
    classes = path.with_name("storeys.yaml")
    classes.write_text(yaml.safe_dump(STOREYS.to_mapping()))
    short = {"steps": 8, "batch": 2, "max_points": 300, "warmup": 2, "ema": 0.5, "workers": 0, "cache": str(cache)}
    plan = {
        "classes": str(classes),
        "network": {"width": 16, "depth": 2},
        "inputs": {
            "voxel_size_m": 0.1,
            "fov_min_m": [-6, -6, -2],
            "fov_max_m": [6, 6, 2],
            "planes": ["z", "y", "x"],
            "grids": [[24, 24], [24, 8], [24, 8]],
            "intensity_mean": 100,
            "intensity_std": 60,
        },
        "train": [str(bag) for bag in bags],
        "settings": short | settings,
    }
    path.write_text(yaml.safe_dump(plan))
    return path
