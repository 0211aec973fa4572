"""A sweep as the bytes of a message, described so that whoever works on the bytes needs nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import LidarFrame, PointLabels

COORDINATES: tuple[str, ...] = ("x", "y", "z")

ONLY_LABELS = np.dtype([("class_id", "u1"), ("probability", "<f4"), ("entropy", "<f4")])
"""What comes back of a sweep whose points the host has already."""


@dataclass(frozen=True, kw_only=True)
class PackedCloud:
    """N points as bytes, and how the bytes of the labelled points shall lie.

    rows: (height, width · bytes of a point) uint8, a view; the rows may lie apart.
    point: structured dtype of a point with the fields x, y, z and, if the cloud has it, intensity, at any offset and
        of either byte order.
    labelled: structured dtype of a labelled point with some of x, y, z, rgb, class_id, probability and entropy, float32
        but for class_id, uint8; rgb as `classes.packed_colors` gives it. Bytes between them are 0.
    kept: so many bytes of each point, 0 or all, lie before those fields in the labelled one.
    """

    rows: np.ndarray
    point: np.dtype
    labelled: np.dtype
    kept: int = 0

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or self.rows.dtype != np.uint8 or self.rows.shape[1] % self.point.itemsize:
            raise UserError(
                f"rows must be uint8 of a multiple of {self.point.itemsize} bytes, but they are {self.rows.dtype} of "
                f"shape {self.rows.shape}"
            )

    def __len__(self) -> int:
        return self.rows.size // self.point.itemsize

    def has_intensity(self) -> bool:
        """Tell whether the points have intensities."""
        return "intensity" in (self.point.names or ())

    def without_intensity(self) -> PackedCloud:
        """Describe the same bytes without their intensities."""
        return replace(self, point=self.point[list(COORDINATES)])


def packed_frame(frame: LidarFrame) -> PackedCloud:
    """Describe a sweep in memory as bytes, of which only the labels shall come back."""
    if frame.intensity is None:
        names, values = COORDINATES, np.ascontiguousarray(frame.xyz)
    else:
        names, values = (*COORDINATES, "intensity"), np.column_stack((frame.xyz, frame.intensity))
    return PackedCloud(
        rows=values.view(np.uint8).reshape(1, values.nbytes),
        point=np.dtype([(name, np.float32) for name in names]),
        labelled=ONLY_LABELS,
    )


def point_labels(points: np.ndarray) -> PointLabels:
    """Read the labels of labelled points, (N,) of a dtype as `PackedCloud.labelled` is one."""
    return PointLabels(
        class_id=points["class_id"].copy(),
        probability=points["probability"].astype(np.float32),
        entropy=points["entropy"].astype(np.float32),
    )
