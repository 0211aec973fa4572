"""Kernels of the network on a GPU, in Triton: exact neighbours, embedding of neighbourhoods, and the spatial mix.

Shapes are capacities: how many rows of an array count is read from the device, so that a captured CUDA graph serves
every sweep that fits. Programs that work through a list take every so many-th entry until its end.
Values are read in any precision and computed in float32, distances in float64. Letters as in network/waffleiron.py;
M: occupied cells of a plane, G: these and the hidden ones around them.

With TRITON_INTERPRET=1 in the environment before the import, everything runs on CPU tensors, slowly.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

RANK_BITS = tl.constexpr(24)
"""A distance and the point it belongs to share 64 bits, so that one minimum finds both: the last bits of the float64
are the point's number, and 28 bits of the mantissa remain, more than the coordinates have."""
MOST_POINTS = 2**24
NOTHING = tl.constexpr(2**63 - 1)
LAST_LEVEL = tl.constexpr(20)
"""27 cells of 2^20 voxels along each axis hold every voxel whose numbers have 21 bits."""
WINDOW = tl.constexpr(16)
"""Candidates of one cell looked at in a step."""

PROGRAMS = 2048
"""Enough to fill a large GPU several times over."""
POINT_ROWS, CELL_ROWS = 16, 4
CHANNEL_BLOCK = 256
"""Rows and channels that a program works on at a time; with these, kernels in half precision spill 20 bytes of
registers on a Hopper GPU, in the search, and a hundred on an Ada, in the embedding."""


def jitted(function: Any) -> Any:
    """Compile on the first call; Triton keeps the machine code on disk."""
    return triton.jit(function)


@jitted
def spread(number: tl.tensor) -> tl.tensor:
    """Put two zero bits between the 21 bits of a number."""
    bits = number & 0x1FFFFF
    bits = (bits | (bits << 32)) & 0x1F00000000FFFF
    bits = (bits | (bits << 16)) & 0x1F0000FF0000FF
    bits = (bits | (bits << 8)) & 0x100F00F00F00F00F
    bits = (bits | (bits << 4)) & 0x10C30C30C30C30C3
    return (bits | (bits << 2)) & 0x1249249249249249


@jitted
def _codes(voxels: tl.tensor, codes: tl.tensor, count: tl.tensor, BLOCK: tl.constexpr) -> None:
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < count
    x = tl.load(voxels + 3 * row, mask=inside, other=0).to(tl.int64)
    y = tl.load(voxels + 3 * row + 1, mask=inside, other=0).to(tl.int64)
    z = tl.load(voxels + 3 * row + 2, mask=inside, other=0).to(tl.int64)
    tl.store(codes + row, spread(x) | (spread(y) << 1) | (spread(z) << 2), mask=inside)


def morton_codes(voxels_N3: Tensor) -> Tensor:
    """Interleave the bits of voxel numbers (N, 3) int32 below 2^21: (N,) int64, as network/kernels.py does."""
    codes = torch.empty(len(voxels_N3), dtype=torch.int64, device=voxels_N3.device)
    _codes[(triton.cdiv(len(codes), 256),)](voxels_N3, codes, len(codes), BLOCK=256)
    return codes


@jitted
def _first_above(codes: tl.tensor, value: tl.tensor, total: tl.tensor) -> tl.tensor:
    """Find the first of `total` ascending codes that is larger than each value."""
    low = (value * 0).to(tl.int32)
    high = low + total
    while tl.max(high - low, 0) > 0:
        middle = (low + high) // 2
        is_open = low < high
        above = tl.load(codes + middle, mask=is_open, other=0) > value
        high = tl.where(is_open & above, middle, high)
        low = tl.where(is_open & (above == 0), middle + 1, low)
    return low


@jitted
def _merged(best: tl.tensor, keys: tl.tensor, slot: tl.tensor, COUNT: tl.constexpr) -> tl.tensor:
    """Take the COUNT smallest, ascending, of those found so far and of a block of new ones; no two keys are equal."""
    merged = tl.full(best.shape, NOTHING, tl.int64)
    for k in range(COUNT):
        least = tl.minimum(tl.min(best, 0), tl.min(tl.min(keys, 1), 0))
        merged = tl.where(slot == k, least, merged)
        best = tl.where(best == least, NOTHING, best)
        keys = tl.where(keys == least, NOTHING, keys)
    return merged


