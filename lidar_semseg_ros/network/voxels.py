"""One point per voxel, its exact neighbours, and for every point of the sweep the nearest one that was kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lidar_semseg_ros.network.parts import together

LEAST_SHARED = 1024
"""So many points are worth another thread."""


@dataclass(frozen=True, kw_only=True)
class Voxels:
    """Points sorted by voxel: along x, among equal ones along y, then z, and last in their own order.

    xyz: (R, 3) float32 and voxel: (R, 3) int32, in their own order. cells: the voxels as cells of points.
    low: (3,) float32, the corner of voxel (0, 0, 0). highest: (3,) the largest voxel number along each axis.
    """

    xyz: np.ndarray
    voxel: np.ndarray
    cells: CellList
    low: np.ndarray
    highest: np.ndarray
    voxel_size_m: float

    def first_rows(self) -> np.ndarray:
        """Pick the first point in file order of every occupied voxel: (V,) rows, ordered by voxel x, y, z."""
        return self.cells.order[self.cells.starts[:-1]].astype(np.int64)


class CellList(NamedTuple):
    """Points sorted by the cells in which they lie (network/kernels.py).

    numbers: (M + 1,) of the occupied ones, the last one is none. starts: (M + 1,), where the points of each begin in
    order: (R,), rows.
    """

    numbers: np.ndarray
    starts: np.ndarray
    order: np.ndarray


def voxelise(xyz: np.ndarray, voxel_size_m: float) -> Voxels:
    """Sort (R ≥ 1, 3) float32 points by voxel; the lattice starts at their own minimum, as published."""
    from lidar_semseg_ros.network.kernels import (
        cell_numbers,
        cells_along,
        lowest,
        runs_of_equal,
        sorted_order,
        voxels_of,
    )

    low = lowest(xyz)
    voxel, highest = voxels_of(xyz, low, np.float32(voxel_size_m))
    number = cell_numbers(voxel, 0, *cells_along(highest, 0))
    order = sorted_order(number)
    numbers, starts = np.empty(len(xyz) + 1, np.int64), np.empty(len(xyz) + 1, np.int64)
    filled = runs_of_equal(number, order, numbers, starts) + 1
    cells = CellList(numbers[:filled], starts[:filled], order)
    return Voxels(xyz=xyz, voxel=voxel, cells=cells, low=low, highest=highest, voxel_size_m=voxel_size_m)


def neighbours_and_nearest(
    voxels: Voxels, kept: np.ndarray, count: int, limit_m: float
) -> tuple[np.ndarray, np.ndarray]:
    """Find K neighbours of kept points, (V, K) int64, and the nearest kept point of every point, (R,) int64.

    kept: (V ≥ 1,) rows; both answers are positions in it. Neighbours are exact and never the point itself; where
    there are fewer than K others, the nearest are repeated, and a lone point is its own neighbour. A point with no kept
    one nearer than limit_m gets -1.
    """
    from lidar_semseg_ros.network.crew import progress_of, telling
    from lidar_semseg_ros.network.kernels import UNSETTLED, Queries, VoxelGrid, points_at
    from lidar_semseg_ros.network.search import STEPS, room_for, room_for_queries, search

    points, point_voxel = points_at(voxels.xyz, kept), points_at(voxels.voxel, kept)
    low = voxels.low.astype(np.float64)
    # A float32 voxel number may be off at a voxel's border by the rounding of its coordinates.
    slack_m = 4 * float(np.finfo(np.float32).eps) * float(np.abs(points).max() + np.abs(low).max()) + 1e-9
    neighbours = np.empty((len(kept), count), np.int64)
    neighbours[:, 0] = UNSETTLED
    nearest = np.full(len(voxels.xyz), UNSETTLED, np.int64)
    nearest[kept] = np.arange(len(kept))
    by_voxel = voxels.cells
    progress = progress_of(STEPS)
    arguments = (
        progress,
        points,
        point_voxel,
        room_for(len(kept), voxels.highest),
        Queries(voxels.xyz, voxels.voxel, np.array([len(by_voxel.numbers)]), *by_voxel),
        room_for_queries(voxels.xyz, voxels.voxel),
        VoxelGrid(voxels.voxel_size_m, low, slack_m),
        limit_m,
        neighbours,
        nearest,
    )
    threads = None if len(nearest) >= LEAST_SHARED else 1
    together(telling(progress, lambda: search(*arguments)), threads)
    lonely, far = np.flatnonzero(neighbours[:, 0] == UNSETTLED), np.flatnonzero(nearest == UNSETTLED)
    _settle(voxels, kept, limit_m, lonely, neighbours, far, nearest)
    return neighbours, nearest


def _settle(
    voxels: Voxels,
    kept: np.ndarray,
    limit_m: float,
    lonely: np.ndarray,
    neighbours: np.ndarray,
    far: np.ndarray,
    nearest: np.ndarray,
) -> None:
    """Answer by a k-d tree what the cells left open: the rows `lonely` of neighbours and `far` of nearest."""
    from scipy.spatial import cKDTree

    if len(lonely) == 0 and len(far) == 0:
        return
    xyz, count = voxels.xyz, neighbours.shape[1]
    tree = cKDTree(xyz[kept])
    if len(lonely):
        found = min(count + 1, len(kept))
        others = tree.query(xyz[kept[lonely]], k=np.arange(1, found + 1), workers=-1)[1]
        # Column 0 is the point itself.
        columns = 1 + np.arange(count) % (found - 1) if found > 1 else np.zeros(count, np.int64)
        neighbours[lonely] = others[:, columns]
    if len(far):
        found_far = tree.query(xyz[far], workers=-1, distance_upper_bound=limit_m)[1]
        nearest[far] = np.where(found_far < len(kept), found_far, -1)
