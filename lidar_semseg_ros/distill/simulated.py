"""Sweeps that a simulator makes when they are drawn; which building a batch shows depends on its step alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.distill.recordings import LabelledSweep, without_confidence
from lidar_semseg_ros.teacher.lifting import Trajectory

STEPS_APART = 24
"""Two steps so far apart share their buildings, which take longer to make than to measure in.

Of 2, 3, 4, 6, 8, 12 or 24 workers, which make the batches in turn, the same one makes both, and a building once. One
worker holds 24 buildings of 2 MB at a time for every four sweeps of a batch.
"""
SLOTS_TOGETHER = 4
"""So many places next to each other in a batch share a building."""
VIEWS = 2**32
"""Sweeps of one building that differ."""


class Place(Protocol):
    """What a simulator makes up: somewhere to measure in."""

    def view(self, rng: np.random.Generator) -> tuple[LidarFrame, np.ndarray]:
        """Measure from a random place: a sweep, and its exact labels (N,) uint8."""
        ...


class SimulatedBuilding:
    """A building as a recording without poses and images, whose sweeps are made when they are read."""

    origin: Mapping[str, str] = {"labels": "exact"}
    stamps_ns: np.ndarray | None = None
    trajectory: Trajectory | None = None

    def __init__(self, name: str, place: Place, classes: ClassTable) -> None:
        """Take a place that was made up; classes: what its labels mean."""
        self.name = self.key = name
        self.classes: ClassTable | None = classes
        self.base_from_lidar = np.eye(4)
        self._place = place

    def __len__(self) -> int:
        return VIEWS

    def sweep(self, index: int) -> LabelledSweep:
        """Measure one sweep; the same number gives the same one."""
        frame, class_id = self._place.view(np.random.default_rng(index))
        return LabelledSweep(frame=frame, class_id=class_id, confidence=without_confidence(class_id))


class SimulatedSweeps:
    """Buildings to draw from, made up when they are first drawn from and forgotten when no later step shows them."""

    def __init__(self, make: Callable[[np.random.Generator], Place], classes: ClassTable, seed: int) -> None:
        """Take what makes up a place from a generator; seed: of all buildings."""
        self._make, self._classes, self._seed = make, classes, seed
        self._round = 0
        self._made: dict[tuple[int, int], SimulatedBuilding] = {}

    def draw(self, rng: np.random.Generator, step: int, slot: int) -> tuple[SimulatedBuilding, int]:
        """Draw a sweep of the building that a place in the batch of a step shows."""
        this_round, number = step // (2 * STEPS_APART), (step % STEPS_APART, slot // SLOTS_TOGETHER)
        if this_round != self._round:
            self._round, self._made = this_round, {}
        if number not in self._made:
            # As spawned seeds, for those of batches are not.
            seeds = np.random.SeedSequence(self._seed, spawn_key=(this_round, *number))
            name = "building " + "-".join(map(str, seeds.spawn_key))
            self._made[number] = SimulatedBuilding(name, self._make(np.random.default_rng(seeds)), self._classes)
        return self._made[number], int(rng.integers(VIEWS))
