"""SemanticKITTI as it lies on the disk: one folder per sequence with scans, labels, images and poses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lidar_semseg_ros.core.camera import PinholeCamera
from lidar_semseg_ros.core.classes import ClassMap, ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED
from lidar_semseg_ros.core.geometry import invert_rigid
from lidar_semseg_ros.distill.recordings import (
    LabelledSweep,
    SourceConfig,
    StoredImage,
    key_of_folder,
    scaled,
    without_confidence,
)
from lidar_semseg_ros.formats.config_files import class_table, config_file, read_yaml
from lidar_semseg_ros.formats.loose_scans import read_scan, scan_files
from lidar_semseg_ros.teacher.lifting import Trajectory

TABLE, PERIOD_NS = "semantickitti19", 100_000_000
READERS = (".label", ".npy")


def is_at(path: Path) -> bool:
    """Tell whether a folder is a sequence or holds sequences."""
    return (path / "velodyne").is_dir() or any(path.glob("*/velodyne"))


def sequences(path: Path) -> dict[str, int]:
    """Count the sweeps of each sequence that a folder holds; empty where it is one itself."""
    if (path / "velodyne").is_dir():
        return {}
    return {folder.parent.name: len(scan_files(folder)) for folder in sorted(path.glob("*/velodyne"))}


class KittiFolder:
    """A sequence of SemanticKITTI: velodyne/*.bin with labels/*.label (or training ids as *.npy), read as it lies.

    Images are those of image_2 with the P2 and Tr of calib.txt; poses those of poses.txt. Scans are numbered, so one
    every 0.1 s is assumed.
    """

    stamps_ns: np.ndarray | None = None

    def __init__(self, source: SourceConfig, cache: Path, *, images: bool) -> None:
        """Look at the folder; UserError if it lacks what is wanted. The cache is not needed."""
        folder = Path(source.path).expanduser()
        self.name = folder.name
        self._scans, self._scale = scan_files(folder / "velodyne"), source.intensity_scale
        self._labels = {file.stem: file for file in sorted((folder / "labels").glob("*")) if file.suffix in READERS}
        self.origin: Mapping[str, str] = {"labels": source.labels}
        self.classes: ClassTable | None = None
        if source.labels != "none":
            if source.labels == "pseudo" or not self._labels:
                raise UserError(
                    f"{folder} {'holds labels of annotators' if self._labels else 'has no labels/*.label'}; a training "
                    f"configuration says 'labels: {'exact' if self._labels else 'none'}' of it"
                )
            self.classes = class_table(TABLE)
            self._classes, self._remap = len(self.classes), semantic_kitti_map().remap_by_id(self.classes)
        self._calibration = _calibration_of(folder / "calib.txt") if images else {}
        self._images = {file.stem: file for file in (folder / "image_2").glob("*.png")} if images else {}
        if images and not self._images:
            raise UserError(f"{folder} has no images in image_2; features cannot be learned from it, leave it out")
        self.base_from_lidar = np.eye(4)
        self.trajectory = _poses(folder)
        read = [*self._scans, *self._labels.values(), *self._images.values()]
        self.key = key_of_folder(folder, [*read, folder / "calib.txt", folder / "poses.txt"])

    def __len__(self) -> int:
        return len(self._scans)

    def sweep(self, index: int) -> LabelledSweep:
        """Read one sweep; a scan without a file of labels is unlabelled."""
        scan = self._scans[index]
        frame = read_scan(scan, index * PERIOD_NS, "velodyne")
        class_id = np.full(len(frame), UNLABELLED, np.uint8)
        if self.classes is not None and scan.stem in self._labels:
            class_id = self._class_id(self._labels[scan.stem])
        if len(class_id) != len(frame):
            raise UserError(f"{scan} has {len(frame)} points, but {self._labels[scan.stem]} {len(class_id)} labels")
        image = self._image(scan.stem, index)
        return LabelledSweep(
            frame=scaled(frame, self._scale),
            class_id=class_id,
            confidence=without_confidence(class_id),
            images=() if image is None else (image,),
        )

    def _class_id(self, file: Path) -> np.ndarray:
        if file.suffix == ".npy":
            # Training ids count from 1; 0 and what lies beyond the classes is none.
            id_1 = np.load(file).astype(np.int64)
            return np.where((id_1 >= 1) & (id_1 <= self._classes), id_1 - 1, UNLABELLED).astype(np.uint8)
        # The upper 16 bits number the thing.
        raw = np.fromfile(file, "<u4") & 0xFFFF
        known = raw < len(self._remap)
        return np.where(known, self._remap[np.where(known, raw, 0)], UNLABELLED).astype(np.uint8)

    def _image(self, stem: str, index: int) -> StoredImage | None:
        if stem not in self._images:
            return None
        file = np.fromfile(self._images[stem], np.uint8)
        # A PNG file says its size in the first chunk.
        width, height = (int(side) for side in file[16:24].view(">u4"))
        return StoredImage(
            key=f"{self.key}/{stem}",
            source="image_2",
            time_ns=index * PERIOD_NS,
            camera=PinholeCamera(width=width, height=height, matrix=self._calibration["K"], distortion=np.zeros(5)),
            camera_from_lidar=self._calibration["camera_from_lidar"],
            file=file,
        )


def semantic_kitti_map() -> ClassMap:
    """Read what the ids in SemanticKITTI's files mean: the learning map of the data set."""
    path = config_file("labels", "semantickitti", "map of labels")
    return ClassMap.from_mapping(read_yaml(path), source=str(path))


def _rows(path: Path) -> dict[str, np.ndarray]:
    try:
        lines = [line.split(":", 1) for line in path.read_text(encoding="utf-8").splitlines() if ":" in line]
        return {name.strip(): np.array(values.split(), float).reshape(3, 4) for name, values in lines}
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the calibration {path}: {error}; take that of the data set") from error


def _calibration_of(path: Path) -> dict[str, np.ndarray]:
    """Take P2 = K [R | t] apart and put t behind Tr: the camera's matrix, and camera_from_lidar (4, 4)."""
    rows = _rows(path)
    if not {"P2", "Tr"} <= set(rows):
        raise UserError(f"{path} has {', '.join(rows)}, but P2 and Tr are needed; take that of the data set")
    matrix = rows["P2"][:, :3]
    camera_from_rectified = np.eye(4)
    camera_from_rectified[:3, 3] = np.linalg.solve(matrix, rows["P2"][:, 3])
    return {"K": matrix, "camera_from_lidar": camera_from_rectified @ np.vstack([rows["Tr"], [0, 0, 0, 1]])}


def _poses(folder: Path) -> Trajectory | None:
    """Read poses.txt, which has those of the left grey camera, as poses of the lidar."""
    if not (folder / "poses.txt").is_file() or not (folder / "calib.txt").is_file():
        return None
    poses = np.loadtxt(folder / "poses.txt").reshape(-1, 3, 4)
    camera_from_lidar = np.vstack([_rows(folder / "calib.txt")["Tr"], [0, 0, 0, 1]])
    whole = np.zeros((len(poses), 4, 4))
    whole[:, :3], whole[:, 3, 3] = poses, 1
    stamps_ns = np.arange(len(poses), dtype=np.int64) * PERIOD_NS
    return Trajectory(stamps_ns=stamps_ns, map_from_base=invert_rigid(camera_from_lidar) @ whole @ camera_from_lidar)
