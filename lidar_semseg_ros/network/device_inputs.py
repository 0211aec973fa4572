"""What network/inputs.py does, on the device: from raw points to what the network eats, without looking at the data.

Every array has a fixed capacity, how much of it counts stays on the device, and no step waits for the host, so that all
of it can be captured in CUDA graphs. Between the two halves, `sifted` and `network_input`, the host reads how many
points were kept, to choose the capacity of the rest.

Divisors are tensors: by a number, PyTorch multiplies with the reciprocal on a GPU, and that puts points on a border
into other voxels and cells than the published code does.
Letters as in network/waffleiron.py; R: rows of the sweep, M: occupied cells of a plane, G: these and those around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lidar_semseg_ros.network import triton_kernels
from lidar_semseg_ros.network.inputs import AXES, FOV_MARGIN_M, PLANE_AXES, InputConfig

NO_KEY = 2**63 - 1
NEAREST_LEVEL, NEIGHBOUR_LEVEL = 1, 2
"""Searching begins in cells of 2 voxels along each axis for the nearest point and of 4 for the neighbours."""


class DeviceCells(NamedTuple):
    """Cells of a plane as the kernels take them, all int32.

    order: (N,) points by cell. start: (M + 1,) where each occupied cell's points begin in it.
    around: (G, 9) occupied cells around each hidden one, hidden: (M, 9) hidden cells around each occupied one, -1 for
        none. The order in a window is that of a convolution's weights.
    occupied_total, hidden_total: (), how many of the M and G rows count.
    """

    order: Tensor
    start: Tensor
    around: Tensor
    hidden: Tensor
    occupied_total: Tensor
    hidden_total: Tensor


class DeviceInput(NamedTuple):
    """N rows for the network, of which the first `total`, () int32, are points; neighbours: (N, K) int32."""

    features: Tensor
    neighbours: Tensor
    total: Tensor
    planes: Sequence[DeviceCells]


class Sifted(NamedTuple):
    """Voxels of R rows and the points kept of them.

    voxel: (R, 3) int32, -1 for rows without a usable return. low: (3,) float32, the corner of voxel (0, 0, 0).
    kept: (R,) int64, rows of the points kept, as in NetworkInput; the first `total`, () int32, of them count.
    """

    voxel: Tensor
    low: Tensor
    kept: Tensor
    total: Tensor


class DevicePreparation:
    """The preparation for one model on one device."""

    def __init__(self, config: InputConfig, device: str) -> None:
        def on_device(values: object, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        low, high = np.array(config.fov_min_m), np.array(config.fov_max_m)
        self._config, self._device = config, device
        self._usable_m = float(np.float32(config.voxel_size_m * 2**20 * 0.99))
        self._voxel_m = on_device(config.voxel_size_m, torch.float32)
        self._inner_low, self._inner_high = on_device(low + FOV_MARGIN_M), on_device(high - FOV_MARGIN_M)
        axes = [list(PLANE_AXES[plane]) for plane in config.planes]
        self._corner = [on_device(low[axis]) for axis in axes]
        self._cell_m = [on_device((high - low)[axis] / grid) for axis, grid in zip(axes, config.grids)]
        self._window = on_device([[i // 3 - 1, i % 3 - 1] for i in range(9)], torch.int64)
        self._edge_m = on_device([config.voxel_size_m])
        limit_m2 = config.max_label_distance_m**2
        self._no_limit_m2, self._limit_m2 = on_device([float("inf")]), on_device([limit_m2])
        self._intensity_std = on_device(config.intensity_std, torch.float32)

    def sifted(self, xyz_R3: Tensor) -> Sifted:
        """Keep the first point in file order of every voxel, in the field of view, ordered by voxel x, y, z."""
        near = (xyz_R3.abs() < self._usable_m).all(1)
        unusable = ~(near & ((xyz_R3 * xyz_R3).sum(1) > 0))
        low = xyz_R3.masked_fill(unusable[:, None], torch.inf).amin(0)
        voxel = ((xyz_R3 - low) / self._voxel_m).masked_fill(unusable[:, None], -1).to(torch.int32)
        x, y, z = voxel.long().unbind(1)
        key, order = ((x << 42) | (y << 21) | z).masked_fill(unusable, NO_KEY).sort(stable=True)
        inside = ((xyz_R3 > self._inner_low) & (xyz_R3 < self._inner_high)).all(1)
        taken = _begins(key) & (key < NO_KEY) & inside[order]
        total = taken.sum(dtype=torch.int32)
        return Sifted(voxel=voxel, low=low, kept=_compacted(order, taken, len(order), 0), total=total)

    def network_input(
        self, xyz_R3: Tensor, intensity_R: Tensor, sifted: Sifted, capacity: int
    ) -> tuple[DeviceInput, Tensor]:
        """Prepare up to N = `capacity` kept points; with them, the kept point nearest to every row, (R,) int64.

        Rows that are not measured or have no kept point near enough get -1. Rows beyond the points kept are their own
        neighbours, lie in no cell and so change nothing.
        """
        rows = torch.arange(capacity, dtype=torch.int32, device=self._device)
        beyond, kept = rows >= sifted.total, sifted.kept[:capacity]
        xyz = xyz_R3[kept].masked_fill(beyond[:, None], 0)
        voxel = sifted.voxel[kept].masked_fill(beyond[:, None], -1)
        code, by_code = triton_kernels.morton_codes(voxel).masked_fill(beyond, NO_KEY).sort()
        on_curve = (code, xyz[by_code], by_code.int(), sifted.total)
        lattice = self._lattice_of(xyz, sifted.low)
        neighbours = triton_kernels.search(
            xyz,
            voxel,
            *on_curve,
            torch.cat([lattice, self._no_limit_m2]),
            self._config.neighbours,
            NEIGHBOUR_LEVEL,
            others=True,
        )
        nearest = triton_kernels.search(
            xyz_R3, sifted.voxel, *on_curve, torch.cat([lattice, self._limit_m2]), 1, NEAREST_LEVEL, others=False
        )
        prepared = DeviceInput(
            features=self._features(xyz, intensity_R[kept], beyond),
            neighbours=_repeated(neighbours, rows, sifted.total),
            total=sifted.total,
            planes=[self._cells(xyz, beyond, plane) for plane in range(len(self._config.planes))],
        )
        return prepared, nearest[:, 0].long()

    def _lattice_of(self, xyz: Tensor, low: Tensor) -> Tensor:
        """Give edge, corner and slack of the voxels, (5,) float64 (network/triton_kernels.py, search)."""
        slack_m = 4 * float(np.finfo(np.float32).eps) * (xyz.abs().amax() + low.abs().amax()).double() + 1e-9
        return torch.cat([self._edge_m, low.double(), slack_m[None]])

    def _features(self, xyz: Tensor, intensity: Tensor, beyond: Tensor) -> Tensor:
        columns = {name: xyz[:, axis] for name, axis in AXES.items()}
        columns["height"] = columns["z"]
        columns["radius"] = (xyz * xyz).sum(1).sqrt()
        columns["intensity"] = (intensity - self._config.intensity_mean) / self._intensity_std
        features = torch.stack([columns[name] for name in self._config.features], dim=1)
        # A driver that writes NaN as intensity must not blank the point and, through its cells, others.
        return features.masked_fill(beyond[:, None] | ~features.isfinite(), 0)

    def _cells(self, xyz: Tensor, beyond: Tensor, plane: int) -> DeviceCells:
        height, width = self._config.grids[plane]
        axes, grid, points = PLANE_AXES[self._config.planes[plane]], height * width, len(xyz)
        at = torch.stack([xyz[:, axis] for axis in axes], dim=1).double()
        row, column = ((at - self._corner[plane]) / self._cell_m[plane]).long().unbind(1)
        row, column = row.clamp(max=height - 1), column.clamp(max=width - 1)  # as inputs.grid_cells
        # A row that is no point lies in a cell beyond the grid, and no list of cells has that one.
        cell, order = (row * width + column).masked_fill(beyond, grid).sort(stable=True)
        begins = _begins(cell) & (cell < grid)
        occupied = _compacted(cell, begins, points, grid)
        position = torch.arange(points + 1, dtype=torch.int32, device=self._device)
        start = _compacted(position[:-1], begins, points + 1, (~beyond).sum(dtype=torch.int32))
        is_occupied = _places(occupied, grid) >= 0
        is_hidden = F.max_pool2d(is_occupied[:-1].float().view(1, 1, height, width), 3, 1, 1).flatten() > 0
        every = torch.arange(grid, device=self._device)
        hidden = _compacted(every, is_hidden, min(grid, 9 * points), grid)
        return DeviceCells(
            order=order.int(),
            start=start,
            around=self._windows(hidden, _places(occupied, grid), height, width),
            hidden=self._windows(occupied, _places(hidden, grid), height, width),
            occupied_total=begins.sum(dtype=torch.int32),
            hidden_total=is_hidden.sum(dtype=torch.int32),
        )

    def _windows(self, cells: Tensor, places: Tensor, height: int, width: int) -> Tensor:
        """Find the places of the 3×3 cells around each cell: (cells, 9) int32, row by row, -1 for none."""
        row = (cells // width)[:, None] + self._window[:, 0]
        column = (cells % width)[:, None] + self._window[:, 1]
        on_grid = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        return places[(row * width + column).masked_fill(~on_grid, height * width)]


def _begins(ascending: Tensor) -> Tensor:
    """Tell where a new value begins: (N,) bool."""
    return F.pad(ascending[1:] != ascending[:-1], (1, 0), value=True)


def _compacted(values: Tensor, taken: Tensor, capacity: int, fill: int | Tensor) -> Tensor:
    """List the values that are taken, in their order, and `fill` from there on: (capacity,)."""
    target = (taken.cumsum(0) - 1).masked_fill(~taken, capacity).clamp(max=capacity)
    listed = torch.zeros(capacity + 1, dtype=values.dtype, device=values.device) + fill
    return listed.to(values.dtype).scatter_(0, target, values)[:capacity]


def _places(cells: Tensor, grid: int) -> Tensor:
    """Note for each cell of a grid where it is in a list of cells, -1 for none: (grid + 1,) int32, the last one -1."""
    numbers = torch.arange(len(cells), dtype=torch.int32, device=cells.device)
    places = torch.full((grid + 1,), -1, dtype=torch.int32, device=cells.device)
    return places.scatter_(0, cells, numbers.masked_fill(cells >= grid, -1))


def _repeated(neighbours_NK: Tensor, rows: Tensor, total: Tensor) -> Tensor:
    """Repeat the nearest others where there are fewer than K; a lone point is its own neighbour."""
    column = torch.arange(neighbours_NK.shape[1], device=rows.device) % (total - 1).clamp(min=1)
    repeated = neighbours_NK.gather(1, column.long().expand_as(neighbours_NK))
    return torch.where(repeated < 0, rows[:, None], repeated)