@jitted
def _search(
    queries: tl.tensor,
    voxels: tl.tensor,
    codes: tl.tensor,
    points: tl.tensor,
    ranks: tl.tensor,
    total_at: tl.tensor,
    lattice: tl.tensor,
    found: tl.tensor,
    COUNT: tl.constexpr,
    SLOTS: tl.constexpr,
    FIRST_LEVEL: tl.constexpr,
    OTHERS: tl.constexpr,
) -> None:
    query = tl.program_id(0)
    vx = tl.load(voxels + 3 * query).to(tl.int64)
    vy = tl.load(voxels + 3 * query + 1).to(tl.int64)
    vz = tl.load(voxels + 3 * query + 2).to(tl.int64)
    total = tl.load(total_at)
    voxel_m = tl.load(lattice)
    slack_m = tl.load(lattice + 4)
    limit_m2 = tl.load(lattice + 5)
    qx = tl.load(queries + 3 * query).to(tl.float64)
    qy = tl.load(queries + 3 * query + 1).to(tl.float64)
    qz = tl.load(queries + 3 * query + 2).to(tl.float64)
    lane = tl.arange(0, 32)
    slot = tl.arange(0, SLOTS)
    best = tl.full((SLOTS,), NOTHING, tl.int64)
    rank_mask = (tl.full((), 1, tl.int64) << RANK_BITS) - 1
    level = tl.full((), FIRST_LEVEL, tl.int32)
    is_open = vx >= 0
    while is_open:
        cx = (vx >> level) + lane // 9 - 1
        cy = (vy >> level) + lane // 3 % 3 - 1
        cz = (vz >> level) + lane % 3 - 1
        exists = (lane < 27) & (cx >= 0) & (cy >= 0) & (cz >= 0)
        first = (spread(cx) | (spread(cy) << 1) | (spread(cz) << 2)) << (3 * level)
        last = first | ((tl.full((), 1, tl.int64) << (3 * level)) - 1)
        begin = _first_above(codes, first - 1, total)
        end = tl.where(exists, _first_above(codes, last, total), begin)
        best = tl.full((SLOTS,), NOTHING, tl.int64)
        for offset in range(0, tl.max(end - begin, 0), WINDOW):
            row = begin[:, None] + offset + tl.arange(0, WINDOW)[None, :]
            valid = row < end[:, None]
            x = tl.load(points + 3 * row, mask=valid, other=0.0).to(tl.float64) - qx
            y = tl.load(points + 3 * row + 1, mask=valid, other=0.0).to(tl.float64) - qy
            z = tl.load(points + 3 * row + 2, mask=valid, other=0.0).to(tl.float64) - qz
            rank = tl.load(ranks + row, mask=valid, other=0).to(tl.int64)
            if OTHERS:
                valid = valid & (rank != query)
            squared = (x * x + y * y + z * z).to(tl.int64, bitcast=True)
            keys = tl.where(valid, (squared | rank_mask) - rank_mask + rank, NOTHING)
            if tl.min(tl.min(keys, 1), 0) < tl.max(tl.where(slot < COUNT, best, 0), 0):
                best = _merged(best, keys, slot, COUNT)
        size_m = voxel_m * (tl.full((), 1, tl.int64) << level).to(tl.float64)
        bx = qx - tl.load(lattice + 1) - (vx >> level).to(tl.float64) * size_m
        by = qy - tl.load(lattice + 2) - (vy >> level).to(tl.float64) * size_m
        bz = qz - tl.load(lattice + 3) - (vz >> level).to(tl.float64) * size_m
        border_m = tl.minimum(tl.minimum(bx, size_m - bx), tl.minimum(by, size_m - by))
        border_m = tl.minimum(border_m, tl.minimum(bz, size_m - bz))
        # Every point nearer than this was a candidate.
        reach_m = size_m + border_m - slack_m
        # Rounded up; where fewer than COUNT were found it is a NaN, and no comparison with it is true.
        worst = (tl.max(tl.where(slot < COUNT, best, 0), 0) | rank_mask).to(tl.float64, bitcast=True)
        settled = (worst <= reach_m * reach_m) | (limit_m2 <= reach_m * reach_m)
        is_open = (settled == 0) & (level < LAST_LEVEL)
        level += 1
    near = ((best | rank_mask) - rank_mask).to(tl.float64, bitcast=True) < limit_m2
    rank = tl.where((best != NOTHING) & near, best & rank_mask, -1)
    tl.store(found + query * COUNT + slot, rank.to(tl.int32), mask=slot < COUNT)


