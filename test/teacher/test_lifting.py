from __future__ import annotations

import numpy as np
import pytest

from lidar_semseg_ros.core.camera import FisheyeCamera, PinholeCamera
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.core.geometry import OPTICAL_FROM_BODY, rigid, rotation_from_rpy
from lidar_semseg_ros.teacher.lifting import (
    LiftingConfig,
    Trajectory,
    nearest_depth,
    points_in,
    points_in_camera,
    sighting,
)

CAMERA = PinholeCamera(
    width=640, height=480, matrix=np.array([[400.0, 0, 320], [0, 400, 240], [0, 0, 1]]), distortion=np.zeros(5)
)
EVERYTHING = LiftingConfig(visible_within_m=1e6)
SECOND_NS = 1_000_000_000


def frame_of(xyz: np.ndarray, time_s: np.ndarray | None = None, stamp_ns: int = 0) -> LidarFrame:
    time_s = None if time_s is None else np.asarray(time_s, np.float32)
    return LidarFrame(
        stamp_ns=stamp_ns, frame_id="lidar", xyz=np.asarray(xyz, np.float32).reshape(-1, 3), time_s=time_s
    )


def moving(time_s: float) -> np.ndarray:
    """map_from_base of a robot that turns by 1 rad/s and drives 2 m/s along x of the map, far from its origin."""
    return rigid(rotation_from_rpy(0, 0, time_s), np.array([1000 + 2 * time_s, -500, 0]))


def drive(*times_s: float) -> Trajectory:
    return Trajectory(
        stamps_ns=np.array([round(time_s * SECOND_NS) for time_s in times_s]),
        map_from_base=np.stack([moving(time_s) for time_s in times_s]),
    )


# --- trajectories


@pytest.mark.parametrize("time_s", [0.0, 0.013, 0.1, 0.25, 0.3, 0.35, -0.05])
def test_poses_between_before_and_after_the_known_ones_keep_the_velocity(time_s: float) -> None:
    pose = drive(0.0, 0.1, 0.3).at(np.array([round(time_s * SECOND_NS)]))[0]
    assert pose == pytest.approx(moving(time_s), abs=1e-9)


def test_a_turn_about_any_axis_is_divided_evenly() -> None:
    whole = rotation_from_rpy(0.9, -1.1, 1.4)
    trajectory = Trajectory(stamps_ns=np.array([0, 3]), map_from_base=np.stack([np.eye(4), rigid(whole, np.zeros(3))]))
    third = trajectory.at(np.array([1]))[0, :3, :3]
    assert third @ third @ third == pytest.approx(whole, abs=1e-9)


def test_a_trajectory_of_one_pose_stands_still() -> None:
    assert drive(0.2).at(np.array([0, 5 * SECOND_NS])) == pytest.approx(np.stack([moving(0.2)] * 2))


GAPPED = drive(0.0, 0.1, 0.2, 1.1, 1.2, 3.0, 3.1, 5.0, 7.0)


@pytest.mark.parametrize(
    ("time_s", "poses"),
    [(-0.501, 0), (-0.5, 5), (0.15, 5), (0.65, 5), (1.7, 5), (1.75, 0), (2.49, 0), (2.5, 2), (3.6, 2), (5, 0), (60, 0)],
)
def test_poses_tell_of_times_within_half_a_second_of_two_that_hang_together(time_s: float, poses: int) -> None:
    time_ns = round(time_s * SECOND_NS)
    found = GAPPED.around(time_ns)
    assert (0 if found is None else len(found.stamps_ns)) == poses
    if found is not None:
        assert found.at(np.array([time_ns]))[0] == pytest.approx(moving(time_s), abs=1e-9)


