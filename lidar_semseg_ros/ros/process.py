"""Nodes as a process: start-up errors in one line, a clean end on SIGINT and SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NoReturn

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from lidar_semseg_ros.core.errors import UserError, missing_package
from lidar_semseg_ros.ros.timers import steady_timer
from lidar_semseg_ros.ros.worker import THREAD

SHUTDOWN_CHECK_S = 0.3
"""After how long at the latest a node that nothing else wakes sees that it was told to stop."""


def run_node(make_node: Callable[[], Node], argv: list[str] | None = None) -> int:
    """Spin a node as `run_nodes` does."""
    return run_nodes(lambda: [make_node()], argv)


def run_nodes(make_nodes: Callable[[], Iterable[Node]], argv: list[str] | None = None) -> int:
    """Spin nodes until they are told to stop; the exit status is 0, or 2 when one could not start.

    A node ends the process by shutting its context down.
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
    nodes: list[Node] = []
    try:
        _init(argv)
        for node in make_nodes():
            nodes.append(node)  # one by one, for those there are must be destroyed where the next one fails
        is_starting = False
        # rclpy wakes its executor before the context is down; one that waits again in between would wait forever.
        steady_timer(nodes[0], SHUTDOWN_CHECK_S, lambda: None)
        executor = SingleThreadedExecutor()
        for node in nodes:
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
        for node in nodes:
            node.destroy_node()
        with suppress(RuntimeError):  # the thread that a signal wakes in rclpy may be doing it at this very moment
            rclpy.try_shutdown()
        # Whoever presses Ctrl-C again, while the interpreter is taken down, must not make a failure of a clean end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return 0


def leave(status: int) -> NoReturn:
    """End the process; at once where a worker still computes, for it waited long enough and Python would abort it.

    (When Python ends, a thread that comes back to it is ended, too; inside the C++ of a network that is a crash.)
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if any(thread.name == THREAD for thread in threading.enumerate()):
        os._exit(status)
    sys.exit(status)


def _init(argv: list[str] | None) -> None:
    try:
        rclpy.init(args=argv)
    except RuntimeError as error:  # rclpy's own errors have no public name
        raise UserError(f"ROS did not start with these arguments: {str(error).split(', at /')[0]}") from error