def search(
    queries_Q3: Tensor,
    voxels_Q3: Tensor,
    codes_N: Tensor,
    points_N3: Tensor,
    ranks_N: Tensor,
    total: Tensor,
    lattice: Tensor,
    count: int,
    first_level: int,
    others: bool,
) -> Tensor:
    """Find the `count` nearest points of every query, nearest first: (Q, count) int32 of ranks, -1 where there is none.

    queries: float32 and their voxels int32, a negative one for a query that is not asked. codes: int64 ascending, of
    the points, float32, with ranks int32; `total`: () int32, how many count. lattice: (6,) float64, edge of a voxel,
    corner of voxel (0, 0, 0), slack by which a voxel number may be off, squared limit of the distance. others: a query
    is the point with its own number as rank and does not find itself. The search begins in 27 cells of 2^first_level
    voxels along each axis and goes on in larger ones until no point outside can be nearer.
    """
    found = torch.empty((len(queries_Q3), count), dtype=torch.int32, device=queries_Q3.device)
    _search[(len(queries_Q3),)](
        queries_Q3,
        voxels_Q3,
        codes_N,
        points_N3,
        ranks_N,
        total,
        lattice,
        found,
        COUNT=count,
        SLOTS=triton.next_power_of_2(count),
        FIRST_LEVEL=first_level,
        OTHERS=others,
        num_warps=1,
    )
    return found


