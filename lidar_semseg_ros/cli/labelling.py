"""One recording labelled: what `label` does in as many processes or on as many machines as it is given."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lidar_semseg_ros.core.classes import ClassMap, ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.core.options import to_mapping
from lidar_semseg_ros.core.pairing import NearestPairing, Paired
from lidar_semseg_ros.core.transform_tree import TransformTree
from lidar_semseg_ros.formats.bags import (
    CAMERA_INFO,
    ODOMETRY,
    TF,
    Bag,
    BagMessage,
    BagWriter,
    cloud_topics,
    open_bag,
    why_no_clouds,
)
from lidar_semseg_ros.formats.calibration import calibration_file, read_calibration
from lidar_semseg_ros.formats.config_files import class_map, class_table, package_share
from lidar_semseg_ros.formats.dataset import (
    CLASS_MAP_TOPIC,
    LABEL_TOPIC,
    PSEUDO_LABEL_TOPIC,
    TEACHER_CLASS_MAP_TOPIC,
    TEACHER_SETTINGS_TOPIC,
    chosen_cloud_topic,
    settings_text,
)
from lidar_semseg_ros.formats.images import read_image
from lidar_semseg_ros.formats.masks import mask_files, read_mask
from lidar_semseg_ros.formats.pointcloud2 import CloudContent, cloud_content, pseudo_labelled_cloud, read_cloud
from lidar_semseg_ros.formats.poses import POSE_STAMPED, fixed_transforms, recorded_poses
from lidar_semseg_ros.formats.rig import RecordedCamera, recorded_rig
from lidar_semseg_ros.teacher.labeller import Labeller, TakenImage, TeacherConfig, chosen_teacher, teacher_identity
from lidar_semseg_ros.teacher.lifting import Trajectory
from lidar_semseg_ros.teacher.vision import MaskFiles, MaskFolders, Teacher

NO_POSES = "none"
KEPT_TYPES = (TF, CAMERA_INFO, ODOMETRY, POSE_STAMPED)
KEPT_TOPICS = (LABEL_TOPIC, CLASS_MAP_TOPIC)
"""What goes into the recording as it is: where things were, and exact labels for those who evaluate."""


@dataclass(frozen=True, kw_only=True)
class LabelJob:
    """A recording to be labelled, and how."""

    bag: Path
    output: Path
    config: TeacherConfig
    topic: str | None = None
    poses: str | None = None
    calibration: str | None = None
    images: bool = False
    masks: Path | None = None


@dataclass(kw_only=True)
class LabelSummary:
    """What came of a recording. hits: by camera, clouds that had its image. skew_s: cloud − image, by camera."""

    output: Path
    clouds: int = 0
    dropped: int = 0
    poses: str = NO_POSES
    hits: Counter[str] = field(default_factory=Counter)
    skew_s: dict[str, float] = field(default_factory=dict)
    never_labelled: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Sweep:
    log_time_ns: int
    content: CloudContent
    frame: LidarFrame


@dataclass(kw_only=True)
class _Taken:
    """What an earlier run has left: how many labelled clouds, and the log time up to which each topic was copied."""

    clouds: int = 0
    until_ns: dict[str, int] = field(default_factory=dict)


def label_bag(job: LabelJob, on_cloud: Callable[[int, int], None] = lambda done, total: None) -> LabelSummary:
    """Label every cloud of a recording; on_cloud(done, total) is called after each.

    Until it is complete, the file is called <output>.part.mcap. What an earlier run has left of it is kept, and the
    rest added.
    """
    if job.output.exists():
        raise UserError(f"{job.output} exists already; give another name or remove it")
    with open_bag(job.bag) as bag:
        if not cloud_topics(bag):
            raise UserError(why_no_clouds(bag))
        drive = _Drive(job, bag, chosen_cloud_topic(bag, job.topic, str(job.bag)))
        part = job.output.with_suffix(".part.mcap")
        cut_off = _set_aside(part)
        with BagWriter(part) as writer:
            taken = _taken_over(cut_off, writer) if cut_off else _Taken()
            drive.label(writer, taken, on_cloud)
        part.rename(job.output)
        if cut_off:
            cut_off.unlink()
    return drive.summary


def _set_aside(part: Path) -> Path | None:
    """Rename what an earlier run has left; one that was cut off while it copied has left the older file, too."""
    aside = part.with_name(part.name.replace(".part.mcap", ".cut-off.mcap"))
    if aside.exists():
        part.unlink(missing_ok=True)
    elif part.exists():
        part.rename(aside)
    return aside if aside.exists() else None


def _taken_over(cut_off: Path, writer: BagWriter) -> _Taken:
    """Copy a recording up to where it was cut off."""
    taken = _Taken()
    try:
        old = open_bag(cut_off)
    except UserError:  # cut off before anything was written
        return taken
    with old:
        for recorded in old.messages():
            _copy(recorded, old, writer)
            taken.until_ns[recorded.topic] = recorded.log_time_ns
            taken.clouds += recorded.topic == PSEUDO_LABEL_TOPIC
    return taken


def _copy(recorded: BagMessage, bag: Bag, writer: BagWriter) -> None:
    is_latched = recorded.topic in bag.latched
    writer.write(recorded.topic, recorded.msgtype, recorded.log_time_ns, recorded.cdr(), is_latched)


def recorded_motion(
    bag: Bag, lidar_frame: str, tree: TransformTree, topic: str | None
) -> tuple[Trajectory | None, np.ndarray, str]:
    """Read where the robot was, where the lidar is on it (4, 4), and in words which poses these are.

    topic: as in `recorded_poses`; NO_POSES takes the robot to stand still.
    """
    poses = None if topic == NO_POSES else recorded_poses(bag, lidar_frame, tree, topic)
    if poses is None:
        return None, np.eye(4), NO_POSES
    base_from_lidar = tree.lookup(poses.base_frame, lidar_frame)
    return (
        Trajectory(stamps_ns=poses.stamps_ns, map_from_base=poses.map_from_base),
        # Poses of a frame that /tf_static does not know are taken for the lidar's own.
        np.eye(4) if base_from_lidar is None else base_from_lidar,
        f"{len(poses.stamps_ns)} of '{poses.base_frame}'",
    )


def _masks(folder: Path, classes: ClassTable, mapped: ClassMap | None) -> Teacher:
    """Read masks that were made elsewhere: a folder for each camera, named after the frame of its images."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder} with masks; give one that holds a folder for each camera")
    by_frame = {
        inner.name: MaskFiles(mask_files(inner), read_mask, classes, mapped)
        for inner in sorted(folder.iterdir())
        if inner.is_dir()
    }
    if not by_frame:
        raise UserError(f"{folder} holds no folders; put the masks of each camera into one named after its frame")
    return MaskFolders(by_frame)