@pytest.mark.parametrize(
    ("stamps_ns", "poses"), [([], 0), ([0, 0], 2), ([1, 0], 2), ([0, 1], 1)], ids=["none", "twice", "back", "short"]
)
def test_times_that_are_no_trajectory_are_refused(stamps_ns: list[int], poses: int) -> None:
    with pytest.raises(UserError, match="trajectory"):
        Trajectory(stamps_ns=np.array(stamps_ns, np.int64), map_from_base=np.tile(np.eye(4), (poses, 1, 1)))


# --- motion


@pytest.mark.parametrize("end_of_sweep", [False, True], ids=["stamp at start", "stamp at end"])
def test_points_measured_during_a_turn_come_out_where_they_are(end_of_sweep: bool) -> None:
    rng = np.random.default_rng(0)
    xyz_map = np.array([1000, -500, 0]) + rng.uniform(-10, 10, (500, 3))
    base_from_lidar = rigid(rotation_from_rpy(0.1, 0.2, 0.3), np.array([0.3, 0, 1]))
    camera_from_base = rigid(OPTICAL_FROM_BODY, np.array([0.05, 0.2, -0.1]))
    time_s = np.linspace(-0.1, 0, 500) if end_of_sweep else np.linspace(0, 0.1, 500)
    stamp_s, image_s = 7.3, 7.333
    xyz_lidar = np.array(
        [(np.linalg.inv(moving(stamp_s + t) @ base_from_lidar) @ [*point, 1])[:3] for t, point in zip(time_s, xyz_map)]
    )
    expected = (xyz_map - moving(image_s)[:3, 3]) @ moving(image_s)[:3, :3]
    expected = expected @ camera_from_base[:3, :3].T + camera_from_base[:3, 3]
    frame = frame_of(xyz_lidar, time_s, round(stamp_s * SECOND_NS))
    found = points_in_camera(
        frame, round(image_s * SECOND_NS), camera_from_base, base_from_lidar, drive(7.0, 7.1, 7.2, 7.3, 7.4, 7.5)
    )
    # Blending poses over a sixteenth of the sweep costs 5e-6 of 17 m, and float32 as much again.
    assert found == pytest.approx(expected, abs=2e-4)


def test_without_times_the_whole_sweep_is_of_its_stamp() -> None:
    found = points_in_camera(
        frame_of([[1, 2, 3]], stamp_ns=SECOND_NS), 3 * SECOND_NS, np.eye(4), np.eye(4), drive(0.0, 1.0, 2.0, 3.0)
    )
    expected = np.linalg.inv(moving(3)) @ moving(1) @ [1, 2, 3, 1]
    assert found[0] == pytest.approx(expected[:3], abs=1e-5)


def test_without_a_trajectory_only_the_calibration_counts() -> None:
    base_from_lidar = rigid(np.eye(3), np.array([0, 0, 1.0]))
    found = points_in_camera(
        frame_of([[5, 2, 0]], [0.05]), 10**9, rigid(OPTICAL_FROM_BODY, np.zeros(3)), base_from_lidar, None
    )
    assert found.tolist() == [[-2, -1, 5]]


@pytest.mark.parametrize("trajectory", [None, drive(0.0, 0.1)], ids=["still", "moving"])
def test_beams_without_a_return_stay_so(trajectory: Trajectory | None) -> None:
    frame = frame_of([[np.nan, 0, 0], [0, 0, 0], [1, 0, 0]], [0, 0.05, 0.1])
    found = points_in_camera(frame, 0, np.eye(4), np.eye(4), trajectory)
    assert np.isnan(found).all(axis=1).tolist() == [True, True, False]
    nothing = points_in_camera(frame_of([]), 0, np.eye(4), np.eye(4), trajectory)
    assert nothing.shape == (0, 3)


@pytest.mark.parametrize("garbage_s", [np.nan, np.inf, 3e38, -3e38, 1e5])
def test_a_point_without_a_time_is_nowhere_while_the_others_are_where_they_were(garbage_s: float) -> None:
    xyz, time_s = [[3, 0, 0], [3, 1, 0], [3, 2, 0]], [0.02, garbage_s, 0.1]
    found = points_in(np.eye(4), frame_of(xyz, time_s), np.eye(4), drive(0.0, 0.1))
    alone = points_in(np.eye(4), frame_of([xyz[0], xyz[2]], [0.02, 0.1]), np.eye(4), drive(0.0, 0.1))
    assert np.isnan(found[1]).all() and (found[[0, 2]] == alone).all()


