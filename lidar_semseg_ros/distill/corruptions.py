"""Nine ways in which an indoor lidar goes wrong, and how much of a model's quality is left.

After Robo3D (Kong et al., ICCV 2023), with severities for indoors, from the published parameters. Each takes a sweep,
its labels (N,) uint8, a severity of 1, 2 or 3 and a generator, and gives both anew: the same rows in the same order.
A point that is lost has no return and no label, so that only what a sensor would have measured is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED, LidarFrame
from lidar_semseg_ros.distill.augment import top_intensity

Corruption = Callable[[LidarFrame, np.ndarray, int, np.random.Generator], tuple[LidarFrame, np.ndarray]]

SEVERITIES = (1, 2, 3)
SHINING = frozenset({"display", "light", "window", "glass", "mirror"})
"""Classes whose surfaces emit light, let it through or throw it elsewhere."""
FURNITURE = frozenset({"table", "chair", "sofa", "cabinet_shelf"})
ELEVATIONS = 32
"""Rings that a sensor is taken to have if it does not tell the ring of a point."""
NEAREST_M = 1e-3


def corruptions(classes: ClassTable) -> dict[str, Corruption]:
    """Name all nine; classes: of the labels."""
    return {
        "beam_missing": beam_missing,
        "cross_sensor": cross_sensor,
        "crosstalk": crosstalk,
        "motion_blur": motion_blur,
        "incomplete_echo": partial(incomplete_echo, classes=classes),
        "range_noise": range_noise,
        "intensity_shift": intensity_shift,
        "fov_crop": fov_crop,
        "dropout": dropout,
    }


def beam_missing(
    frame: LidarFrame, labels: np.ndarray, severity: int, rng: np.random.Generator
) -> tuple[LidarFrame, np.ndarray]:
    """Lose 25 / 50 / 75 % of the rings."""
    ring = _ring(frame)
    rings = np.unique(ring[frame.has_return()])
    lost = rng.choice(rings, round(_at(severity, 0.25, 0.5, 0.75) * len(rings)), replace=False)
    return _without(frame, labels, np.isin(ring, lost))


def cross_sensor(
    frame: LidarFrame, labels: np.ndarray, severity: int, rng: np.random.Generator
) -> tuple[LidarFrame, np.ndarray]:
    """Become a coarser sensor: 75 / 50 / 25 % of the rings, evenly spread, and every second point of a ring."""
    ring, measured = _ring(frame), frame.has_return()
    rings = np.unique(ring[measured])
    count = round(_at(severity, 0.75, 0.5, 0.25) * len(rings))
    kept_rings = rings[np.linspace(0, len(rings) - 1, count).round().astype(np.int64)]
    rows = np.flatnonzero(measured)
    rows = rows[np.argsort(ring[rows], kind="stable")]
    place_in_ring = np.arange(len(rows)) - np.searchsorted(ring[rows], ring[rows])
    every_second = np.zeros(len(frame), bool)
    every_second[rows[place_in_ring % 2 == 0]] = True
    return _without(frame, labels, ~(np.isin(ring, kept_rings) & every_second))


def crosstalk(
    frame: LidarFrame, labels: np.ndarray, severity: int, rng: np.random.Generator
) -> tuple[LidarFrame, np.ndarray]:
    """Hear other sensors: 0.6 / 0.8 / 1 % of the points get N(0, 3 m) along each axis and any intensity.

    Nobody can tell what such a point belongs to: they have no label. An intensity that is not finite stays as it is.
    """
    rows = _share_of(np.flatnonzero(frame.has_return()), _at(severity, 0.006, 0.008, 0.01), rng)
    xyz, labels = frame.xyz.copy(), labels.copy()
    xyz[rows] += rng.normal(0, 3.0, (len(rows), 3)).astype(np.float32)
    labels[rows] = UNLABELLED
    if frame.intensity is None:
        return replace(frame, xyz=xyz), labels
    intensity = frame.intensity.copy()
    heard = rng.uniform(0, top_intensity(intensity), len(rows))
    intensity[rows] = np.where(np.isfinite(intensity[rows]), heard, intensity[rows])
    return replace(frame, xyz=xyz, intensity=intensity), labels


def motion_blur(
    frame: LidarFrame, labels: np.ndarray, severity: int, rng: np.random.Generator
) -> tuple[LidarFrame, np.ndarray]:
    """Shift the sweep by N(0, σ) along each axis and every point by N(0, 0.1 σ) more; σ = 0.02 / 0.05 / 0.10 m.

    Robo3D's 0.2 to 0.3 m is more than many things indoors measure.
    """
    sigma_m = _at(severity, 0.02, 0.05, 0.10)
    step_m = rng.normal(0, sigma_m, 3) + rng.normal(0, 0.1 * sigma_m, frame.xyz.shape)
    return _moved(frame, frame.xyz + step_m), labels


def incomplete_echo(
    frame: LidarFrame, labels: np.ndarray, severity: int, rng: np.random.Generator, *, classes: ClassTable
) -> tuple[LidarFrame, np.ndarray]:
    """Lose 75 / 85 / 95 % of the points on what throws little light back: displays, lights, glass, dark furniture.

    Dark is the half of the furniture's points with the lower intensity, of those whose intensity is finite; all are
    where there is none.
    """
    weak = np.isin(labels, _ids(classes, SHINING))
    furniture = np.isin(labels, _ids(classes, FURNITURE))
    if frame.intensity is not None:
        known = furniture & np.isfinite(frame.intensity)
        if known.any():
            furniture = known & (frame.intensity <= np.median(frame.intensity[known]))
    rows = np.flatnonzero((weak | furniture) & frame.has_return())
    lost = np.zeros(len(frame), bool)
    lost[_share_of(rows, _at(severity, 0.75, 0.85, 0.95), rng)] = True
    return _without(frame, labels, lost)


def range_noise(
    frame: LidarFrame, labels: np.ndarray, severity: int, rng: np.random.Generator
) -> tuple[LidarFrame, np.ndarray]:
    """Measure ranges with an error of N(0, 0.02 / 0.05 / 0.10 m); the direction of a point stays."""
    range_m = np.linalg.norm(frame.xyz.astype(np.float64), axis=1)
    noisy_m = np.maximum(range_m + rng.normal(0, _at(severity, 0.02, 0.05, 0.10), len(frame)), NEAREST_M)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _moved(frame, frame.xyz * (noisy_m / range_m)[:, None]), labels


def intensity_shift(
    frame: LidarFrame, labels: np.ndarray, severity: int, rng: np.random.Generator
) -> tuple[LidarFrame, np.ndarray]:
    """Scale the intensity by 0.5 / 0.25 / 0; the last is a sensor whose intensities are lost."""
    if frame.intensity is None:
        return frame, labels
    return replace(frame, intensity=frame.intensity * np.float32(_at(severity, 0.5, 0.25, 0.0))), labels


def fov_crop(
    frame: LidarFrame, labels: np.ndarray, severity: int, rng: np.random.Generator
) -> tuple[LidarFrame, np.ndarray]:
    """See 270 / 180 / 90° of azimuth, around the direction of a random point: not every lidar looks along its x."""
    half_width = np.deg2rad(_at(severity, 270, 180, 90)) / 2
    rows = np.flatnonzero(frame.has_return())
    if len(rows) == 0:
        return frame, labels
    azimuth = np.arctan2(frame.xyz[:, 1], frame.xyz[:, 0])
    aside = (azimuth - azimuth[rng.choice(rows)] + np.pi) % (2 * np.pi) - np.pi
    return _without(frame, labels, np.abs(aside) > half_width)


def dropout(
    frame: LidarFrame, labels: np.ndarray, severity: int, rng: np.random.Generator
) -> tuple[LidarFrame, np.ndarray]:
    """Lose 25 / 50 / 75 % of the points."""
    lost = np.zeros(len(frame), bool)
    lost[_share_of(np.flatnonzero(frame.has_return()), _at(severity, 0.25, 0.5, 0.75), rng)] = True
    return _without(frame, labels, lost)


def mean_corruption_error(
    accuracy: Mapping[str, Sequence[float]], baseline: Mapping[str, Sequence[float]]
) -> tuple[float, dict[str, float]]:
    """Give mCE and the CE_i of each corruption, in percent of the errors of a baseline; lower is better.

    CE_i = Σ_l (1 − Acc_il) / Σ_l (1 − Acc^base_il), mCE their mean. accuracy: mIoU by corruption and severity, 0 to 1.
    """
    if set(accuracy) != set(baseline):
        raise UserError(
            f"the baseline was tried with {', '.join(baseline) or 'nothing'}, the model with "
            f"{', '.join(accuracy) or 'nothing'}; try both with the same corruptions"
        )
    errors = {name: (np.sum(1 - np.array(accuracy[name])), np.sum(1 - np.array(baseline[name]))) for name in accuracy}
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {name: float(100 * np.divide(own, base)) for name, (own, base) in errors.items()}
    return float(np.mean(list(found.values()))), found


def mean_resilience_rate(accuracy: Mapping[str, Sequence[float]], clean: float) -> tuple[float, dict[str, float]]:
    """Give mRR and the RR_i of each corruption, in percent of the quality without corruption; higher is better.

    RR_i = Σ_l Acc_il / (3 · Acc_clean), mRR their mean. accuracy: as in `mean_corruption_error`.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {name: float(100 * np.divide(np.mean(values), clean)) for name, values in accuracy.items()}
    return float(np.mean(list(found.values()))), found