class _Drive:
    """A recording with all that is needed to label it."""

    def __init__(self, job: LabelJob, bag: Bag, topic: str) -> None:
        config = job.config
        self._job, self._bag, self._topic = job, bag, topic
        tree = fixed_transforms(bag)
        lidar_frame = str(next(bag.messages([topic])).message().header.frame_id)
        calibration = read_calibration(calibration_file(job.calibration)) if job.calibration else None
        self._rig = recorded_rig(bag, topic, lidar_frame, tree, calibration)
        self._cameras: dict[str, RecordedCamera] = {camera.topic: camera for camera in self._rig.cameras}
        self._classes = class_table(config.classes)
        mapped = class_map(config.class_map) if config.class_map else None
        models = package_share() / "models"
        if job.masks is None:
            teacher: Teacher = chosen_teacher(config, self._classes, mapped, models)
            self._identity = teacher_identity(config.vision.model, models)
        else:
            teacher = _masks(job.masks, self._classes, mapped)
            self._identity = {"model": f"masks of {job.masks.name}"}
        self._labeller = Labeller(teacher, config.lifting, config.voting)
        self.summary = LabelSummary(output=job.output, never_labelled=teacher.never_labelled)
        self._trajectory, self._base_from_lidar, self.summary.poses = recorded_motion(bag, lidar_frame, tree, job.poses)

    def label(self, writer: BagWriter, taken: _Taken, on_cloud: Callable[[int, int], None]) -> None:
        """Write the labels of the clouds that come after those taken over, and all that is kept as it is."""
        if not taken.clouds:
            self._write_constants(writer)
        total = self._bag.message_count(self._topic)
        skews: dict[str, list[float]] = {}
        for number, pair in enumerate(self._pairs(writer, taken)):
            # The last ones that were taken over vote on those that follow.
            if number >= taken.clouds - self._job.config.voting.window:
                self._label(pair, writer if number >= taken.clouds else None)
            self.summary.clouds += 1
            for name, (time_ns, _) in pair.images.items():
                self.summary.hits[name] += 1
                skews.setdefault(name, []).append((pair.time_ns - time_ns) / 1e9)
            on_cloud(number + 1, total)
        self.summary.skew_s = {name: float(np.median(found)) for name, found in skews.items()}

    def _label(self, pair: Paired[_Sweep, BagMessage], writer: BagWriter | None) -> None:
        sweep = pair.cloud
        images = {}
        for name, (time_ns, recorded) in pair.images.items():
            camera = self._cameras[recorded.topic]
            images[name] = TakenImage(
                time_ns=time_ns,
                image=read_image(recorded.message()),
                camera=camera.camera,
                camera_from_lidar=camera.camera_from_lidar,
            )
        labels = self._labeller.label(sweep.frame, images, self._base_from_lidar, self._trajectory).labels
        if writer is not None:
            cloud = pseudo_labelled_cloud(sweep.content, labels.class_id, labels.probability, labels.views)
            writer.write_cloud(PSEUDO_LABEL_TOPIC, cloud, log_time_ns=sweep.log_time_ns)

    def _pairs(self, writer: BagWriter, taken: _Taken) -> Iterator[Paired[_Sweep, BagMessage]]:
        """Pair clouds and images; what is kept as it is gets written on the way."""
        pairing: NearestPairing[_Sweep, BagMessage] = NearestPairing(
            [camera.name for camera in self._rig.cameras], self._job.config.sync
        )
        kept = self._kept_topics()
        for recorded in self._bag.messages({self._topic, *self._cameras, *kept}):
            if recorded.topic in kept and recorded.log_time_ns > taken.until_ns.get(recorded.topic, -1):
                _copy(recorded, self._bag, writer)
            if recorded.topic == self._topic:
                sweep = self._read(recorded)
                if sweep is not None:
                    yield from pairing.add_cloud(self._middle_ns(sweep.frame), sweep)
            elif recorded.topic in self._cameras:
                camera = self._cameras[recorded.topic]
                stamp = recorded.message().header.stamp
                time_ns = stamp.sec * 10**9 + stamp.nanosec + round(camera.stamp_offset_s * 1e9)
                yield from pairing.add_image(camera.name, time_ns, recorded)
        yield from pairing.flush()

    def _read(self, recorded: BagMessage) -> _Sweep | None:
        try:
            content = cloud_content(recorded.message())
            frame = read_cloud(content, self._job.config.fields)
        except UserError:
            self.summary.dropped += 1
            return None
        start_ns = self._rig.lidar.start_ns(frame.stamp_ns, frame.duration_s())
        return _Sweep(log_time_ns=recorded.log_time_ns, content=content, frame=replace(frame, stamp_ns=start_ns))

    def _middle_ns(self, frame: LidarFrame) -> int:
        return frame.stamp_ns + round(frame.duration_s() / 2 * 1e9)

    def _kept_topics(self) -> set[str]:
        kept = {topic for topic, kind in self._bag.topics.items() if kind in KEPT_TYPES or topic in KEPT_TOPICS}
        return kept | set(self._cameras) if self._job.images else kept

    def _write_constants(self, writer: BagWriter) -> None:
        writer.write_json(TEACHER_CLASS_MAP_TOPIC, json.dumps(self._classes.to_mapping()), self._bag.start_ns)
        text = settings_text(
            to_mapping(self._job.config),
            self._identity,
            self.summary.never_labelled,
            {camera.name: (camera.camera, camera.camera_from_lidar) for camera in self._rig.cameras},
        )
        writer.write_json(TEACHER_SETTINGS_TOPIC, text, self._bag.start_ns)