def test_points_can_be_gathered_in_the_map() -> None:
    found = points_in(np.eye(4), frame_of([[2, 0, 0]], stamp_ns=SECOND_NS), np.eye(4), drive(0.0, 1.0))
    assert found[0] == pytest.approx([1002 + 2 * np.cos(1), -500 + 2 * np.sin(1), 0], abs=1e-4)


# --- projection and visibility


def test_points_are_found_at_the_pixels_worked_out_by_hand() -> None:
    xyz = np.float32([[0, 0, 2], [1, 0, 4], [-1, 0.5, 4], [0, 0, -2], [0, 0, 0.1], [5, 0, 2], [np.nan, 0, 0]])
    seen = sighting(xyz, CAMERA, EVERYTHING)
    assert seen.row.tolist() == [0, 1, 2]
    assert seen.uv_px == pytest.approx(np.array([[320, 240], [420, 240], [220, 290]]))
    assert seen.depth_m.tolist() == [2, 4, 4]


@pytest.mark.parametrize("xyz", [np.empty((0, 3)), [[0, 0, -1], [1, 1, -5]], [[np.nan, 0, 1]], [[0, 0, 31]]])
def test_a_camera_that_shows_nothing_gives_an_empty_sighting(xyz: object) -> None:
    seen = sighting(np.asarray(xyz, np.float32), CAMERA, LiftingConfig())
    assert seen.row.shape == (0,) and seen.uv_px.shape == (0, 2) and seen.depth_m.shape == (0,)


def test_one_point_is_seen() -> None:
    assert sighting(np.float32([[0, 0, 3]]), CAMERA, LiftingConfig()).row.tolist() == [0]


@pytest.mark.parametrize(("behind_m", "shown"), [(0.04, True), (0.06, False)])
def test_a_point_behind_another_one_is_hidden_beyond_the_tolerance(behind_m: float, shown: bool) -> None:
    seen = sighting(np.float32([[0, 0, 2], [0, 0, 2 + behind_m]]), CAMERA, LiftingConfig())
    assert seen.row.tolist() == ([0, 1] if shown else [0])


def wall_of_points(z_m: float, half_m: float, step_m: float) -> np.ndarray:
    across = np.arange(-half_m, half_m + step_m / 2, step_m)
    x, y = np.meshgrid(across, across)
    return np.stack([x.ravel(), y.ravel(), np.full(x.size, z_m)], axis=1).astype(np.float32)


def test_a_board_of_sparse_points_hides_the_wall_behind_it_without_holes() -> None:
    board, wall = wall_of_points(1.5, 0.4, 0.05), wall_of_points(5.0, 3.0, 0.02)
    seen = sighting(np.concatenate([board, wall]), CAMERA, LiftingConfig()).row
    assert seen[: len(board)].tolist() == list(range(len(board)))
    off_axis = np.abs(wall[:, :2]).max(axis=1) / 5
    beside = set(np.flatnonzero(off_axis > 0.45 / 1.5)) & set(sighting(wall, CAMERA, LiftingConfig()).row)
    on_wall = set(seen[len(board) :] - len(board))
    assert beside <= on_wall and len(beside) > 1000
    assert not on_wall & set(np.flatnonzero(off_axis < 0.4 / 1.5))


