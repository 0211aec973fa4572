from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED, LidarFrame
from lidar_semseg_ros.network.inputs import (
    InputConfig,
    cropped_plane,
    grid_cells,
    inside_fov,
    plane_of_cells,
    prepare,
    to_points,
)

CONFIG = InputConfig(
    voxel_size_m=0.1,
    fov_min_m=(-5, -5, -2),
    fov_max_m=(5, 5, 2),
    planes=("z", "y", "x"),
    grids=((20, 20),) + ((20, 8),) * 2,
)


def sweep(xyz: np.ndarray, intensity: np.ndarray | None = None) -> LidarFrame:
    return LidarFrame(stamp_ns=0, frame_id="", xyz=np.asarray(xyz, np.float32), intensity=intensity)


def random_xyz(points: int, seed: int = 0, half: float = 6.0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-half, half, (points, 3)).astype(np.float32)


def test_points_on_the_border_of_the_field_of_view_are_outside() -> None:
    xyz = np.float32([[5, 0, 0], [4.9998, 0, 0], [-5, 0, 0], [0, 0, 2], [0, 0, 1.9998], [0, 5.1, 0]])
    assert inside_fov(xyz, CONFIG).tolist() == [False, True, False, False, True, False]


def test_cells_by_hand() -> None:
    xyz = np.float32([[0.1, -4.9, 1.9]])
    # 10 m / 20 cells = 0.5 m: x → 10, y → 0; z: 4 m / 8 = 0.5 m → 7.
    assert [tuple(int(v[0]) for v in grid_cells(xyz, CONFIG, plane)) for plane in range(3)] == [
        (10, 0),
        (10, 7),
        (0, 7),
    ]


def test_crop_keeps_a_ring_of_cells_in_steps_of_32_but_not_beyond_the_grid() -> None:
    plane = cropped_plane(np.array([0, 3]), np.array([75, 106]), (20, 120))
    # Rows: the grid ends at 0 and has only 20. Columns: 74 … 107 are needed, 34 of them, so 64, and 56 … 119 are there.
    assert plane.weight.shape == (20, 64)
    assert plane.cell.tolist() == [0 * 64 + 75 - 56, 3 * 64 + 106 - 56]
    assert plane.weight[0, 75 - 56] == np.float32(1 / (1 + 1e-6))
    assert np.count_nonzero(plane.weight) == 2
    within = cropped_plane(np.array([10]), np.array([50]), (200, 200))
    assert within.weight.shape == (32, 32) and within.cell.tolist() == [1 * 32 + 1]


def test_planes_sort_points_by_cell() -> None:
    prepared = prepare(sweep(random_xyz(2000)), CONFIG)
    for plane in prepared.planes:
        assert (np.diff(plane.cell[plane.order]) >= 0).all()
        assert np.array_equal(plane.cell[plane.order][plane.start], plane.occupied)
        assert np.array_equal(np.unique(plane.cell), plane.occupied)


