"""Several lidars in one process: where their nodes lie."""

from __future__ import annotations

import re
from collections.abc import Sequence

import rclpy
from rclpy.utilities import remove_ros_args

from lidar_semseg_ros.core.errors import UserError


def namespaces_of(argv: Sequence[str]) -> list[str]:
    """Read `--lidars front,rear` and give each one's namespace, below that of the process; none where none is named."""
    given = remove_ros_args(argv)[1:]
    if not given:
        return []
    if len(given) != 2 or given[0] != "--lidars":
        raise UserError(f"beside --ros-args there is only --lidars NAME,NAME,…, but got '{' '.join(given)}'")
    names = [name.strip() for name in given[1].split(",")]
    if len(set(names)) < len(names) or not all(re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII) for name in names):
        raise UserError(
            f"--lidars takes different names of letters, digits and _, such as front,rear, but got '{given[1]}'"
        )
    outer = _namespace_of_process()
    return [f"{outer}/{name}" for name in names]


def _namespace_of_process() -> str:
    """Ask a node for it, since only nodes are told."""
    asked = rclpy.create_node("segmenter", enable_rosout=False, start_parameter_services=False)
    try:
        return asked.get_namespace().rstrip("/")
    finally:
        asked.destroy_node()
