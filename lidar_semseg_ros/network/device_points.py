"""The bytes of points on the device: read, levelled and limited as on the host, and written with their labels.

No step looks at the data or waits for the host, so that all can be captured in CUDA graphs. What may change from sweep
to sweep is read from `Settings`. The arithmetic is that of core/sensor.py, in the same precision; only rows
without a return get other values, NaN, than there. R: rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lidar_semseg_ros.core.packed import COORDINATES
from lidar_semseg_ros.core.sensor import SensorConfig


class Settings(NamedTuple):
    """What is done with a sweep, float64 on the device.

    rows: (1,), those beyond have no return. rotation: (9,), shift_m: (3,), of model_from_lidar. range_m: (2,),
    nearest and farthest. intensity: (2,), scale and clip. min_score: (1,).
    """

    rows: Tensor
    rotation: Tensor
    shift_m: Tensor
    range_m: Tensor
    intensity: Tensor
    min_score: Tensor


SETTINGS = (1, 9, 3, 2, 2, 1)
"""How many numbers each of them has."""


def settings_values(rows: int, sensor: SensorConfig, model_from_lidar: np.ndarray, min_score: float) -> list[float]:
    """List the numbers of `Settings` one after the other."""
    rotation, shift_m = model_from_lidar[:3, :3].ravel(), model_from_lidar[:3, 3]
    limits = sensor.range.min, sensor.range.max, sensor.intensity.scale, sensor.intensity.clip
    return [float(rows), *rotation.tolist(), *shift_m.tolist(), *limits, min_score]


def column(points: Tensor, point: np.dtype, name: str) -> Tensor:
    """Read a field of packed points, (R, bytes) uint8 of the structured dtype `point`: (R,) float32."""
    dtype, offset = _field(point, name)
    value = points[:, offset : offset + dtype.itemsize]
    value = value.flip(1) if dtype.byteorder == ">" else value.contiguous()
    return value.view(getattr(torch, dtype.name))[:, 0].float()  # the types of NumPy and PyTorch have the same names


def put_column(points: Tensor, point: np.dtype, name: str, values: Tensor) -> None:
    """Write a field of packed points from (R,) values, in place."""
    dtype, offset = _field(point, name)
    value = values.to(getattr(torch, dtype.name))[:, None].view(torch.uint8)
    points[:, offset : offset + dtype.itemsize] = value.flip(1) if dtype.byteorder == ">" else value


def _field(point: np.dtype, name: str) -> tuple[np.dtype, int]:
    fields: Mapping[str, Any] = point.fields or {}
    dtype, offset = fields[name][:2]
    return dtype, offset


def normalised_coordinates(points: Tensor, point: np.dtype, settings: Settings) -> Tensor:
    """Give the coordinates of packed points as `sensor.normalised` does: (R, 3) float32, metres."""
    x, y, z = (column(points, point, name) for name in COORDINATES)
    xyz = torch.stack([x, y, z], dim=1)
    moved = (xyz.double() @ settings.rotation.view(3, 3).T + settings.shift_m).float()
    levelled = torch.where((xyz != 0).any(1, keepdim=True), moved, xyz)
    range_m = (x * x + y * y + z * z).sqrt()
    nearest_m, farthest_m = settings.range_m.float()
    inside = (range_m >= nearest_m) & (range_m <= farthest_m)
    is_there = inside & (torch.arange(len(points), device=points.device) < settings.rows)
    return levelled.masked_fill(~is_there[:, None], torch.nan)


def normalised_intensity(points: Tensor, point: np.dtype, settings: Settings) -> Tensor:
    """Give the intensities of packed points as `sensor.normalised` does: (R,) float32."""
    scale, clip = settings.intensity.float()
    return torch.minimum(column(points, point, "intensity") * scale, clip)
