"""What opens as a recording: bags of the teacher and of the simulator, any bag with cameras, published data sets."""

from __future__ import annotations

import hashlib
import heapq
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED, LidarFrame
from lidar_semseg_ros.core.options import from_mapping, settings_of
from lidar_semseg_ros.core.pairing import JUMP_S, NearestPairing, PairingConfig
from lidar_semseg_ros.core.sensor import FieldNames
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
    PSEUDO_LABEL_ENDING,
    camera_to_json,
    chosen_cloud_topic,
    chosen_pseudo_label_topic,
    exact_labels,
    pseudo_label_topics,
    taught_classes,
    taught_rig,
    teacher_settings,
)
from lidar_semseg_ros.formats.images import ImageError, jpeg_bytes, read_image
from lidar_semseg_ros.formats.pointcloud2 import CloudContent, cloud_content, column, read_cloud
from lidar_semseg_ros.formats.poses import NO_POSES, fixed_transforms, recorded_poses
from lidar_semseg_ros.formats.rig import RecordedCamera, Rig, recorded_rig
from lidar_semseg_ros.teacher.lifting import Trajectory

logger = logging.getLogger(__name__)

C = TypeVar("C")

LAYOUT = 2
"""Of the cache; another one makes all of it anew."""
HOW_IMAGES_ARE_RECORDED = (
    "a teacher's recording holds images if it was made with `lidar-semseg label --images` or, live, with "
    "`record_images:=true`"
)


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
        is_taught = source.labels == "pseudo" or bool(pseudo_label_topics(bag))
        self._topic = _taught_topic(bag, path, source) if is_taught else _plain_topic(bag, path, source)
        # The teacher's settings hold for whoever learns from it: else times, pairs and poses would be others.
        self._said = teacher_settings(bag, self._topic) if is_taught else {}
        settings = self._said.get("settings", {})
        self._fields, self._sync = _group(FieldNames, settings, "fields"), _group(PairingConfig, settings, "sync")
        self.classes, self.origin = self._labels_of_bag()
        first = next(bag.messages([self._topic]), None)
        if first is None:
            raise UserError(f"{path} has no clouds on {self._topic}; leave it out of the training configuration")
        self._frame_id = str(first.message().header.frame_id)
        self._tree = fixed_transforms(bag)
        self._rig = self._sensors(images)
        self._exact = exact_labels(bag) if source.labels == "exact" else {}
        self._left_out: set[tuple[str, int]] = set()

    def _labels_of_bag(self) -> tuple[ClassTable | None, dict[str, str]]:
        """Read which classes the bag has and who gave them; UserError if it has not the labels that are wanted."""
        if self._source.labels == "none":
            return None, {"labels": "none"}
        if self._source.labels == "pseudo":
            table = taught_classes(self._bag, self._topic, str(self._path))
            teacher = self._said.get("teacher", {})
            return table, {"labels": "pseudo", **{f"teacher {key}": str(value) for key, value in teacher.items()}}
        if LABEL_TOPIC not in self._bag.topics or CLASS_MAP_TOPIC not in self._bag.topics:
            raise UserError(
                f"{self._path} holds no exact labels ({LABEL_TOPIC}); take 'labels: pseudo' after `lidar-semseg "
                "label`, or a recording of `lidar-semseg simulate`"
            )
        said = json.loads(next(self._bag.messages([CLASS_MAP_TOPIC])).message().data)
        return ClassTable.from_mapping(said, source=f"{self._path} {CLASS_MAP_TOPIC}"), {"labels": "exact"}

    def _sensors(self, images: bool) -> Rig:
        """Find the sensors: as the source's calibration has them, else as the teacher had, else as the bag tells."""
        named, taught = self._source.calibration, taught_rig(self._said)
        if taught is not None and not named:
            return self._with_images(taught) if images else replace(taught, cameras=())
        calibration = read_calibration(calibration_file(named)) if named else None
        topic = self._topic if taught is None else str(taught.lidar.topic)
        if not images:
            lidar = calibration.lidars[calibration.lidar_on(topic)] if calibration else LidarCalibration(stamp="start")
            return Rig(lidar=lidar, cameras=())
        try:
            return recorded_rig(self._bag, topic, self._frame_id, self._tree, calibration)
        except UserError as error:
            raise UserError(
                f"{self._path} cannot teach features: {error} (or 'calibration' in the training configuration); "
                f"{HOW_IMAGES_ARE_RECORDED}"
            ) from error

    def _with_images(self, taught: Rig) -> Rig:
        """Leave out the cameras whose images were not recorded; UserError if none is left."""
        cameras = tuple(camera for camera in taught.cameras if self._bag.message_count(camera.topic))
        if not cameras:
            raise UserError(
                f"{self._path} cannot teach features: it holds no images on "
                f"{', '.join(camera.topic for camera in taught.cameras)}; {HOW_IMAGES_ARE_RECORDED}"
            )
        return replace(taught, cameras=cameras)

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
            "cameras": [
                {"topic": camera.topic, **camera_to_json(camera.camera, camera.camera_from_lidar)}
                for camera in self._rig.cameras
            ],
            "base_from_lidar": base_from_lidar.ravel().tolist(),
        }
        writer.close(trajectory, about)

    def _labels(self, sweep: _Sweep) -> tuple[np.ndarray, np.ndarray]:
        points = len(sweep.frame)
        if self._source.labels == "pseudo":
            class_id = column(sweep.content, "class_id")
            self._require_known(class_id, sweep)
            return class_id, column(sweep.content, "probability")
        class_id = self._exact.get(sweep.content.stamp_ns, np.full(points, UNLABELLED, np.uint8))
        if len(class_id) != points:
            raise UserError(
                f"cloud {sweep.content.stamp_ns} of {self._path} has {points} points, but {len(class_id)} "
                "labels; record it anew"
            )
        self._require_known(class_id, sweep)
        return class_id, without_confidence(class_id)

    def _require_known(self, class_id: np.ndarray, sweep: _Sweep) -> None:
        largest = class_id[class_id != UNLABELLED].max(initial=0)
        if self.classes is not None and largest >= len(self.classes):
            raise UserError(
                f"cloud {sweep.content.stamp_ns} of {self._path} has the label {largest}, but its table "
                f"{self.classes.name} has {len(self.classes)} classes, counted from 0; label or record it anew"
            )

    def _motion(self) -> tuple[Trajectory | None, np.ndarray]:
        topic = self._said.get("poses_topic")
        poses = None if topic == NO_POSES else recorded_poses(self._bag, self._frame_id, self._tree, topic)
        if poses is None:
            return None, np.eye(4)
        base_from_lidar = self._tree.lookup(poses.base_frame, self._frame_id)
        trajectory = Trajectory(stamps_ns=poses.stamps_ns, map_from_base=poses.map_from_base)
        return trajectory, np.eye(4) if base_from_lidar is None else base_from_lidar

    def _pairs(self) -> Iterator[tuple[_Sweep, list[tuple[int, bytes] | None]]]:
        cameras = {camera.topic: camera for camera in self._rig.cameras}
        pairing: NearestPairing[_Sweep, BagMessage] = NearestPairing(
            [camera.name for camera in self._rig.cameras], self._sync
        )

        def packed(pairs: Any) -> Iterator[tuple[_Sweep, list[tuple[int, bytes] | None]]]:
            for pair in pairs:
                yield pair.cloud, [self._packed(pair.images.get(camera.name)) for camera in self._rig.cameras]

        # A live teacher's clouds were recorded when it was done with them, which may be long after the images.
        apart = [{self._topic}, {*cameras}] if self._said.get("is_live") else [{self._topic, *cameras}]
        streams = [self._measured(topics, cameras) for topics in apart]
        for _, time_ns, camera, measured in heapq.merge(*streams, key=itemgetter(0, 1)):
            if camera is None:
                yield from packed(pairing.add_cloud(time_ns, measured))
            else:
                yield from packed(pairing.add_image(camera, time_ns, measured))
        yield from packed(pairing.flush())

    def _measured(
        self, topics: Collection[str], cameras: Mapping[str, RecordedCamera]
    ) -> Iterator[tuple[int, int, str | None, Any]]:
        """Yield in order of log times: lap, middle of the measurement, camera or None, sweep or message of the image.

        A lap ends with a jump back in time, as when a bag is played again and again. Bytes that are no image are left
        out.
        """
        newest_ns: dict[str, int] = {}
        laps: Counter[str] = Counter()
        measured: _Sweep | BagMessage
        for recorded in self._bag.messages(topics):
            topic = recorded.topic
            if topic == self._topic:
                content = cloud_content(recorded.message())
                frame = read_cloud(content, self._fields)
                start_ns = self._rig.lidar.start_ns(frame.stamp_ns, frame.duration_s())
                time_ns = start_ns + round(frame.duration_s() / 2 * 1e9)
                camera, measured = None, _Sweep(content=content, frame=replace(frame, stamp_ns=start_ns))
            else:
                try:
                    stamp = recorded.message().header.stamp
                except UserError as error:
                    self._leave_out(recorded, error)
                    continue
                time_ns = stamp.sec * 10**9 + stamp.nanosec + round(cameras[topic].stamp_offset_s * 1e9)
                camera, measured = cameras[topic].name, recorded
            if time_ns < newest_ns.get(topic, time_ns) - JUMP_S * 1e9:
                laps[topic] += 1
                del newest_ns[topic]
            newest_ns[topic] = max(time_ns, newest_ns.get(topic, time_ns))
            yield laps[topic], time_ns, camera, measured

    def _packed(self, image: tuple[int, BagMessage] | None) -> tuple[int, bytes] | None:
        """Give the time and the file of an image; one that was recorded raw becomes a JPEG, or None if it is unread."""
        if image is None:
            return None
        time_ns, recorded = image
        message = recorded.message()
        if hasattr(message, "format"):
            return time_ns, bytes(message.data)
        try:
            return time_ns, jpeg_bytes(read_image(message).pixels)
        except ImageError as error:
            self._leave_out(recorded, error)
            return None

    def _leave_out(self, recorded: BagMessage, error: UserError) -> None:
        """Say once of an image, which may be the nearest of several clouds, why it is left out."""
        key = (recorded.topic, recorded.log_time_ns)
        if key not in self._left_out:
            logger.warning("an image of %s, %s, is left out: %s", self._path.name, recorded.topic, error)
        self._left_out.add(key)


def _taught_topic(bag: Bag, path: Path, source: SourceConfig) -> str:
    # A topic of clouds without labels says nothing of which teacher is meant.
    named = source.topic if source.topic.endswith(PSEUDO_LABEL_ENDING) else None
    return chosen_pseudo_label_topic(bag, named, str(path))


def _plain_topic(bag: Bag, path: Path, source: SourceConfig) -> str:
    return chosen_cloud_topic(bag, source.topic or None, str(path))


def _group(config_class: type[C], settings: Mapping[str, Any], group: str) -> C:
    """Build one group of a teacher's settings; what it does not tell, or tells beyond that, is left at the default."""
    known = {f"{group}.{entry.name}": entry.name for entry in settings_of(config_class)}
    return from_mapping(config_class, {known[name]: value for name, value in settings.items() if name in known})
