"""The pinhole camera with the plumb_bob distortion of sensor_msgs/CameraInfo."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lidar_semseg_ros.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PinholeCamera:
    """A calibrated camera; points are in its optical frame (x right, y down, z forward), metres.

    matrix: (3, 3) intrinsics K in pixels; the centre of the first pixel is (0, 0).
    distortion: (5,) k1, k2, p1, p2, k3 of the plumb_bob model (Brown–Conrady, as OpenCV defines it); zeros
        for a rectified image.
    """

    width: int
    height: int
    matrix: np.ndarray
    distortion: np.ndarray

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise UserError(f"a camera cannot have {self.width}×{self.height} pixels; set the image size")
        if self.matrix.shape != (3, 3) or not (self.matrix[0, 0] > 0 and self.matrix[1, 1] > 0):
            raise UserError(f"the camera matrix must be 3×3 with positive focal lengths, but it is {self.matrix}")
        if self.distortion.shape != (5,):
            raise UserError(f"plumb_bob takes 5 distortion coefficients, but {self.distortion.shape[0]} were given")

    def project(self, xyz_camera: np.ndarray, min_depth_m: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
        """Project (N, 3) points: pixel coordinates (N, 2) float64 and which of them the image shows, (N,) bool.

        A point is shown if it is at least min_depth_m in front, falls inside the image, and lies where the
        distortion is still one-to-one; beyond that, the polynomial folds points from the side back into the image.
        """
        depth_m = xyz_camera[:, 2].astype(np.float64)
        in_front = depth_m >= min_depth_m
        safe_depth = np.where(in_front, depth_m, 1.0)
        x, y = (np.where(in_front, xyz_camera[:, k] / safe_depth, 0.0) for k in (0, 1))
        k1, k2, p1, p2, k3 = self.distortion
        r2 = x * x + y * y
        radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
        u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
        v = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
        uv_px = np.stack([u, v, np.ones_like(u)], axis=1) @ self.matrix[:2].T
        inside = (uv_px > -0.5).all(axis=1) & (uv_px < (self.width - 0.5, self.height - 0.5)).all(axis=1)
        return uv_px, in_front & inside & (r2 < self._largest_radius() ** 2)

    def _largest_radius(self) -> float:
        """Find the |(x, y)/z| at which the radial distortion r·(1 + k1·r² + k2·r⁴ + k3·r⁶) stops growing."""
        k1, k2, _, _, k3 = self.distortion
        slope_zeros = np.roots([7 * k3, 5 * k2, 3 * k1, 1.0])  # of the derivative, in r²
        positive = [zero.real for zero in slope_zeros if abs(zero.imag) < 1e-9 and zero.real > 0]
        return float(np.sqrt(min(positive))) if positive else np.inf
