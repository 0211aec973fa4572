"""Compiled loops over points: voxels, exact neighbours and nearest points, by sorting along a Morton curve.

A Morton code interleaves the bits of a voxel's x, y and z. Sorted by it, the points of a cell of 2^l voxels lie one
behind the other for every l, so that one sort serves grids of all sizes. numba compiles on the first call and keeps the
result on disk; every function runs without the interpreter's lock.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from lidar_semseg_ros.network.machine_code import compiled

Integer: TypeAlias = int | np.integer
Cell: TypeAlias = tuple[Integer, Integer, Integer]

RADIX_BITS = 11
LANES = 16
"""Candidates are filled up to a multiple of this many, so that vectorised loops over them leave no rest."""
SPARE = 4
"""So many more than wanted may lie below a threshold: to drop the farthest of these few is quicker than to move it."""
NO_CELL = np.uint64(2**64 - 1)
"""Marks a free place in a table of cells; Morton codes have 63 bits."""


@compiled
def spread(number: Integer) -> Integer:
    """Put two zero bits between the 21 bits of a number."""
    bits = np.uint64(number) & np.uint64(0x1FFFFF)
    bits = (bits | (bits << np.uint64(32))) & np.uint64(0x1F00000000FFFF)
    bits = (bits | (bits << np.uint64(16))) & np.uint64(0x1F0000FF0000FF)
    bits = (bits | (bits << np.uint64(8))) & np.uint64(0x100F00F00F00F00F)
    bits = (bits | (bits << np.uint64(4))) & np.uint64(0x10C30C30C30C30C3)
    return (bits | (bits << np.uint64(2))) & np.uint64(0x1249249249249249)


@compiled
def voxel_codes(xyz: np.ndarray, low: np.ndarray, voxel_size_m: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Compute voxels (N, 3) int32 and their Morton codes (N,) uint64; truncated in float32, as published."""
    voxel = np.empty((len(xyz), 3), np.int32)
    code = np.empty(len(xyz), np.uint64)
    for i in range(len(xyz)):
        for axis in range(3):
            voxel[i, axis] = np.int32((xyz[i, axis] - low[axis]) / voxel_size_m)
        code[i] = spread(voxel[i, 0]) | spread(voxel[i, 1]) << np.uint64(1) | spread(voxel[i, 2]) << np.uint64(2)
    return voxel, code


@compiled
def lowest(xyz: np.ndarray) -> np.ndarray:
    """Find the lower corner (3,) of points (N, 3); NumPy takes four times as long along this axis."""
    low = xyz[0].copy()
    for i in range(len(xyz)):
        for axis in range(3):
            low[axis] = min(low[axis], xyz[i, axis])
    return low


