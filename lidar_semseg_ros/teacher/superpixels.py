"""Regions that belong together: superpixels of an image, and segments of the points of several sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lidar_semseg_ros.core.errors import missing_package
from lidar_semseg_ros.core.frame import UNLABELLED, LidarFrame
from lidar_semseg_ros.core.geometry import invert_rigid
from lidar_semseg_ros.core.options import setting
from lidar_semseg_ros.teacher.lifting import Trajectory, points_in
from lidar_semseg_ros.teacher.scores import PixelScores
from lidar_semseg_ros.teacher.voting import voxel_keys

HYPOTHESES = 5000
"""Planes through three random points that are tried at a time. One that a tenth of the points lie on is among them
with probability 1 − (1 − 0.1³)^5000 = 99 %."""
JUDGES = 1000
"""Random points that choose between them; all points then fit the chosen one."""
REFITS = 3


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """How the points of several sweeps are divided into things."""

    voxel_m: float = setting(0.05, "points are thinned to one per cube of this edge, in metres", minimum=0.001)
    plane_within_m: float = setting(0.06, "points so near to a plane lie on it", minimum=0.001)
    min_plane_share: float = setting(
        0.05, "planes that hold at least this share of the points are taken out", minimum=0.001, maximum=1.0
    )
    min_cluster: int = setting(20, "least number of cubes that make a segment", minimum=2)


def slic_superpixels(pixels: np.ndarray, count: int = 150, compactness: float = 10.0) -> np.ndarray:
    """Divide an image, (height, width, 3) uint8, into about `count` superpixels: (height, width) int32 from 0 (SLIC).

    For machines without a model that gives masks. compactness: weight of nearness against colour.
    """
    try:
        from skimage.segmentation import slic
    except ModuleNotFoundError as error:
        raise missing_package(error) from error

    return slic(pixels, n_segments=count, compactness=compactness, start_label=0).astype(np.int32)


def class_superpixels(scores: PixelScores, *, connected: bool) -> np.ndarray:
    """Make superpixels of the classes of a teacher: (h, w) int32, −1 where UNLABELLED.

    connected: each connected region (of eight neighbours) is one, numbered from 0; else all pixels of a class are,
    numbered by its id. Then no two superpixels of an image are of the same class, which a contrastive loss would
    otherwise push apart.
    """
    if not connected:
        return np.where(scores.class_id == UNLABELLED, -1, scores.class_id.astype(np.int32))
    try:
        from skimage.measure import label
    except ModuleNotFoundError as error:
        raise missing_package(error) from error

    return label(scores.class_id, background=UNLABELLED, connectivity=2).astype(np.int32) - 1


def segments_of_sweeps(
    frames: Sequence[LidarFrame],
    base_from_lidar: np.ndarray,
    trajectory: Trajectory,
    config: SegmentConfig,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Divide the points of consecutive sweeps into things that keep their id: (N,) int32 for each sweep.

    The sweeps are put together in the map. Floor, ceiling and walls connect everything indoors, so large planes are
    taken out, one after the other; HDBSCAN parts the rest (Seal, arXiv 2306.09347, section 3.3, which takes out the
    ground only). −1 on large planes, for lone points, and where there is no return, or one without a voxel.
    """
    if not frames:
        return []
    # Coordinates of a map may be too large for float32.
    origin_from_map = invert_rigid(trajectory.at(np.array([frames[0].stamp_ns]))[0])
    xyz = np.concatenate([points_in(origin_from_map, frame, base_from_lidar, trajectory) for frame in frames])
    key = voxel_keys(xyz, config.voxel_m)
    measured = np.flatnonzero(key >= 0)
    _, chosen, cube = np.unique(key[measured], return_index=True, return_inverse=True)
    thinned = xyz[measured[chosen]]
    of_cube = np.full(len(thinned), -1, np.int32)
    rest = np.flatnonzero(~on_large_planes(thinned, config, rng))
    of_cube[rest] = _clusters(thinned[rest], config.min_cluster)
    segment = np.full(len(xyz), -1, np.int32)
    segment[measured] = of_cube[cube]
    return np.split(segment, np.cumsum([len(frame) for frame in frames])[:-1])


def on_large_planes(xyz: np.ndarray, config: SegmentConfig, rng: np.random.Generator) -> np.ndarray:
    """Find which of (N, 3) finite points lie on planes that hold `min_plane_share` of all of them: (N,) bool.

    RANSAC (Fischler and Bolles, CACM 24(6), 1981), repeated on what the planes found so far leave.
    """
    taken = np.zeros(len(xyz), bool)
    while True:
        rest = np.flatnonzero(~taken)
        least = max(config.min_plane_share * len(xyz), 3)
        if len(rest) < least:
            return taken
        on_plane = _largest_plane(xyz[rest], config.plane_within_m, rng)
        if on_plane.sum() < least:
            return taken
        taken[rest[on_plane]] = True


def _largest_plane(xyz: np.ndarray, within_m: float, rng: np.random.Generator) -> np.ndarray:
    corner = xyz[rng.integers(len(xyz), size=(HYPOTHESES, 3))]
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    length = np.linalg.norm(normal, axis=1)
    normal, corner = normal[length > 0] / length[length > 0, None], corner[length > 0]
    if len(normal) == 0:
        return np.zeros(len(xyz), bool)
    judges = xyz[rng.integers(len(xyz), size=JUDGES)]
    offset_m = np.einsum("ij,ij->i", normal, corner[:, 0])
    best = (np.abs(normal @ judges.T - offset_m[:, None]) < within_m).sum(axis=1).argmax()
    on_plane = np.abs(xyz @ normal[best] - offset_m[best]) < within_m
    for _ in range(REFITS):
        if on_plane.sum() < 3:
            break
        center = xyz[on_plane].mean(axis=0)
        across = np.linalg.eigh(np.cov((xyz[on_plane] - center).T, bias=True))[1][:, 0]
        on_plane = np.abs((xyz - center) @ across) < within_m
    return on_plane


def _clusters(xyz: np.ndarray, least: int) -> np.ndarray:
    """Cluster (N, 3) points by density: (N,) int32 ids from 0, −1 for noise."""
    try:
        from sklearn.cluster import HDBSCAN
    except ModuleNotFoundError as error:
        raise missing_package(error) from error

    if len(xyz) < least:
        return np.full(len(xyz), -1, np.int32)
    return HDBSCAN(min_cluster_size=least, copy=True).fit_predict(xyz).astype(np.int32)
