"""What opens as a recording: bags of the teacher and of the simulator, any bag with cameras, published data sets."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED, LidarFrame
from lidar_semseg_ros.core.pairing import NearestPairing, PairingConfig
from lidar_semseg_ros.distill.data_sets import data_set_at, single_sequences
from lidar_semseg_ros.distill.recordings import (
    CachedRecording,
    PartOfRecording,
    Recording,
    RecordingWriter,
    SourceConfig,
    without_confidence,
)
from lidar_semseg_ros.formats.bags import Bag, BagMessage, open_bag
from lidar_semseg_ros.formats.calibration import LidarCalibration, calibration_file, read_calibration
from lidar_semseg_ros.formats.dataset import (
    CLASS_MAP_TOPIC,
    LABEL_TOPIC,
    PSEUDO_LABEL_TOPIC,
    camera_to_json,
    chosen_cloud_topic,
    exact_labels,
    taught_classes,
    teacher_settings,
)
from lidar_semseg_ros.formats.images import jpeg_bytes, read_image
from lidar_semseg_ros.formats.pointcloud2 import CloudContent, cloud_content, column, read_cloud
from lidar_semseg_ros.formats.poses import fixed_transforms, recorded_poses
from lidar_semseg_ros.formats.rig import Rig, recorded_rig
from lidar_semseg_ros.teacher.lifting import Trajectory

LAYOUT = 1
"""Of the cache; another one makes all of it anew."""


def open_recording(
    source: SourceConfig, cache: Path, *, images: bool, on_sweep: Callable[[int, int], None] = lambda done, total: None
) -> Recording:
    """Open what a training configuration names; a bag is laid out in the cache first, once for its content.

    Of a folder with several sequences, the source names one (`single_sequences`). images: the recording is to have its
    images, with cameras whose place is known. on_sweep(done, total) is called
    while the cache is written. UserError says what a recording lacks.
    """
    found = single_sequences(source)
    if len(found) > 1:
        raise UserError(f"{source.path} holds {len(found)} sequences; name one of them by 'sequence'")
    whole = _whole(found[0], cache, images, on_sweep)
    return PartOfRecording(whole, source) if source.sweeps else whole


def _whole(source: SourceConfig, cache: Path, images: bool, on_sweep: Callable[[int, int], None]) -> Recording:
    path = Path(source.path).expanduser()
    data_set = data_set_at(path)
    if data_set is not None:
        return data_set.open(source, cache, images=images)
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
