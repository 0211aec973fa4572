"""What opens as a recording: bags of the teacher and of the simulator, any bag with cameras, SemanticKITTI folders."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lidar_semseg_ros.core.camera import PinholeCamera
from lidar_semseg_ros.core.classes import ClassMap, ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED, LidarFrame
from lidar_semseg_ros.core.geometry import invert_rigid
from lidar_semseg_ros.core.pairing import NearestPairing, PairingConfig
from lidar_semseg_ros.distill.recordings import (
    CachedRecording,
    LabelledSweep,
    Recording,
    RecordingWriter,
    SourceConfig,
    StoredImage,
    camera_to_json,
    scaled,
    without_confidence,
)
from lidar_semseg_ros.formats.bags import Bag, BagMessage, open_bag
from lidar_semseg_ros.formats.calibration import LidarCalibration, calibration_file, read_calibration
from lidar_semseg_ros.formats.config_files import class_table, config_file, read_yaml
from lidar_semseg_ros.formats.dataset import (
    CLASS_MAP_TOPIC,
    LABEL_TOPIC,
    PSEUDO_LABEL_TOPIC,
    chosen_cloud_topic,
    exact_labels,
    taught_classes,
    teacher_settings,
)
from lidar_semseg_ros.formats.images import jpeg_bytes, read_image
from lidar_semseg_ros.formats.loose_scans import read_scan, scan_files
from lidar_semseg_ros.formats.pointcloud2 import CloudContent, cloud_content, column, read_cloud
from lidar_semseg_ros.formats.poses import fixed_transforms, recorded_poses
from lidar_semseg_ros.formats.rig import Rig, recorded_rig
from lidar_semseg_ros.teacher.lifting import Trajectory

LAYOUT = 1
"""Of the cache; another one makes all of it anew."""
KITTI_TABLE, KITTI_PERIOD_NS = "semantickitti19", 100_000_000


def open_recording(
    source: SourceConfig, cache: Path, *, images: bool, on_sweep: Callable[[int, int], None] = lambda done, total: None
) -> Recording:
    """Open what a training configuration names; a bag is laid out in the cache first, once for its content.

    images: the recording is to have its images, with cameras whose place is known. on_sweep(done, total) is called
    while the cache is written. UserError says what a recording lacks.
    """
    path = Path(source.path).expanduser()
    if (path / "velodyne").is_dir():
        return KittiFolder(path, source, images=images)
    if not path.exists():
        raise UserError(f"there is no recording {path}; check 'path' in the training configuration")
    folder = cache / f"{path.stem}-{_digest(path, source, images)}"
    if not (folder / "about.json").is_file():
        part = cache / f"{folder.name}.{os.getpid()}.part"
        try:
            with open_bag(path) as bag:
                _Layout(bag, path, source, images).write(part, on_sweep)
            part.rename(folder)
        except OSError as error:
            if not (folder / "about.json").is_file():  # else another process was faster
                raise UserError(f"cannot lay {path} out in {cache}: {error}; set another 'cache'") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return CachedRecording(folder, source.intensity_scale)


def _digest(path: Path, source: SourceConfig, images: bool) -> str:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    described = json.dumps([LAYOUT, stats, source.labels, source.topic, source.calibration, images])
    return hashlib.sha256(described.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class _Sweep:
    content: CloudContent
    frame: LidarFrame


class _Layout:
    """A bag on its way into the cache."""

    def __init__(self, bag: Bag, path: Path, source: SourceConfig, images: bool) -> None:
        self._bag, self._path, self._source = bag, path, source
        self.classes, self.origin = _labels_of(bag, path, source.labels)
        is_taught = PSEUDO_LABEL_TOPIC in bag.topics
        self._topic = PSEUDO_LABEL_TOPIC if is_taught else chosen_cloud_topic(bag, source.topic or None, str(path))
        first = next(bag.messages([self._topic]), None)
        if first is None:
            raise UserError(f"{path} has no clouds on {self._topic}; leave it out of the training configuration")
        self._frame_id = str(first.message().header.frame_id)
        self._tree = fixed_transforms(bag)
        self._rig = self._recorded_rig() if images else Rig(lidar=LidarCalibration(stamp="start"), cameras=())
        self._exact = exact_labels(bag) if source.labels == "exact" else {}

    def _recorded_rig(self) -> Rig:
        named = self._source.calibration
        calibration = read_calibration(calibration_file(named)) if named else None
        try:
            return recorded_rig(self._bag, self._topic, self._frame_id, self._tree, calibration)
        except UserError as error:
            raise UserError(
                f"{self._path} cannot teach features: {error} (or 'calibration' in the training configuration); "
                "a teacher's recording holds images if it was made with `lidar-semseg label --images`"
            ) from error

    def write(self, folder: Path, on_sweep: Callable[[int, int], None]) -> None:
        writer = RecordingWriter(folder)
        total = self._bag.message_count(self._topic)
        for done, (sweep, images) in enumerate(self._pairs(), start=1):
            class_id, confidence = self._labels(sweep)
            writer.add(sweep.frame, class_id, confidence, images)
            on_sweep(done, total)
        trajectory, base_from_lidar = self._motion()
        about = {
            "name": self._path.name,
            "classes": self.classes.to_mapping() if self.classes else None,
            "origin": self.origin,
            "frame_id": self._frame_id,
            "cameras": [camera_to_json(camera.camera, camera.camera_from_lidar) for camera in self._rig.cameras],
            "base_from_lidar": base_from_lidar.ravel().tolist(),
        }
        writer.close(trajectory, about)

    def _labels(self, sweep: _Sweep) -> tuple[np.ndarray, np.ndarray]:
        points = len(sweep.frame)
        if self._source.labels == "pseudo":
            return column(sweep.content, "class_id"), column(sweep.content, "probability")
        class_id = self._exact.get(sweep.content.stamp_ns, np.full(points, UNLABELLED, np.uint8))
        if len(class_id) != points:
            raise UserError(
                f"cloud {sweep.content.stamp_ns} of {self._path} has {points} points, but {len(class_id)} "
                "labels; record it anew"
            )
        return class_id, without_confidence(class_id)

    def _motion(self) -> tuple[Trajectory | None, np.ndarray]:
        poses = recorded_poses(self._bag, self._frame_id, self._tree)
        if poses is None:
            return None, np.eye(4)
        base_from_lidar = self._tree.lookup(poses.base_frame, self._frame_id)
        trajectory = Trajectory(stamps_ns=poses.stamps_ns, map_from_base=poses.map_from_base)
        return trajectory, np.eye(4) if base_from_lidar is None else base_from_lidar

    def _pairs(self) -> Iterator[tuple[_Sweep, list[tuple[int, bytes] | None]]]:
        cameras = {camera.topic: camera for camera in self._rig.cameras}
        pairing: NearestPairing[_Sweep, BagMessage] = NearestPairing(
            [camera.name for camera in self._rig.cameras], PairingConfig()
        )

        def packed(pairs: Any) -> Iterator[tuple[_Sweep, list[tuple[int, bytes] | None]]]:
            for pair in pairs:
                yield pair.cloud, [_packed(pair.images.get(camera.name)) for camera in self._rig.cameras]

        for recorded in self._bag.messages({self._topic, *cameras}):
            if recorded.topic == self._topic:
                content = cloud_content(recorded.message())
                frame = read_cloud(content)
                start_ns = self._rig.lidar.start_ns(frame.stamp_ns, frame.duration_s())
                frame = replace(frame, stamp_ns=start_ns)
                middle_ns = start_ns + round(frame.duration_s() / 2 * 1e9)
                yield from packed(pairing.add_cloud(middle_ns, _Sweep(content=content, frame=frame)))
            else:
                camera = cameras[recorded.topic]
                stamp = recorded.message().header.stamp
                time_ns = stamp.sec * 10**9 + stamp.nanosec + round(camera.stamp_offset_s * 1e9)
                yield from packed(pairing.add_image(camera.name, time_ns, recorded))
        yield from packed(pairing.flush())


def _labels_of(bag: Bag, path: Path, labels: str) -> tuple[ClassTable | None, dict[str, str]]:
    """Read which classes a bag has and who gave them; UserError if it has not the labels that are wanted."""
    if labels == "none":
        return None, {"labels": "none"}
    if labels == "pseudo":
        table = taught_classes(bag, str(path))
        teacher = teacher_settings(bag).get("teacher", {})
        return table, {"labels": "pseudo", **{f"teacher {key}": str(value) for key, value in teacher.items()}}
    if LABEL_TOPIC not in bag.topics or CLASS_MAP_TOPIC not in bag.topics:
        raise UserError(
            f"{path} holds no exact labels ({LABEL_TOPIC}); take 'labels: pseudo' after `lidar-semseg label`, or a "
            "recording of `lidar-semseg simulate`"
        )
    said = json.loads(next(bag.messages([CLASS_MAP_TOPIC])).message().data)
    return ClassTable.from_mapping(said, source=f"{path} {CLASS_MAP_TOPIC}"), {"labels": "exact"}


def _packed(image: tuple[int, BagMessage] | None) -> tuple[int, bytes] | None:
    """Give the time and the file of an image; one that was recorded raw becomes a JPEG."""
    if image is None:
        return None
    time_ns, recorded = image
    message = recorded.message()
    if hasattr(message, "format"):
        return time_ns, bytes(message.data)
    return time_ns, jpeg_bytes(read_image(message).pixels)


class KittiFolder:
    """A sequence of SemanticKITTI: velodyne/*.bin with labels/*.label (or training ids as *.npy), read as it lies.

    Images are those of image_2 with the P2 and Tr of calib.txt; poses those of poses.txt.
    """

    def __init__(self, folder: Path, source: SourceConfig, *, images: bool) -> None:
        self.name = folder.name
        self._scans, self._scale = scan_files(folder / "velodyne"), source.intensity_scale
        self.key = f"{folder.name}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}"
        self._labels = {file.stem: file for file in sorted((folder / "labels").glob("*")) if file.suffix in READERS}
        self.origin: Mapping[str, str] = {"labels": source.labels}
        self.classes: ClassTable | None = None
        if source.labels != "none":
            if source.labels == "pseudo" or not self._labels:
                raise UserError(
                    f"{folder} {'holds labels of annotators' if self._labels else 'has no labels/*.label'}; write "
                    f"'labels: {'exact' if self._labels else 'none'}' for it in the training configuration"
                )
            self.classes = class_table(KITTI_TABLE)
            self._classes, self._remap = len(self.classes), semantic_kitti_map().remap_by_id(self.classes)
        self._calibration = _kitti_calibration(folder / "calib.txt") if images else {}
        self._images = {file.stem: file for file in (folder / "image_2").glob("*.png")} if images else {}
        if images and not self._images:
            raise UserError(f"{folder} has no images in image_2; features cannot be learned from it, leave it out")
        self.base_from_lidar = np.eye(4)
        self.trajectory = _kitti_poses(folder)

    def __len__(self) -> int:
        return len(self._scans)

    def sweep(self, index: int) -> LabelledSweep:
        """Read one sweep; a scan without a file of labels is unlabelled."""
        scan = self._scans[index]
        frame = read_scan(scan, index * KITTI_PERIOD_NS, "velodyne")
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
            time_ns=index * KITTI_PERIOD_NS,
            camera=PinholeCamera(width=width, height=height, matrix=self._calibration["K"], distortion=np.zeros(5)),
            camera_from_lidar=self._calibration["camera_from_lidar"],
            file=file,
        )


READERS = (".label", ".npy")


def semantic_kitti_map() -> ClassMap:
    """Read what the ids in SemanticKITTI's files mean: the learning map of the data set."""
    path = config_file("labels", "semantickitti", "map of labels")
    return ClassMap.from_mapping(read_yaml(path), source=str(path))


def _kitti_rows(path: Path) -> dict[str, np.ndarray]:
    try:
        lines = [line.split(":", 1) for line in path.read_text(encoding="utf-8").splitlines() if ":" in line]
        return {name.strip(): np.array(values.split(), float).reshape(3, 4) for name, values in lines}
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the calibration {path}: {error}; take that of the data set") from error


def _kitti_calibration(path: Path) -> dict[str, np.ndarray]:
    """Take P2 = K [R | t] apart and put t behind Tr: the camera's matrix, and camera_from_lidar (4, 4)."""
    rows = _kitti_rows(path)
    if not {"P2", "Tr"} <= set(rows):
        raise UserError(f"{path} has {', '.join(rows)}, but P2 and Tr are needed; take that of the data set")
    matrix = rows["P2"][:, :3]
    camera_from_rectified = np.eye(4)
    camera_from_rectified[:3, 3] = np.linalg.solve(matrix, rows["P2"][:, 3])
    return {"K": matrix, "camera_from_lidar": camera_from_rectified @ np.vstack([rows["Tr"], [0, 0, 0, 1]])}


def _kitti_poses(folder: Path) -> Trajectory | None:
    """Read poses.txt, which has those of the left grey camera, as poses of the lidar."""
    if not (folder / "poses.txt").is_file() or not (folder / "calib.txt").is_file():
        return None
    poses = np.loadtxt(folder / "poses.txt").reshape(-1, 3, 4)
    camera_from_lidar = np.vstack([_kitti_rows(folder / "calib.txt")["Tr"], [0, 0, 0, 1]])
    whole = np.zeros((len(poses), 4, 4))
    whole[:, :3], whole[:, 3, 3] = poses, 1
    stamps_ns = np.arange(len(poses), dtype=np.int64) * KITTI_PERIOD_NS
    return Trajectory(stamps_ns=stamps_ns, map_from_base=invert_rigid(camera_from_lidar) @ whole @ camera_from_lidar)
