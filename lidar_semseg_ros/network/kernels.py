"""Compiled loops over points: voxels, exact neighbours and nearest points, by grids whose cells are sorted.

Cells are numbered row by row, x slowest and z fastest, with one more along y and z than any point lies in. In a list of
the occupied ones, sorted by number, a cell and those above and below it are then one run, so that a cell's 27
neighbours are 9 runs; and from one cell of the list to the next, each of these only moves forward. numba compiles on
the first call and keeps the result on disk; every function runs without the interpreter's lock. It vectorises loops
over range(len(values)), but none over the values themselves.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np

from lidar_semseg_ros.network.machine_code import compiled

Integer: TypeAlias = int | np.integer

RADIX_BITS = 11
LANES = 16
"""Candidates are filled up to a multiple of this many, so that vectorised loops over them leave no rest."""
SPARE = 4
"""So many more than wanted may lie below a threshold: to drop the farthest of these few is quicker than to move it."""
LAST = np.int64(2**63 - 1)
"""Ends a list of cells."""
UNSETTLED = -2


class PointList(NamedTuple):
    """N points sorted by the cells of 2^level voxels along each axis in which they lie, M of them; see CellList.

    totals: M + 1, and `most_candidates`. numbers, starts: (N + 1,), of which M + 1 are filled. order: (N,).
    coordinates: (3, N) float64, by cell.
    """

    level: int
    along_x: int
    along_y: int
    totals: np.ndarray
    numbers: np.ndarray
    starts: np.ndarray
    order: np.ndarray
    coordinates: np.ndarray


class Queries(NamedTuple):
    """Points (R, 3) float32 whose nearest one is looked for, and a list of all or of some of them; see CellList.

    voxel: (R, 3). totals: (1,), M + 1. numbers, starts: (R + 1,), of which M + 1 are filled. order: (R,).
    """

    xyz: np.ndarray
    voxel: np.ndarray
    totals: np.ndarray
    numbers: np.ndarray
    starts: np.ndarray
    order: np.ndarray


class VoxelGrid(NamedTuple):
    """Voxels of a size, whose lowest corner is low, (3,) float64.

    slack_m: by how much a point may lie beyond its voxel.
    """

    size_m: float
    low: np.ndarray
    slack_m: float


@compiled
def voxels_of(xyz: np.ndarray, low: np.ndarray, voxel_size_m: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Compute voxels (N, 3) int32, truncated in float32 as published, and the largest number along each axis, (3,)."""
    voxel, highest = np.empty((len(xyz), 3), np.int32), np.zeros(3, np.int64)
    for i in range(len(xyz)):
        for axis in range(3):
            voxel[i, axis] = np.int32((xyz[i, axis] - low[axis]) / voxel_size_m)
            highest[axis] = max(highest[axis], voxel[i, axis])
    return voxel, highest


@compiled
def cell_numbers(voxel: np.ndarray, level: int, along_x: int, along_y: int) -> np.ndarray:
    """Compute x · along_x + y · along_y + z of the cells of 2^level voxels an axis in which voxels (N, 3) lie."""
    number = np.empty(len(voxel), np.int64)
    for i in range(len(voxel)):
        x, y, z = np.int64(voxel[i, 0]) >> level, np.int64(voxel[i, 1]) >> level, np.int64(voxel[i, 2]) >> level
        number[i] = x * along_x + y * along_y + z
    return number


@compiled
def cells_along(highest: np.ndarray, level: int) -> tuple[int, int]:
    """Give by how much numbers of cells grow along x and y where no voxel is beyond `highest`, (3,)."""
    # One cell more than there are, which stays empty, so that none's neighbour is found at the other end of the grid.
    of_y, of_z = (highest[1] >> level) + 2, (highest[2] >> level) + 2
    return of_y * of_z, of_z


