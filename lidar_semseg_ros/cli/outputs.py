"""Files that a command writes at its end: whether they can be written is known before its work begins."""

from __future__ import annotations

from pathlib import Path

from lidar_semseg_ros.core.errors import UserError


def require_folder(path: Path | None) -> None:
    """Raise UserError unless the folder of a file to write is there; None is a file that is not wanted."""
    if path is not None and not path.absolute().parent.is_dir():
        raise UserError(f"there is no folder {path.parent} to write {path.name} to; make it first")
