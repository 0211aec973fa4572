"""One point per voxel, its exact neighbours, and for every point of the sweep the nearest one that was kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lidar_semseg_ros.network.parts import helpers_of_all_cores, share

LEVELS, NEIGHBOUR_LEVEL = (0, 2, 3, 4, 5), 2
"""The nearest point is looked for in cells of one voxel, which hold one point each, and neighbours in cells of 4 voxels
along each axis: on surfaces, such a cell and those around it hold some 100 points, of which 16 are wanted. For what
these leave open, cells of up to 32 voxels are searched; the few points lonelier than that are left to a k-d tree."""

LEAST_PART = 512
"""Points worth handing to a thread."""


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
    """Points sorted by the cells of 2^level voxels along each axis in which they lie (network/kernels.py).

    along_x, along_y: by how much numbers of cells grow along these axes. numbers: (M + 1,) of the occupied ones, the
    last one is none. starts: (M + 1,), where the points of each begin in order: (R,), rows.
    """

    level: int
    along_x: int
    along_y: int
    numbers: np.ndarray
    starts: np.ndarray
    order: np.ndarray


def cells_of(voxel: np.ndarray, level: int, highest: np.ndarray) -> CellList:
    """Sort points by cell; none of their voxels (R, 3) is beyond `highest` along an axis."""
    from lidar_semseg_ros.network.kernels import cell_numbers, runs_of_equal, sorted_order

    # One more than there are, which stays empty, so that no cell's neighbour is found at the other end of the grid.
    _, of_y, of_z = ((int(most) >> level) + 2 for most in highest)
    number = cell_numbers(voxel, level, of_y * of_z, of_z)
    order = sorted_order(number)
    return CellList(level, of_y * of_z, of_z, *runs_of_equal(number, order), order)


def voxelise(xyz: np.ndarray, voxel_size_m: float) -> Voxels:
    """Sort (R ≥ 1, 3) float32 points by voxel; the lattice starts at their own minimum, as published."""
    from lidar_semseg_ros.network.kernels import lowest, voxels_of

    low = lowest(xyz)
    voxel, highest = voxels_of(xyz, low, np.float32(voxel_size_m))
    cells = cells_of(voxel, 0, highest)
    return Voxels(xyz=xyz, voxel=voxel, cells=cells, low=low, highest=highest, voxel_size_m=voxel_size_m)


def neighbours_and_nearest(
    voxels: Voxels, kept: np.ndarray, count: int, limit_m: float
) -> tuple[np.ndarray, np.ndarray]:
    """Find K neighbours of kept points, (V, K) int64, and the nearest kept point of every point, (R,) int64.

    kept: (V ≥ 1,) rows; both answers are positions in it. Neighbours are exact and never the point itself; where
    there are fewer than K others, the nearest are repeated, and a lone point is its own neighbour. A point with no kept
    one nearer than limit_m gets -1.
    """
    from lidar_semseg_ros.network.kernels import UNSETTLED, by_axis, points_at, search_nearest, search_neighbours

    points, point_voxel = points_at(voxels.xyz, kept), points_at(voxels.voxel, kept)
    low = voxels.low.astype(np.float64)
    # A float32 voxel number may be off at a voxel's border by the rounding of its coordinates.
    slack_m = 4 * np.finfo(np.float32).eps * float(np.abs(points).max() + np.abs(low).max()) + 1e-9
    lattice = voxels.voxel_size_m, low, slack_m
    neighbours = np.empty((len(kept), count), np.int64)
    neighbours[:, 0] = UNSETTLED
    nearest = np.full(len(voxels.xyz), UNSETTLED, np.int64)
    nearest[kept] = np.arange(len(kept))
    lonely, far = np.arange(len(kept)), np.arange(len(nearest))
    for level in LEVELS:
        cells = cells_of(point_voxel, level, voxels.highest)
        by_cell = *cells, by_axis(points, cells.order)
        if level >= NEIGHBOUR_LEVEL and len(lonely):
            _share(len(lonely), cells.starts, search_neighbours, (*by_cell, point_voxel, *lattice, neighbours))
            lonely = lonely[neighbours[lonely, 0] == UNSETTLED]
        queries = voxels.cells
        if len(far) < len(nearest):
            queries = cells_of(points_at(voxels.voxel, far), level, voxels.highest)
            queries = queries._replace(order=far[queries.order])
        if len(far):
            of_queries = queries.numbers, queries.starts, queries.order, voxels.xyz, voxels.voxel
            arguments = (*by_cell, *of_queries, *lattice, limit_m, nearest)
            _share(len(far), queries.starts, search_nearest, arguments)
            far = far[nearest[far] == UNSETTLED]
        if len(lonely) == len(far) == 0:
            break
    _settle(voxels, kept, limit_m, lonely, neighbours, far, nearest)
    return neighbours, nearest


def _share(points: int, starts: np.ndarray, search: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Share the cells that begin at starts among the cores; more parts than cores, for they differ in work."""
    helpers = helpers_of_all_cores()
    parts = min(4 * (len(helpers) + 1), -(-points // LEAST_PART))
    edges = np.unique(np.searchsorted(starts, np.linspace(0, starts[-1], parts + 1)))
    share(helpers, edges.tolist(), lambda begin, end: search(begin, end, *arguments))


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
