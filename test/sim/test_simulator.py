from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

pytest.importorskip("embreex", reason="the simulator's ray caster is not installed (extra [sim])")

from lidar_semseg_ros.core.camera import PinholeCamera
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED
from lidar_semseg_ros.core.geometry import OPTICAL_FROM_BODY, invert_rigid, rigid, transform_points
from lidar_semseg_ros.sim.building import Building, make_building
from lidar_semseg_ros.sim.drive import SimConfig, _Track, drive, place_on_furniture, random_views
from lidar_semseg_ros.sim.sensors import LIDARS, Scene, beams, lidar_named, render, scan
from lidar_semseg_ros.sim.shapes import Mesh, Surface

POSE = rigid(np.eye(3), np.array([0.0, 0.0, 1.0]))


def boxes(*items: tuple[int, tuple[float, ...], tuple[float, ...], bool]) -> Building:
    """A world of boxes: (class, centre, size, glass)."""
    mesh = Mesh()
    for class_id, center, size, glass in items:
        mesh.box(Surface(class_id=class_id, color=(200, 200, 200), reflectivity=0.8, glass=glass), center, size)
    counts = [len(triangles) for triangles in mesh.triangles]
    return Building(
        triangles=np.concatenate(mesh.triangles).astype(np.float32),
        class_id=np.repeat([s.class_id for s in mesh.surfaces], counts).astype(np.uint8),
        color=np.repeat([s.color for s in mesh.surfaces], counts, axis=0).astype(np.uint8),
        reflectivity=np.repeat([s.reflectivity for s in mesh.surfaces], counts).astype(np.float32),
        glass=np.repeat([s.glass for s in mesh.surfaces], counts),
        waypoints=np.zeros((2, 2), np.float32),
    )


def test_ranges_and_occlusion_in_a_world_of_boxes_are_those_computed_by_hand() -> None:
    wall, chair = (0, (5.5, 0, 1), (1, 20, 6), False), (8, (3, 0, 1), (0.5, 0.5, 6), False)
    scene = Scene(boxes(wall, chair))
    directions = np.array([[1, 0, 0], [np.cos(0.3), np.sin(0.3), 0], [-1, 0, 0]])
    range_m, triangle = scene.hit(np.tile([0.0, 0, 1], (3, 1)), directions)
    assert range_m == pytest.approx([2.75, 5 / np.cos(0.3), np.inf], abs=1e-4)
    assert scene.building.class_id[triangle[:2]].tolist() == [8, 0] and triangle[2] == -1


def test_most_beams_pass_glass_and_its_returns_have_no_class() -> None:
    window, wall = (UNLABELLED, (2, 0, 1), (0.02, 20, 20), True), (0, (6, 0, 1), (1, 40, 40), False)
    frame, labels = scan(
        Scene(boxes(window, wall)), LIDARS["OS1-64"], POSE, POSE, 0, "lidar", 0, np.random.default_rng(0)
    )
    range_m = np.linalg.norm(frame.xyz, axis=1)
    assert np.isin(labels, [0, UNLABELLED]).all()
    assert (range_m[labels == 0] > 5).all()
    at_pane = frame.has_return() & (labels == UNLABELLED)
    assert 0 < at_pane.sum() < 0.2 * (labels == 0).sum()


@pytest.mark.parametrize(
    ("name", "rows", "seen", "height_m"),
    [("VLP-16", 16 * 1800, 1, -0.5), ("OS1-64", 64 * 1024, 1, -0.5), ("Mid-360", 20000, 2, 3.5)],
)
def test_a_sweep_has_one_row_per_beam_and_noise_of_the_data_sheet(
    name: str, rows: int, seen: int, height_m: float
) -> None:
    lidar = LIDARS[name]
    room = [
        (0, (x * 4, y * 4, 1), (1 if x else 9, 1 if y else 9, 8), False) for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1))
    ]
    scene = Scene(boxes(*room, (2, (0, 0, 5), (9, 9, 1), False), (1, (0, 0, 0), (9, 9, 1), False)))
    frame, labels = scan(scene, lidar, POSE, POSE, 7, "lidar", 0, np.random.default_rng(0))
    assert len(frame) == rows and frame.shape[0] * frame.shape[1] == rows and frame.stamp_ns == 7
    flat = labels == seen
    assert flat.sum() > 500
    directions = beams(lidar, 0)[0]
    exact_m = height_m / directions[flat, 2]
    error_m = np.linalg.norm(frame.xyz[flat], axis=1) - exact_m
    assert abs(error_m.mean()) < 0.1 * lidar.range_noise_m
    assert error_m.std() == pytest.approx(lidar.range_noise_m, rel=0.1)
    assert (labels[~frame.has_return()] == UNLABELLED).all()


