"""From a sweep to what the network eats, and from its logits back to every point, without PyTorch.

The steps and their order are those of the published WaffleIron: one point per voxel, crop to the field of view, the 16
nearest neighbours, the cells of each plane, and for every measured point the nearest point that was kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED, LidarFrame, PointLabels
from lidar_semseg_ros.network.parts import awake, beside
from lidar_semseg_ros.network.voxels import Voxels, neighbours_and_nearest, voxelise

AXES = {"x": 0, "y": 1, "z": 2}
PLANE_AXES = {"z": (0, 1), "y": (0, 2), "x": (1, 2)}
"""The (row, column) coordinate axes of the plane that projects along an axis."""
FEATURES = ("intensity", "x", "y", "z", "radius", "height")
CROP_STEP = 32
"""Grids are cropped to a multiple of this, for libraries keep a compiled convolution for every shape they meet: that of
oneDNN grew by a gigabyte within 200 sweeps of as many shapes."""
FOV_MARGIN_M = 1e-4
"""Points closer than this to the border of the field of view are left out, as published."""

MOST_CELLS, MOST_NEIGHBOURS = 2**24, 256
"""More than any network of this kind has; what a damaged file claims must not take all memory."""


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """How clouds become inputs; part of every model, since its weights were trained with it. Lengths in metres.

    voxel_size_m: edge of the voxels of which one point each is kept.
    fov_min_m, fov_max_m: the box (x, y, z) outside of which points do not enter the network.
    planes: the axes along which layers 0, 1, 2, … project; grids: (rows, columns) of the box on each of them.
    features: input channels in order, of intensity, x, y, z, radius (distance to the sensor), height (= z).
    neighbours: K, nearest other points in the embedding.
    intensity_mean, intensity_std: subtracted and divided by; a sensor without intensity feeds 0, the mean.
    max_label_distance_m: points farther from the nearest kept point are left UNLABELLED; inf: never, as published.
    sensor_height_m: of the lidar above the floor in the training data; 0: it varied.
    """

    voxel_size_m: float
    fov_min_m: tuple[float, float, float]
    fov_max_m: tuple[float, float, float]
    planes: tuple[str, ...]
    grids: tuple[tuple[int, int], ...]
    features: tuple[str, ...] = ("intensity", "x", "y", "z", "radius")
    neighbours: int = 16
    intensity_mean: float = 0.0
    intensity_std: float = 1.0
    max_label_distance_m: float = float("inf")
    sensor_height_m: float = 0.0

    def __post_init__(self) -> None:
        if not self.voxel_size_m > 0:
            raise UserError(f"voxel_size_m must be positive, but it is {self.voxel_size_m}")
        if not np.isfinite([*self.fov_min_m, *self.fov_max_m]).all():
            raise UserError(f"fov_min_m {self.fov_min_m} and fov_max_m {self.fov_max_m} must be finite")
        if not all(low < high for low, high in zip(self.fov_min_m, self.fov_max_m)):
            raise UserError(f"fov_min_m {self.fov_min_m} must lie below fov_max_m {self.fov_max_m} on every axis")
        if not self.planes or any(plane not in PLANE_AXES for plane in self.planes):
            raise UserError(f"planes must list axes to project along (x, y, z), but they are {self.planes}")
        if len(self.grids) != len(self.planes) or any(
            len(grid) != 2 or min(grid) < 1 or grid[0] * grid[1] > MOST_CELLS for grid in self.grids
        ):
            raise UserError(f"each of the planes {self.planes} needs a grid of (rows, columns), but got {self.grids}")
        unknown = [feature for feature in self.features if feature not in FEATURES]
        if unknown or not self.features:
            raise UserError(f"features must be of {', '.join(FEATURES)}, but they are {self.features}")
        if not 1 <= self.neighbours <= MOST_NEIGHBOURS:
            raise UserError(f"neighbours must lie in 1 … {MOST_NEIGHBOURS}, but they are {self.neighbours}")
        if not self.intensity_std > 0 or not self.max_label_distance_m > 0:
            raise UserError("intensity_std and max_label_distance_m must be positive")

    def to_mapping(self) -> dict[str, Any]:
        """Give the form that files hold, without an infinity, which JSON lacks; `from_mapping` reads it back."""
        mapping = asdict(self)
        if self.max_label_distance_m == float("inf"):
            del mapping["max_label_distance_m"]
        return mapping

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], source: str) -> InputConfig:
        """Read lists and numbers as JSON and YAML give them; UserError names `source` and the key."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(mapping) - known)
        if unknown:
            raise UserError(f"{source}: no input setting {', '.join(unknown)}; there are {', '.join(sorted(known))}")
        converters: dict[str, Callable[[Any], Any]] = {
            "grids": lambda grids: tuple(tuple(int(n) for n in grid) for grid in grids),
            "neighbours": int,
        }
        converters |= dict.fromkeys(("planes", "features"), tuple)
        converters |= dict.fromkeys(("fov_min_m", "fov_max_m"), lambda box: tuple(float(edge) for edge in box))
        try:
            return cls(**{key: converters.get(key, float)(value) for key, value in mapping.items()})
        except (TypeError, ValueError) as error:
            raise UserError(f"{source}: input settings are incomplete or of the wrong type ({error})") from None


