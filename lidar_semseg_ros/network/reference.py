"""The published algorithm in its published form: what network/inputs.py and network/inference.py must equal, and beat.

Voxels by the unique rows of a table, neighbours by a k-d tree, tensors channel-major, one operation per formula, cells
averaged by a sparse matrix product on the full grid, every norm by its own, all in float32 as the state dict has it.
Letters as in network/waffleiron.py; P: planes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.network.inputs import AXES, InputConfig, NetworkInput, grid_cells, inside_fov
from lidar_semseg_ros.network.waffleiron import WaffleIronConfig


@dataclass(frozen=True, kw_only=True)
class PublishedInput:
    """The inputs of the published network for one sweep of `points` rows, and the way back.

    features: (I, N) float32. neighbours: (K, N) int64. cells: (N,) int64 per plane, row · W + column of the full grid.
    kept: (N,) rows of the sweep. measured: (R,) rows with a return. nearest: (R,) the kept point each is nearest to, -1
    where that is too far.
    """

    points: int
    features: np.ndarray
    neighbours: np.ndarray
    cells: tuple[np.ndarray, ...]
    kept: np.ndarray
    measured: np.ndarray
    nearest: np.ndarray

    def way_back(self) -> NetworkInput:
        """Give what `to_points` needs to bring logits to every row of the sweep."""
        return NetworkInput(
            points=self.points,
            features=self.features.T,
            neighbours=self.neighbours.T,
            planes=(),
            kept=self.kept,
            measured=self.measured,
            nearest=self.nearest,
        )


def prepare_as_published(frame: LidarFrame, config: InputConfig) -> PublishedInput:
    """Prepare a sweep; UserError if it has no more than K voxels, with which the published code cannot do."""
    from scipy.spatial import cKDTree

    measured = np.flatnonzero(frame.has_return())
    xyz = frame.xyz[measured]
    if len(xyz):
        voxel = ((xyz - xyz.min(axis=0)) / np.float32(config.voxel_size_m)).astype(np.int64)
        first = np.unique(voxel, axis=0, return_index=True)[1]
    else:
        first = np.empty(0, np.int64)
    kept = first[inside_fov(xyz[first], config)]
    if len(kept) <= config.neighbours:
        raise UserError(f"the published algorithm needs more than {config.neighbours} voxels, but got {len(kept)}")
    tree = cKDTree(xyz[kept])
    neighbours = tree.query(xyz[kept], k=config.neighbours + 1)[1][:, 1:]
    distance_m, nearest = tree.query(xyz)
    cells = []
    for plane, (_, columns) in enumerate(config.grids):
        row, column = grid_cells(xyz[kept], config, plane)
        cells.append(row * columns + column)
    return PublishedInput(
        points=len(frame),
        features=_features(frame, measured[kept], config),
        neighbours=np.ascontiguousarray(neighbours.T),
        cells=tuple(cells),
        kept=measured[kept],
        measured=measured,
        nearest=np.where(distance_m < config.max_label_distance_m, nearest, -1),
    )


def _features(frame: LidarFrame, rows: np.ndarray, config: InputConfig) -> np.ndarray:
    """Compute features (I, N) float32."""
    xyz = frame.xyz[rows]
    intensity = np.full(len(rows), config.intensity_mean) if frame.intensity is None else frame.intensity[rows]
    columns = {name: xyz[:, axis] for name, axis in AXES.items()} | {
        "height": xyz[:, 2],
        "radius": np.linalg.norm(xyz, axis=1),
        "intensity": (intensity - config.intensity_mean) / config.intensity_std,
    }
    return np.nan_to_num(np.stack([columns[name] for name in config.features]).astype(np.float32))


class PublishedWaffleIron:
    """The network with the weights of a state dict, on a CPU or a GPU, in float32 on both.

    grids: as in InputConfig. threads: of the CPU, 0 for as many as PyTorch takes.
    """

    def __init__(
        self,
        config: WaffleIronConfig,
        state: Mapping[str, Tensor],
        grids: tuple[tuple[int, int], ...],
        threads: int = 0,
        device: str = "cpu",
    ) -> None:
        self._config, self._grids, self._threads, self._device = config, grids, threads, device
        self._state = {key: value.to(device) for key, value in state.items()}

    def logits(self, inputs: PublishedInput) -> Tensor:
        """Compute logits (N, outputs), on the CPU."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads or before)
        try:
            with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                return self._logits(inputs).cpu()
        finally:
            torch.set_num_threads(before)

    def _logits(self, inputs: PublishedInput) -> Tensor:
        t_1CN = self._embedding(self._brought(inputs.features)[None], self._brought(inputs.neighbours)[None])
        cells = [self._brought(cell) for cell in inputs.cells]
        averages = [_averaging(cell, grid) for cell, grid in zip(cells, self._grids)]
        for layer in range(self._config.depth):
            plane = layer % len(cells)
            t_1CN = t_1CN + self._spatial_mix(layer, t_1CN, cells[plane], averages[plane], self._grids[plane])
            t_1CN = t_1CN + self._channel_mix(layer, t_1CN)
        return self._head(t_1CN)[0].T

    def _brought(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def _embedding(self, features_1IN: Tensor, neighbours_1KN: Tensor) -> Tensor:
        x_1IN = self._batch_norm("embed.norm", features_1IN)
        point_1CN = self._conv("embed.conv1", x_1IN)
        relative_1IKN = x_1IN[0][:, neighbours_1KN[0]][None] - x_1IN[:, :, None]
        hidden_1CKN = self._conv("embed.conv2.1", self._batch_norm("embed.conv2.0", relative_1IKN))
        hidden_1CKN = F.relu(self._batch_norm("embed.conv2.2", hidden_1CKN))
        highest_1CN = self._conv("embed.conv2.4", hidden_1CKN).max(dim=2)[0]
        return self._conv("embed.final", torch.cat([point_1CN, highest_1CN], dim=1))

    def _spatial_mix(self, layer: int, t_1CN: Tensor, cell_N: Tensor, average: Tensor, grid: tuple[int, int]) -> Tensor:
        key = f"waffleiron.spatial_mix.{layer}"
        x_1CN = self._norm(f"{key}.norm", t_1CN)
        mean_1CHW = torch.sparse.mm(average, x_1CN[0].T).T.reshape(1, -1, *grid)
        hidden_1CHW = self._activation(self._conv(f"{key}.ffn.0", mean_1CHW, depthwise=True))
        mixed_1CM = self._conv(f"{key}.ffn.2", hidden_1CHW, depthwise=True).flatten(2)
        scaled_1CM = self._conv(f"{key}.scale", mixed_1CM, depthwise=True)
        return scaled_1CM.gather(2, cell_N.expand(1, len(scaled_1CM[0]), -1))

    def _channel_mix(self, layer: int, t_1CN: Tensor) -> Tensor:
        key = f"waffleiron.channel_mix.{layer}"
        hidden_1CN = self._activation(self._conv(f"{key}.mlp.0", self._norm(f"{key}.norm", t_1CN)))
        return self._conv(f"{key}.scale", self._conv(f"{key}.mlp.2", hidden_1CN), depthwise=True)

    def _head(self, t_1CN: Tensor) -> Tensor:
        if self._config.head == "mlp":
            return self._conv("classif.2", F.relu(self._conv("classif.0", t_1CN)))
        if self._config.head == "norm_linear":
            return self._conv("classif.1", self._batch_norm("classif.0", t_1CN))
        return self._conv("classif", t_1CN)

    def _conv(self, key: str, x: Tensor, depthwise: bool = False) -> Tensor:
        """Convolve with zero padding: Conv1d or Conv2d by the shape of the weight."""
        weight, bias = self._state[f"{key}.weight"], self._state.get(f"{key}.bias")
        convolve = F.conv1d if weight.ndim == 3 else F.conv2d
        groups = len(weight) if depthwise else 1
        convolved: Tensor = convolve(x, weight, bias, padding=weight.shape[-1] // 2, groups=groups)
        return convolved

    def _batch_norm(self, key: str, x: Tensor) -> Tensor:
        mean, variance, weight, bias = (
            self._state[f"{key}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, variance, weight, bias)

    def _norm(self, key: str, x_1CN: Tensor) -> Tensor:
        if self._config.norm == "batch":
            return self._batch_norm(key, x_1CN)
        weight, bias = self._state[f"{key}.weight"], self._state[f"{key}.bias"]
        return F.layer_norm(x_1CN.transpose(1, 2), weight.shape, weight, bias).transpose(1, 2)

    def _activation(self, x: Tensor) -> Tensor:
        return F.gelu(x) if self._config.activation == "gelu" else F.relu(x)


def _averaging(cell_N: Tensor, grid: tuple[int, int]) -> Tensor:
    """Make the sparse matrix (H · W, N) that averages the points of every cell: 1 / (n + 1e-6) each."""
    cells, points = grid[0] * grid[1], len(cell_N)
    weight_N = 1 / (torch.bincount(cell_N, minlength=cells)[cell_N] + 1e-6)
    return torch.sparse_coo_tensor(
        torch.stack([cell_N, torch.arange(points, device=cell_N.device)]),
        weight_N.float(),
        (cells, points),
        check_invariants=False,
    ).coalesce()
