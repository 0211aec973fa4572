"""The compiled search against a k-d tree and a dictionary; neighbours and nearest points must be exact."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree

from lidar_semseg_ros.network import parts, voxels
from lidar_semseg_ros.network.parts import awake
from lidar_semseg_ros.network.voxels import neighbours_and_nearest, voxelise

VOXEL_M = 0.1
K = 16


def uniform(points: int, half_m: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-half_m, half_m, (points, 3)).astype(np.float32)


def room(points: int) -> np.ndarray:
    """Points on the inside of a box of 8 m × 5 m × 3 m, as dense as a lidar in its middle sees it."""
    direction = np.random.default_rng(1).normal(size=(points, 3))
    return (direction / np.abs(direction / [4, 2.5, 1.5]).max(axis=1, keepdims=True)).astype(np.float32)


def clusters_far_apart() -> np.ndarray:
    return np.concatenate([uniform(60, 0.3, seed) + np.float32(seed * 700) for seed in range(4)] + [[[9e3, 0, 0]]])


CLOUDS = {
    "uniform": uniform(3000, 2.0),
    "dense": uniform(4000, 0.4),
    "sparse": uniform(300, 60.0),
    "room": room(6000),
    "line": np.stack([np.linspace(0, 40, 500), np.zeros(500), np.zeros(500)], axis=1).astype(np.float32),
    "far from the origin": uniform(2000, 2.0) + np.float32([5000, -3000, 100]),
    "clusters far apart": clusters_far_apart().astype(np.float32),
    "seventeen": uniform(17, 5.0),
}


def kept_of(xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = voxelise(xyz, VOXEL_M)
    kept = found.first_rows()
    return kept, *neighbours_and_nearest(found, kept, K, np.inf)


@pytest.mark.parametrize("name", CLOUDS)
def test_first_point_in_file_order_stands_for_its_voxel_and_voxels_are_ordered(name: str) -> None:
    xyz = CLOUDS[name]
    first: dict[tuple[int, ...], int] = {}
    low = xyz.min(axis=0)
    for row, point in enumerate(xyz):
        first.setdefault(tuple(int(v) for v in (point - low) / np.float32(VOXEL_M)), row)
    assert voxelise(xyz, VOXEL_M).first_rows().tolist() == [first[key] for key in sorted(first)]


@pytest.mark.parametrize("name", CLOUDS)
def test_neighbours_and_nearest_points_are_those_of_a_tree(name: str) -> None:
    xyz = CLOUDS[name]
    kept, neighbours, nearest = kept_of(xyz)
    tree = cKDTree(xyz[kept].astype(np.float64))
    count = min(K, len(kept) - 1)
    expected = tree.query(xyz[kept].astype(np.float64), k=np.arange(2, count + 2))[0]
    # Distances, for which of two equally far points counts is open.
    to_neighbours = np.linalg.norm((xyz[kept][neighbours] - xyz[kept][:, None]).astype(np.float64), axis=2)
    assert np.allclose(np.sort(to_neighbours, axis=1)[:, :count], expected, rtol=1e-6, atol=0)
    assert all(len(set(row)) == count and own not in row for own, row in enumerate(neighbours.tolist()))
    distance = tree.query(xyz.astype(np.float64))[0]
    assert np.allclose(np.linalg.norm((xyz[kept][nearest] - xyz).astype(np.float64), axis=1), distance, atol=1e-9)


@pytest.mark.parametrize("name", ["dense", "sparse", "room", "clusters far apart"])
def test_more_threads_than_cores_find_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for cores in (1, 5):
        monkeypatch.setattr(parts, "available_cores", lambda cores=cores: cores)
        monkeypatch.setattr(voxels, "LEAST_SHARED", 1)
        with awake():
            found.append(kept_of(CLOUDS[name]))
    assert all(np.array_equal(alone, shared) for alone, shared in zip(*found, strict=True))


def test_of_equally_far_points_any_are_neighbours_but_each_once() -> None:
    steps = np.arange(9, dtype=np.float32) * np.float32(0.25)
    lattice = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    kept, neighbours, _ = kept_of(lattice)
    distance = np.linalg.norm(lattice[kept][neighbours] - lattice[kept][:, None], axis=2)
    middle = np.flatnonzero((lattice[kept] == steps[4]).all(axis=1))
    # Of a cubic lattice's point, 6 neighbours lie one step away and 12 across a face's diagonal.
    assert np.allclose(np.sort(distance[middle[0]]), [0.25] * 6 + [0.25 * 2**0.5] * 10)
    assert all(len(set(row)) == K for row in neighbours.tolist())


def test_points_that_repeat_one_another_share_a_voxel_and_its_point() -> None:
    xyz = np.repeat(uniform(40, 3.0), 25, axis=0)
    kept, _, nearest = kept_of(xyz)
    assert len(kept) == 40 and np.array_equal(xyz[kept][nearest], xyz)


def test_the_nearest_point_beyond_the_limit_is_none() -> None:
    xyz = np.float32([[0, 0, 0], [0.3, 0, 0], [0.301, 0, 0], [5, 0, 0]])
    found = voxelise(xyz, VOXEL_M)
    _, nearest = neighbours_and_nearest(found, np.array([0]), K, 0.3005)
    assert nearest.tolist() == [0, 0, -1, -1]
    _, nearest = neighbours_and_nearest(found, np.array([3]), K, np.inf)
    assert nearest.tolist() == [0, 0, 0, 0]


def test_a_package_that_nobody_may_write_to_compiles_all_the_same() -> None:
    script = (
        "import numpy as np; from lidar_semseg_ros.network.voxels import voxelise;"
        "print(len(voxelise(np.zeros((1, 3), np.float32), 0.1).cells.order))"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": "/proc/none"}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root, env=environment)
    assert done.stdout == "1\n", done.stderr
