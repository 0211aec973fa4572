"""One point per voxel, its exact neighbours, and for every point of the sweep the nearest one that was kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

NEAREST_LEVEL, NEIGHBOUR_LEVEL = 1, 2
"""Searching begins in cells of 2 voxels along each axis for the nearest point and of 4 for the neighbours: on surfaces,
the latter and the cells around them hold some 100 points, of which 16 are wanted."""

LEVELS = 5
"""Cells of 2 to 32 voxels are searched; the few points that are lonelier than that are left to a k-d tree."""

UNSETTLED = -2


@dataclass(frozen=True, kw_only=True)
class Voxels:
    """Points sorted along a Morton curve through their voxels.

    xyz: (R, 3) float32 in their own order. voxel: (R, 3) int32 and code: (R,) uint64, in their own order, too.
    order: (R,) rows along the curve. start: (V + 1,) where each voxel's points begin along the curve.
    low: (3,) float32, the corner of voxel (0, 0, 0).
    """

    xyz: np.ndarray
    voxel: np.ndarray
    code: np.ndarray
    order: np.ndarray
    start: np.ndarray
    low: np.ndarray
    voxel_size_m: float

    def first_rows(self) -> np.ndarray:
        """Pick the first point in file order of every occupied voxel: (V,) rows, ordered by voxel x, y, z."""
        from lidar_semseg_ros.network.kernels import sorted_order

        rows = self.order[self.start[:-1]].astype(np.int64)
        voxel = self.voxel.take(rows, axis=0).astype(np.uint64)
        _, of_y, of_z = voxel.max(axis=0) + np.uint64(1)
        return rows[sorted_order((voxel[:, 0] * of_y + voxel[:, 1]) * of_z + voxel[:, 2])]


def voxelise(xyz: np.ndarray, voxel_size_m: float) -> Voxels:
    """Sort (R ≥ 1, 3) float32 points by voxel; the lattice starts at their own minimum, as published."""
    from lidar_semseg_ros.network.kernels import lowest, runs_of_equal, sorted_order, voxel_codes

    low = lowest(xyz)
    voxel, code = voxel_codes(xyz, low, np.float32(voxel_size_m))
    order = sorted_order(code)
    start = runs_of_equal(code[order], 0)
    return Voxels(xyz=xyz, voxel=voxel, code=code, order=order, start=start, low=low, voxel_size_m=voxel_size_m)


def neighbours_and_nearest(
    voxels: Voxels, kept: np.ndarray, count: int, limit_m: float
) -> tuple[np.ndarray, np.ndarray]:
    """Find K neighbours of kept points, (V, K) int64, and the nearest kept point of every point, (R,) int64.

    kept: (V ≥ 1,) rows; both answers are positions in it. Neighbours are exact and never the point itself; where
    there are fewer than K others, the nearest are repeated, and a lone point is its own neighbour. A point with no kept
    one nearer than limit_m gets -1.
    """
    from lidar_semseg_ros.network.kernels import cell_tables, runs_of_equal, search_nearest, search_neighbours

    nearest = np.full(len(voxels.xyz), UNSETTLED, np.int64)
    nearest[kept] = np.arange(len(kept))
    rank_along = nearest[voxels.order]
    is_kept = rank_along >= 0
    point_rows, rank = voxels.order[is_kept], rank_along[is_kept]
    points, point_code = voxels.xyz.take(point_rows, axis=0).astype(np.float64), voxels.code[point_rows]
    point_voxel = voxels.voxel.take(point_rows, axis=0)
    low = voxels.low.astype(np.float64)
    # A float32 voxel number may be off at a voxel's border by the rounding of its coordinates.
    slack_m = 4 * np.finfo(np.float32).eps * float(np.abs(points).max() + np.abs(low).max()) + 1e-9
    grid = (*cell_tables(point_code, NEAREST_LEVEL, LEVELS), voxels.voxel_size_m, low, slack_m)
    neighbours = np.full((len(kept), count), UNSETTLED, np.int64)
    starts = runs_of_equal(point_code, 3 * NEIGHBOUR_LEVEL)
    of_points = (starts, NEIGHBOUR_LEVEL, NEAREST_LEVEL, *grid, points, point_voxel, rank, neighbours)
    _in_threads(search_neighbours, of_points)
    starts = runs_of_equal(voxels.code[voxels.order], 3 * NEAREST_LEVEL)
    of_all = (starts, NEAREST_LEVEL, *grid, limit_m, points, rank, voxels.xyz, voxels.voxel, voxels.order, nearest)
    _in_threads(search_nearest, of_all)
    _settle(voxels.xyz, kept, limit_m, neighbours, nearest)
    return neighbours, nearest


def _in_threads(search: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Share the cells, which begin at arguments[0], among the cores; more parts than cores, for they differ in work."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    edges = np.linspace(0, len(arguments[0]) - 1, 8 * cores + 1).astype(np.int64)
    # Made anew: threads that are kept would not survive a fork of a data loader.
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(lambda begin, end: search(begin, end, *arguments), edges[:-1], edges[1:]))


def _settle(xyz: np.ndarray, kept: np.ndarray, limit_m: float, neighbours: np.ndarray, nearest: np.ndarray) -> None:
    """Answer by a k-d tree what the grid left open."""
    from scipy.spatial import cKDTree

    lonely, far = np.flatnonzero(neighbours[:, 0] == UNSETTLED), np.flatnonzero(nearest == UNSETTLED)
    if len(lonely) == 0 and len(far) == 0:
        return
    tree, count = cKDTree(xyz[kept]), neighbours.shape[1]
    if len(lonely):
        found = min(count + 1, len(kept))
        others = tree.query(xyz[kept[lonely]], k=np.arange(1, found + 1), workers=-1)[1]
        # Column 0 is the point itself.
        columns = 1 + np.arange(count) % (found - 1) if found > 1 else np.zeros(count, np.int64)
        neighbours[lonely] = others[:, columns]
    if len(far):
        found_far = tree.query(xyz[far], workers=-1, distance_upper_bound=limit_m)[1]
        nearest[far] = np.where(found_far < len(kept), found_far, -1)
