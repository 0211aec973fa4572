"""The values that travel: a lidar sweep, a camera image, labels for points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lidar_semseg_ros.core.errors import UserError

UNLABELLED = 255
"""The class id of a point without a label. It never counts in a loss or a metric."""
LONGEST_SWEEP_S = 2.0
"""A point's time that lies farther from the stamp is garbage. Lidars take 0.05 s to 1 s for a sweep; and what garbage
below that moves the middle of a sweep by is no jump in time yet (`pairing.JUMP_S`)."""


def _check(name: str, array: np.ndarray, shape: tuple[int, ...], dtype: type) -> None:
    if array.shape != shape or array.dtype != np.dtype(dtype):
        raise UserError(
            f"{name} must be {np.dtype(dtype)} of shape {shape}, but it is {array.dtype} of shape {array.shape}"
        )


@dataclass(frozen=True, kw_only=True)
class LidarFrame:
    """One sweep of a lidar: N rows in the order of the message they came from.

    xyz: (N, 3) float32, metres, in the lidar's frame; a row that is not finite, or that lies
        exactly at the origin, is a beam without a return and keeps its place.
    intensity: (N,) float32 in the sensor's own unit, or None where the sensor gives none.
    ring: (N,) uint16, index of the beam, or None.
    time_s: (N,) float32, seconds from stamp_ns to the measurement of the point, or None.
    shape: (height, width) of the organised cloud; height · width = N.
    """

    stamp_ns: int
    frame_id: str
    xyz: np.ndarray
    intensity: np.ndarray | None = None
    ring: np.ndarray | None = None
    time_s: np.ndarray | None = None
    shape: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        rows = len(self.xyz)
        _check("xyz", self.xyz, (rows, 3), np.float32)
        for name, dtype in (("intensity", np.float32), ("ring", np.uint16), ("time_s", np.float32)):
            column = getattr(self, name)
            if column is not None:
                _check(name, column, (rows,), dtype)
        if self.shape is None:
            object.__setattr__(self, "shape", (1, rows))
        elif self.shape[0] * self.shape[1] != rows:
            raise UserError(f"a cloud of shape {self.shape} cannot have {rows} points")

    def __len__(self) -> int:
        return len(self.xyz)

    def duration_s(self) -> float:
        """Give how long after the stamp the last point was measured: 0 to LONGEST_SWEEP_S, 0 where no time is known."""
        return 0.0 if self.time_s is None else float(self.time_s[self.has_time()].max(initial=0.0))

    def has_return(self, within_m: float = float("inf")) -> np.ndarray:
        """Which rows are measurements: (N,) bool, finite, not at the origin, and nearer to it than within_m."""
        # A sum is finite only if all its terms are; the square of a large but finite float32 overflows
        # to inf, which no lidar measures either.
        x, y, z = self.xyz.T
        with np.errstate(invalid="ignore", over="ignore"):
            squared_range = x * x + y * y + z * z
            has_return: np.ndarray = (squared_range > 0) & (squared_range < within_m**2)
        return has_return

    def has_time(self) -> np.ndarray:
        """Which rows are measurements whose time is known: (N,) bool; all of them are of the stamp without times."""
        if self.time_s is None:
            return self.has_return()
        # Written so that NaN fails too.
        with np.errstate(invalid="ignore"):
            return self.has_return() & (np.abs(self.time_s) <= LONGEST_SWEEP_S)


@dataclass(frozen=True, kw_only=True)
class PointLabels:
    """What the network says of N points, in the order of the frame they belong to.

    class_id: (N,) uint8, UNLABELLED where nothing is known.
    probability: (N,) float32 in [0, 1], of that class; 0 where UNLABELLED.
    entropy: (N,) float32 in [0, 1], Shannon entropy of all class probabilities divided by log(classes);
        1 where UNLABELLED.
    """

    class_id: np.ndarray
    probability: np.ndarray
    entropy: np.ndarray

    def __post_init__(self) -> None:
        rows = len(self.class_id)
        _check("class_id", self.class_id, (rows,), np.uint8)
        _check("probability", self.probability, (rows,), np.float32)
        _check("entropy", self.entropy, (rows,), np.float32)

    def __len__(self) -> int:
        return len(self.class_id)


@dataclass(frozen=True, kw_only=True)
class CameraImage:
    """One colour image: pixels (height, width, 3) uint8, RGB."""

    stamp_ns: int
    frame_id: str
    pixels: np.ndarray

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or self.pixels.shape[2] != 3 or self.pixels.dtype != np.uint8:
            raise UserError(
                f"pixels must be uint8 of shape (height, width, 3), "
                f"but they are {self.pixels.dtype} of shape {self.pixels.shape}"
            )
