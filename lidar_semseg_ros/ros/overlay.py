"""The camera's picture with the labelled points on it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from lidar_semseg_ros.core.camera import Camera
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import CameraImage, LidarFrame, PointLabels
from lidar_semseg_ros.core.geometry import transform_points
from lidar_semseg_ros.core.options import setting
from lidar_semseg_ros.core.pairing import nearest_stamp
from lidar_semseg_ros.formats.calibration import CameraCalibration, LidarCalibration, calibration_file, read_calibration
from lidar_semseg_ros.formats.images import read_camera_info, read_image
from lidar_semseg_ros.ros.endpoints import outlet
from lidar_semseg_ros.ros.messages import image_message, time_message
from lidar_semseg_ros.ros.transforms import Transforms
from lidar_semseg_ros.view.paint import overlay

KEPT_IMAGES = 30


@dataclass(frozen=True, kw_only=True)
class OverlayConfig:
    """Settings of the overlay."""

    calibration: str = setting(
        "",
        "calibration file, or the name of a shipped one, with the camera's pose and, if need be, its model; "
        "empty: CameraInfo and /tf tell",
    )
    camera: str = setting("", "the camera's name in the calibration file; empty: its only one")
    compressed: bool = setting(False, "~/input/image carries CompressedImage")
    max_dt_s: float = setting(
        0.1, "an image farther from the cloud in time is not taken", minimum=0.0, maximum=10.0, live=True
    )


class Overlay:
    """Keeps the last images while somebody watches, and draws each cloud on the one nearest in stamp."""

    def __init__(
        self, node: Node, config: OverlayConfig, palette: np.ndarray, transforms: Callable[[], Transforms]
    ) -> None:
        """UserError for a faulty calibration; transforms: gives those of /tf where no calibration holds the pose."""
        self._node, self._palette, self._transforms = node, palette, transforms
        self.config = config
        self._camera, self._lidar = _calibrated(config)
        self._lock = threading.Lock()
        self._images: deque[tuple[int, Any]] = deque(maxlen=KEPT_IMAGES)
        self._info: CameraInfo | None = None
        self._subscriptions: list[Any] = []
        self._outlet = outlet(node, Image, "~/output/overlay", 1)

    def wanted(self) -> bool:
        """Tell whether anybody watches."""
        return bool(self._outlet.get_subscription_count())

    def attend(self, wanted: bool) -> None:
        """Hear the camera, or stop hearing it."""
        if wanted and not self._subscriptions:
            kind = CompressedImage if self.config.compressed else Image
            self._subscriptions = [
                self._node.create_subscription(kind, "~/input/image", self._keep_image, qos_profile_sensor_data),
                self._node.create_subscription(
                    CameraInfo, "~/input/camera_info", self._keep_info, qos_profile_sensor_data
                ),
            ]
        elif not wanted and self._subscriptions:
            for subscription in self._subscriptions:
                self._node.destroy_subscription(subscription)
            self._subscriptions = []
            self.clear()

    def clear(self) -> None:
        """Forget the images, as after a jump in time."""
        with self._lock:
            self._images.clear()

    def _keep_image(self, message: Any) -> None:
        stamp_ns = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        with self._lock:
            if self._images and stamp_ns < self._images[-1][0]:
                self._images.clear()
            self._images.append((stamp_ns, message))

    def _keep_info(self, message: CameraInfo) -> None:
        self._info = message

    def publish(self, frame: LidarFrame, labels: PointLabels) -> None:
        """Draw a labelled cloud on its image; UserError says what is missing for it."""
        message = self._paired(frame)
        if message is None:
            return
        image = read_image(message)
        camera = self._camera_of(image)
        uv_px, shown = camera.project(transform_points(self._camera_from_lidar(frame, image), frame.xyz))
        shown &= frame.has_return()
        range_m = np.linalg.norm(frame.xyz[shown], axis=1)
        picture = overlay(image.pixels, uv_px[shown], range_m, self._palette[labels.class_id[shown]])
        header = Header(stamp=time_message(image.stamp_ns), frame_id=image.frame_id)
        self._outlet.publish(image_message(picture, header))

    def _paired(self, frame: LidarFrame) -> Any | None:
        """Find the image nearest to the middle of the sweep, as far as a calibration tells when that was."""
        time_ns = self._lidar.middle_ns(frame.stamp_ns, frame.duration_s()) if self._lidar else frame.stamp_ns
        with self._lock:
            images = list(self._images)
        taken_ns = [self._camera.time_ns(stamp_ns) if self._camera else stamp_ns for stamp_ns, _ in images]
        nearest = nearest_stamp(np.array(taken_ns, np.int64), time_ns, self.config.max_dt_s)
        return None if nearest is None else images[nearest][1]

    def _camera_of(self, image: CameraImage) -> Camera:
        camera = self._camera.camera if self._camera else None
        if camera is None and self._info is None:
            raise UserError("no CameraInfo has come on ~/input/camera_info, and overlay.calibration names no camera")
        if camera is None:
            camera = read_camera_info(self._info, self._camera is not None and self._camera.rectified)
        height, width = image.pixels.shape[:2]
        if (camera.width, camera.height) != (width, height):
            raise UserError(f"the image has {width}×{height} pixels, its calibration {camera.width}×{camera.height}")
        return camera

    def _camera_from_lidar(self, frame: LidarFrame, image: CameraImage) -> np.ndarray:
        if self._camera is not None and self._camera.camera_from_lidar is not None:
            return self._camera.camera_from_lidar
        return self._transforms().lookup(image.frame_id, frame.frame_id, frame.stamp_ns)


def _calibrated(config: OverlayConfig) -> tuple[CameraCalibration | None, LidarCalibration | None]:
    if not config.calibration:
        return None, None
    path = calibration_file(config.calibration)
    calibration = read_calibration(path)
    names = list(calibration.cameras)
    name = config.camera or (names[0] if len(names) == 1 else "")
    if name not in calibration.cameras:
        raise UserError(f"{path} has the cameras {', '.join(names)}; set overlay.camera to one of them (now '{name}')")
    camera = calibration.cameras[name]
    return camera, calibration.lidars[camera.lidar]
