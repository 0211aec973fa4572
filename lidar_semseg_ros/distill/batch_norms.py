"""Batch norms of a finished network: their statistics are taken anew for the averaged weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn

from lidar_semseg_ros.distill.batches import Batch, logits_of
from lidar_semseg_ros.network.waffleiron import WaffleIron

CALIBRATION_BATCHES = 16
"""Batches over which the statistics of batch norms are taken for the averaged weights."""


def calibrated(model: WaffleIron, batches: Iterable[Batch]) -> WaffleIron:
    """Give a copy whose batch norms hold the mean statistics of these batches, ready for inference.

    Averaged weights need statistics of their own: those gathered while training belong to the weights of the moment
    (Izmailov et al., "Averaging weights leads to wider optima", UAI 2018, section 3.2).
    """
    model = copy.deepcopy(model)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    usual_momentum = nn.BatchNorm1d(1).momentum
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean of all batches
    model.train()
    with torch.no_grad():
        for batch in batches:
            logits_of(model, batch)
    for norm in norms:
        norm.momentum = usual_momentum
    return model.eval()
