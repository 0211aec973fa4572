"""Calibrated cameras: pinhole and fisheye, with the distortion models of sensor_msgs/CameraInfo."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.polynomial import Polynomial

from lidar_semseg_ros.core.errors import UserError

NEGLIGIBLE, ABSURD = 1e-12, 1e6
"""Distortion coefficients that bend no ray by a pixel, and ones that no lens has; both upset the search for zeros."""


@dataclass(frozen=True, kw_only=True)
class Camera(ABC):
    """A calibrated camera; points are in its optical frame (x right, y down, z forward), metres.

    matrix: (3, 3) intrinsics K in pixels; the centre of the first pixel is (0, 0).
    distortion: coefficients in the order of OpenCV; how many, the class of camera says.
    """

    COEFFICIENTS: ClassVar[tuple[int, ...]]
    """How many distortion coefficients there may be."""

    width: int
    height: int
    matrix: np.ndarray
    distortion: np.ndarray

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise UserError(f"a camera cannot have {self.width}×{self.height} pixels; set the image size")
        if self.matrix.shape != (3, 3) or not np.isfinite(self.matrix).all():
            raise UserError(f"the camera matrix must be 3×3 finite numbers, but it is {self.matrix.tolist()}")
        if not (self.matrix[0, 0] > 0 and self.matrix[1, 1] > 0):
            raise UserError(
                f"the camera matrix must have positive focal lengths, but it is {self.matrix.tolist()}; "
                f"the camera is perhaps not calibrated"
            )
        if self.matrix[2].tolist() != [0, 0, 1]:
            raise UserError(
                f"the last row of the camera matrix must be 0, 0, 1, but the matrix is {self.matrix.tolist()}; "
                f"write it row by row"
            )
        if self.distortion.shape not in [(count,) for count in self.COEFFICIENTS]:
            counts = " or ".join(map(str, self.COEFFICIENTS))
            raise UserError(f"a {type(self).__name__} takes {counts} coefficients, but got {self.distortion.tolist()}")
        if not (np.abs(self.distortion) < ABSURD).all():
            raise UserError(f"distortion coefficients must be finite and small, but are {self.distortion.tolist()}")

    @property
    @abstractmethod
    def model(self) -> str:
        """The name of the distortion model in sensor_msgs/CameraInfo."""

    def project(self, xyz_camera: np.ndarray, min_depth_m: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
        """Project (N, 3) points: pixel coordinates (N, 2) float64 and which of them the image shows, (N,) bool.

        A point is shown if it is at least min_depth_m away (along z for a pinhole, in distance for a fisheye),
        if its ray lies where the distortion is one-to-one, and if it falls inside the image. Beyond that field of
        view, the polynomial folds rays from the side back into the image: they are not projected and get NaN, as do
        points that are too near, behind or not finite.
        """
        xyz = xyz_camera.astype(np.float64)
        rows = np.flatnonzero(np.isfinite(xyz).all(axis=1))
        depth_m = self._depth(xyz[rows])
        in_field = (depth_m > 0) & (depth_m >= min_depth_m) & (_angle_off_axis(xyz[rows]) < self._field_of_view())
        rows = rows[in_field]
        uv_px = np.full((len(xyz), 2), np.nan)
        uv_px[rows] = self._distorted(xyz[rows]) @ self.matrix[:2, :2].T + self.matrix[:2, 2]
        return uv_px, np.all((uv_px > -0.5) & (uv_px < (self.width - 0.5, self.height - 0.5)), axis=1)

    @abstractmethod
    def _depth(self, xyz: np.ndarray) -> np.ndarray:
        """Measure how far (N, 3) points are: (N,) metres."""

    @abstractmethod
    def _field_of_view(self) -> float:
        """Find the angle off the axis, in radians, up to which the distortion is one-to-one."""

    @abstractmethod
    def _distorted(self, xyz: np.ndarray) -> np.ndarray:
        """Distort the rays to points (N, 3) in the field of view: (N, 2), in units of the focal length."""


@dataclass(frozen=True, kw_only=True)
class PinholeCamera(Camera):
    """A camera that shows what lies in front of it, with the Brown–Conrady distortion as OpenCV defines it.

    distortion: (5,) k1, k2, p1, p2, k3 of plumb_bob, zeros for a rectified image; or (8,) k1, k2, p1, p2, k3, k4,
        k5, k6 of rational_polynomial.
    """

    COEFFICIENTS = (5, 8)

    @property
    def model(self) -> str:
        return "plumb_bob" if len(self.distortion) == 5 else "rational_polynomial"

    def _depth(self, xyz: np.ndarray) -> np.ndarray:
        return xyz[:, 2]

    def _field_of_view(self) -> float:
        """Find where the image may fold, from f(r) = r · growth(r²) / shrinkage(r²) of r = |(x, y)| / z.

        The tangential distortion changes lengths along the ray from the centre by at most 6 r |(p1, p2)|, so up to
        where the slope of f has sunk to that, the image cannot fold.
        """
        _, _, p1, p2, *_ = self.distortion
        r = Polynomial([0, 1])
        growth, shrinkage = (part(r * r) for part in self._radial())
        slope = (r * growth).deriv() * shrinkage - r * growth * shrinkage.deriv()
        fold = _first_zero(slope - 6 * np.hypot(p1, p2) * r * shrinkage**2)
        return float(np.arctan(min(fold, _first_zero(shrinkage))))

    def _distorted(self, xyz: np.ndarray) -> np.ndarray:
        x, y = (xyz[:, :2] / xyz[:, 2:]).T
        _, _, p1, p2, *_ = self.distortion
        r2 = x * x + y * y
        growth, shrinkage = self._radial()
        radial = growth(r2) / shrinkage(r2)
        u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
        v = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
        return np.stack([u, v], axis=1)

    def _radial(self) -> tuple[Polynomial, Polynomial]:
        """Give numerator and denominator of the radial factor, as polynomials in r² = (x² + y²) / z²."""
        k1, k2, _, _, k3, k4, k5, k6 = np.pad(self.distortion, (0, 8 - len(self.distortion)))
        return Polynomial([1, k1, k2, k3]), Polynomial([1, k4, k5, k6])


@dataclass(frozen=True, kw_only=True)
class FisheyeCamera(Camera):
    """A camera whose image radius follows the angle θ off its axis, so that it may see beyond 90°.

    distortion: (4,) k1 … k4 of the equidistant model, r = θ · (1 + k1·θ² + k2·θ⁴ + k3·θ⁶ + k4·θ⁸) (Kannala and
        Brandt, PAMI 28(8), 2006, as in the fisheye module of OpenCV).
    """

    COEFFICIENTS = (4,)

    @property
    def model(self) -> str:
        return "equidistant"

    def _depth(self, xyz: np.ndarray) -> np.ndarray:
        return np.linalg.norm(xyz, axis=1)

    def _field_of_view(self) -> float:
        """Find where the image radius stops growing; straight behind, at π, it would be a circle."""
        return min(np.pi, _first_zero(self._radius().deriv()))

    def _distorted(self, xyz: np.ndarray) -> np.ndarray:
        side_m = np.hypot(xyz[:, 0], xyz[:, 1])
        radius = self._radius()(_angle_off_axis(xyz))
        return xyz[:, :2] * (radius / np.where(side_m > 0, side_m, 1.0))[:, None]

    def _radius(self) -> Polynomial:
        k1, k2, k3, k4 = self.distortion
        return Polynomial([0, 1, 0, k1, 0, k2, 0, k3, 0, k4])


def _angle_off_axis(xyz: np.ndarray) -> np.ndarray:
    return np.arctan2(np.hypot(xyz[:, 0], xyz[:, 1]), xyz[:, 2])


def _first_zero(polynomial: Polynomial) -> float:
    """Find the smallest positive zero, or infinity."""
    zeros = polynomial.trim(NEGLIGIBLE).roots()
    positive = zeros.real[(np.abs(zeros.imag) < 1e-9) & (zeros.real > 0)]
    return float(positive.min(initial=np.inf))


MODELS: dict[str, tuple[type[Camera], tuple[int, ...]]] = {
    "plumb_bob": (PinholeCamera, (0, 4, 5)),
    "rational_polynomial": (PinholeCamera, (8,)),
    "equidistant": (FisheyeCamera, (4,)),
    "fisheye": (FisheyeCamera, (4,)),
}
"""By the name of the distortion model: the class of camera, and how many coefficients may be given."""


def camera_of_model(model: str, *, width: int, height: int, matrix: np.ndarray, distortion: np.ndarray) -> Camera:
    """Build the camera of a distortion model of MODELS; plumb_bob's left out coefficients are 0.

    UserError for an unknown model, another number of coefficients, and values that no camera has.
    """
    if model not in MODELS:
        raise UserError(f"distortion model '{model}' is not known; there are {', '.join(MODELS)}")
    camera_class, counts = MODELS[model]
    if len(distortion) not in counts:
        raise UserError(
            f"distortion model {model} takes {' or '.join(map(str, counts))} coefficients, but got {len(distortion)}"
        )
    missing = max(camera_class.COEFFICIENTS[0] - len(distortion), 0)
    return camera_class(
        width=width, height=height, matrix=matrix, distortion=np.pad(np.asarray(distortion, float), (0, missing))
    )
