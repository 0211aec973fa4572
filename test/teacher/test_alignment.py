"""Calibrations that are right, and others that are wrong by a known turn or shift."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from lidar_semseg_ros.core.camera import PinholeCamera
from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.core.geometry import OPTICAL_FROM_BODY, invert_rigid, rigid, rotation_from_rpy, transform_points
from lidar_semseg_ros.teacher.alignment import (
    Alignment,
    EdgeView,
    alignment,
    depth_jumps,
    edge_view,
    image_evidence,
    response,
)

CAMERA = PinholeCamera(
    width=640,
    height=480,
    matrix=np.array([[380.0, 0, 319.5], [0, 380.0, 239.5], [0, 0, 1]]),
    distortion=np.array([-0.08, 0.02, 0.0005, -0.0003, 0.0]),
)
CAMERA_FROM_LIDAR = invert_rigid(rigid(OPTICAL_FROM_BODY.T, np.array([0.12, 0.03, -0.1])))
PLACES = 4


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@cache
def moments(lidar: str, seed: int) -> list[tuple[LidarFrame, np.ndarray]]:
    """Sweeps and images of a robot that stands in some places of a building."""
    pytest.importorskip("embreex", reason="the simulator's ray caster is not installed (extra [sim])")
    from lidar_semseg_ros.sim.building import make_building
    from lidar_semseg_ros.sim.sensors import LIDARS, Scene, render, scan

    chance = np.random.default_rng(seed)
    building = make_building(chance)
    scene, made = Scene(building), []
    for index in range(PLACES):
        leg = chance.integers(len(building.waypoints) - 1)
        start, end = building.waypoints[leg : leg + 2]
        place = np.array([*(start + chance.random() * (end - start)), 0.9])
        pose = rigid(rotation_from_rpy(0, 0, chance.uniform(-np.pi, np.pi)), place)
        frame, _ = scan(scene, LIDARS[lidar], pose, pose, index, "lidar", index, chance)
        pixels, _ = render(scene, CAMERA, pose @ invert_rigid(CAMERA_FROM_LIDAR), chance)
        made.append((frame, pixels))
    return made


def views(lidar: str, seed: int, wrong: np.ndarray | None = None) -> list[EdgeView]:
    """Look at the edges with a calibration that turns and shifts the points, as the camera has them, wrongly."""
    camera_from_lidar = CAMERA_FROM_LIDAR if wrong is None else wrong @ CAMERA_FROM_LIDAR
    return [
        edge_view(pixels, CAMERA, frame, in_camera(frame, camera_from_lidar), camera_from_lidar[:3, 3])
        for frame, pixels in moments(lidar, seed)
    ]


@cache
def response_of_the_right_one(seed: int) -> float:
    return response(views("OS1-64", seed), np.eye(4))


def in_camera(frame: LidarFrame, camera_from_lidar: np.ndarray) -> np.ndarray:
    return transform_points(camera_from_lidar, np.where(frame.has_return()[:, None], frame.xyz, np.float32(np.nan)))


def turned(x_deg: float, y_deg: float, z_deg: float) -> np.ndarray:
    return rigid(rotation_from_rpy(*np.radians([x_deg, y_deg, z_deg])), np.zeros(3))


@pytest.mark.parametrize("lidar", ["OS1-64", "VLP-16"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_right_calibration_fits_better_than_wrong_ones_and_than_any_turn(lidar: str, seed: int) -> None:
    found = alignment(views(lidar, seed), rng())
    assert found.verdict == "good"
    assert found.percentile >= 97 and found.off_by_deg < 0.6


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("turn_deg", [(2, 0, 0), (0, 2, 0), (0, -2, 0)], ids=str)
def test_a_turn_by_2_degrees_is_found_with_its_axis_and_direction(
    seed: int, turn_deg: tuple[float, float, float]
) -> None:
    wrong = views("OS1-64", seed, turned(*turn_deg))
    assert response(wrong, np.eye(4)) < 0.7 * response_of_the_right_one(seed)
    found = alignment(wrong, rng())
    assert found.verdict == "wrong"
    assert found.turn_deg[:2] == pytest.approx(-np.array(turn_deg[:2]), abs=0.6)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("shift_m", [(0.1, 0, 0), (-0.1, 0, 0), (0, 0.1, 0)], ids=str)
def test_a_shift_by_10_centimetres_fits_worse(seed: int, shift_m: tuple[float, float, float]) -> None:
    shifted = views("OS1-64", seed, rigid(np.eye(3), np.array(shift_m)))
    assert response(shifted, np.eye(4)) < 0.85 * response_of_the_right_one(seed)


def test_a_sweep_that_sees_nothing_but_a_wall_tells_nothing() -> None:
    y, z = np.meshgrid(np.linspace(-3, 3, 200), np.linspace(-1, 1, 16))
    xyz = np.stack([np.full(y.size, 4.0), y.ravel(), z.ravel()], axis=1).astype(np.float32)
    wall = LidarFrame(stamp_ns=0, frame_id="lidar", xyz=xyz, ring=np.repeat(np.arange(16), 200).astype(np.uint16))
    blank = np.full((480, 640, 3), 90, np.uint8)
    view = edge_view(blank, CAMERA, wall, in_camera(wall, CAMERA_FROM_LIDAR), CAMERA_FROM_LIDAR[:3, 3])
    found = alignment([view], rng())
    assert found.edges == 0 and found.verdict == "unclear"


def sweep_with_a_post(points: int, ring: int | None = None) -> LidarFrame:
    """One beam, a step of 0.5° from point to point: a wall at 5 m, and a post at 2 m at points 8 to 11."""
    angle = np.radians(0.5) * np.arange(points)
    range_m = np.where((np.arange(points) >= 8) & (np.arange(points) < 12), 2.0, 5.0)
    xyz = np.stack([range_m * np.cos(angle), range_m * np.sin(angle), np.zeros(points)], axis=1).astype(np.float32)
    rings = None if ring is None else np.full(points, ring, np.uint16)
    return LidarFrame(stamp_ns=0, frame_id="lidar", xyz=xyz, ring=rings)


@pytest.mark.parametrize("ring", [None, 5])
def test_a_post_in_front_of_a_wall_has_an_edge_on_either_side(ring: int | None) -> None:
    front, behind = depth_jumps(sweep_with_a_post(20, ring))
    assert sorted(zip(front.tolist(), behind.tolist())) == [(8, 7), (11, 12)]


def test_beams_in_another_order_than_they_were_measured_have_the_same_edges() -> None:
    post = sweep_with_a_post(40)
    order = np.argsort(np.arange(40) * 17 % 40)  # neighbours are now far apart
    shuffled = LidarFrame(stamp_ns=0, frame_id="lidar", xyz=post.xyz[order])
    front, behind = depth_jumps(shuffled)
    assert sorted(zip(order[front].tolist(), order[behind].tolist())) == [(8, 7), (11, 12)]


def test_a_floor_seen_at_a_grazing_angle_has_no_edges() -> None:
    down_deg = np.repeat(np.arange(1.0, 20.0, 0.5), 90)
    azimuth = np.radians(np.tile(np.arange(90) * 0.5, 38))
    range_m = 1.0 / np.sin(np.radians(down_deg))
    flat = range_m * np.cos(np.radians(down_deg))
    xyz = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.full(len(flat), -1.0)], axis=1)
    ring = np.repeat(np.arange(38), 90).astype(np.uint16)
    frame = LidarFrame(stamp_ns=0, frame_id="lidar", xyz=xyz.astype(np.float32), ring=ring)
    assert len(depth_jumps(frame)[0]) == 0


def test_rows_without_return_are_no_edges_and_an_empty_sweep_has_none() -> None:
    post = sweep_with_a_post(20)
    xyz = post.xyz.copy()
    xyz[8:12] = np.nan
    assert len(depth_jumps(LidarFrame(stamp_ns=0, frame_id="lidar", xyz=xyz))[0]) == 0
    xyz[:] = 0
    assert len(depth_jumps(LidarFrame(stamp_ns=0, frame_id="lidar", xyz=xyz, ring=np.zeros(20, np.uint16)))[0]) == 0


def test_a_single_return_is_no_edge() -> None:
    xyz = np.zeros((20, 3), np.float32)
    xyz[7] = [3, 1, 0]
    for kept in (slice(None), slice(7, 8)):
        frame = LidarFrame(stamp_ns=0, frame_id="lidar", xyz=xyz[kept], ring=np.arange(20, dtype=np.uint16)[kept])
        assert len(depth_jumps(frame)[0]) == 0


def test_an_upright_edge_is_evidence_for_jumps_to_the_side_and_fades_with_distance() -> None:
    pixels = np.zeros((480, 640, 3), np.uint8)
    pixels[:, 300:] = 200
    sideways, downwards = image_evidence(pixels, CAMERA)
    row = sideways[240]
    assert row[299] == row.max() and row[299] > row[302] > row[306] > row[315]
    assert not downwards.any()


def test_wrong_calibrations_are_the_same_each_time() -> None:
    seen: list[Alignment] = [alignment(views("VLP-16", 1), rng()) for _ in range(2)]
    assert seen[0].percentile == seen[1].percentile and np.array_equal(seen[0].turn_deg, seen[1].turn_deg)
