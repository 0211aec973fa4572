"""Scans with images of the shared recordings as bags with a calibration file made of the set's own calibration."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lidar_semseg_ros.cli.main import main


@dataclass(frozen=True)
class RealRig:
    """scans: a folder or a file. images: by camera. cameras: their entries in a calibration file."""

    scans: Path
    images: dict[str, Path]
    cameras: dict[str, dict[str, Any]]

    def recorded(self, folder: Path) -> tuple[Path, Path]:
        """Give the bag and the calibration file; they are made if the folder has none."""
        bag, calibration = folder / "recording.mcap", folder / "calibration.yaml"
        if not bag.exists():
            calibration.write_text(
                yaml.safe_dump({"lidars": {"lidar": {"stamp": "start"}}, "cameras": self.cameras}, sort_keys=False)
            )
            given = [text for name, path in self.images.items() for text in ("--images", f"{name}={path}")]
            main(["convert", str(self.scans), "-o", str(bag), *given])
        return bag, calibration


def entry(
    name: str, size: tuple[int, int], K: np.ndarray, camera_from_lidar: np.ndarray, distortion: list[float] | None
) -> dict[str, Any]:
    lens: dict[str, Any] = (
        {"rectified": True} if distortion is None else {"model": "plumb_bob", "distortion": distortion}
    )
    return {
        "topic": f"/{name}/image_raw/compressed",
        "width": size[0],
        "height": size[1],
        "K": np.asarray(K, float).ravel().tolist(),
        "direction": "camera_from_lidar",
        "matrix": np.asarray(camera_from_lidar, float).ravel().tolist(),
    } | lens


def texts(file: Path) -> dict[str, np.ndarray]:
    """Read KITTI's lines `name: numbers`."""
    found = {}
    for line in file.read_text().splitlines():
        name, _, values = line.partition(":")
        try:
            found[name] = np.array(values.split(), float)
        except ValueError:
            continue
    return found


def square(matrix: np.ndarray) -> np.ndarray:
    """Add the row 0, 0, 0, 1 to a (3, 4) matrix."""
    return np.vstack([matrix, [0, 0, 0, 1]])


def rectified(P: np.ndarray, rectified_from_lidar: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split P = K [1 | t] into K, and t into the transform: (3, 3) and (4, 4)."""
    K = P[:, :3]
    shift = np.eye(4)
    shift[:3, 3] = np.linalg.solve(K, P[:, 3])
    return K, shift @ rectified_from_lidar


def semantic_kitti(data: Path) -> RealRig:
    folder = data / "01_kitti00_semantic_sequence"
    lines = texts(folder / "calib.txt")
    K, camera_from_lidar = rectified(lines["P2"].reshape(3, 4), square(lines["Tr"].reshape(3, 4)))
    cameras = {"left": entry("left", (1241, 376), K, camera_from_lidar, None)}
    return RealRig(folder / "velodyne" / "000000.bin", {"left": folder / "image_2"}, cameras)


def kitti_raw(data: Path) -> RealRig:
    folder = data / "02_kitti_raw_0926_traffic_sequence"
    lidar, cams = texts(folder / "calib_velo_to_cam.txt"), texts(folder / "calib_cam_to_cam.txt")
    rotation = square(np.c_[cams["R_rect_00"].reshape(3, 3), np.zeros(3)])
    K, camera_from_lidar = rectified(
        cams["P_rect_02"].reshape(3, 4), rotation @ square(np.c_[lidar["R"].reshape(3, 3), lidar["T"]])
    )
    cameras = {"left": entry("left", (1242, 375), K, camera_from_lidar, None)}
    return RealRig(folder / "velodyne_points", {"left": folder / "image_02"}, cameras)


def nuscenes(data: Path) -> RealRig:
    folder = data / "03_nuscenes_sample_6cam"
    described = json.loads((folder / "calib_and_boxes.json").read_text())["images"]
    names = {name: name.lower() for name in described}
    images = {names[name]: next(folder.glob(f"*__{name}__*.jpg")) for name in described}
    cameras = {
        names[name]: entry(names[name], (1600, 900), np.array(one["cam2img"])[:3, :3], np.array(one["lidar2cam"]), None)
        for name, one in described.items()
    }
    return RealRig(next(folder.glob("*.pcd.bin")), images, cameras)


def rellis(data: Path) -> RealRig:
    folder = data / "05_rellis3d_offroad_frame"
    pose = yaml.safe_load((folder / "transforms.yaml").read_text())["os1_cloud_node-pylon_camera_node"]
    fx, fy, cx, cy = np.loadtxt(folder / "camera_info.txt").tolist()
    camera = {
        "topic": "/pylon/image_raw/compressed",
        "width": 1920,
        "height": 1200,
        "model": "plumb_bob",
        "distortion": [-0.134313, -0.025905, 0.002181, 0.00084],
        **{"fx": fx, "fy": fy, "cx": cx, "cy": cy},
        "direction": "lidar_from_camera",
        "translation": [pose["t"][axis] for axis in "xyz"],
        "quaternion": [pose["q"][axis] for axis in "wxyz"],
        "quaternion_order": "wxyz",
    }
    return RealRig(folder / "000104.bin", {"pylon": next(folder.glob("*.jpg"))}, {"pylon": camera})


def lobby(data: Path) -> RealRig:
    folder = data / "06_indoor_rslidar16_webcam"
    config = json.loads((folder / "config.json").read_text())
    camera = entry("webcam", (1920, 1080), config["cam"]["K"], config["tf"], config["cam"]["D"])
    return RealRig(folder / "pointcloud", {"webcam": folder / "image"}, {"webcam": camera})


RIGS = {"01": semantic_kitti, "02": kitti_raw, "03": nuscenes, "05": rellis, "06": lobby}
