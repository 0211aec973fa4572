"""Augmentations of a sweep as pure functions: the same rows in the same order, other coordinates or intensities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.core.geometry import rotation_from_rpy


def turned_flipped_scaled(frame: LidarFrame, rng: np.random.Generator) -> LidarFrame:
    """Rotate about z by any angle, mirror x or y with probability 2/3, scale by 1 ± 0.1 (as ScaLR does)."""
    mirror = np.ones(3)
    if rng.random() < 2 / 3:
        mirror[rng.integers(2)] = -1
    linear = rotation_from_rpy(0, 0, rng.uniform(-np.pi, np.pi)) * mirror * rng.uniform(0.9, 1.1)
    return replace(frame, xyz=(frame.xyz @ linear.T).astype(np.float32))


def rings_thinned(frame: LidarFrame, rng: np.random.Generator, probability: float = 0.3) -> LidarFrame:
    """With a probability, blank all but every second, third or fourth ring: lidars have 16 to 128 of them."""
    if frame.ring is None or rng.random() >= probability:
        return frame
    keep = frame.ring % rng.integers(2, 5) == 0
    return replace(frame, xyz=np.where(keep[:, None], frame.xyz, np.float32(np.nan)))


def intensity_changed(frame: LidarFrame, rng: np.random.Generator, missing: float = 0.4) -> LidarFrame:
    """Take the intensity away with probability `missing`, else give it another gain (1/2 … 2) and exponent (2/3 … 3/2).

    Sensors disagree about intensity and some have none, so a model must not depend on it.
    """
    if frame.intensity is None or rng.random() < missing:
        return replace(frame, intensity=None)
    gain, exponent = 2 ** rng.uniform(-1, 1), 1.5 ** rng.uniform(-1, 1)
    top = max(float(frame.intensity.max(initial=0)), 1e-6)
    changed = gain * top * (np.clip(frame.intensity, 0, None) / top) ** exponent
    return replace(frame, intensity=changed.astype(np.float32))
