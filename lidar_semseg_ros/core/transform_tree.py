"""Fixed transforms between the frames of a robot, as /tf_static has them."""

from __future__ import annotations

import numpy as np

from lidar_semseg_ros.core.geometry import invert_rigid


class TransformTree:
    """Frames, each of which sits at a fixed place in its parent."""

    def __init__(self) -> None:
        self._parents: dict[str, tuple[str, np.ndarray]] = {}

    def add(self, parent: str, child: str, parent_from_child: np.ndarray) -> None:
        """Put a frame, (4, 4), into its parent; what was said of it before is replaced."""
        self._parents[child.lstrip("/")] = (parent.lstrip("/"), parent_from_child)

    def root(self, frame: str) -> str:
        """Give the frame that all others up from this one sit in, itself if it sits in none."""
        return self._way_up(frame)[-1][0]

    def lookup(self, target: str, source: str) -> np.ndarray | None:
        """Give target_from_source (4, 4), or None if the frames do not hang together."""
        up_from_target = dict(self._way_up(target))
        for frame, frame_from_source in self._way_up(source):
            if frame in up_from_target:
                return invert_rigid(up_from_target[frame]) @ frame_from_source
        return None

    def _way_up(self, frame: str) -> list[tuple[str, np.ndarray]]:
        """List the frames from one to its root, each with its transform from that one; a ring is cut open."""
        frame = frame.lstrip("/")
        way = [(frame, np.eye(4))]
        seen = {frame}
        while frame in self._parents:
            parent, parent_from_frame = self._parents[frame]
            if parent in seen:
                break
            seen.add(parent)
            way.append((parent, parent_from_frame @ way[-1][1]))
            frame = parent
        return way