def test_neighbours_and_nearest_points_are_those_of_brute_force() -> None:
    xyz = random_xyz(800)
    prepared = prepare(sweep(xyz), CONFIG)
    kept = xyz[prepared.kept].astype(np.float64)
    distance = np.linalg.norm(kept[:, None] - kept[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert np.array_equal(np.sort(prepared.neighbours, axis=1), np.sort(np.argsort(distance, axis=1)[:, :16], axis=1))
    to_kept = np.linalg.norm(xyz[:, None].astype(np.float64) - kept[None], axis=2)
    assert np.array_equal(prepared.nearest, to_kept.argmin(axis=1))


def test_rows_without_a_return_stay_out_and_keep_their_place() -> None:
    xyz = random_xyz(500, half=4.0)
    xyz[::7] = np.nan
    xyz[3::7] = 0
    xyz[5] = (np.inf, 1, 1)
    prepared = prepare(sweep(xyz), CONFIG)
    without = ~np.isfinite(xyz).all(axis=1) | (xyz == 0).all(axis=1)
    assert not without[prepared.kept].any()
    labels = to_points(np.eye(3, dtype=np.float32)[np.zeros(len(prepared), int)], prepared)
    assert len(labels) == 500
    assert np.array_equal(labels.class_id == UNLABELLED, without)
    assert (labels.probability[without] == 0).all() and (labels.entropy[without] == 1).all()


@pytest.mark.parametrize("points", [1, 2, 5, 16, 17])
def test_a_cloud_of_fewer_points_than_neighbours_repeats_the_nearest(points: int) -> None:
    prepared = prepare(sweep(random_xyz(points, half=1.5)), CONFIG)
    assert prepared.neighbours.shape == (points, 16)
    for row, neighbours in enumerate(prepared.neighbours):
        others = set(range(points)) - {row} or {row}
        assert set(neighbours.tolist()) == others


@pytest.mark.parametrize("xyz", [np.zeros((0, 3)), np.full((4, 3), np.nan), np.zeros((4, 3)), np.full((4, 3), 1e30)])
def test_a_cloud_without_a_usable_point_is_all_unlabelled(xyz: np.ndarray) -> None:
    prepared = prepare(sweep(xyz), CONFIG)
    assert len(prepared) == 0
    labels = to_points(np.empty((0, 3), np.float32), prepared)
    assert (labels.class_id == UNLABELLED).all() and len(labels) == len(xyz)


def test_points_far_from_any_kept_point_are_unlabelled_only_where_the_model_says_so() -> None:
    xyz = np.concatenate([random_xyz(100, half=1.5), np.float32([[40, 0, 0], [5.2, 0, 0]])])
    logits = np.zeros((len(prepare(sweep(xyz), CONFIG)), 3), np.float32)
    published = to_points(logits, prepare(sweep(xyz), CONFIG))
    assert (published.class_id != UNLABELLED).all()
    limited = InputConfig(**{**vars(CONFIG), "max_label_distance_m": 5.0})
    assert np.flatnonzero(to_points(logits, prepare(sweep(xyz), limited)).class_id == UNLABELLED).tolist() == [100]


def test_features_in_order_with_intensity_standardised() -> None:
    config = InputConfig(**{**vars(CONFIG), "intensity_mean": 10.0, "intensity_std": 5.0})
    prepared = prepare(sweep([[-2, 2, 1]], np.float32([20])), config)
    assert prepared.features.tolist() == [[2, -2, 2, 1, 3]]
    assert prepare(sweep([[-2, 2, 1]]), config).features[0, 0] == 0
    assert prepare(sweep([[-2, 2, 1]], np.float32([np.nan])), config).features[0, 0] == 0


def test_probability_and_entropy_are_those_of_the_softmax() -> None:
    prepared = prepare(sweep(random_xyz(50, half=1.5)), CONFIG)
    logits = np.random.default_rng(1).normal(0, 3, (len(prepared), 7)).astype(np.float32)
    logits[0] = (1000, -1000, 0, 0, 0, 0, 0)
    logits[1] = (-3, 2, 1, 2, 2, -9, 2)  # of equal ones, the first
    labels = to_points(logits, prepared)
    softmax = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True).astype(np.float64))
    softmax /= softmax.sum(axis=1, keepdims=True)
    entropy = -(softmax * np.log(np.maximum(softmax, 1e-300))).sum(axis=1) / np.log(7)
    assert np.array_equal(labels.class_id, softmax.argmax(axis=1)[prepared.nearest])
    assert np.allclose(labels.probability, softmax.max(axis=1)[prepared.nearest], atol=1e-6)
    assert np.allclose(labels.entropy, entropy[prepared.nearest], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"voxel_size_m": 0}, "voxel_size_m"),
        ({"fov_min_m": [9, -5, -2]}, "fov_min_m"),
        ({"planes": ["up"]}, "planes"),
        ({"grids": [[20, 20]]}, "grid"),
        ({"features": ["colour"]}, "features"),
        ({"voxels": 1}, "voxels"),
        ({"fov_min_m": "wide"}, "wrong type"),
    ],
)
def test_faulty_input_settings_are_named(change: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        InputConfig.from_mapping({**CONFIG.to_mapping(), **change}, "file.yaml")


def test_input_settings_survive_their_file_form() -> None:
    assert InputConfig.from_mapping(CONFIG.to_mapping(), "") == CONFIG


def test_of_more_points_than_allowed_so_many_are_fed_and_the_others_take_their_labels() -> None:
    frame = sweep(random_xyz(4000, half=1.9))
    everything, thinned = prepare(frame, CONFIG), prepare(frame, CONFIG, max_points=500)
    assert len(thinned) == 500 < len(everything)
    assert np.isin(thinned.kept, everything.kept).all() and len(set(thinned.kept.tolist())) == 500
    assert (thinned.nearest >= 0).all() and len(thinned.nearest) == len(everything.nearest)
    assert len(prepare(frame, CONFIG, max_points=10**6)) == len(everything)
    # Evenly: no part of the sweep goes without.
    for octant in range(8):
        inside = ((frame.xyz > 0) == [(octant >> axis) & 1 == 1 for axis in range(3)]).all(axis=1)
        assert 30 < np.count_nonzero(inside[thinned.kept]) < 100


def test_in_a_box_so_vast_that_cells_are_rounded_points_stay_on_the_grid() -> None:
    vast = replace(CONFIG, fov_min_m=(-1e18, *CONFIG.fov_min_m[1:]))
    xyz = np.random.default_rng(0).uniform(-0.5, 0.5, (500, 3)).astype(np.float32)
    prepared = prepare(LidarFrame(stamp_ns=0, frame_id="", xyz=xyz), vast)
    assert len(prepared) > 100
    for plane in prepared.planes:
        assert plane.cell.min() >= 0 and plane.cell.max() < plane.weight.size
    with pytest.raises(ValueError, match="beyond the grid"):
        plane_of_cells(np.array([3, 16]), (4, 4))
