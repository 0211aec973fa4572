"""A node as a process: start-up errors in one line, a clean end on SIGINT and SIGTERM."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from lidar_semseg_ros.core.errors import UserError, missing_package
from lidar_semseg_ros.ros.timers import steady_timer

SHUTDOWN_CHECK_S = 0.3
"""After how long at the latest a node that nothing else wakes sees that it was told to stop."""


def run_node(make_node: Callable[[], Node], argv: list[str] | None = None) -> int:
    """Spin a node until it is told to stop; the exit status is 0, or 2 when it could not start.

    A node ends by itself by shutting its context down.
    """
    is_starting = True

    def stop(*_: object) -> None:
        # A model that is being loaded would not notice that its context is gone, and a file that is being written must
        # not be left halfway: once the node spins, the shutdown of the context ends it between two callbacks.
        # Not by KeyboardInterrupt: Python ends by a signal, not with a status, if one has crossed an eval() on its way.
        if is_starting:
            raise SystemExit

    # Before rclpy puts its own handlers, which shut the context down, in front of these.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    node: Node | None = None
    try:
        _init(argv)
        node = make_node()
        is_starting = False
        # rclpy wakes its executor before the context is down; one that waits again in between would wait forever.
        steady_timer(node, SHUTDOWN_CHECK_S, lambda: None)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        executor.spin()
    except (UserError, ModuleNotFoundError) as error:
        said = missing_package(error) if isinstance(error, ModuleNotFoundError) else error
        print(f"error: {said}", file=sys.stderr)
        return 2
    except (SystemExit, ExternalShutdownException):
        pass
    except Exception:
        if rclpy.ok():  # else it was told to stop, and whatever it did next failed for want of a context
            raise
    finally:
        is_starting = False
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
        # Whoever presses Ctrl-C again, while the interpreter is taken down, must not make a failure of a clean end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return 0


def _init(argv: list[str] | None) -> None:
    try:
        rclpy.init(args=argv)
    except RuntimeError as error:  # rclpy's own errors have no public name
        raise UserError(f"ROS did not start with these arguments: {str(error).split(', at /')[0]}") from error
