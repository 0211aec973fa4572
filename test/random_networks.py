"""Networks as if they had been trained, and clouds for them, for tests that compare ways to compute them."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.network.inputs import InputConfig
from lidar_semseg_ros.network.waffleiron import WaffleIron, WaffleIronConfig

INPUTS = InputConfig(
    voxel_size_m=0.1,
    fov_min_m=(-4, -4, -1),
    fov_max_m=(4, 4, 2),
    planes=("z", "y", "x"),
    grids=((40, 40), (40, 12), (40, 12)),
    intensity_mean=0.5,
    intensity_std=0.3,
)


def cloud(points: int, spread: float = 3.9, seed: int = 0) -> LidarFrame:
    """A cloud that fills the field of view to its border, or part of it."""
    rng = np.random.default_rng(seed)
    xyz = (rng.uniform((-1, -1, -0.25), (1, 1, 0.5), (points, 3)) * spread).astype(np.float32)
    return LidarFrame(stamp_ns=0, frame_id="", xyz=xyz, intensity=rng.uniform(0, 1, points).astype(np.float32))


def random_network(config: WaffleIronConfig, seed: int = 0) -> WaffleIron:
    """Weights as PyTorch draws them, norms with statistics as if they had been trained."""
    torch.manual_seed(seed)
    model = WaffleIron(config).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2.0)
        if isinstance(module, (nn.BatchNorm1d, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model
