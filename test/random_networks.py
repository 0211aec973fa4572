"""A network as if it had been trained, for tests that compare ways to compute it."""

from __future__ import annotations

import torch
from torch import nn

from lidar_semseg_ros.network.waffleiron import WaffleIron, WaffleIronConfig


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
