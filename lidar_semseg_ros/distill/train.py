"""The training loop: labelled sweeps in, a network out."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.core.options import setting
from lidar_semseg_ros.distill.batches import Batch, collate, training_sample
from lidar_semseg_ros.distill.losses import cross_entropy_and_lovasz
from lidar_semseg_ros.network.inputs import InputConfig
from lidar_semseg_ros.network.waffleiron import WaffleIron, WaffleIronConfig

CALIBRATION_BATCHES = 16
"""Batches over which the statistics of batch norms are taken for the averaged weights."""

LabelledSweeps = Callable[[np.random.Generator], Iterator[tuple[LidarFrame, np.ndarray]]]
"""An endless source of sweeps and labels (N,) uint8, determined by its generator."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training run; optimiser and schedule are those of WaffleIron, on a shorter budget."""

    steps: int = setting(4000, "optimiser steps", minimum=1)
    batch: int = setting(4, "sweeps per step", minimum=1)
    max_points: int = setting(8000, "points kept of a sweep, those nearest to a random one", minimum=100)
    learning_rate: float = setting(2e-3, "peak of the cosine schedule", minimum=0.0)
    weight_decay: float = setting(3e-3, "of AdamW, on all parameters", minimum=0.0)
    warmup: int = setting(200, "steps of linear warm-up", minimum=0)
    ema: float = setting(0.998, "decay of the averaged weights that are kept", minimum=0.0, maximum=1.0)
    workers: int = setting(1, "processes that make batches; 0 makes them in this one", minimum=0)
    seed: int = setting(0, "of weights, sweeps and augmentation", minimum=0)


class _Batches(IterableDataset[Batch]):
    """Batches of augmented samples, made in worker processes; each has its own stream of sweeps."""

    def __init__(self, sweeps: LabelledSweeps, inputs: InputConfig, config: TrainConfig) -> None:
        self._sweeps, self._inputs, self._config = sweeps, inputs, config

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        rng = np.random.default_rng([self._config.seed, worker.id if worker else 0])
        sweeps = self._sweeps(rng)
        while True:
            samples = []
            while len(samples) < self._config.batch:
                frame, labels = next(sweeps)
                sample = training_sample(frame, labels, self._inputs, self._config.max_points, rng)
                if len(sample.prepared) > 0:
                    samples.append(sample)
            yield collate(samples)


def initial_network(config: WaffleIronConfig, seed: int) -> WaffleIron:
    """Make a network of random weights; the same seed gives the same weights."""
    torch.manual_seed(seed)
    return WaffleIron(config)


def train(
    model: WaffleIron,
    inputs: InputConfig,
    sweeps: LabelledSweeps,
    config: TrainConfig,
    on_step: Callable[[int, float, Callable[[], WaffleIron]], None],
) -> WaffleIron:
    """Train a network on an endless stream of labelled sweeps; the averaged weights are returned.

    on_step(step, loss, finished) is called after every step; finished() gives a network of the weights so far.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).train()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = LambdaLR(optimiser, lambda step: warmup_cosine(step, config.warmup, config.steps))
    loader = DataLoader(_Batches(sweeps, inputs, config), batch_size=None, num_workers=config.workers)
    recent: deque[Batch] = deque(maxlen=CALIBRATION_BATCHES)

    def finished() -> WaffleIron:
        return calibrated(averaged.module, recent).cpu()

    for step, batch in zip(range(config.steps), loader):
        recent.append(batch)
        loss = cross_entropy_and_lovasz(logits_of(model, batch), batch.labels.to(device))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()
        schedule.step()
        averaged.update_parameters(model)
        on_step(step, loss.item(), finished)
    return finished()


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


def logits_of(model: WaffleIron, batch: Batch) -> torch.Tensor:
    """Run a network on a batch, wherever the network is: (N, outputs)."""
    moved = to_device(batch, next(model.parameters()).device)
    return model(moved.features, moved.neighbours, moved.planes)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Bring a batch to where a network is."""
    return Batch(
        features=batch.features.to(device),
        neighbours=batch.neighbours.to(device),
        planes=[type(plane)(*(tensor.to(device) for tensor in plane)) for plane in batch.planes],
        labels=batch.labels.to(device),
    )


def warmup_cosine(step: int, warmup: int, steps: int, floor: float = 0.005) -> float:
    """Give the factor of the learning rate: linear from 0, then half a cosine from 1 to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    return floor + (1 - floor) * 0.5 * (1 + float(np.cos(np.pi * progress)))