def test_points_are_measured_from_where_the_sensor_is_at_their_own_time() -> None:
    scene = Scene(boxes((0, (10.5, 0, 1), (1, 60, 60), False), (3, (-10.5, 0, 1), (1, 60, 60), False)))
    lidar = LIDARS["XT-32"]
    ahead = rigid(np.eye(3), np.array([1.0, 0.0, 1.0]))
    frame, labels = scan(scene, lidar, POSE, ahead, 0, "lidar", 0, np.random.default_rng(0))
    moved_m = frame.time_s / lidar.period_s
    # Within one of the 64 steps in which the pose is interpolated, and the noise.
    assert np.abs(frame.xyz[labels == 0, 0] - (10 - moved_m[labels == 0])).max() < 1 / 64 + 6 * lidar.range_noise_m
    assert np.abs(frame.xyz[labels == 3, 0] - (-10 - moved_m[labels == 3])).max() < 1 / 64 + 6 * lidar.range_noise_m


def test_the_livox_pattern_differs_from_sweep_to_sweep_and_stays_in_its_field_of_view() -> None:
    first, second = (beams(LIDARS["Mid-360"], index)[0] for index in (0, 1))
    elevation_deg = np.degrees(np.arcsin(first[:, 2]))
    assert elevation_deg.min() == pytest.approx(-7, abs=0.1) and elevation_deg.max() == pytest.approx(52, abs=0.1)
    cells = [set(map(tuple, np.round(directions, 2))) for directions in (first, second)]
    assert len(cells[0] & cells[1]) < 0.7 * len(cells[0])


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_building() -> None:
    config = SimConfig(lidar="VLP-16", frames=3, seed=4)
    one, two = list(drive(config)), list(drive(config))
    for a, b in zip(one, two):
        assert a.frame.xyz.tobytes() == b.frame.xyz.tobytes() and a.labels.tobytes() == b.labels.tobytes()
        assert a.images[0][1].pixels.tobytes() == b.images[0][1].pixels.tobytes()
    other = next(drive(SimConfig(lidar="VLP-16", frames=1, seed=5)))
    assert other.frame.xyz.tobytes() != one[0].frame.xyz.tobytes()


def test_floor_points_lie_on_the_floor_of_the_map_frame() -> None:
    for simulated in drive(SimConfig(lidar="OS1-64", frames=3, cameras=0, seed=1, speed_mps=0.0)):
        on_floor = simulated.frame.xyz[simulated.labels == 1].astype(np.float64)
        assert len(on_floor) > 1000
        height_m = transform_points(simulated.map_from_base @ simulated.base_from_lidar, on_floor)[:, 2]
        assert np.abs(height_m).max() < 6 * LIDARS["OS1-64"].range_noise_m


def test_all_classes_occur_and_no_one_stands_in_the_robots_way() -> None:
    seen = set()
    for seed in range(12):
        building = make_building(np.random.default_rng(seed))
        seen |= set(building.class_id.tolist())
        scene, way = Scene(building), building.waypoints.astype(np.float64)
        legs = np.diff(way, axis=0)
        lengths = np.linalg.norm(legs, axis=1)
        for start, leg, length in zip(way[:-1], legs, lengths):
            if length > 0.1:
                for height_m in (0.2, 0.8, 1.4):
                    range_m, _ = scene.hit(np.array([[*start, height_m]]), np.array([[*(leg / length), 0.0]]))
                    assert range_m[0] > length, f"seed {seed}: blocked between {start} and {start + leg}"
    assert set(range(17)) <= seen


