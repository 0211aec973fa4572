"""The teacher node: clouds and images in, pseudo-labelled clouds out."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Header, String

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.core.geometry import transform_points
from lidar_semseg_ros.core.options import setting, to_mapping
from lidar_semseg_ros.formats.config_files import class_map, class_table, package_share
from lidar_semseg_ros.formats.dataset import settings_text
from lidar_semseg_ros.formats.pointcloud2 import cloud_content, pseudo_labelled_cloud, read_cloud
from lidar_semseg_ros.ros.camera_watch import CameraWatch
from lidar_semseg_ros.ros.diagnostics import WINDOW, DiagnosticsPublisher, Tally
from lidar_semseg_ros.ros.drops import LOG_PERIOD_S, Drops
from lidar_semseg_ros.ros.endpoints import outlet
from lidar_semseg_ros.ros.live_rig import MOTION_CAUSES, ExtrinsicsConfig, LiveRig, Motion, NoCameraInfoError
from lidar_semseg_ros.ros.logs import hear_libraries
from lidar_semseg_ros.ros.messages import cloud_message, image_message, time_message
from lidar_semseg_ros.ros.outputs import LATCHED, publish_classes
from lidar_semseg_ros.ros.parameters import declared
from lidar_semseg_ros.ros.process import leave, run_node
from lidar_semseg_ros.ros.scheduling import POLICIES, schedule
from lidar_semseg_ros.ros.synchronizers import Clocks, Pair, SyncConfig, Synchronizer, synchronizer
from lidar_semseg_ros.ros.timers import steady_timer
from lidar_semseg_ros.ros.transforms import NoTransformError, Transforms
from lidar_semseg_ros.ros.worker import Worker
from lidar_semseg_ros.teacher.labeller import (
    Labeller,
    TakenImage,
    Taught,
    TeacherConfig,
    chosen_teacher,
    teacher_identity,
)
from lidar_semseg_ros.teacher.voting import coverage
from lidar_semseg_ros.view.paint import overlay

ATTEND_PERIOD_S = 0.1
DROP_CAUSES = ("busy", "no_image", "invalid", "no_transform", "failed")
"""Why a cloud gets no pseudo-labels."""
IMAGE_CAUSES = ("image_invalid", "image_no_camera_info", "image_no_transform")
"""Why an image is left out while the others of its cloud label it."""


@dataclass(frozen=True, kw_only=True)
class TeacherNodeConfig(TeacherConfig):
    """Settings of the teacher node."""

    cameras: str = setting("camera", "names of the cameras c, comma-separated; their topics are ~/input/<c>/…")
    compressed: bool = setting(False, "~/input/<c>/image carries CompressedImage")
    fixed_frame: str = setting(
        "",
        "frame of /tf in which the robot moves, such as odom, so that motion is undone and past sweeps vote, too; "
        "empty: the poses come as Odometry on ~/input/odometry, if anybody publishes there",
    )
    scheduling_policy: str = setting(
        "idle",
        "policy of the thread that labels, as man 7 sched has it. idle: it takes what is left of the processors by the "
        "nodes that work beside it, such as the segmenter; other: it takes its share, and they lose theirs",
        choices=POLICIES,
    )
    extrinsics: ExtrinsicsConfig = ExtrinsicsConfig()
    sync: SyncConfig = SyncConfig()


class TeacherNode(Node):
    """Labels the newest cloud that has an image, in one thread; what it drops is counted by cause."""

    def __init__(self) -> None:
        super().__init__("teacher")
        hear_libraries(self)
        self._config = config = declared(self, TeacherNodeConfig)
        self._cameras = tuple(name.strip() for name in config.cameras.split(",") if name.strip())
        if not self._cameras:
            raise UserError("no camera is named; set the parameter 'cameras'")
        self._table = class_table(config.classes)
        mapped = class_map(config.class_map) if config.class_map else None
        models = package_share() / "models"
        teacher = chosen_teacher(config, self._table, mapped, models)
        self._identity = teacher_identity(config.vision.model, models)
        self._never_labelled = teacher.never_labelled
        self._labeller = Labeller(teacher, config.lifting, config.voting)
        self._rig = LiveRig(self, self._cameras, config.extrinsics, lambda: self._transforms)
        self._tally = Tally()
        self._drops = Drops(self, self._tally)
        self._motion = Motion(self, config.fixed_frame, lambda: self._transforms, self._tally)
        if config.extrinsics.source == "tf" or config.fixed_frame:
            self._transforms  # noqa: B018 - to fail at the start, not at the first cloud
        self._make_outputs()
        self._seen = _CameraStatistics(self._cameras)
        self._image_topics = {name: self.resolve_topic_name(f"~/input/{name}/image") for name in self._cameras}
        consequence = config.sync.without_a_camera(len(self._cameras))
        self._watch = CameraWatch(self._image_topics, consequence, lambda said: self.get_logger().warning(said))
        events = ("received", "labelled", *DROP_CAUSES, *IMAGE_CAUSES, *MOTION_CAUSES)
        self._diagnostics = DiagnosticsPublisher(
            self, self._tally, events, self._facts, self._idle, trouble=lambda: self._watch.silences()
        )
        self._worker: Worker[Pair] = Worker(self._drops.guarded(self._label), begin=self._schedule)
        self._input: Synchronizer | None = None
        self._sweep_s, self._last_ns, self._recorded_cameras = 0.0, 0, 0
        self._attending = steady_timer(self, ATTEND_PERIOD_S, self._attend)
        self.get_logger().info(f"{config.vision.model}: ready for clouds and images of {', '.join(self._cameras)}")

    @cached_property
    def _transforms(self) -> Transforms:
        wanted = "extrinsics.source: tf" if self._config.extrinsics.source == "tf" else "fixed_frame"
        return Transforms(self, wanted)

    def _make_outputs(self) -> None:
        classes = json.dumps({"model": self._identity["model"], **self._table.to_mapping()})
        self._latched = publish_classes(self, classes, self._table.names)
        self._settings = self.create_publisher(String, "~/output/settings", LATCHED)
        self._clouds = outlet(self, PointCloud2, "~/output/pointcloud/pseudo_labels", 2)
        self._label_images = {
            name: outlet(self, Image, f"~/output/{name}/label_image", qos_profile_sensor_data) for name in self._cameras
        }
        self._overlays = {name: outlet(self, Image, f"~/output/{name}/overlay", 1) for name in self._cameras}

    # Attention: nothing is received while nobody listens.

    def _idle(self) -> str:
        return "" if self._input else "idle: nobody subscribes to an output"

    def _attend(self) -> None:
        outlets = [self._clouds, *self._label_images.values(), *self._overlays.values()]
        wanted = any(publisher.get_subscription_count() for publisher in outlets)
        if wanted and self._input is None:
            self._watch.begin()
            clocks = Clocks(of_cloud=self._middle_ns, of_image=self._rig.time_ns)
            arrivals = _Arrivals(self._tally, self._watch)
            self._input = synchronizer(
                self, self._cameras, self._config.compressed, self._config.sync, clocks, arrivals, self._receive
            )
        elif not wanted and self._input is not None:
            self._input.destroy()
            self._input = None

    # One pair, in the executor's thread.

    def _middle_ns(self, message: PointCloud2) -> int:
        """Tell the middle of a cloud, as far as the sweeps before it show how long one takes."""
        stamp_ns = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        return self._rig.lidar.middle_ns(stamp_ns, self._sweep_s)

    def _receive(self, pair: Pair) -> None:
        self._seen.note(pair)
        if not pair.images:
            self._drops.drop("no_image", "no image lies near it in time; look at the stamps, or raise sync.max_dt_s")
        elif self._worker.put(pair):
            self._tally.count("busy")

    # One pair, in the worker's thread.

    def _schedule(self) -> None:
        policy = self._config.scheduling_policy
        try:
            schedule(policy)
        except OSError as error:
            self.get_logger().warning(
                f"the thread that labels stays as it is, for scheduling_policy {policy} cannot be set: {error}"
            )

    def _label(self, pair: Pair) -> None:
        start = time.perf_counter()
        content = cloud_content(pair.cloud)
        if content.stamp_ns < self._last_ns:
            went_back_s = (self._last_ns - content.stamp_ns) / 1e9
            self.get_logger().warning(
                f"the clouds' stamps went back by {went_back_s:.1f} s, as when a bag begins anew; past sweeps are "
                "forgotten",
                throttle_duration_sec=LOG_PERIOD_S,
            )
            self._labeller.clear()
            self._motion.clear()
        self._last_ns = content.stamp_ns
        frame = read_cloud(content, self._config.fields)
        self._sweep_s = frame.duration_s()
        frame = replace(frame, stamp_ns=self._rig.lidar.start_ns(content.stamp_ns, self._sweep_s))
        images = self._taken(pair, frame)
        trajectory, base_from_lidar = self._motion.around(frame)
        taught = self._labeller.label(frame, images, base_from_lidar, trajectory)
        labels = taught.labels
        cloud = pseudo_labelled_cloud(content, labels.class_id, labels.probability, labels.views)
        self._clouds.publish(cloud_message(cloud))
        self._publish_settings()
        self._publish_images(frame, images, taught)
        self._seen.share = coverage(labels.class_id, frame.has_return())
        self._tally.count("labelled")
        self._tally.time("vision", taught.vision_ms)
        self._tally.time("lifting", taught.lifting_ms)
        self._tally.time("total", (time.perf_counter() - start) * 1e3)

    def _taken(self, pair: Pair, frame: LidarFrame) -> dict[str, TakenImage]:
        """Decode the images and leave out those that cannot be used; if none can, UserError as of the first."""
        images: dict[str, TakenImage] = {}
        faults: dict[str, UserError] = {}
        for name, (time_ns, message) in pair.images.items():
            try:
                images[name] = self._rig.taken(name, time_ns, message, frame)
            except UserError as error:
                faults[name] = error
        if not images:
            raise next(iter(faults.values()))
        for name, error in faults.items():
            self._drops.leave_out(name, _image_cause(error), error)
        return images

    def _publish_settings(self) -> None:
        """Say once more what makes the labels when a camera has been added to those that are known."""
        if len(self._rig.known) > self._recorded_cameras:
            self._recorded_cameras = len(self._rig.known)
            settings = to_mapping(self._config)
            text = settings_text(
                settings,
                self._identity,
                self._never_labelled,
                cloud_topic=self.resolve_topic_name("~/input/pointcloud"),
                rig=self._rig.as_recorded(self._image_topics),
                is_live=True,
            )
            self._settings.publish(String(data=text))

    def _publish_images(self, frame: LidarFrame, images: dict[str, TakenImage], taught: Taught) -> None:
        palette = self._table.palette()
        for name, taken in images.items():
            header = Header(stamp=time_message(taken.image.stamp_ns), frame_id=taken.image.frame_id)
            if self._label_images[name].get_subscription_count():
                self._label_images[name].publish(image_message(taught.scores[name].at_full_size(), header))
            if self._overlays[name].get_subscription_count():
                uv_px, shown = taken.camera.project(transform_points(taken.camera_from_lidar, frame.xyz))
                shown &= frame.has_return() & (taught.labels.views > 0)
                range_m = np.linalg.norm(frame.xyz[shown], axis=1)
                color = palette[taught.labels.class_id[shown]]
                picture = overlay(taken.image.pixels, uv_px[shown], range_m, color)
                self._overlays[name].publish(image_message(picture, header))

    def _facts(self) -> dict[str, str]:
        return {"teacher": self._identity["model"], **self._seen.facts()}

    def destroy_node(self) -> None:
        """Let the cloud in work be finished, then go."""
        if hasattr(self, "_worker"):
            self._worker.stop()
        super().destroy_node()


def _image_cause(error: UserError) -> str:
    if isinstance(error, NoCameraInfoError):
        return "image_no_camera_info"
    return "image_no_transform" if isinstance(error, NoTransformError) else "image_invalid"


class _Arrivals:
    """Counts every cloud that comes, and watches the cameras."""

    def __init__(self, tally: Tally, watch: CameraWatch) -> None:
        self._tally, self._watch = tally, watch

    def cloud(self) -> None:
        self._tally.count("received")
        self._watch.cloud()

    def image(self, camera: str) -> None:
        self._watch.image(camera)


class _CameraStatistics:
    """How often each camera had an image for the last clouds, how far off in time, and how many points get labels."""

    def __init__(self, cameras: tuple[str, ...]) -> None:
        self._cameras = cameras
        self._lock = threading.Lock()
        self._hits: deque[frozenset[str]] = deque(maxlen=WINDOW)
        self._skew_ms: dict[str, float] = {}
        self.share = float("nan")

    def note(self, pair: Pair) -> None:
        with self._lock:
            self._hits.append(frozenset(pair.images))
            for name, (time_ns, _) in pair.images.items():
                self._skew_ms[name] = (time_ns - pair.time_ns) / 1e6

    def facts(self) -> dict[str, str]:
        with self._lock:
            found = {"coverage": f"{self.share:.3f}"}
            rates = Counter(name for hits in self._hits for name in hits)
            for name in self._cameras if self._hits else ():
                found[f"{name} hit rate"] = f"{rates[name] / len(self._hits):.3f}"
            for name, skew_ms in self._skew_ms.items():
                found[f"{name} skew"] = f"{skew_ms:+.1f} ms"
        return found


def main() -> None:
    """Run the node."""
    leave(run_node(TeacherNode))


if __name__ == "__main__":
    main()
