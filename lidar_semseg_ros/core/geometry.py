"""Rigid transforms as 4×4 matrices. `b_from_a` takes points of frame a to frame b, so names cancel in products."""

from __future__ import annotations

import numpy as np


def rigid(rotation: np.ndarray, translation_m: np.ndarray) -> np.ndarray:
    """Put a (3, 3) rotation and a (3,) translation together: (4, 4) float64."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = translation_m
    return matrix


def invert_rigid(b_from_a: np.ndarray) -> np.ndarray:
    """Give a_from_b of a rigid (4, 4) transform by transposing its rotation."""
    rotation = b_from_a[:3, :3].T
    return rigid(rotation, -rotation @ b_from_a[:3, 3])


def transform_points(b_from_a: np.ndarray, xyz_a: np.ndarray) -> np.ndarray:
    """Take (N, 3) points of frame a to frame b; computed in float64, returned in the dtype of the points."""
    return (xyz_a @ b_from_a[:3, :3].T + b_from_a[:3, 3]).astype(xyz_a.dtype, copy=False)


def rotation_from_rpy(roll: float, pitch: float, yaw: float) -> np.ndarray:
    """Rotate about the fixed x, then y, then z axis, in radians (REP 103): (3, 3)."""
    cr, sr, cp, sp, cy, sy = np.cos(roll), np.sin(roll), np.cos(pitch), np.sin(pitch), np.cos(yaw), np.sin(yaw)
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )


def rotation_from_quaternion(xyzw: np.ndarray) -> np.ndarray:
    """Turn a quaternion x, y, z, w (the order of geometry_msgs), of any length but 0, into a (3, 3) rotation."""
    x, y, z, w = np.asarray(xyzw, float) / np.linalg.norm(xyzw)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_from_rotation(rotation: np.ndarray) -> np.ndarray:
    """Turn a (3, 3) rotation into the quaternion x, y, z, w with w ≥ 0.

    The quaternion is the eigenvector of the largest eigenvalue of Bar-Itzhack's symmetric 4×4 matrix
    (J. Guidance 23(6), 2000), which has no singular case.
    """
    (a, b, c), (d, e, f), (g, h, i) = rotation
    symmetric = np.array(
        [
            [a - e - i, b + d, c + g, h - f],
            [b + d, e - a - i, f + h, c - g],
            [c + g, f + h, i - a - e, d - b],
            [h - f, c - g, d - b, a + e + i],
        ]
    )
    xyzw = np.linalg.eigh(symmetric)[1][:, -1]
    return xyzw if xyzw[3] >= 0 else -xyzw


OPTICAL_FROM_BODY = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
"""Rotation from a body frame (x forward, y left, z up) to a camera's optical frame (x right, y down, z forward)."""