def test_camera_and_lidar_see_the_same_classes() -> None:
    agreeing = counted = 0
    for seed in range(3):
        building = make_building(np.random.default_rng(seed))
        place = (building.waypoints[0] + building.waypoints[1]) / 2
        map_from_base = rigid(np.eye(3), np.array([*place, 1.0]))
        camera = PinholeCamera(
            width=640,
            height=480,
            matrix=np.array([[380.0, 0, 319.5], [0, 380.0, 239.5], [0, 0, 1]]),
            distortion=np.array([-0.08, 0.02, 0.0005, -0.0003, 0.0]),
        )
        base_from_camera = rigid(OPTICAL_FROM_BODY.T, np.zeros(3))
        scene, rng = Scene(building), np.random.default_rng(0)
        frame, labels = scan(scene, LIDARS["OS1-64"], map_from_base, map_from_base, 0, "", 0, rng)
        _, classes = render(scene, camera, map_from_base @ base_from_camera, rng)
        uv_px, shown = camera.project(transform_points(invert_rigid(base_from_camera), frame.xyz.astype(np.float64)))
        shown &= labels != UNLABELLED
        column, row = np.rint(uv_px[shown]).astype(int).T
        agreeing += (classes[row, column] == labels[shown]).sum()
        counted += shown.sum()
    # Both look from one place, so only rounding to whole pixels at edges tells them apart.
    assert counted > 5000 and agreeing / counted > 0.97


def test_a_lidar_may_be_given_by_its_resolution_and_others_are_refused() -> None:
    assert next(random_views(np.random.default_rng(0), "8x64"))[0].shape == (8, 64)
    with pytest.raises(UserError, match=r"a simulated lidar is VLP-16, .*; got 'VLP-32'"):
        lidar_named("VLP-32")


def test_random_views_come_from_every_lidar_and_are_endless() -> None:
    shapes = {frame.shape for frame, _ in islice(random_views(np.random.default_rng(0)), 24)}
    assert len(shapes) == len(LIDARS)
    assert all(
        len(frame) == len(labels) for frame, labels in islice(random_views(np.random.default_rng(1), "VLP-16"), 9)
    )


def test_a_lidar_on_furniture_stands_closely_above_a_free_table_top() -> None:
    table, roofed = (7, (2, 0, 0.7), (1.0, 0.6, 0.05), False), (7, (-4, 0, 0.7), (1.0, 0.6, 0.05), False)
    roof, wall = (9, (-4, 0, 1.1), (1.2, 0.8, 0.05), False), (0, (0, 5, 1), (20, 0.1, 2), False)
    rng = np.random.default_rng(0)
    scene = Scene(boxes(table, roofed, roof, wall))
    places = np.array([place for _ in range(50) if (place := place_on_furniture(scene, rng)) is not None])
    on_table = np.abs(places[:, 0] - 2) < 0.5
    assert on_table.any() and (places[on_table, 2] > 0.725).all() and (places[on_table, 2] < 0.725 + 0.36).all()
    assert (places[~on_table, 2] > 1.125).all(), "not between a board and the one above it"
    assert place_on_furniture(Scene(boxes(wall)), rng) is None


def test_class_ids_of_the_simulator_are_those_of_indoor17() -> None:
    from lidar_semseg_ros.formats.config_files import class_table
    from lidar_semseg_ros.sim import furniture

    constants = {"CABINET": "cabinet_shelf"}
    for class_id, name in enumerate(class_table("indoor17").names):
        constant = next((key for key, said in constants.items() if said == name), name.upper())
        assert getattr(furniture, constant) == class_id


def test_the_robot_drives_there_and_back_looks_ahead_and_never_jumps() -> None:
    track = _Track(make_building(np.random.default_rng(2)))
    poses = np.stack([track.pose(distance_m) for distance_m in np.arange(0, 2.2 * track.length_m, 0.02)])
    moved_m = np.linalg.norm(np.diff(poses[:, :2, 3], axis=0), axis=1)
    assert moved_m.max() < 0.021
    turned_deg = np.degrees(np.arccos(np.clip(np.einsum("ni,ni->n", poses[1:, :3, 0], poses[:-1, :3, 0]), -1, 1)))
    assert turned_deg.max() < 8, "a half turn takes its time"
    ahead = np.einsum("ni,ni->n", np.diff(poses[:, :2, 3], axis=0), poses[1:, :2, 0]) / np.maximum(moved_m, 1e-9)
    assert np.mean(ahead > 0.9) > 0.75
    there, back = track.pose(3.0), track.pose(2 * track.length_m - 3.0)
    assert np.allclose(there[:3, 3], back[:3, 3], atol=1e-3)
    assert np.allclose(track.pose(2 * track.length_m + 1.0), track.pose(1.0), atol=1e-3)
