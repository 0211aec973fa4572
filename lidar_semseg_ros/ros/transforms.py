"""Transforms from /tf, where tf2_ros is installed."""

from __future__ import annotations

import time

import numpy as np
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.geometry import rigid, rotation_from_quaternion
from lidar_semseg_ros.core.pairing import JUMP_S

TIMEOUT_S = 0.1
"""How long a lookup waits for a transform that is on its way."""
SETTLING_S = 3.0
"""How long after it began to listen a lookup waits for what was told before: its tellers are yet to be discovered."""


class NoTransformError(UserError):
    """A transform that is not there, at least not at the time asked for."""


class Transforms:
    """Looks up transforms at a stamp; from any thread but the executor's."""

    def __init__(self, node: Node, purpose: str) -> None:
        """Listen to /tf; UserError names the setting that needs it where tf2_ros is not installed."""
        try:
            import tf2_ros
        except ImportError:
            raise UserError(
                f"{purpose} needs tf2_ros, which comes with a ROS 2 installation (ros-<distro>-tf2-ros) and is not "
                f"installed here; source one, or say by parameters or a calibration file what it would tell"
            ) from None
        self._failure = tf2_ros.TransformException
        # With its node, the buffer sees the clock jump and forgets what came before.
        self._buffer = tf2_ros.Buffer(node=node)
        self._listener = tf2_ros.TransformListener(self._buffer, node, spin_thread=False)
        self._settled_s = time.monotonic() + SETTLING_S
        self._newest_ns = 0

    def lookup(self, target: str, source: str, stamp_ns: int) -> np.ndarray:
        """Give target_from_source (4, 4) at a stamp; NoTransformError says which is missing."""
        # A bag may begin anew without a clock that tells so: tf2 would take the new transforms for outdated ones.
        if stamp_ns < self._newest_ns - JUMP_S * 1e9:
            self._buffer.clear()
            self._newest_ns = stamp_ns
        self._newest_ns = max(self._newest_ns, stamp_ns)
        when = Time(nanoseconds=stamp_ns)
        wait = Duration(seconds=max(TIMEOUT_S, self._settled_s - time.monotonic()))
        try:
            found = self._buffer.lookup_transform(target, source, when, wait).transform
        except self._failure as error:
            raise NoTransformError(
                f"no transform from '{source}' to '{target}' at the cloud's stamp: {error}"
            ) from None
        rotation, translation = found.rotation, found.translation
        return rigid(
            rotation_from_quaternion(np.array([rotation.x, rotation.y, rotation.z, rotation.w])),
            np.array([translation.x, translation.y, translation.z]),
        )