class CroppedPlane(NamedTuple):
    """One plane's cells of N kept points on the grid cropped to them (network/waffleiron.py, Plane).

    cell, order: (N,) int64. start, occupied: (M,) int64. weight: (H, W) float32.
    """

    cell: np.ndarray
    order: np.ndarray
    start: np.ndarray
    occupied: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True, kw_only=True)
class NetworkInput:
    """N kept points of a sweep of `points` rows, ready for the network, and the way back.

    features: (N, I) float32. neighbours: (N, K) int64, without the point itself. planes: one per projection.
    kept: (N,) int64, the row of the sweep each kept point is. measured: (R,) int64, rows of the sweep with a return.
    nearest: (R,) int64, for each measured row the kept point whose label it takes, -1 where none is near enough.
    """

    points: int
    features: np.ndarray
    neighbours: np.ndarray
    planes: tuple[CroppedPlane, ...]
    kept: np.ndarray
    measured: np.ndarray
    nearest: np.ndarray

    def __len__(self) -> int:
        return len(self.features)

    def arrays(self) -> list[np.ndarray]:
        """List the network's inputs in the order of an exported graph: features, neighbours, then plane by plane."""
        return [self.features, self.neighbours, *(array for plane in self.planes for array in plane)]


def prepare(frame: LidarFrame, config: InputConfig, max_points: int = 0) -> NetworkInput:
    """Bring a sweep into the form the network takes; a sweep without a single usable point gives N = 0.

    max_points: if positive, of more points than that every so many-th is kept, in the order of their voxels.
    """
    with awake():
        return _prepared(frame, config, max_points)


def _prepared(frame: LidarFrame, config: InputConfig, max_points: int) -> NetworkInput:
    measured, voxels, kept = _entering(frame, config)
    if 0 < max_points < len(kept):
        kept = kept[np.linspace(0, len(kept) - 1, max_points).astype(np.int64)]
    rows = measured[kept]
    features_and_planes = beside(lambda: _features_and_planes(frame, rows, config))
    neighbours, nearest = np.empty((0, config.neighbours), np.int64), np.full(len(measured), -1)
    if voxels is not None and len(kept):
        neighbours, nearest = neighbours_and_nearest(voxels, kept, config.neighbours, config.max_label_distance_m)
    features, planes = features_and_planes()
    return NetworkInput(
        points=len(frame),
        features=features,
        neighbours=neighbours,
        planes=planes,
        kept=rows,
        measured=measured,
        nearest=nearest,
    )


def entering_rows(frame: LidarFrame, config: InputConfig) -> np.ndarray:
    """Find the rows (N,) int64 of a sweep that `prepare` keeps."""
    measured, _, kept = _entering(frame, config)
    return measured[kept]


def _entering(frame: LidarFrame, config: InputConfig) -> tuple[np.ndarray, Voxels | None, np.ndarray]:
    """Give the usable rows of a sweep, their voxels (None of no row), and which of these rows stand for a voxel."""
    from lidar_semseg_ros.network.kernels import points_at

    # So near that voxel numbers fit 21 bits per axis: 105 km for voxels of 0.1 m.
    measured = np.flatnonzero(frame.has_return(within_m=config.voxel_size_m * 2**20 * 0.99))
    if len(measured) == 0:
        return measured, None, measured
    voxels = voxelise(points_at(frame.xyz, measured), config.voxel_size_m)
    first = voxels.first_rows()
    return measured, voxels, first[inside_fov(points_at(voxels.xyz, first), config)]


def example_input(config: InputConfig) -> NetworkInput:
    """Make the input of a small sweep, all of whose dynamic sizes differ: to trace a graph, or to try one out."""
    low, high = np.array(config.fov_min_m), np.array(config.fov_max_m)
    share = np.random.default_rng(0).uniform((0.3, 0.2, 0.4), (0.7, 0.7, 0.8), (300, 3))
    xyz = (low + (high - low) * share).astype(np.float32)
    return prepare(LidarFrame(stamp_ns=0, frame_id="", xyz=xyz), config)


def random_input(inputs: int, points: int, cells: int) -> NetworkInput:
    """Make an input without a sweep: points of so many features, neighbours and cells of a square drawn at random."""
    rng, every = np.random.default_rng(0), np.arange(points)
    return NetworkInput(
        points=points,
        features=rng.normal(size=(points, inputs)).astype(np.float32),
        neighbours=rng.integers(0, points, (points, 16)),
        planes=(plane_of_cells(rng.integers(0, cells**2, points), (cells, cells)),),
        kept=every,
        measured=every,
        nearest=every,
    )


