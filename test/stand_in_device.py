"""A device that takes the bytes of clouds and gives labelled points back, for tests on machines without a GPU."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np

from lidar_semseg_ros.core.packed import PackedCloud


class StandInDevice:
    """Says that every point is of class 3, with probability 0.75 and entropy 0.5, and notes the clouds it gets.

    failures: how many sweeps fail first. is_finite: whether the network gives numbers.
    """

    def __init__(self) -> None:
        self.turn, self.replays = nullcontext(), SimpleNamespace(patience=1, fault="")
        self.failures, self.is_finite = 0, True
        self.clouds: list[PackedCloud] = []

    def prepare(self, cloud: PackedCloud, *settings: object) -> int:
        self.clouds.append(cloud)
        return len(cloud)

    def compute(self, kept: int) -> tuple[np.ndarray, bool]:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("CUDA error: out of memory")
        cloud = self.clouds[-1]
        points, labelled = np.ascontiguousarray(cloud.rows).reshape(-1), np.zeros(kept, cloud.labelled)
        if cloud.kept:
            labelled.view(np.uint8).reshape(kept, -1)[:, : cloud.kept] = points.reshape(kept, -1)
        values = {"class_id": 3, "probability": 0.75, "entropy": 0.5, "rgb": 0.0}
        for name in cloud.labelled.names:
            labelled[name] = values[name] if name in values else points.view(cloud.point)[name]
        return labelled, self.is_finite
