"""All of the search of a sweep as one compiled function that all threads run together: neighbours and nearest points.

The nearest point is looked for in cells of one voxel, which hold one point each, and neighbours in cells of 4 voxels
along each axis: on surfaces, such a cell and those around it hold some 100 points, of which 16 are wanted. For what
these leave open, cells of up to 32 voxels are searched.
"""

from __future__ import annotations

import numpy as np

from lidar_semseg_ros.network.crew import begin_part, end_part, wait_for
from lidar_semseg_ros.network.kernels import (
    UNSETTLED,
    PointList,
    Queries,
    VoxelGrid,
    cell_numbers,
    cells_along,
    most_candidates,
    points_at,
    runs_in,
    runs_of_equal,
    search_nearest,
    search_neighbours,
    sorted_order,
)
from lidar_semseg_ros.network.machine_code import compiled

LEVELS = (0, 2, 3, 4, 5)
PARTS = 24
"""Of each search; many, for cells differ in work."""
STEPS = 2 * len(LEVELS)


def room_for(points: int, highest: np.ndarray) -> tuple[PointList, ...]:
    """Give room for the lists of all LEVELS of points whose voxels are not beyond `highest` along an axis."""
    lists = []
    for level in LEVELS:
        space = (np.empty(points + 1, np.int64), np.empty(points + 1, np.int64), np.empty(points, np.int32))
        totals = np.zeros(2, np.int64)
        lists.append(PointList(level, *cells_along(highest, level), totals, *space, np.empty((3, points))))
    return tuple(lists)


def room_for_queries(xyz: np.ndarray, voxel: np.ndarray) -> Queries:
    """Give room for a list of some of the points (R, 3) in voxels (R, 3)."""
    space = (np.empty(len(xyz) + 1, np.int64), np.empty(len(xyz) + 1, np.int64), np.empty(len(xyz), np.int32))
    return Queries(xyz, voxel, np.zeros(1, np.int64), *space)


@compiled
def fill_list(xyz: np.ndarray, voxel: np.ndarray, points: PointList) -> None:
    """Sort points by cell."""
    number = cell_numbers(voxel, points.level, points.along_x, points.along_y)
    order = sorted_order(number)
    for i in range(len(order)):
        points.order[i] = order[i]
        for axis in range(3):
            points.coordinates[axis, i] = xyz[order[i], axis]
    points.totals[0] = runs_of_equal(number, order, points.numbers, points.starts) + 1
    points.totals[1] = most_candidates(runs_in(points)[1])


@compiled
def list_open(points: PointList, queries: Queries, nearest: np.ndarray) -> None:
    """Sort the queries whose nearest point is open by the cells of a list of points."""
    rows = np.flatnonzero(nearest == UNSETTLED)
    number = cell_numbers(points_at(queries.voxel, rows), points.level, points.along_x, points.along_y)
    order = sorted_order(number)
    for i in range(len(rows)):
        queries.order[i] = rows[order[i]]
    queries.totals[0] = runs_of_equal(number, order, queries.numbers, queries.starts) + 1


@compiled
def cells_of_part(cells: PointList | Queries, part: int) -> tuple[int, int]:
    """Choose cells of a list that hold a PARTS-th of its points: from the first to behind the last."""
    starts = runs_in(cells)[1]
    points = starts[-1]
    edges = np.searchsorted(starts, np.array([part * points // PARTS, (part + 1) * points // PARTS]))
    return edges[0], edges[1]


@compiled
def search(
    progress: np.ndarray,
    xyz: np.ndarray,
    voxel: np.ndarray,
    lists: tuple[PointList, ...],
    all_queries: Queries,
    open_queries: Queries,
    grid: VoxelGrid,
    limit_m: float,
    neighbours: np.ndarray,
    nearest: np.ndarray,
) -> None:
    """Search for neighbours (V, K) of points (V, 3), and for the one of these that is nearest to each query (R, 3).

    Answers, of neighbours the first of each row, are UNSETTLED before, or known; those that need cells larger than
    LEVELS has stay so. lists: for the points, of `room_for`. all_queries: sorted by voxel. open_queries: room for a
    list. limit_m: as in network/voxels.py.
    """
    step = 0
    part = begin_part(progress, step)
    while part < len(lists):
        fill_list(xyz, voxel, lists[part])
        end_part(progress, step)
        part = begin_part(progress, step)
    wait_for(progress, step, len(lists))

    # Neighbours are looked for on the next list while nearest points are looked for on one.
    for place in range(len(lists)):
        if place > 0:
            step += 1
            if begin_part(progress, step) == 0:
                list_open(lists[place], open_queries, nearest)
                end_part(progress, step)
            wait_for(progress, step, 1)
        queries = open_queries if place > 0 else all_queries
        step += 1
        first = PARTS if place + 1 < len(lists) else 0
        part = begin_part(progress, step)
        while part < first + PARTS:
            if part < first:
                points = lists[place + 1]
                begin, end = cells_of_part(points, part)
                if begin < end:
                    search_neighbours(begin, end, points, voxel, grid, neighbours)
            else:
                begin, end = cells_of_part(queries, part - first)
                if begin < end:
                    search_nearest(begin, end, lists[place], queries, grid, limit_m, nearest)
            end_part(progress, step)
            part = begin_part(progress, step)
        wait_for(progress, step, first + PARTS)