def inside_fov(xyz: np.ndarray, config: InputConfig) -> np.ndarray:
    """Tell which of (N, 3) points lie strictly inside the field of view less its margin: (N,) bool."""
    from lidar_semseg_ros.network.kernels import inside_box

    return inside_box(xyz, np.array(config.fov_min_m) + FOV_MARGIN_M, np.array(config.fov_max_m) - FOV_MARGIN_M)


def grid_cells(xyz: np.ndarray, config: InputConfig, plane: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute row and column, (N,) int64 each, of points inside the field of view on a plane's full grid.

    Computed in float64: in float32 a point on a cell's edge can fall to the other side than in the published code.
    """
    row_and_column = []
    for axis, cells in zip(PLANE_AXES[config.planes[plane]], config.grids[plane]):
        low, high = config.fov_min_m[axis], config.fov_max_m[axis]
        index = ((xyz[:, axis].astype(np.float64) - low) / ((high - low) / cells)).astype(np.int64)
        row_and_column.append(np.minimum(index, cells - 1))  # which in a vast box is rounded beyond its end
    return row_and_column[0], row_and_column[1]


def cropped_plane(row: np.ndarray, column: np.ndarray, grid: tuple[int, int]) -> CroppedPlane:
    """Crop a grid to the occupied box and one ring around it, in steps of CROP_STEP, as far as the grid reaches."""
    if len(row) == 0:
        return plane_of_cells(np.empty(0, np.int64), (1, 1))
    top, height = _cropped_axis(row, grid[0])
    left, width = _cropped_axis(column, grid[1])
    return plane_of_cells((row - top) * width + (column - left), (height, width))


def _cropped_axis(index: np.ndarray, cells: int) -> tuple[int, int]:
    """Find the first cell and the number of cells to keep along one axis."""
    first, end = max(int(index.min()) - 1, 0), min(int(index.max()) + 2, cells)
    size = min(-(-(end - first) // CROP_STEP) * CROP_STEP, cells)
    return min(first, cells - size), size


def plane_of_cells(cell: np.ndarray, shape: tuple[int, ...]) -> CroppedPlane:
    """Sort points by their linear cell index (N,) on a grid of this shape."""
    from lidar_semseg_ros.network.kernels import cells_in_order

    order, start, occupied, weight = cells_in_order(cell, int(np.prod(shape)))
    return CroppedPlane(cell=cell, order=order, start=start, occupied=occupied, weight=weight.reshape(shape))


def _features_and_planes(
    frame: LidarFrame, rows: np.ndarray, config: InputConfig
) -> tuple[np.ndarray, tuple[CroppedPlane, ...]]:
    from lidar_semseg_ros.network.kernels import points_at

    xyz = points_at(frame.xyz, rows)
    planes = tuple(
        cropped_plane(*grid_cells(xyz, config, plane), config.grids[plane]) for plane in range(len(config.planes))
    )
    return _features(frame, rows, xyz, config), planes


def _features(frame: LidarFrame, rows: np.ndarray, xyz: np.ndarray, config: InputConfig) -> np.ndarray:
    columns = {name: xyz[:, axis] for name, axis in AXES.items()}
    columns["height"] = columns["z"]
    columns["radius"] = np.sqrt(sum(column * column for column in xyz.T))
    if frame.intensity is None:
        columns["intensity"] = np.zeros(len(rows), np.float32)
    else:
        intensity = (frame.intensity.take(rows) - config.intensity_mean) / config.intensity_std
        # A driver that writes NaN as intensity must not blank the point and, through its cells, others.
        columns["intensity"] = np.where(np.isfinite(intensity), intensity, np.float32(0))
    features = np.empty((len(rows), len(config.features)), np.float32)
    for place, name in enumerate(config.features):
        features[:, place] = columns[name]
    return features


def to_points(logits: np.ndarray, prepared: NetworkInput) -> PointLabels:
    """Turn logits (N, classes) of the kept points into labels for every row of the sweep.

    Each measured row takes the label of its nearest kept point; rows without a return, and those with no kept point
    near enough, are UNLABELLED.
    """
    from lidar_semseg_ros.network.kernels import below_highest, fill_rows, sums_of_rows

    class_id = np.full(prepared.points, UNLABELLED, np.uint8)
    probability = np.zeros(prepared.points, np.float32)
    entropy = np.ones(prepared.points, np.float32)
    if len(prepared):
        shifted, best = below_highest(logits)
        total, weighted = sums_of_rows(np.exp(shifted), shifted)
        # H = log Σe^s − Σ s·e^s / Σe^s, with no logarithm of a vanishing probability.
        nats = np.log(total) - weighted / total
        certain = (1.0 / total).astype(np.float32)
        spread = np.clip(nats / np.log(max(logits.shape[1], 2)), 0.0, 1.0).astype(np.float32)
        fill_rows(prepared.measured, prepared.nearest, (best, certain, spread), (class_id, probability, entropy))
    return PointLabels(class_id=class_id, probability=probability, entropy=entropy)
