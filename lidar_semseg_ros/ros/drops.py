"""One bad message must not end a node: it is counted by cause, logged now and then, and the next one gets its turn."""

from __future__ import annotations

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
    """Counts and logs the clouds that a node drops; safe between threads."""

    def __init__(self, node: Node, tally: Tally) -> None:
        self._node, self._tally = node, tally

    def drop(self, cause: str, reason: object) -> None:
        """Count a cloud by cause, and say why."""
        self._tally.count(cause)
        self._node.get_logger().warning(f"cloud dropped ({cause}): {reason}", throttle_duration_sec=LOG_PERIOD_S)

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
