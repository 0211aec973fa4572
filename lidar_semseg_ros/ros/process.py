"""A node as a process: start-up errors in one line, a clean end on SIGINT and SIGTERM."""

from __future__ import annotations

import sys
from collections.abc import Callable

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from lidar_semseg_ros.core.errors import UserError, missing_package


def run_node(make_node: Callable[[], Node], argv: list[str] | None = None) -> int:
    """Spin a node until it is told to stop; the exit status is 0, or 2 when it could not start.

    A node ends by itself by shutting its context down.
    """
    rclpy.init(args=argv)
    node: Node | None = None
    try:
        node = make_node()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        executor.spin()
    except (UserError, ModuleNotFoundError) as error:
        said = missing_package(error) if isinstance(error, ModuleNotFoundError) else error
        print(f"error: {said}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    return 0