@jitted
def _activated(x: tl.tensor, GELU: tl.constexpr) -> tl.tensor:
    """Apply the activation; a NaN stays one."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476)) if GELU else tl.where(x < 0, 0.0, x)


@jitted
def _embed(
    features: tl.tensor,
    neighbours: tl.tensor,
    count_at: tl.tensor,
    relative: tl.tensor,
    shift: tl.tensor,
    mix: tl.tensor,
    highest: tl.tensor,
    K: tl.constexpr,
    INPUTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    POINTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0) * POINTS + tl.arange(0, POINTS)
    out = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_point = row < tl.load(count_at)
    best = tl.full((POINTS, BLOCK), float("-inf"), tl.float32)
    for k in range(K):
        other = tl.load(neighbours + row * K + k, mask=is_point, other=0)
        mixed = tl.zeros((POINTS, BLOCK), tl.float32)
        for start in range(0, CHANNELS, HIDDEN):
            c = start + tl.arange(0, HIDDEN)
            known = c < CHANNELS
            hidden = tl.zeros((POINTS, HIDDEN), tl.float32) + tl.load(shift + c, mask=known, other=0.0)[None, :]
            for i in tl.static_range(INPUTS):
                there = tl.load(features + other * INPUTS + i, mask=is_point, other=0.0)
                here = tl.load(features + row * INPUTS + i, mask=is_point, other=0.0)
                gain = tl.load(relative + i * CHANNELS + c, mask=known, other=0.0)
                hidden += (there - here)[:, None] * gain[None, :]
            weight = tl.load(
                mix + c[:, None] * CHANNELS + out[None, :],
                mask=known[:, None] & (out < CHANNELS)[None, :],
                other=0.0,
            )
            hidden = tl.where(hidden < 0, 0.0, hidden).to(weight.dtype)
            mixed = tl.dot(hidden, weight, mixed, input_precision="ieee")
        best = tl.maximum(best, mixed, propagate_nan=tl.PropagateNan.ALL)
    place = row.to(tl.int64)[:, None] * CHANNELS + out[None, :]
    tl.store(highest + place, best.to(highest.dtype.element_ty), mask=is_point[:, None] & (out < CHANNELS)[None, :])


def embed_neighbours(
    features_NI: Tensor, neighbours_NK: Tensor, count: Tensor, relative_IC: Tensor, shift_C: Tensor, mix_CC: Tensor
) -> Tensor:
    """Compute max_j ReLU(Aᵀ (x_j − x_i) + a)ᵀ B over the K neighbours of each point: (N, C) in the dtype of B.

    features: float32. neighbours: int32. count: () int32, how many of the N rows are points; the others stay arbitrary.
    relative: A, shift: a, float32. mix: B, from hidden to output channels.
    """
    points, channels = len(features_NI), len(mix_CC)
    highest = torch.zeros((points, channels), dtype=mix_CC.dtype, device=mix_CC.device)
    block = min(128, max(16, triton.next_power_of_2(channels)))
    _embed[(triton.cdiv(points, 64), triton.cdiv(channels, block))](
        features_NI,
        neighbours_NK,
        count,
        relative_IC,
        shift_C,
        mix_CC,
        highest,
        K=neighbours_NK.shape[1],
        INPUTS=features_NI.shape[1],
        CHANNELS=channels,
        POINTS=64,
        HIDDEN=min(32, block),
        BLOCK=block,
        num_warps=4,
    )
    return highest


@jitted
def _flatten(
    tokens: tl.tensor,
    offset: tl.tensor,
    order: tl.tensor,
    start: tl.tensor,
    cells_at: tl.tensor,
    gain: tl.tensor,
    shift: tl.tensor,
    mean: tl.tensor,
    epsilon: tl.tensor,
    NORMALISE: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    c = tl.arange(0, BLOCK)
    known = c < CHANNELS
    offset_C = tl.load(offset + c, mask=known, other=0.0)
    gain_C = tl.load(gain + c, mask=known, other=0.0)
    shift_C = tl.load(shift + c, mask=known, other=0.0)
    for cell in range(tl.program_id(0), tl.load(cells_at), tl.num_programs(0)):
        begin = tl.load(start + cell)
        end = tl.load(start + cell + 1)
        total_C = tl.zeros((BLOCK,), tl.float32)
        for first in range(begin, end, ROWS):
            place = first + tl.arange(0, ROWS)
            row = tl.load(order + place, mask=place < end, other=0).to(tl.int64)
            valid = (place < end)[:, None] & known[None, :]
            x = tl.load(tokens + row[:, None] * CHANNELS + c[None, :], mask=valid, other=0.0).to(tl.float32)
            x = tl.where(valid, x + offset_C[None, :], 0.0)
            if NORMALISE:
                centre = tl.sum(x, 1) / CHANNELS
                x = tl.where(valid, x - centre[:, None], 0.0)
                x = x * (1.0 / tl.sqrt(tl.sum(x * x, 1) / CHANNELS + epsilon))[:, None]
            total_C += tl.sum(x, 0)
        count = (end - begin).to(tl.float32)
        value = (gain_C * total_C + shift_C * count) / (count + 1e-6)
        place_C = (cell + tl.zeros((BLOCK,), tl.int64)) * CHANNELS + c
        tl.store(mean + place_C, value.to(mean.dtype.element_ty), mask=known)


def flatten(
    tokens_NC: Tensor,
    offset_C: Tensor,
    order_N: Tensor,
    start: Tensor,
    cells: Tensor,
    gain_C: Tensor,
    shift_C: Tensor,
    epsilon: float,
) -> Tensor:
    """Compute gain · mean(norm(token + offset)) + shift of the points of each occupied cell: (M, C) like the tokens.

    order, start: int32, points order[start[m]:start[m + 1]] lie in cell m. cells: () int32, how many cells count.
    offset, gain, shift: float32. epsilon: of a layer norm over the channels; negative: tokens are taken as they are.
    """
    channels = tokens_NC.shape[1]
    mean_MC = torch.empty((len(start) - 1, channels), dtype=tokens_NC.dtype, device=tokens_NC.device)
    _flatten[(min(PROGRAMS, len(mean_MC)),)](
        tokens_NC,
        offset_C,
        order_N,
        start,
        cells,
        gain_C,
        shift_C,
        mean_MC,
        epsilon,
        NORMALISE=epsilon >= 0,
        CHANNELS=channels,
        BLOCK=triton.next_power_of_2(channels),
        ROWS=POINT_ROWS,
        num_warps=4 if channels <= 512 else 8,
    )
    return mean_MC


@jitted
def _window_sum(
    values: tl.tensor,
    windows: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    cell: tl.tensor,
    valid: tl.tensor,
    c: tl.tensor,
    CHANNELS: tl.constexpr,
) -> tl.tensor:
    """Compute one depthwise 3×3 convolution at some cells: (cells, C) float32."""
    known = c < CHANNELS
    total = tl.zeros((cell.shape[0], c.shape[0]), tl.float32) + tl.load(bias + c, mask=known, other=0.0)[None, :]
    for k in tl.static_range(9):
        other = tl.load(windows + cell * 9 + k, mask=valid, other=-1).to(tl.int64)
        there = (other >= 0)[:, None] & known[None, :]
        x = tl.load(values + other[:, None] * CHANNELS + c[None, :], mask=there, other=0.0).to(tl.float32)
        total += x * tl.load(weight + k * CHANNELS + c, mask=known, other=0.0)[None, :]
    return total


@jitted
def _convolve(
    values: tl.tensor,
    windows: tl.tensor,
    cells_at: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    hidden: tl.tensor,
    GELU: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(cells_at)
    for first in range(tl.program_id(0) * ROWS, total, tl.num_programs(0) * ROWS):
        cell = first + tl.arange(0, ROWS)
        value = _activated(_window_sum(values, windows, weight, bias, cell, cell < total, c, CHANNELS), GELU)
        place = cell.to(tl.int64)[:, None] * CHANNELS + c[None, :]
        valid = (cell < total)[:, None] & (c < CHANNELS)[None, :]
        tl.store(hidden + place, value.to(hidden.dtype.element_ty), mask=valid)


def convolve(
    mean_MC: Tensor, around_G9: Tensor, cells: Tensor, weight_9C: Tensor, bias_C: Tensor, gelu: bool
) -> Tensor:
    """Compute act(weight ∗ mean + bias) at the hidden cells: (G, C) like the means.

    around: int32, the occupied cells around each hidden one in the order of the weights, -1 where none is.
    cells: () int32, how many hidden cells count. weight, bias: float32.
    """
    channels = mean_MC.shape[1]
    hidden_GC = torch.empty((len(around_G9), channels), dtype=mean_MC.dtype, device=mean_MC.device)
    block = min(CHANNEL_BLOCK, triton.next_power_of_2(channels))
    _convolve[(min(PROGRAMS, triton.cdiv(len(hidden_GC), CELL_ROWS)), triton.cdiv(channels, block))](
        mean_MC,
        around_G9,
        cells,
        weight_9C,
        bias_C,
        hidden_GC,
        GELU=gelu,
        CHANNELS=channels,
        BLOCK=block,
        ROWS=CELL_ROWS,
    )
    return hidden_GC


@jitted
def _inflate(
    tokens: tl.tensor,
    offset: tl.tensor,
    hidden: tl.tensor,
    windows: tl.tensor,
    order: tl.tensor,
    start: tl.tensor,
    cells_at: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = c < CHANNELS
    offset_C = tl.load(offset + c, mask=known, other=0.0)
    for cell in range(tl.program_id(0), tl.load(cells_at), tl.num_programs(0)):
        alone = cell + tl.zeros((1,), tl.int32)
        mixed = _window_sum(hidden, windows, weight, bias, alone, alone >= 0, c, CHANNELS) + offset_C[None, :]
        end = tl.load(start + cell + 1)
        for first in range(tl.load(start + cell), end, ROWS):
            place = first + tl.arange(0, ROWS)
            row = tl.load(order + place, mask=place < end, other=0).to(tl.int64)
            valid = (place < end)[:, None] & known[None, :]
            at = tokens + row[:, None] * CHANNELS + c[None, :]
            x = tl.load(at, mask=valid, other=0.0).to(tl.float32) + mixed
            tl.store(at, x.to(tokens.dtype.element_ty), mask=valid)


def inflate(
    tokens_NC: Tensor,
    offset_C: Tensor,
    hidden_GC: Tensor,
    hidden_M9: Tensor,
    order_N: Tensor,
    start: Tensor,
    cells: Tensor,
    weight_9C: Tensor,
    bias_C: Tensor,
) -> None:
    """Add offset + weight ∗ hidden + bias of its cell to every token, in place.

    hidden_M9: int32, the hidden cells around each occupied one, -1 where none is; the rest as in `flatten`.
    """
    channels = tokens_NC.shape[1]
    block = min(CHANNEL_BLOCK, triton.next_power_of_2(channels))
    _inflate[(min(PROGRAMS, len(start) - 1), triton.cdiv(channels, block))](
        tokens_NC,
        offset_C,
        hidden_GC,
        hidden_M9,
        order_N,
        start,
        cells,
        weight_9C,
        bias_C,
        CHANNELS=channels,
        BLOCK=block,
        ROWS=POINT_ROWS,
    )
