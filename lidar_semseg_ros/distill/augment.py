"""Augmentations as pure functions of a sweep, or of two labelled ones.

Those of one sweep keep its rows in their order, with other coordinates or intensities; a row that is taken away has
no return. Those of two exchange rows; what is labelled stays so: labels are any array (N, …) with a row per point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.core.geometry import rotation_from_rpy

Labelled = tuple[LidarFrame, np.ndarray]


def top_intensity(intensity: np.ndarray) -> float:
    """Give the largest of (N,) intensities that is finite, 0 where there is none above it."""
    return float(intensity[np.isfinite(intensity)].max(initial=0))


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
    top = max(top_intensity(frame.intensity), 1e-6)
    changed = gain * top * (np.clip(frame.intensity, 0, None) / top) ** exponent
    return replace(frame, intensity=_where_finite(changed, frame.intensity))


def intensity_shifted(frame: LidarFrame, rng: np.random.Generator, most: float = 0.1) -> LidarFrame:
    """Add one number to all intensities, up to ± `most` of the largest; none falls below 0."""
    if frame.intensity is None:
        return frame
    shift = rng.uniform(-most, most) * top_intensity(frame.intensity)
    return replace(frame, intensity=_where_finite(np.clip(frame.intensity + shift, 0, None), frame.intensity))


def _where_finite(changed: np.ndarray, intensity: np.ndarray) -> np.ndarray:
    """Take changed intensities, but keep those that are not finite as they are."""
    return np.where(np.isfinite(intensity), changed, intensity).astype(np.float32)


def points_jittered(frame: LidarFrame, rng: np.random.Generator, sigma_m: float = 0.01) -> LidarFrame:
    """Move every point by a normal step along each axis, cut off at 3 σ: rows without a return stay so."""
    step_m = np.clip(rng.normal(0, sigma_m, frame.xyz.shape), -3 * sigma_m, 3 * sigma_m)
    moved = np.where(frame.has_return()[:, None], frame.xyz + step_m, frame.xyz)
    return replace(frame, xyz=moved.astype(np.float32))


def points_dropped(frame: LidarFrame, rng: np.random.Generator, most: float = 0.3) -> LidarFrame:
    """Take a share of the points away, 0 to `most` of them."""
    dropped = rng.random(len(frame)) < rng.uniform(0, most)
    return replace(frame, xyz=np.where(dropped[:, None], np.float32(np.nan), frame.xyz))


def sectors_swapped(one: Labelled, other: Labelled, rng: np.random.Generator) -> tuple[Labelled, Labelled]:
    """Let two sweeps exchange what lies in a sector of azimuth, 60° to 180° wide.

    The scene-level half of PolarMix (Xiao et al., NeurIPS 2022). Its other half, pasting objects, needs instances.
    """
    start, width = rng.uniform(-np.pi, np.pi), rng.uniform(np.pi / 3, np.pi)

    def inside(frame: LidarFrame) -> np.ndarray:
        return (np.arctan2(frame.xyz[:, 1], frame.xyz[:, 0]) - start) % (2 * np.pi) < width

    return _exchanged(one, other, inside)


def boxes_swapped(one: Labelled, other: Labelled, rng: np.random.Generator) -> tuple[Labelled, Labelled]:
    """Let two sweeps exchange what stands on a square of 2 to 6 m around a random point of the first, as CutMix does.

    (Yun et al., ICCV 2019, for images.) Neither changes if the first has no point.
    """
    measured = one[0].xyz[one[0].has_return()]
    if len(measured) == 0:
        return one, other
    center, half_m = measured[rng.integers(len(measured)), :2], rng.uniform(1, 3)

    def inside(frame: LidarFrame) -> np.ndarray:
        return (np.abs(frame.xyz[:, :2] - center) < half_m).all(axis=1)

    return _exchanged(one, other, inside)


def _exchanged(one: Labelled, other: Labelled, inside: Callable[[LidarFrame], np.ndarray]) -> tuple[Labelled, Labelled]:
    in_one, in_other = inside(one[0]), inside(other[0])
    return _joined(one, ~in_one, other, in_other), _joined(other, ~in_other, one, in_one)


def _joined(base: Labelled, kept: np.ndarray, guest: Labelled, taken: np.ndarray) -> Labelled:
    """Put rows of the guest behind rows of the base; a column that one of them lacks falls away."""
    (frame, labels), (other, other_labels) = base, guest
    columns: dict[str, Any] = {}
    for name in ("intensity", "ring", "time_s"):
        own, strange = getattr(frame, name), getattr(other, name)
        has_both = own is not None and strange is not None
        columns[name] = np.concatenate([own[kept], strange[taken]]) if has_both else None
    xyz = np.concatenate([frame.xyz[kept], other.xyz[taken]])
    joined = LidarFrame(stamp_ns=frame.stamp_ns, frame_id=frame.frame_id, xyz=xyz, **columns)
    return joined, np.concatenate([labels[kept], other_labels[taken]])
