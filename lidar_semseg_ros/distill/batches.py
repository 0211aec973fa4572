"""Labelled sweeps into batches for the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.distill.augment import intensity_changed, rings_thinned, turned_flipped_scaled
from lidar_semseg_ros.network.inputs import InputConfig, NetworkInput, entering_rows, plane_of_cells, prepare
from lidar_semseg_ros.network.waffleiron import Plane, WaffleIron


class Sample(NamedTuple):
    """One prepared sweep, the labels (N,) uint8 of its kept points, and which rows (N,) int64 of the sweep they are."""

    prepared: NetworkInput
    labels: np.ndarray
    row: np.ndarray


class Batch(NamedTuple):
    """Several samples one behind the other: the network's inputs and labels (N,) int64."""

    features: Tensor
    neighbours: Tensor
    planes: list[Plane]
    labels: Tensor

    def to(self, device: torch.device) -> Batch:
        """Bring all of it to where a network is."""
        planes = [Plane(*(tensor.to(device) for tensor in plane)) for plane in self.planes]
        return Batch(self.features.to(device), self.neighbours.to(device), planes, self.labels.to(device))


def training_sample(
    frame: LidarFrame, labels: np.ndarray, config: InputConfig, max_points: int, rng: np.random.Generator
) -> Sample:
    """Augment and prepare a labelled sweep; of more than max_points points, those nearest to a random one stay.

    The rows are shuffled first, so that a random point stands for each voxel.
    """
    frame = rings_thinned(frame, rng)
    rows = rng.permutation(np.flatnonzero(frame.has_return()))
    frame = intensity_changed(turned_flipped_scaled(_of_rows(frame, rows), rng), rng)
    entering = entering_rows(frame, config)
    if len(entering) > max_points:
        xyz = frame.xyz[entering]
        distance_m = np.linalg.norm(xyz - xyz[rng.integers(len(xyz))], axis=1)
        near = np.sort(entering[np.argpartition(distance_m, max_points)[:max_points]])
        rows, frame = rows[near], _of_rows(frame, near)
    prepared = prepare(frame, config)
    row = rows[prepared.kept]
    return Sample(prepared, labels[row], row)


def _of_rows(frame: LidarFrame, rows: np.ndarray) -> LidarFrame:
    """Take some rows of a sweep, and of these what inputs are made of."""
    return LidarFrame(
        stamp_ns=frame.stamp_ns,
        frame_id=frame.frame_id,
        xyz=frame.xyz[rows],
        intensity=None if frame.intensity is None else frame.intensity[rows],
    )


def collate(samples: Sequence[Sample]) -> Batch:
    """Put samples one behind the other; every plane gets the largest grid of the batch."""
    samples = [sample for sample in samples if len(sample.prepared)]
    offsets = np.cumsum([0, *(len(sample.prepared) for sample in samples)])
    neighbours = [sample.prepared.neighbours + offset for sample, offset in zip(samples, offsets)]
    labels = np.concatenate([sample.labels for sample in samples]).astype(np.int64)
    return Batch(
        features=torch.from_numpy(np.concatenate([sample.prepared.features for sample in samples])),
        neighbours=torch.from_numpy(np.concatenate(neighbours)),
        planes=[_joined_plane(samples, plane) for plane in range(len(samples[0].prepared.planes))],
        labels=torch.from_numpy(labels),
    )


def logits_of(network: WaffleIron, batch: Batch) -> Tensor:
    """Run a network on a batch, wherever the network is: (N, outputs)."""
    moved = batch.to(next(network.parameters()).device)
    logits: Tensor = network(moved.features, moved.neighbours, moved.planes)
    return logits


def _joined_plane(samples: Sequence[Sample], plane: int) -> Plane:
    crops = [sample.prepared.planes[plane] for sample in samples]
    height, width = (max(crop.weight.shape[axis] for crop in crops) for axis in (0, 1))
    cells = []
    for index, crop in enumerate(crops):
        row, column = np.divmod(crop.cell, crop.weight.shape[1])
        cells.append((index * height + row) * width + column)
    joined = plane_of_cells(np.concatenate(cells), (len(crops), height, width))
    return Plane(*(torch.from_numpy(array) for array in joined))