@compiled
def highest_of_rows(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the largest of each row of (N, C) float32, (N, 1), and the first place where it stands, (N,) uint8."""
    highest, place = np.empty((len(values), 1), np.float32), np.empty(len(values), np.uint8)
    for i in range(len(values)):
        most, best = values[i, 0], np.uint8(0)
        for k in range(1, values.shape[1]):
            is_more = values[i, k] > most
            most, best = values[i, k] if is_more else most, np.uint8(k) if is_more else best
        highest[i, 0], place[i] = most, best
    return highest, place


@compiled
def sorted_order(code: np.ndarray) -> np.ndarray:
    """Sort stably by radix: the order (N,) int32 of codes (N,) uint64."""
    largest = np.uint64(0)
    for one in code:
        largest = max(largest, one)
    order = np.arange(len(code)).astype(np.int32)
    other = np.empty_like(order)
    mask = np.uint64(2**RADIX_BITS - 1)
    shift = np.uint64(0)
    while shift < 64 and largest >> shift > 0:
        place = np.zeros(2**RADIX_BITS + 1, np.int64)
        for one in code:
            place[np.int64(one >> shift & mask) + 1] += 1
        place = np.cumsum(place)
        for i in order:
            bucket = np.int64(code[i] >> shift & mask)
            other[place[bucket]] = i
            place[bucket] += 1
        order, other = other, order
        shift += np.uint64(RADIX_BITS)
    return order


@compiled
def runs_of_equal(sorted_code: np.ndarray, shift: int) -> np.ndarray:
    """Find where each new value of code >> shift begins, and the end: (R + 1,) int64."""
    starts = np.empty(len(sorted_code) + 1, np.int64)
    count = 0
    for i in range(len(sorted_code)):
        if i == 0 or sorted_code[i] >> np.uint64(shift) != sorted_code[i - 1] >> np.uint64(shift):
            starts[count] = i
            count += 1
    starts[count] = len(sorted_code)
    return starts[: count + 1]


@compiled
def place_of(key: Integer, table: np.ndarray) -> Integer:
    """Find the place of a cell in a table of a power of two, or the free one where it would go."""
    mask = len(table) - 1
    place = np.int64(key * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)) & mask
    while table[place] != key and table[place] != NO_CELL:
        place = (place + 1) & mask
    return place


@compiled
def inside_box(xyz: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Tell which of (N, 3) points lie strictly between two corners: (N,) bool."""
    inside = np.empty(len(xyz), np.bool_)
    for i in range(len(xyz)):
        x, y, z = xyz[i, 0], xyz[i, 1], xyz[i, 2]
        inside[i] = low[0] < x < high[0] and low[1] < y < high[1] and low[2] < z < high[2]
    return inside


@compiled
def cell_tables(sorted_code: np.ndarray, first_level: int, levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Note for each level every occupied cell and where its points begin and end.

    Gives keys (S,), spans (S, 2), and where the table of each level begins in them, (L + 1,). Small tables, for what a
    search reads should stay in a core's cache.
    """
    starts_of_level = [runs_of_equal(sorted_code, 3 * (first_level + level)) for level in range(levels)]
    begin = np.zeros(levels + 1, np.int64)
    for level in range(levels):
        size = 16
        while size < 2 * len(starts_of_level[level]):
            size *= 2
        begin[level + 1] = begin[level] + size
    keys = np.full(begin[levels], NO_CELL, np.uint64)
    spans = np.zeros((begin[levels], 2), np.int32)
    for level in range(levels):
        starts, table = starts_of_level[level], keys[begin[level] : begin[level + 1]]
        for run in range(len(starts) - 1):
            key = sorted_code[starts[run]] >> np.uint64(3 * (first_level + level))
            place = place_of(key, table)
            table[place] = key
            spans[begin[level] + place, 0], spans[begin[level] + place, 1] = starts[run], starts[run + 1]
    return keys, spans, begin


@compiled
def gather(
    cell: Cell,
    keys: np.ndarray,
    spans: np.ndarray,
    points: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    z: np.ndarray,
    rows: np.ndarray,
) -> int:
    """Copy the points (M, 3) of a cell and its 26 neighbours, the cell's own first, into x, y, z, rows; how many.

    After them, points that are infinitely far fill x, y and z up to a multiple of LANES.
    """
    along_x = spread(cell[0] - 1), spread(cell[0]), spread(cell[0] + 1)
    along_y = spread(cell[1] - 1), spread(cell[1]), spread(cell[1] + 1)
    along_z = spread(cell[2] - 1), spread(cell[2]), spread(cell[2] + 1)
    found = 0
    for step in range(27):
        neighbour = 13 if step == 0 else step - 1 if step <= 13 else step
        dx, dy, dz = neighbour // 9, neighbour // 3 % 3, neighbour % 3
        if cell[0] + dx < 1 or cell[1] + dy < 1 or cell[2] + dz < 1:
            continue
        place = place_of(along_x[dx] | along_y[dy] << np.uint64(1) | along_z[dz] << np.uint64(2), keys)
        if keys[place] == NO_CELL:
            continue
        for row in range(spans[place, 0], spans[place, 1]):
            x[found], y[found], z[found], rows[found] = points[row, 0], points[row, 1], points[row, 2], row
            found += 1
    for k in range(found, filled_up(found)):
        x[k], y[k], z[k] = np.inf, np.inf, np.inf
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
def place_of_least(values: np.ndarray) -> Integer:
    """Find where the smallest of values is; two loops without a branch are faster than one with."""
    least = np.inf
    for value in values:
        least = min(least, value)
    place = np.int64(-1)
    for k in range(len(values)):
        place = max(place, np.int64(k) if values[k] == least else np.int64(-1))
    return place


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
        for value in values:
            inside += np.int64(value <= threshold)
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
def corner_of(cell: Cell, low: np.ndarray, size_m: float) -> tuple[float, float, float]:
    """Give the lower corner of a cell."""
    return low[0] + cell[0] * size_m, low[1] + cell[1] * size_m, low[2] + cell[2] * size_m


@compiled
def cell_of(voxel: np.ndarray, level: int) -> Cell:
    """Give the cell of 2^level voxels along each axis in which a voxel lies."""
    return np.int64(voxel[0]) >> level, np.int64(voxel[1]) >> level, np.int64(voxel[2]) >> level


@compiled
def search_neighbours(
    begin: int,
    end: int,
    cell_starts: np.ndarray,
    first_level: int,
    table_level: int,
    keys: np.ndarray,
    spans: np.ndarray,
    table_start: np.ndarray,
    voxel_size_m: float,
    low: np.ndarray,
    slack_m: float,
    points: np.ndarray,
    voxel: np.ndarray,
    rank: np.ndarray,
    neighbours: np.ndarray,
) -> None:
    """Find the nearest others of the points in cells [begin, end) of first_level; they share their candidates.

    points: (M, 3) float64, voxel: (M, 3) and rank: (M,), what a point is called in the answer, along the curve; their
    cells begin at cell_starts. keys, spans, table_start: of `cell_tables` from table_level on. neighbours: (M, K), by
    rank; the rows that the largest cells do not settle stay as they were.
    """
    count, total = neighbours.shape[1], len(points)
    room = filled_up(total)
    x, y, z, squared = np.empty(room), np.empty(room), np.empty(room), np.empty(room)
    rows, chosen = np.empty(total, np.int64), np.empty(count + SPARE + 1, np.int64)
    for part in range(begin, end):
        first, last = cell_starts[part], cell_starts[part + 1]
        is_open = np.ones(last - first, np.bool_)
        left = last - first
        for level in range(first_level, table_level + len(table_start) - 1):
            if left == 0:
                break
            cell, size_m = cell_of(voxel[first], level), voxel_size_m * (1 << level)
            table = slice(table_start[level - table_level], table_start[level - table_level + 1])
            found = gather(cell, keys[table], spans[table], points, x, y, z, rows)
            if found <= count:
                continue
            near, corner_m = squared[: filled_up(found)], corner_of(cell, low, size_m)
            guess = size_m * size_m
            for i in range(first, last):
                if not is_open[i - first]:
                    continue
                qx, qy, qz = points[i, 0], points[i, 1], points[i, 2]
                squared_distances(x, y, z, qx, qy, qz, near)
                near[i - rows[0]] = np.inf  # itself: the cell's own points come first, in their order
                # Every point nearer than this is a candidate.
                reach_m = size_m + border_of(qx, qy, qz, corner_m, size_m) - slack_m
                farthest = smallest(near, count, guess, chosen)
                guess = 1.1 * farthest  # of the next point, which is near
                if farthest <= reach_m * reach_m:
                    is_open[i - first] = False
                    left -= 1
                    for k in range(count):
                        neighbours[rank[i], k] = rank[rows[chosen[k]]]


@compiled
def search_nearest(
    begin: int,
    end: int,
    cell_starts: np.ndarray,
    table_level: int,
    keys: np.ndarray,
    spans: np.ndarray,
    table_start: np.ndarray,
    voxel_size_m: float,
    low: np.ndarray,
    slack_m: float,
    limit_m: float,
    points: np.ndarray,
    rank: np.ndarray,
    queries: np.ndarray,
    voxel: np.ndarray,
    order: np.ndarray,
    nearest: np.ndarray,
) -> None:
    """Find the nearest point of each query in cells [begin, end) of table_level, -1 if none is nearer than limit_m.

    points, rank, keys, spans, table_start: as in `search_neighbours`. queries: (R, 3) float32, voxel: (R, 3) and
    nearest: (R,) in their own order; `order` is that along the curve. An answer that is there already, 0 or more,
    stays, and so does what the largest cells do not settle.
    """
    total, limit = len(points), limit_m * limit_m
    room = filled_up(total)
    x, y, z, squared = np.empty(room), np.empty(room), np.empty(room), np.empty(room)
    rows = np.empty(total, np.int64)
    for part in range(begin, end):
        first, last = cell_starts[part], cell_starts[part + 1]
        is_open = nearest[order[first:last]] < 0
        left = np.count_nonzero(is_open)
        for level in range(table_level, table_level + len(table_start) - 1):
            if left == 0:
                break
            cell, size_m = cell_of(voxel[order[first]], level), voxel_size_m * (1 << level)
            table = slice(table_start[level - table_level], table_start[level - table_level + 1])
            found = gather(cell, keys[table], spans[table], points, x, y, z, rows)
            near, corner_m = squared[: filled_up(found)], corner_of(cell, low, size_m)
            for i in range(first, last):
                if not is_open[i - first]:
                    continue
                row = order[i]
                qx, qy, qz = np.float64(queries[row, 0]), np.float64(queries[row, 1]), np.float64(queries[row, 2])
                squared_distances(x, y, z, qx, qy, qz, near)
                best = place_of_least(near)
                distance = near[best] if best >= 0 else np.inf
                reach_m = size_m + border_of(qx, qy, qz, corner_m, size_m) - slack_m
                if min(distance, limit) <= reach_m * reach_m:
                    is_open[i - first] = False
                    left -= 1
                    nearest[row] = rank[rows[best]] if distance < limit else -1
