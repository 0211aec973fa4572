"""What the package's libraries log, through a node: on its console and on /rosout."""

from __future__ import annotations

import logging

from rclpy.impl.rcutils_logger import RcutilsLogger
from rclpy.node import Node

PACKAGE = "lidar_semseg_ros"


class NodeHandler(logging.Handler):
    """Says through a node's logger what a library logs."""

    def __init__(self, logger: RcutilsLogger) -> None:
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        """Say it; each severity in a line of its own, for rclpy ties a severity to the line that it is called from."""
        text = record.getMessage()
        if record.levelno >= logging.ERROR:
            self._logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(text)
        else:
            self._logger.info(text)


def hear_libraries(node: Node) -> None:
    """Let the package's loggers speak through a node, and through no other one that did before."""
    package = logging.getLogger(PACKAGE)
    package.setLevel(logging.INFO)
    for handler in [one for one in package.handlers if isinstance(one, NodeHandler)]:
        package.removeHandler(handler)
    package.addHandler(NodeHandler(node.get_logger()))
