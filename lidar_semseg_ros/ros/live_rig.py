"""The cameras of a robot that runs: their images paired with clouds, their models, where they sit, how it moves."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo

from lidar_semseg_ros.core.camera import Camera
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import CameraImage, LidarFrame
from lidar_semseg_ros.core.options import setting
from lidar_semseg_ros.core.pairing import JUMP_S
from lidar_semseg_ros.formats.calibration import CameraCalibration, LidarCalibration, calibration_file, read_calibration
from lidar_semseg_ros.formats.images import read_camera_info, read_image
from lidar_semseg_ros.formats.poses import pose_of_message
from lidar_semseg_ros.formats.rig import RecordedCamera, Rig
from lidar_semseg_ros.ros.diagnostics import Tally
from lidar_semseg_ros.ros.drops import LOG_PERIOD_S
from lidar_semseg_ros.ros.transforms import NoTransformError, Transforms
from lidar_semseg_ros.teacher.labeller import TakenImage
from lidar_semseg_ros.teacher.lifting import Trajectory

KEPT_POSES = 500
MOTION_CAUSES = ("pose_invalid", "motion_no_transform")
"""Why a pose is left out, and why motion is not undone in a cloud."""
SWEEP_INSTANTS = 5
"""Times in and around a sweep at which /tf is asked where the robot was."""


class NoCameraInfoError(UserError):
    """A camera of which nobody has said yet what it is."""


@dataclass(frozen=True, kw_only=True)
class ExtrinsicsConfig:
    """Where the cameras sit."""

    source: str = setting("tf", "who tells where the cameras sit: tf or file", choices=("tf", "file"))
    file: str = setting("", "the calibration file, or the name of a shipped one, if source is file")

    def __post_init__(self) -> None:
        if (self.source == "file") != bool(self.file):
            raise UserError(
                f"setting 'extrinsics.source' is {self.source} and 'extrinsics.file' is '{self.file}'; "
                "a file needs source file, and source file needs a file"
            )


class LiveRig:
    """Knows of each camera what it takes to lift its images onto clouds."""

    def __init__(
        self, node: Node, cameras: tuple[str, ...], config: ExtrinsicsConfig, transforms: Callable[[], Transforms]
    ) -> None:
        """UserError for a faulty calibration, or one without these cameras."""
        self._transforms = transforms
        self._calibrated: dict[str, CameraCalibration] = {}
        self.lidar = LidarCalibration(stamp="start")
        if config.source == "file":
            self._read(cameras, config)
        self._infos: dict[str, CameraInfo] = {}
        self.known: dict[str, tuple[Camera, np.ndarray]] = {}
        self._subscriptions = [
            node.create_subscription(
                CameraInfo,
                f"~/input/{name}/camera_info",
                lambda info, name=name: self._infos.__setitem__(name, info),
                qos_profile_sensor_data,
            )
            for name in cameras
            if name not in self._calibrated or self._calibrated[name].camera is None
        ]

    def _read(self, cameras: tuple[str, ...], config: ExtrinsicsConfig) -> None:
        path = calibration_file(config.file)
        calibration = read_calibration(path)
        missing = [name for name in cameras if name not in calibration.cameras]
        if missing:
            raise UserError(f"{path} has no camera {', '.join(missing)}; it has {', '.join(calibration.cameras)}")
        self._calibrated = {name: calibration.cameras[name] for name in cameras}
        lidars = {entry.lidar for entry in self._calibrated.values()}
        if len(lidars) > 1:
            raise UserError(f"the cameras {', '.join(cameras)} of {path} belong to the lidars {', '.join(lidars)}")
        self.lidar = calibration.lidars[lidars.pop()]

    def time_ns(self, name: str, message: Any) -> int:
        """Tell when an image was taken, on the clock of the clouds."""
        stamp_ns = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        return self._calibrated[name].time_ns(stamp_ns) if name in self._calibrated else stamp_ns

    def taken(self, name: str, time_ns: int, message: Any, frame: LidarFrame) -> TakenImage:
        """Decode an image and put its camera beside it; UserError says what is missing."""
        image = read_image(message)
        camera, camera_from_lidar = self._camera(name), self._camera_from_lidar(name, image, frame)
        self.known[name] = camera, camera_from_lidar
        return TakenImage(time_ns=time_ns, image=image, camera=camera, camera_from_lidar=camera_from_lidar)

    def as_recorded(self, topics: Mapping[str, str]) -> Rig:
        """Describe the cameras that are known so far as one who records them finds them; topics: of their images."""
        cameras = [
            RecordedCamera(
                name=name,
                topic=topics[name],
                camera=camera,
                camera_from_lidar=camera_from_lidar,
                stamp_offset_s=self._calibrated[name].stamp_offset_s if name in self._calibrated else 0.0,
            )
            for name, (camera, camera_from_lidar) in self.known.items()
        ]
        return Rig(lidar=self.lidar, cameras=tuple(cameras))

    def _camera(self, name: str) -> Camera:
        entry = self._calibrated.get(name)
        if entry is not None and entry.camera is not None:
            return entry.camera
        if name not in self._infos:
            raise NoCameraInfoError(f"no CameraInfo has come on ~/input/{name}/camera_info")
        return read_camera_info(self._infos[name], entry is not None and entry.rectified)

    def _camera_from_lidar(self, name: str, image: CameraImage, frame: LidarFrame) -> np.ndarray:
        entry = self._calibrated.get(name)
        if entry is not None and entry.camera_from_lidar is not None:
            return entry.camera_from_lidar
        return self._transforms().lookup(image.frame_id, frame.frame_id, frame.stamp_ns)


class Motion:
    """Where the robot was of late: from Odometry, or from /tf between a fixed frame and the lidar."""

    def __init__(self, node: Node, fixed_frame: str, transforms: Callable[[], Transforms], tally: Tally) -> None:
        """fixed_frame: of /tf, such as odom; empty: poses come on ~/input/odometry, if anybody publishes there."""
        self._node, self._fixed_frame, self._transforms, self._tally = node, fixed_frame, transforms, tally
        self._lock = threading.Lock()
        self._poses: deque[tuple[int, np.ndarray]] = deque(maxlen=KEPT_POSES)
        self._base_frame = ""
        self._base_from_lidar: np.ndarray | None = None
        if not fixed_frame:
            self._subscription = node.create_subscription(
                Odometry, "~/input/odometry", self._keep, qos_profile_sensor_data
            )

    def clear(self) -> None:
        """Forget the poses, as after a jump in time."""
        with self._lock:
            self._poses.clear()

    def _keep(self, message: Odometry) -> None:
        try:
            stamp_ns, pose = pose_of_message(message)
        except UserError as error:
            self._tally.count("pose_invalid")
            self._node.get_logger().warning(
                f"a pose on {self._subscription.topic_name} is left out: {error}", throttle_duration_sec=LOG_PERIOD_S
            )
            return
        with self._lock:
            if self._poses and stamp_ns < self._poses[-1][0] - JUMP_S * 1e9:
                self._poses.clear()
            if not self._poses or stamp_ns > self._poses[-1][0]:
                self._poses.append((stamp_ns, pose))
        self._base_frame = message.child_frame_id

    def around(self, frame: LidarFrame) -> tuple[Trajectory | None, np.ndarray]:
        """Give the trajectory around a sweep, None where motion is not known, and base_from_lidar (4, 4)."""
        if self._fixed_frame:
            return self._of_tf(frame), np.eye(4)
        with self._lock:
            poses = list(self._poses)
        if not poses:
            return None, np.eye(4)
        stamps_ns, matrices = zip(*poses)
        known = Trajectory(stamps_ns=np.array(stamps_ns, np.int64), map_from_base=np.stack(matrices))
        trajectory = known.around(frame.stamp_ns)
        return trajectory, np.eye(4) if trajectory is None else self._where_the_lidar_sits(frame)

    def _where_the_lidar_sits(self, frame: LidarFrame) -> np.ndarray:
        if self._base_frame == frame.frame_id:
            return np.eye(4)
        if self._base_from_lidar is None:
            try:
                self._base_from_lidar = self._transforms().lookup(self._base_frame, frame.frame_id, frame.stamp_ns)
            except UserError as error:
                self._node.get_logger().warning(
                    f"the poses of '{self._base_frame}' on ~/input/odometry are taken for those of the lidar "
                    f"'{frame.frame_id}': {error}",
                    throttle_duration_sec=LOG_PERIOD_S,
                )
                return np.eye(4)
        return self._base_from_lidar

    def _of_tf(self, frame: LidarFrame) -> Trajectory | None:
        instants_ns = (frame.stamp_ns + (np.linspace(-0.5, 1.0, SWEEP_INSTANTS) * 1e8).astype(np.int64)).tolist()
        middle = SWEEP_INSTANTS // 2
        found: dict[int, np.ndarray] = {}
        # Outwards from the middle, and no farther once the tree does not know, for every look in vain waits.
        for way_ns in (instants_ns[middle:], instants_ns[middle - 1 :: -1]):
            for stamp_ns in way_ns:
                try:
                    found[stamp_ns] = self._transforms().lookup(self._fixed_frame, frame.frame_id, stamp_ns)
                except NoTransformError as error:
                    if not found:
                        self._say_unknown(error)
                        return None
                    break
        stamps_ns = sorted(found)
        poses = np.stack([found[stamp_ns] for stamp_ns in stamps_ns])
        return Trajectory(stamps_ns=np.array(stamps_ns, np.int64), map_from_base=poses)

    def _say_unknown(self, error: NoTransformError) -> None:
        self._tally.count("motion_no_transform")
        self._node.get_logger().warning(
            f"motion is not undone and no past sweep votes, for where the lidar is in fixed_frame "
            f"'{self._fixed_frame}' is not known: {error}",
            throttle_duration_sec=LOG_PERIOD_S,
        )