@compiled
def points_at(points: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Copy rows of points or voxels (N, 3); NumPy's take needs twice as long for rows so short."""
    taken = np.empty((len(rows), 3), points.dtype)
    for i in range(len(rows)):
        for axis in range(3):
            taken[i, axis] = points[rows[i], axis]
    return taken


@compiled
def lowest(xyz: np.ndarray) -> np.ndarray:
    """Find the lower corner (3,) of points (N, 3); NumPy takes four times as long along this axis."""
    low = xyz[0].copy()
    for i in range(len(xyz)):
        for axis in range(3):
            low[axis] = min(low[axis], xyz[i, axis])
    return low


@compiled
def below_highest(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Subtract from each row of (N, C) float32 its largest value, and give the first place where that stands, uint8."""
    below, place = np.empty_like(values), np.empty(len(values), np.uint8)
    for i in range(len(values)):
        highest, best = values[i, 0], np.uint8(0)
        for k in range(1, values.shape[1]):
            is_more = values[i, k] > highest
            highest, best = values[i, k] if is_more else highest, np.uint8(k) if is_more else best
        for k in range(values.shape[1]):
            below[i, k] = values[i, k] - highest
        place[i] = best
    return below, place


@compiled
def sums_of_rows(weights: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum each row of weights (N, C) float32, and of its products with that of values: (N,) each."""
    total, weighted = np.empty(len(weights), np.float32), np.empty(len(weights), np.float32)
    for i in range(len(weights)):
        sum_of_weights, sum_of_products = np.float32(0), np.float32(0)
        for k in range(weights.shape[1]):
            sum_of_weights += weights[i, k]
            sum_of_products += weights[i, k] * values[i, k]
        total[i], weighted[i] = sum_of_weights, sum_of_products
    return total, weighted


@compiled
def fill_rows(
    rows: np.ndarray,
    source: np.ndarray,
    values: tuple[np.ndarray, np.ndarray, np.ndarray],
    targets: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Copy values[…][source[i]] to targets[…][rows[i]] where source[i] is not negative."""
    for i in range(len(rows)):
        row, place = rows[i], source[i]
        if place >= 0:
            targets[0][row], targets[1][row], targets[2][row] = values[0][place], values[1][place], values[2][place]


@compiled
def cells_in_order(cell: np.ndarray, cells: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sort points stably by their cells, (N,) int64, of which there are few; ValueError for a cell beyond them.

    Gives order (N,), start (M,) and occupied (M,), as in CroppedPlane, and the weights of all cells, float32.
    """
    place = np.zeros(cells + 1, np.int64)
    for one in cell:
        if not 0 <= one < cells:
            raise ValueError("a point lies in a cell beyond the grid")
        place[one + 1] += 1
    weight, start, occupied = np.zeros(cells, np.float32), np.empty(cells, np.int64), np.empty(cells, np.int64)
    count = 0
    for one in range(cells):
        points = place[one + 1]
        if points > 0:
            start[count], occupied[count], weight[one] = place[one], one, np.float32(1 / (points + 1e-6))
            count += 1
        place[one + 1] += place[one]
    order = np.empty(len(cell), np.int64)
    for i in range(len(cell)):
        order[place[cell[i]]] = i
        place[cell[i]] += 1
    return order, start[:count].copy(), occupied[:count].copy(), weight


@compiled
def sorted_order(number: np.ndarray) -> np.ndarray:
    """Sort stably by radix: the order (N,) int32 of numbers (N,) int64 that are not negative."""
    largest, descents = np.int64(0), 0
    for k in range(len(number)):
        largest = max(largest, number[k])
        descents += number[k] < number[max(k - 1, 0)]
    order = np.arange(len(number)).astype(np.int32)
    if descents == 0:
        return order
    other = np.empty_like(order)
    mask, shift = np.int64(2**RADIX_BITS - 1), np.int64(0)
    while shift < 63 and largest >> shift > 0:
        place = np.zeros(2**RADIX_BITS + 1, np.int64)
        for one in number:
            place[(one >> shift & mask) + 1] += 1
        place = np.cumsum(place)
        for i in order:
            bucket = number[i] >> shift & mask
            other[place[bucket]] = i
            place[bucket] += 1
        order, other = other, order
        shift += RADIX_BITS
    return order


@compiled
def runs_of_equal(number: np.ndarray, order: np.ndarray, numbers: np.ndarray, starts: np.ndarray) -> Integer:
    """List the R different numbers in their order, and LAST, in numbers, and where each begins, and the end, in starts.

    number, order: (N,). numbers, starts: (N + 1,), of which R + 1 are filled; R is returned.
    """
    count: Integer = 0
    before: Integer = -1
    for i in range(len(order)):  # without a branch; what is written for a number that is not new, the next one replaces
        one = number[order[i]]
        numbers[count], starts[count] = one, i
        count += np.int64(one != before)
        before = one
    numbers[count], starts[count] = LAST, len(order)
    return count


@compiled
def inside_box(xyz: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Tell which of (N, 3) points lie strictly between two corners: (N,) bool."""
    inside = np.empty(len(xyz), np.bool_)
    for i in range(len(xyz)):
        x, y, z = xyz[i, 0], xyz[i, 1], xyz[i, 2]
        inside[i] = low[0] < x < high[0] and low[1] < y < high[1] and low[2] < z < high[2]
    return inside


@compiled
def columns_before(number: Integer, along_x: int, along_y: int, numbers: np.ndarray) -> np.ndarray:
    """Find where the 9 runs of a cell and its neighbours begin in a list of cells: (9,)."""
    at = np.empty(9, np.int64)
    for column in range(9):
        first = number + (column // 3 - 1) * along_x + (column % 3 - 1) * along_y - 1
        at[column] = np.searchsorted(numbers, first)
    return at


@compiled
def any_open(answers: np.ndarray, rows: np.ndarray) -> bool:
    """Tell whether the answer to one of some rows is not settled."""
    count = 0
    for row in rows:
        count += answers[row] == UNSETTLED
    return count > 0


@compiled
def most_candidates(starts: np.ndarray) -> int:
    """Tell how many points a cell and its 26 neighbours hold at most, and those that fill them up."""
    most = np.int64(0)
    for cell in range(len(starts) - 1):
        most = max(most, starts[cell + 1] - starts[cell])
    return filled_up(min(27 * most, starts[-1]))


@compiled
def run_of(
    column: int,
    number: Integer,
    along_x: int,
    along_y: int,
    numbers: np.ndarray,
    starts: np.ndarray,
    at: np.ndarray,
) -> tuple[Integer, Integer]:
    """Find where the points of one of a cell's 9 runs begin and end.

    at: (9,), where each run began for an earlier cell, or before that; moved on.
    """
    first = number + (column // 3 - 1) * along_x + (column % 3 - 1) * along_y - 1
    place = at[column]
    while numbers[place] < first:
        place += 1
    at[column] = place
    begin = starts[place]
    while numbers[place] <= first + 2:
        place += 1
    return begin, starts[place]


@compiled
def gather(
    number: Integer,
    along_x: int,
    along_y: int,
    numbers: np.ndarray,
    starts: np.ndarray,
    at: np.ndarray,
    points_3N: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    z: np.ndarray,
    rows: np.ndarray,
) -> int:
    """Copy the points (3, N) of a cell and its 26 neighbours into x, y, z, rows; how many there are.

    Those of the cell's own column come first. at: as of `run_of`. After the points, others that are infinitely far fill
    x, y and z up to a multiple of LANES.
    """
    found = 0
    for step in range(9):
        column = 4 if step == 0 else step - 1 if step <= 4 else step
        begin, end = run_of(column, number, along_x, along_y, numbers, starts, at)
        for i in range(begin, end):
            x[found + i - begin] = points_3N[0, i]
            y[found + i - begin] = points_3N[1, i]
            z[found + i - begin] = points_3N[2, i]
            rows[found + i - begin] = i
        found += end - begin
    for k in range(found, filled_up(found)):
        x[k], y[k], z[k] = np.inf, np.inf, np.inf
    return found


@compiled
def list_candidates(
    number: Integer,
    along_x: int,
    along_y: int,
    numbers: np.ndarray,
    starts: np.ndarray,
    at: np.ndarray,
    rows: np.ndarray,
) -> int:
    """List the few points of a cell and its 26 neighbours; how many there are. Arguments as those of `gather`."""
    found = 0
    for column in range(9):
        begin, end = run_of(column, number, along_x, along_y, numbers, starts, at)
        for i in range(begin, end):
            rows[found] = i
            found += 1
    return found


@compiled
def filled_up(count: int) -> int:
    """Round up to a multiple of LANES."""
    return (count + LANES - 1) // LANES * LANES


@compiled
def squared_distances(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, qx: float, qy: float, qz: float, squared: np.ndarray
) -> None:
    """Compute the squared distances of points to a query; a loop of its own, so that it is vectorised."""
    for k in range(len(squared)):
        dx, dy, dz = x[k] - qx, y[k] - qy, z[k] - qz
        squared[k] = dx * dx + dy * dy + dz * dz


@compiled
def smallest(values: np.ndarray, count: int, guess: float, chosen: np.ndarray) -> float:
    """Choose the `count` smallest of more positive values; the largest of them is returned, their places are `chosen`.

    A threshold, at first `guess`, is moved until as many values or up to SPARE more lie below it; `chosen` has room for
    one more than these. That takes few steps, since on surfaces the number of points grows with the squared distance,
    and has no branch that a processor cannot foresee. Equal values, which no threshold parts, are inserted one by one
    instead.
    """
    low, high = 0.0, 0.0
    inside: Integer = 0
    below: Integer = 0
    upto: Integer = -1
    filled: Integer = 0
    threshold = guess
    for step in range(48):
        inside = 0
        for i in range(len(values)):
            inside += np.int64(values[i] <= threshold)
        if count <= inside <= count + SPARE:
            break
        if inside > count:
            high, upto = threshold, inside
        else:
            low, below = threshold, inside
        share = (count + SPARE / 2 - below) / (upto - below) if step % 3 < 2 else 0.5
        threshold = 2 * low if upto < 0 else low + (high - low) * share
    if count <= inside <= count + SPARE:
        for i in range(len(values)):
            chosen[filled] = i
            filled += np.int64(values[i] <= threshold)
        while filled > count:
            farthest: Integer = 0
            for other in range(1, filled):
                farthest = other if values[chosen[other]] > values[chosen[farthest]] else farthest
            filled -= 1
            chosen[farthest] = chosen[filled]
    else:
        for i in range(len(values)):
            if filled == count and not values[i] < values[chosen[count - 1]]:
                continue
            k = min(filled, count - 1)
            while k > 0 and values[chosen[k - 1]] > values[i]:
                chosen[k] = chosen[k - 1]
                k -= 1
            chosen[k] = i
            filled = min(filled + 1, count)
    largest = 0.0
    for i in range(count):
        largest = max(largest, values[chosen[i]])
    return largest


@compiled
def border_of(qx: float, qy: float, qz: float, corner_m: tuple[float, float, float], size_m: float) -> float:
    """Give a query's distance to the nearest face of its cell."""
    x, y, z = qx - corner_m[0], qy - corner_m[1], qz - corner_m[2]
    return min(x, size_m - x, y, size_m - y, z, size_m - z)


@compiled
def corner_of(voxel: np.ndarray, level: int, low: np.ndarray, size_m: float) -> tuple[float, float, float]:
    """Give the lower corner of the cell of 2^level voxels in which a voxel lies."""
    x, y, z = np.int64(voxel[0]) >> level, np.int64(voxel[1]) >> level, np.int64(voxel[2]) >> level
    return low[0] + x * size_m, low[1] + y * size_m, low[2] + z * size_m


@compiled
def runs_in(cells: PointList | Queries) -> tuple[np.ndarray, np.ndarray]:
    """Give the filled part of a list's numbers and starts."""
    filled = cells.totals[0]
    return cells.numbers[:filled], cells.starts[:filled]


@compiled
def search_neighbours(
    begin: int, end: int, points: PointList, voxel: np.ndarray, grid: VoxelGrid, neighbours: np.ndarray
) -> None:
    """Find the nearest others of the points in the cells begin … end of a list; those of a cell share their candidates.

    voxel: (N, 3), of each point. neighbours: (N, K). Rows that are settled already stay as they are, and so do those
    that a cell and its neighbours do not settle.
    """
    along_x, along_y, order, coordinates = points.along_x, points.along_y, points.order, points.coordinates
    numbers, starts = runs_in(points)
    count, most, size_m = neighbours.shape[1], points.totals[1], grid.size_m * (1 << points.level)
    x, y, z, squared, rows = np.empty(most), np.empty(most), np.empty(most), np.empty(most), np.empty(most, np.int64)
    chosen = np.empty(count + SPARE + 1, np.int64)
    at = columns_before(numbers[begin], along_x, along_y, numbers)
    for cell in range(begin, end):
        first, last = starts[cell], starts[cell + 1]
        if not any_open(neighbours[:, 0], order[first:last]):
            continue
        found = gather(numbers[cell], along_x, along_y, numbers, starts, at, coordinates, x, y, z, rows)
        if found <= count:
            continue
        near, corner_m = squared[: filled_up(found)], corner_of(voxel[order[first]], points.level, grid.low, size_m)
        guess = size_m * size_m
        for i in range(first, last):
            if neighbours[order[i], 0] != UNSETTLED:
                continue
            qx, qy, qz = coordinates[0, i], coordinates[1, i], coordinates[2, i]
            squared_distances(x, y, z, qx, qy, qz, near)
            near[i - rows[0]] = np.inf  # itself: its column comes first, in its order
            # Every point nearer than this is a candidate.
            reach_m = max(size_m + border_of(qx, qy, qz, corner_m, size_m) - grid.slack_m, 0.0)
            farthest = smallest(near, count, guess, chosen)
            guess = 1.1 * farthest  # of the next point, which is near
            if farthest <= reach_m * reach_m:
                for k in range(count):
                    neighbours[order[i], k] = order[rows[chosen[k]]]


@compiled
def search_nearest(
    begin: int,
    end: int,
    points: PointList,
    queries: Queries,
    grid: VoxelGrid,
    limit_m: float,
    nearest: np.ndarray,
) -> None:
    """Find the nearest point of each query in the cells begin … end of their list, -1 if none is nearer than limit_m.

    nearest: (R,). Answers that are settled already stay as they are, and so do those that a cell and its neighbours do
    not settle.
    """
    along_x, along_y, order, coordinates = points.along_x, points.along_y, points.order, points.coordinates
    xyz, (numbers, starts) = queries.xyz, runs_in(points)
    query_numbers, query_starts = runs_in(queries)
    size_m, limit = grid.size_m * (1 << points.level), limit_m * limit_m
    rows = np.empty(points.totals[1], np.int64)
    at = columns_before(query_numbers[begin], along_x, along_y, numbers)
    for cell in range(begin, end):
        these = queries.order[query_starts[cell] : query_starts[cell + 1]]
        if not any_open(nearest, these):
            continue
        found = list_candidates(query_numbers[cell], along_x, along_y, numbers, starts, at, rows)
        corner_m = corner_of(queries.voxel[these[0]], points.level, grid.low, size_m)
        for row in these:
            if nearest[row] != UNSETTLED:
                continue
            qx, qy, qz = np.float64(xyz[row, 0]), np.float64(xyz[row, 1]), np.float64(xyz[row, 2])
            distance, best = np.inf, np.int64(-1)
            for i in rows[:found]:
                dx, dy, dz = coordinates[0, i] - qx, coordinates[1, i] - qy, coordinates[2, i] - qz
                squared = dx * dx + dy * dy + dz * dz
                is_nearer = squared < distance
                distance, best = squared if is_nearer else distance, i if is_nearer else best
            reach_m = max(size_m + border_of(qx, qy, qz, corner_m, size_m) - grid.slack_m, 0.0)
            if min(distance, limit) <= reach_m * reach_m:
                nearest[row] = order[best] if distance < limit else -1