def test_a_floor_seen_at_a_grazing_angle_does_not_hide_itself() -> None:
    # From 0.9 m above it up to 5 m away, depth grows by 5 m per metre sideways.
    distance, across = np.meshgrid(np.arange(1.5, 5, 0.05), np.arange(-2, 2, 0.05))
    floor = np.stack([across.ravel(), np.full(across.size, 0.9), distance.ravel()], axis=1).astype(np.float32)
    shown = CAMERA.project(floor)[1].sum()
    assert len(sighting(floor, CAMERA, LiftingConfig()).row) == shown
    assert len(sighting(floor, CAMERA, LiftingConfig(splat_slope=0.0)).row) < 0.8 * shown


def test_the_buffer_agrees_with_a_brute_force_twin() -> None:
    rng = np.random.default_rng(0)
    for points in (0, 1, 60):
        grid, growth = (23, 31), 1.02
        cell = np.stack([rng.integers(0, 31, points), rng.integers(0, 23, points)], axis=1)
        depth_m = rng.uniform(0.3, 9, points).astype(np.float32)
        radius = rng.integers(0, 5, points)
        expected = np.full(grid, np.inf)
        for (column, row), depth, reach in zip(cell, depth_m, radius):
            for v in range(max(row - reach, 0), min(row + reach + 1, grid[0])):
                for u in range(max(column - reach, 0), min(column + reach + 1, grid[1])):
                    away = max(abs(u - column), abs(v - row))
                    expected[v, u] = min(expected[v, u], depth * growth**away)
        found = nearest_depth(cell, depth_m, radius, grid, growth)
        assert found == pytest.approx(expected, rel=1e-6)  # float32, a few products


def test_visibility_agrees_with_a_brute_force_twin() -> None:
    rng = np.random.default_rng(1)
    xyz = np.stack([rng.uniform(-1, 1, 400), rng.uniform(-1, 1, 400), rng.uniform(0.5, 6, 400)], axis=1)
    xyz = xyz.astype(np.float32)
    config = LiftingConfig(splat_m=0.04, max_splat_deg=1.5, splat_slope=3.0)
    uv_px, shown = CAMERA.project(xyz)
    pixel = np.floor(uv_px + 0.5)
    visible = []
    for i in np.flatnonzero(shown):
        hidden = False
        for j in np.flatnonzero(shown):
            away = np.abs(pixel[i] - pixel[j]).max()
            reach = np.floor(400 * min(0.04 / xyz[j, 2], np.radians(1.5)))
            hidden |= away <= reach and xyz[i, 2] > xyz[j, 2] * (1 + 3 / 400) ** away + 0.05
        if not hidden:
            visible.append(i)
    assert 50 < len(visible) < 0.9 * shown.sum()
    assert sighting(xyz, CAMERA, config).row.tolist() == visible


def test_a_fisheye_sees_beside_itself_and_measures_depth_as_distance() -> None:
    fisheye = FisheyeCamera(
        width=800, height=800, matrix=np.array([[200.0, 0, 400], [0, 200, 400], [0, 0, 1]]), distortion=np.zeros(4)
    )
    beside = np.float32([[2, 0, -0.1], [2.5, 0, -0.125], [0, 0, 1]])
    seen = sighting(beside, fisheye, LiftingConfig())
    assert seen.row.tolist() == [0, 2]
    assert seen.depth_m == pytest.approx([np.hypot(2, 0.1), 1])
    assert seen.uv_px[0] == pytest.approx([400 + 200 * (np.pi / 2 + np.arctan(0.05)), 400])


def test_a_large_image_has_the_same_visibility_as_a_small_one() -> None:
    matrix = np.diag([4.0, 4.0, 1.0]) @ CAMERA.matrix
    large = PinholeCamera(width=2560, height=1920, matrix=matrix, distortion=np.zeros(5))
    board, wall = wall_of_points(1.5, 0.4, 0.05), wall_of_points(5.0, 1.0, 0.02)
    seen = sighting(np.concatenate([board, wall]), large, LiftingConfig())
    assert seen.row.tolist() == list(range(len(board)))


def test_depths_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(UserError, match="min_depth_m"):
        LiftingConfig(min_depth_m=3, max_depth_m=2)