def _at(severity: int, *values: float) -> float:
    if severity not in SEVERITIES:
        raise UserError(f"a severity is 1, 2 or 3, but it is {severity}")
    return values[severity - 1]


def _share_of(rows: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    return rng.choice(rows, round(share * len(rows)), replace=False)


def _without(frame: LidarFrame, labels: np.ndarray, lost: np.ndarray) -> tuple[LidarFrame, np.ndarray]:
    xyz = np.where(lost[:, None], np.float32(np.nan), frame.xyz)
    return replace(frame, xyz=xyz), np.where(lost, np.uint8(UNLABELLED), labels)


def _moved(frame: LidarFrame, xyz: np.ndarray) -> LidarFrame:
    """Take these coordinates, but keep rows without a return as they are."""
    return replace(frame, xyz=np.where(frame.has_return()[:, None], xyz, frame.xyz).astype(np.float32))


def _ring(frame: LidarFrame) -> np.ndarray:
    """Give the ring of each row (N,); of a sensor that does not tell, a band of elevation, all of equal width."""
    if frame.ring is not None:
        return frame.ring
    elevation = np.arctan2(frame.xyz[:, 2], np.linalg.norm(frame.xyz[:, :2], axis=1))
    measured = elevation[frame.has_return()]
    if len(measured) == 0:
        return np.zeros(len(frame), np.int64)
    edges = np.linspace(measured.min(), measured.max(), ELEVATIONS + 1)[1:-1]
    return np.digitize(elevation, edges)


def _ids(classes: ClassTable, names: frozenset[str]) -> list[int]:
    return [number for number, name in enumerate(classes.names) if name in names]
