"""One recording labelled: what `label` does in as many processes or on as many machines as it is given."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

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
from lidar_semseg_ros.formats.images import ImageError, read_image
from lidar_semseg_ros.formats.masks import mask_files, read_mask
from lidar_semseg_ros.formats.pointcloud2 import CloudContent, cloud_content, pseudo_labelled_cloud, read_cloud
from lidar_semseg_ros.formats.poses import NO_POSES, POSE_STAMPED, fixed_transforms, recorded_poses
from lidar_semseg_ros.formats.rig import RecordedCamera, recorded_rig
from lidar_semseg_ros.teacher.labeller import Labeller, TakenImage, TeacherConfig, chosen_teacher, teacher_identity
from lidar_semseg_ros.teacher.lifting import Trajectory
from lidar_semseg_ros.teacher.vision import MaskFiles, MaskFolders, Teacher

logger = logging.getLogger(__name__)

KEPT_TYPES = (TF, CAMERA_INFO, ODOMETRY, POSE_STAMPED)
KEPT_TOPICS = (LABEL_TOPIC, CLASS_MAP_TOPIC)
"""What goes into the recording as it is: where things were, and exact labels for those who evaluate."""
UNREADABLE, UNFIT = "unreadable", "not of its calibration's size"
"""Why an image cannot be used."""


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
    """What came of a recording.

    hits: by camera, clouds that had its image. skew_s: cloud − image, by camera. left_out: by camera and cause, images
    that could not be used for the clouds that this run labelled. without_motion: clouds too far in time from all poses.
    """

    output: Path
    clouds: int = 0
    dropped: int = 0
    poses: str = NO_POSES
    hits: Counter[str] = field(default_factory=Counter)
    skew_s: dict[str, float] = field(default_factory=dict)
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    without_motion: int = 0
    never_labelled: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Sweep:
    log_time_ns: int
    content: CloudContent
    frame: LidarFrame


@dataclass(kw_only=True)
class _Taken:
    """What an earlier run has left: how many messages of each topic."""

    messages: Counter[str] = field(default_factory=Counter)

    @property
    def clouds(self) -> int:
        """How many labelled clouds."""
        return self.messages[PSEUDO_LABEL_TOPIC]


def label_bag(job: LabelJob, on_cloud: Callable[[int, int], None] = lambda done, total: None) -> LabelSummary:
    """Label every cloud of a recording; on_cloud(done, total) is called after each.

    Until it is complete, the file is called <output>.part.mcap. What an earlier run has left of it is kept, and the
    rest added; UserError if that one had other settings.
    """
    if job.output.exists():
        raise UserError(f"{job.output} exists already; give another name or remove it")
    with _opened(job) as drive:
        try:
            _complete(job.output, drive, on_cloud)
        except OSError as error:
            raise UserError(
                f"{job.output} is not finished: {error}; once that is mended, the same command goes on where it stopped"
            ) from error
    return drive.summary


def label_one_of_several(
    job: LabelJob, on_cloud: Callable[[int, int], None] = lambda done, total: None
) -> LabelSummary | None:
    """Label a recording as `label_bag` does, or give None if it is labelled already.

    UserError names the recording; it is one, too, if the labels that are there were made with other settings.
    """
    try:
        if not job.output.exists():
            return label_bag(job, on_cloud)
        with _opened(job) as drive, open_bag(job.output) as finished:
            drive.require_same_settings(finished, str(job.output))
    except UserError as error:
        if str(job.bag) in str(error):
            raise
        raise UserError(f"{job.bag}: {error}") from error
    return None


@contextmanager
def _opened(job: LabelJob) -> Iterator[_Drive]:
    with open_bag(job.bag) as bag:
        if not cloud_topics(bag):
            raise UserError(why_no_clouds(bag))
        yield _Drive(job, bag, chosen_cloud_topic(bag, job.topic, str(job.bag)))


def _complete(output: Path, drive: _Drive, on_cloud: Callable[[int, int], None]) -> None:
    part = output.with_suffix(".part.mcap")
    cut_off = _set_aside(part)
    with _begun(cut_off) as begun:
        if begun is not None:
            drive.require_same_settings(begun, str(cut_off))
        with BagWriter(part) as writer:
            taken = _Taken() if begun is None else _taken_over(begun, writer)
            writer.flush()
            if cut_off:
                cut_off.unlink()
            drive.label(writer, taken, on_cloud)
    part.rename(output)


def _set_aside(part: Path) -> Path | None:
    """Rename what an earlier run has left; one that was cut off while it copied has left the older file, too."""
    aside = part.with_name(part.name.replace(".part.mcap", ".cut-off.mcap"))
    if aside.exists():
        part.unlink(missing_ok=True)
    elif part.exists():
        part.rename(aside)
    return aside if aside.exists() else None


@contextmanager
def _begun(cut_off: Path | None) -> Iterator[Bag | None]:
    """Open what an earlier run has left; None where that holds no labels yet."""
    try:
        bag = open_bag(cut_off) if cut_off else None
    except UserError:  # cut off before anything was written
        bag = None
    with bag or nullcontext():
        yield bag if bag and bag.message_count(PSEUDO_LABEL_TOPIC) else None


def _taken_over(begun: Bag, writer: BagWriter) -> _Taken:
    """Copy a recording up to where it was cut off."""
    taken = _Taken()
    for recorded in begun.messages():
        _copy(recorded, begun, writer)
        taken.messages[recorded.topic] += 1
    return taken


def _made_by(constants: Mapping[str, str]) -> dict[str, Any]:
    """Take apart what a recording says of its classes and its teacher, in JSON by topic, by the names of the settings.

    Numbers are rounded, for the last digits of a transform differ between machines.
    """
    classes, said = (
        json.loads(constants.get(topic, "{}"), parse_float=lambda digits: round(float(digits), 9))
        for topic in (TEACHER_CLASS_MAP_TOPIC, TEACHER_SETTINGS_TOPIC)
    )
    return {"class map": classes, **said.pop("settings", {}), **said}


def _copy(recorded: BagMessage, bag: Bag, writer: BagWriter) -> None:
    is_latched = recorded.topic in bag.latched
    writer.write(recorded.topic, recorded.msgtype, recorded.log_time_ns, recorded.cdr(), is_latched)


def frame_of_clouds(bag: Bag, topic: str) -> str:
    """Read in which frame a lidar measures; UserError if there is no cloud on its topic."""
    first = next(bag.messages([topic]), None)
    if first is None:
        raise UserError(f"the recording has the topic {topic}, but no cloud on it; choose another one with --topic")
    return str(first.message().header.frame_id)


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
        lidar_frame = frame_of_clouds(bag, topic)
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
        self._last_ns = 0
        self._trajectory, self._base_from_lidar, self.summary.poses = recorded_motion(bag, lidar_frame, tree, job.poses)

    def require_same_settings(self, begun: Bag, name: str) -> None:
        """UserError unless an earlier run labelled the same with the same settings: one file has one teacher."""
        constants = self._constants()
        first = islice(begun.messages(constants), len(constants))
        before, now = _made_by({one.topic: str(one.message().data) for one in first}), _made_by(constants)
        changed = [key for key in now if before.get(key) != now[key]]
        if changed:
            raise UserError(
                f"{name} was begun with other settings ({', '.join(changed)}); remove it to begin anew, or take those "
                "settings again"
            )

    def label(self, writer: BagWriter, taken: _Taken, on_cloud: Callable[[int, int], None]) -> None:
        """Write the labels of the clouds that come after those taken over, and all that is kept as it is."""
        if not taken.clouds:
            for topic, text in self._constants().items():
                writer.write_json(topic, text, self._bag.start_ns)
        total = self._bag.message_count(self._topic)
        skews: dict[str, list[float]] = {}
        for number, pair in enumerate(self._pairs(writer, taken)):
            trajectory = self._trajectory_of(pair.cloud.frame)
            # The last ones that were taken over vote on those that follow.
            if number >= taken.clouds - self._job.config.voting.window:
                self._label(pair, trajectory, writer if number >= taken.clouds else None)
            self.summary.clouds += 1
            for name, (time_ns, _) in pair.images.items():
                self.summary.hits[name] += 1
                skews.setdefault(name, []).append((pair.time_ns - time_ns) / 1e9)
            on_cloud(number + 1, total)
        self.summary.skew_s = {name: float(np.median(found)) for name, found in skews.items()}

    def _trajectory_of(self, frame: LidarFrame) -> Trajectory | None:
        if self._trajectory is None:
            return None
        around = self._trajectory.around(frame.stamp_ns)
        self.summary.without_motion += around is None
        return around

    def _label(self, pair: Paired[_Sweep, BagMessage], trajectory: Trajectory | None, writer: BagWriter | None) -> None:
        sweep = pair.cloud
        if sweep.content.stamp_ns < self._last_ns:
            self._labeller.clear()
        self._last_ns = sweep.content.stamp_ns
        images = {}
        for name, (time_ns, recorded) in pair.images.items():
            try:
                images[name] = self._taken_image(time_ns, recorded)
            except UserError as error:
                self._leave_out(name, UNREADABLE if isinstance(error, ImageError) else UNFIT, error)
        labels = self._labeller.label(sweep.frame, images, self._base_from_lidar, trajectory).labels
        if writer is not None:
            cloud = pseudo_labelled_cloud(sweep.content, labels.class_id, labels.probability, labels.views)
            writer.write_cloud(PSEUDO_LABEL_TOPIC, cloud, log_time_ns=sweep.log_time_ns)

    def _taken_image(self, time_ns: int, recorded: BagMessage) -> TakenImage:
        camera = self._cameras[recorded.topic]
        return TakenImage(
            time_ns=time_ns,
            image=read_image(recorded.message()),
            camera=camera.camera,
            camera_from_lidar=camera.camera_from_lidar,
        )

    def _leave_out(self, camera: str, cause: str, error: UserError) -> None:
        """Count an image that cannot be used, and say why once for each camera and cause."""
        if not self.summary.left_out[camera, cause]:
            logger.warning("an image of %s is left out as %s: %s", camera, cause, error)
        self.summary.left_out[camera, cause] += 1

    def _pairs(self, writer: BagWriter, taken: _Taken) -> Iterator[Paired[_Sweep, BagMessage]]:
        """Pair clouds and images; what is kept as it is gets written on the way."""
        pairing: NearestPairing[_Sweep, BagMessage] = NearestPairing(
            [camera.name for camera in self._rig.cameras], self._job.config.sync
        )
        kept, seen = self._kept_topics(), Counter[str]()
        for recorded in self._bag.messages({self._topic, *self._cameras, *kept}):
            camera = self._cameras.get(recorded.topic)
            time_ns = self._time_ns(camera, recorded) if camera else None
            if camera and time_ns is None:
                continue
            if recorded.topic in kept:
                seen[recorded.topic] += 1
                if seen[recorded.topic] > taken.messages[recorded.topic]:
                    _copy(recorded, self._bag, writer)
            if recorded.topic == self._topic:
                sweep = self._read(recorded)
                if sweep is not None:
                    yield from pairing.add_cloud(self._middle_ns(sweep.frame), sweep)
            elif camera and time_ns is not None:
                yield from pairing.add_image(camera.name, time_ns, recorded)
        yield from pairing.flush()

    def _time_ns(self, camera: RecordedCamera, recorded: BagMessage) -> int | None:
        """Tell when an image was taken; None for bytes that are no image."""
        try:
            stamp = recorded.message().header.stamp
        except UserError as error:
            self._leave_out(camera.name, UNREADABLE, error)
            return None
        return stamp.sec * 10**9 + stamp.nanosec + round(camera.stamp_offset_s * 1e9)

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

    def _constants(self) -> dict[str, str]:
        """Say in JSON, by topic, what the labels mean and what makes them."""
        job = self._job
        of_recording = {"bag": job.bag.name, "images": job.images}
        return {
            TEACHER_CLASS_MAP_TOPIC: json.dumps(self._classes.to_mapping()),
            TEACHER_SETTINGS_TOPIC: settings_text(
                {**to_mapping(job.config), **of_recording},
                self._identity,
                self.summary.never_labelled,
                cloud_topic=self._topic,
                rig=self._rig,
                poses_topic=job.poses,
            ),
        }
