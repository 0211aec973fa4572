"""Compiled loops of the spatial mix, over the occupied cells of a plane and the hidden cells beside them only.

Indoors a tenth of a grid's cells are occupied. The first of two 3×3 convolutions is not zero on these and on the cells
around them, and of the second only the occupied cells are read; no other cell is ever computed. Functions of the
rows begin … end can share these; all run without the interpreter's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from lidar_semseg_ros.network import machine_code

F = TypeVar("F", bound=Callable[..., Any])

FAST = {"contract", "reassoc", "nsz"}
"""Sums may be taken in another order and multiply-adds rounded once, which vector units need; NaN stays NaN."""


def compiled(function: F) -> F:
    """Compile, with sums as FAST says."""
    return machine_code.compiled(function, FAST)


def most_around(cells: int, of_grid: int) -> int:
    """Tell how many cells there are at most within one step of so many occupied ones of a grid."""
    return min(9 * cells, of_grid)


@compiled
def find_cells(
    order: np.ndarray,
    start: np.ndarray,
    occupied: np.ndarray,
    shape: np.ndarray,
    place: np.ndarray,
    around: np.ndarray,
    hidden: np.ndarray,
) -> int:
    """Find the cells of N points on a grid of `shape`, and those around them; how many there are with these, G.

    order (N,), start (M + 1,), occupied (M,): as in CroppedPlane, and the end. Written are, as in Cells, place (N,),
    hidden (M, 9) and the first G rows of around, (`most_around`, 9).
    """
    height, width = shape[0], shape[1]
    near, row_of = np.zeros(height * width, np.bool_), np.full(height * width, -1, np.int32)
    for m in range(len(occupied)):
        for i in range(start[m], start[m + 1]):
            place[order[i]] = m
        row_of[occupied[m]] = m
        row, column = occupied[m] // width, occupied[m] % width
        for y in range(max(row - 1, 0), min(row + 2, height)):
            for x in range(max(column - 1, 0), min(column + 2, width)):
                near[y * width + x] = True
    there = np.flatnonzero(near)
    windows(there, row_of, height, width, around)
    for g in range(len(there)):
        row_of[there[g]] = g
    windows(occupied, row_of, height, width, hidden)
    return len(there)


@compiled
def windows(cells: np.ndarray, row_of: np.ndarray, height: int, width: int, window: np.ndarray) -> None:
    """Write to row k of window (…, 9) what `row_of` tells of the 3×3 cells around the k-th cell, -1 beyond the grid.

    Cells are linear ones of an H × W grid; the order is that of a convolution's weights, row by row.
    """
    for k in range(len(cells)):
        row, column = cells[k] // width, cells[k] % width
        for tap in range(9):
            y, x = row + tap // 3 - 1, column + tap % 3 - 1
            inside = 0 <= y < height and 0 <= x < width
            window[k, tap] = row_of[y * width + x] if inside else -1


@compiled
def flatten(
    begin: int,
    end: int,
    tokens_NC: np.ndarray,
    order: np.ndarray,
    start: np.ndarray,
    gain_C: np.ndarray,
    shift_C: np.ndarray,
    epsilon: float,
    mean_MC: np.ndarray,
) -> None:
    """Write gain · mean(norm(tokens)) + shift of the points order[start[m]:start[m + 1]] into row m of mean_MC.

    epsilon: of a layer norm over the channels of every token; negative: tokens are taken as they are.
    The mean is that of the published network, Σ / (n + 1e-6).
    """
    channels = tokens_NC.shape[1]
    for m in range(begin, end):
        for c in range(channels):
            mean_MC[m, c] = 0
        for i in order[start[m] : start[m + 1]]:
            centre, scale = np.float32(0), np.float32(1)
            if epsilon >= 0:
                centre, scale = centre_and_scale(tokens_NC[i], epsilon)
            for c in range(channels):
                mean_MC[m, c] += (tokens_NC[i, c] - centre) * scale
        count = start[m + 1] - start[m]
        weight, share = np.float32(1 / (count + 1e-6)), np.float32(count / (count + 1e-6))
        for c in range(channels):
            mean_MC[m, c] = mean_MC[m, c] * weight * gain_C[c] + share * shift_C[c]


@compiled
def centre_and_scale(token_C: np.ndarray, epsilon: float) -> tuple[np.float32, np.float32]:
    """Compute mean and 1 / sqrt(variance + epsilon) of a token's channels."""
    total, squares = np.float32(0), np.float32(0)
    for c in range(len(token_C)):
        total += token_C[c]
    mean = np.float32(total / np.float32(len(token_C)))
    for c in range(len(token_C)):
        squares += (token_C[c] - mean) * (token_C[c] - mean)
    return mean, np.float32(1 / np.sqrt(np.float64(squares) / len(token_C) + epsilon))


@compiled
def normalise(tokens_nC: np.ndarray, epsilon: float, normal_nC: np.ndarray) -> None:
    """Give the tokens of a part mean 0 and variance 1 over their channels."""
    for i in range(len(tokens_nC)):
        centre, scale = centre_and_scale(tokens_nC[i], epsilon)
        for c in range(tokens_nC.shape[1]):
            normal_nC[i, c] = (tokens_nC[i, c] - centre) * scale


@compiled
def convolve(
    begin: int,
    end: int,
    cells_MC: np.ndarray,
    window: np.ndarray,
    weight_9C: np.ndarray,
    bias_C: np.ndarray,
    none_C: np.ndarray,
    rectify: bool,
    out_MC: np.ndarray,
) -> None:
    """Convolve depthwise, every row of out_MC from the up to 9 rows of cells_MC in its window; then ReLU if wanted.

    none_C: zeros, for the rows that are not there.
    """
    channels = out_MC.shape[1]
    w0, w1, w2 = weight_9C[0], weight_9C[1], weight_9C[2]
    w3, w4, w5 = weight_9C[3], weight_9C[4], weight_9C[5]
    w6, w7, w8 = weight_9C[6], weight_9C[7], weight_9C[8]
    for m in range(begin, end):
        # All nine at once, so that a sum stays in its register: a row of zeros costs less than a jump.
        n, out_C = window[m], out_MC[m]
        x0 = cells_MC[n[0]] if n[0] >= 0 else none_C
        x1 = cells_MC[n[1]] if n[1] >= 0 else none_C
        x2 = cells_MC[n[2]] if n[2] >= 0 else none_C
        x3 = cells_MC[n[3]] if n[3] >= 0 else none_C
        x4 = cells_MC[n[4]] if n[4] >= 0 else none_C
        x5 = cells_MC[n[5]] if n[5] >= 0 else none_C
        x6 = cells_MC[n[6]] if n[6] >= 0 else none_C
        x7 = cells_MC[n[7]] if n[7] >= 0 else none_C
        x8 = cells_MC[n[8]] if n[8] >= 0 else none_C
        for c in range(channels):
            total = bias_C[c] + w0[c] * x0[c] + w1[c] * x1[c] + w2[c] * x2[c]
            total = total + w3[c] * x3[c] + w4[c] * x4[c] + w5[c] * x5[c]
            total = total + w6[c] * x6[c] + w7[c] * x7[c] + w8[c] * x8[c]
            out_C[c] = np.float32(0) if rectify and total < 0 else total  # which NaN is not


@compiled
def inflate(begin: int, end: int, cells_MC: np.ndarray, place: np.ndarray, tokens_NC: np.ndarray) -> None:
    """Add to every token the row of cells_MC that its cell is."""
    for i in range(begin, end):
        source = place[i]
        for c in range(tokens_NC.shape[1]):
            tokens_NC[i, c] += cells_MC[source, c]
