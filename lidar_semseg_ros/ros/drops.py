"""One bad message must not end a node: it is counted by cause, logged now and then, and the next one gets its turn."""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections.abc import Callable
from typing import TypeVar

import rclpy
from rclpy.node import Node

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.ros.diagnostics import Tally
from lidar_semseg_ros.ros.transforms import NoTransformError

T = TypeVar("T")

LOG_PERIOD_S = 5.0


class Drops:
    """Counts and logs the clouds that a node drops and the images that it leaves out; safe between threads."""

    def __init__(self, node: Node, tally: Tally, now_s: Callable[[], float] = time.monotonic) -> None:
        """now_s: a monotonic clock, in seconds."""
        self._node, self._tally, self._now_s = node, tally, now_s
        self._lock = threading.Lock()
        self._said_s: dict[str, float] = {}

    def drop(self, cause: str, reason: object) -> None:
        """Count a cloud by cause, and say why."""
        self._count(cause, f"cloud dropped ({cause})", reason)

    def leave_out(self, camera: str, cause: str, reason: object) -> None:
        """Count by cause an image without which its cloud goes, and say why."""
        self._count(cause, f"image of {camera} left out ({cause})", reason)

    def _count(self, cause: str, what: str, reason: object) -> None:
        self._tally.count(cause)
        # rclpy throttles a line of code, whatever it says: a steady cause would hide a rare one.
        with self._lock:
            now_s = self._now_s()
            if now_s - self._said_s.get(what, -math.inf) < LOG_PERIOD_S:
                return
            self._said_s[what] = now_s
        self._node.get_logger().warning(f"{what}: {reason}")

    def guarded(self, work: Callable[[T], None]) -> Callable[[T], None]:
        """Wrap the work on one message so that it never raises."""

        def guard(message: T) -> None:
            try:
                work(message)
            except NoTransformError as error:
                self.drop("no_transform", error)
            except UserError as error:
                self.drop("invalid", error)
            except Exception:
                if rclpy.ok():
                    self._tally.count("failed")
                    self._node.get_logger().error(
                        f"cloud failed: {traceback.format_exc()}", throttle_duration_sec=LOG_PERIOD_S
                    )

        return guard
